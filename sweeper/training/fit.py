"""One training run of one configuration: stage by stage, by transformers' Trainer or on recorded features."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.modules.batchnorm import _BatchNorm

from strategies import Layout, NotApplicable, Stage, Strategy, enter_stage, prefix_modules, trainable_names
from strategies.base import prefix_names
from sweeper.data.encoding import EncodedSplit, Encoder
from sweeper.hashing import derive_seed
from sweeper.training.batches import ShuffledBatches
from sweeper.training.boundary_cache import Attached, BoundaryCache
from sweeper.training.checkpoints import Checkpoints
from sweeper.training.dropout import PooledDropout
from sweeper.training.head import train_head
from sweeper.training.memory import keep_memory, peak_memory_mb, reset_peak_memory
from sweeper.training.micro_batches import Halving
from sweeper.training.precision import autocast, device, frozen_weights_cast
from sweeper.training.read_positions import Known, only_read_positions
from sweeper.training.recorder import EpochRecord, EpochRecorder
from sweeper.training.replicas import ALONE, OwnPart, Replicas
from sweeper.training.seeds import generator_states, set_generator_states, set_seed

__all__ = [
    "FitResult",
    "TrainerSettings",
    "TrainingData",
    "fit",
    "predict",
    "stage_epochs",
]


@dataclass(frozen=True)
class TrainerSettings:
    """What stays the same over the trials of a study; the keys of ``TrainerConfig`` in ``sweeper/config.py``."""

    epochs: int
    batch_size: int
    weight_decay: float
    warmup_ratio: float
    max_grad_norm: float
    precision: str
    gradient_accumulation_steps: int
    length_grouping: bool
    class_weights: str
    early_stopping_patience: int
    early_stopping_metric: str
    metric: str
    maximize: bool


@dataclass(frozen=True, eq=False)
class TrainingData:
    """What a run trains and is scored on, how its batches are made, and what is known of it already.

    ``read_positions`` is what :func:`~sweeper.training.read_positions.only_read_positions` found.
    """

    train: EncodedSplit
    validation: EncodedSplit
    encoder: Encoder
    cache: BoundaryCache | None = None
    read_positions: Known = field(default_factory=dict)


@dataclass
class FitResult:
    """What a run did; the model it trained carries the weights of ``best``.

    ``train_seconds`` are those of the whole run; ``resumed_seconds`` of them an earlier process spent, up to the
    checkpoint from which this one went on.
    """

    best: EpochRecord
    history: list[EpochRecord]
    train_seconds: float
    peak_memory_mb: float
    resumed_seconds: float = 0.0
    recorded_seconds: float = 0.0  # what recording the states that were read took, whenever that was


def fit(
    model: nn.Module,
    layout: Layout,
    strategy: Strategy,
    *,
    data: TrainingData,
    settings: TrainerSettings,
    learning_rate: float,
    seed: int,
    micro_batch_size: int,
    class_weights: torch.Tensor | None = None,
    on_epoch: Callable[[EpochRecord], None],
    on_step: Callable[[], None],
    checkpoints: Checkpoints | None = None,
    processes: Replicas = ALONE,
) -> FitResult:
    """Train what ``strategy`` left trainable in a prepared model, stage by stage.

    Each stage has an optimiser, a warm-up and a linear decay of its own; early stopping ends the stage. After each
    epoch the validation split is scored and ``on_epoch`` called; the epoch with the best ``settings.metric`` of all
    stages is kept. Blocks below the boundary run in eval mode, so that what they compute for an example never changes,
    and so do batch norms whose scale does not train.

    Args:
        model: prepared by ``strategy.prepare``.
        layout: the model's parts.
        strategy: groups the parameters.
        data: what to train and to score on.
        settings: shared by all runs of a study.
        learning_rate: the backbone's peak rate.
        seed: of the order of the data and of dropout.
        micro_batch_size: examples of a batch that go through the model at once; the batch stays what it is.
        class_weights: of each class in the loss, shape (classes,); ``None`` = all 1.
        on_epoch: may raise to end the run (pruning).
        on_step: called between steps; may raise to end the run (interruption).
        checkpoints: from whose newest the run goes on, to the weights and the epochs that it would have come to
            without the interruption; earlier epochs are reported again. One is written when it is due: after a step of
            the Trainer or before a stage, and at the end of a run that lasted long enough for any.
        processes: that train the run together, each of them here. The first one scores, keeps checkpoints and restores
            the best epoch; in the others the model is left anyhow.

    Raises:
        Diverged: a loss is not finite.
        NotApplicable: fewer epochs than the strategy has stages.
    """
    set_seed(seed)
    model.to(device())
    trained = frozenset(trainable_names(model))
    recorder = EpochRecorder(model, settings, len(data.train), trained, on_epoch, on_step)
    stages = strategy.stages(layout)
    order = torch.Generator().manual_seed(seed)
    started = time.perf_counter()
    keep_memory()
    recorded_seconds = resumed_seconds = resumed_peak = 0.0
    number = first = 0
    if checkpoints is not None:
        checkpoints = checkpoints.holding(
            recorder=recorder.state,
            seconds=lambda: resumed_seconds + time.perf_counter() - started,
            peak_memory_mb=lambda: max(resumed_peak, peak_memory_mb()),
            stage=lambda: number,
        )
    saved = processes.of_first(lambda: None if checkpoints is None else checkpoints.load())
    if saved is not None:
        recorder.restore(saved.pop("recorder"))  # twice the weights
        order.set_state(saved["order"])
        set_generator_states(saved["generators"])
        resumed_seconds, resumed_peak, first = saved["seconds"], saved["peak_memory_mb"], saved["stage"]
    reset_peak_memory()
    for number, (stage, epochs) in enumerate(zip(stages, stage_epochs(stages, settings.epochs), strict=True)):
        if number < first:
            continue
        if checkpoints is not None and number > first and checkpoints.due():
            checkpoints.save(order=order.get_state(), generators=generator_states(), training=None)
        within = saved if saved is not None and saved["training"] is not None and number == first else None
        enter_stage(model, stage, trained)
        # Batch norms that trained have measured parts of their own in each process.
        processes.same([*(tensor for name, tensor in model.named_parameters() if name in trained), *model.buffers()])
        rate = learning_rate * stage.learning_rate_factor
        run = _Stage(
            epochs=epochs,
            rate=rate,
            groups=strategy.param_groups(model, layout, rate, settings.weight_decay),
            sampler=ShuffledBatches(
                settings.batch_size * settings.gradient_accumulation_steps,
                lengths=data.train.lengths.tolist() if settings.length_grouping else [1] * len(data.train),
                generator=order,
            ),
            # The seeds go on where a single stage's would: epoch k has the same order in every strategy.
            seed=seed + len(recorder.history),
            class_weights=None if class_weights is None else class_weights.to(device()),
            micro_batch_size=micro_batch_size,
        )
        still = [*prefix_modules(model, layout), *_frozen_batch_norms(model)]
        before = len(recorder.history)
        with _attached(data, model, on_step) as attached:
            features: list[tuple[torch.Tensor, torch.Tensor]] = []
            # Several processes keep in step by the Trainer's steps.
            if attached is not None and within is None and processes.size == 1 and not data.encoder.augments:
                features = attached.features(data.train, data.validation)
            if attached is not None and features:
                _train_on_features(attached.head, features, run, settings, recorder)
            else:
                with _in_eval_mode(model, still):
                    _train_with_trainer(
                        model,
                        layout,
                        data,
                        attached,
                        run,
                        settings,
                        recorder,
                        seed=seed,
                        trained=trained,
                        checkpoints=checkpoints,
                        resumed=within,
                        processes=processes,
                    )
            if attached is not None:
                attached.ran(len(recorder.history) - before)
                recorded_seconds = max(recorded_seconds, attached.recorded_seconds)  # one pass records all cuts
    number = len(stages)
    if checkpoints is not None and number > first and checkpoints.due_at_end():
        checkpoints.save(order=order.get_state(), generators=generator_states(), training=None)
    enter_stage(model, Stage(), trained)
    recorder.restore_best()
    return FitResult(
        best=recorder.best,
        history=recorder.history,
        train_seconds=resumed_seconds + time.perf_counter() - started,
        peak_memory_mb=max(resumed_peak, peak_memory_mb()),
        resumed_seconds=resumed_seconds,
        recorded_seconds=recorded_seconds,
    )


@dataclass(frozen=True, eq=False)
class _Stage:
    """One stage of one run: what it trains, for how long, and in which order."""

    epochs: int
    rate: float
    groups: list[dict[str, Any]]
    sampler: ShuffledBatches
    seed: int
    class_weights: torch.Tensor | None
    micro_batch_size: int

    def loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        weights = None if self.class_weights is None else self.class_weights.to(logits.device)
        return cross_entropy(logits.float(), labels, weight=weights)

    def weights(self, labels: torch.Tensor) -> torch.Tensor:
        """What each label weighs in the mean of a batch, shape (rows,)."""
        if self.class_weights is None:
            return torch.ones(len(labels), device=labels.device)
        return self.class_weights.to(labels.device)[labels]

    def weight(self, labels: torch.Tensor) -> torch.Tensor:
        """What they weigh together."""
        return self.weights(labels).sum()


def _train_on_features(
    head: nn.Module,
    features: Sequence[tuple[torch.Tensor, torch.Tensor]],
    run: _Stage,
    settings: TrainerSettings,
    recorder: EpochRecorder,
) -> None:
    """Train the head alone, on what is recorded of the rest."""
    with _one_thread():
        train_head(
            head,
            run.groups,
            epochs=run.epochs,
            batch_size=settings.batch_size,
            accumulation=settings.gradient_accumulation_steps,
            warmup_ratio=settings.warmup_ratio,
            max_grad_norm=settings.max_grad_norm,
            train=features[0],
            validation=features[1],
            order=run.sampler,
            loss=run.loss,
            recorder=recorder,
        )


def _train_with_trainer(
    model: nn.Module,
    layout: Layout,
    data: TrainingData,
    attached: Attached | None,
    run: _Stage,
    settings: TrainerSettings,
    recorder: EpochRecorder,
    *,
    seed: int,
    trained: Collection[str],
    checkpoints: Checkpoints | None,
    resumed: Mapping[str, Any] | None,
    processes: Replicas,
) -> None:
    """Train whatever is trainable, on recorded states where there are any, from where a checkpoint was written."""
    from sweeper.training.trainer import StageTrainer, training_arguments  # takes seconds

    visits = np.zeros(len(data.train), dtype=np.int64) if resumed is None else _seen(run.sampler, resumed)
    train = inputs = data.encoder.training(data.train, seed, visits)
    validation: Sequence[Mapping[str, Any]] = data.validation.examples
    if attached is not None:
        validation = attached.examples(data.validation) or validation
        if not data.encoder.augments:
            train = attached.examples(data.train) or train
    recorded = train is not inputs and validation is not data.validation.examples
    collate = data.encoder.collate if attached is None else attached.collate
    own_part = None
    if processes.size > 1:
        labels = torch.tensor([example["labels"] for example in data.train.shells or data.train.examples])
        own_part = OwnPart(processes, train, run.weights(labels), visits, collate)
    trainer = StageTrainer(
        groups=run.groups,
        sampler=run.sampler,
        checkpoints=checkpoints,
        resumed=resumed,
        recorder=recorder,
        loss=None if run.class_weights is None else run.loss,
        weigh=run.weight,
        micro_batch_size=run.micro_batch_size,
        processes=processes,
        own_part=own_part,
        model=model,
        args=training_arguments(
            epochs=run.epochs,
            batch_size=settings.batch_size,
            learning_rate=run.rate,
            warmup_ratio=settings.warmup_ratio,
            weight_decay=settings.weight_decay,
            precision=settings.precision,
            # Of dropout: no two processes draw the same masks.
            seed=derive_seed(run.seed, "process", processes.rank) if processes.rank else run.seed,
            per_device_eval_batch_size=data.encoder.evaluation_batch_size,
            gradient_accumulation_steps=settings.gradient_accumulation_steps,
            max_grad_norm=settings.max_grad_norm,
            eval_strategy="epoch",
            remove_unused_columns=False,  # an encoder gives what the model takes
        ),
        train_dataset=train,
        eval_dataset=validation,
        data_collator=collate,
    )
    dropout = PooledDropout() if device().type == "cpu" else contextlib.nullcontext()
    lean: AbstractContextManager[Any] = contextlib.nullcontext()
    if not (recorded and layout.blocks[-1] in prefix_names(model, layout)):  # else the last block never runs
        lean = only_read_positions(model, layout, data.encoder, data.validation, data.read_positions)
    with lean, dropout, frozen_weights_cast(model, settings.precision, trained):
        trainer.start()


def _seen(sampler: ShuffledBatches, resumed: Mapping[str, Any]) -> np.ndarray:
    """How often a stage trained on each example before its checkpoint, shape (rows,)."""
    epochs, steps = divmod(resumed["training"]["step"], resumed["training"]["steps_of_an_epoch"])
    state = sampler.generator.get_state()
    seen = np.full(len(sampler), epochs)
    seen[list(sampler)[: steps * sampler.batch_size]] += 1
    sampler.generator.set_state(state)
    return seen


def predict(
    model: nn.Module, split: EncodedSplit, data: TrainingData, precision: str, on_step: Callable[[], None]
) -> np.ndarray:
    """Logits of a trained model for each example of a split, in the split's order: float32, (examples, classes).

    Args:
        model: in any mode; it is left in eval mode.
        split: not necessarily one of the data's.
        data: says how batches are made, and what is recorded already.
        precision: see :class:`TrainerSettings`.
        on_step: called between batches; may raise to end it (interruption).
    """
    keep_memory()
    model.to(device()).eval()
    parts = []
    with _attached(data, model, on_step) as attached, torch.no_grad():
        examples: Sequence[Mapping[str, Any]] | None = None if attached is None else attached.examples(split)
        collate = data.encoder.collate if attached is None else attached.collate
        examples = split.examples if examples is None else examples

        def logits_of(rows: Sequence[int]) -> np.ndarray:
            batch = collate([examples[row] for row in rows])
            inputs = {name: value.to(device()) for name, value in batch.items() if name != "labels"}
            with autocast(precision):
                return model(**inputs).logits.float().cpu().numpy()

        for _, found in Halving(data.encoder.evaluation_batch_size).over(range(len(split)), logits_of):
            parts.append(found)
            on_step()
        if attached is not None:
            attached.ran(1)
    logits = np.concatenate(parts)
    ordered = np.empty_like(logits)
    ordered[split.order] = logits
    return ordered


@contextmanager
def _one_thread() -> Iterator[None]:
    """Steps of microseconds: threads that wait for each other would take most of the time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def _attached(data: TrainingData, model: nn.Module, on_step: Callable[[], None]) -> Iterator[Attached | None]:
    if data.cache is None:
        yield None
        return
    with data.cache.attached(model, data.validation, on_step) as attached:
        yield attached


def stage_epochs(stages: Sequence[Stage], epochs: int) -> list[int]:
    """Divide whole epochs by the stages' shares (largest remainders), at least one each.

    Raises:
        NotApplicable: there are fewer epochs than stages.
    """
    if epochs < len(stages):
        raise NotApplicable(f"trainer.epochs={epochs}: must be at least {len(stages)}, one for each stage")
    total = sum(stage.share for stage in stages)
    exact = [stage.share / total * epochs for stage in stages]
    whole = [max(1, int(value)) for value in exact]
    while sum(whole) != epochs:
        step = 1 if sum(whole) < epochs else -1
        movable = [index for index in range(len(stages)) if whole[index] + step >= 1]
        whole[max(movable, key=lambda index: step * (exact[index] - whole[index]))] += step
    return whole


@contextmanager
def _in_eval_mode(model: nn.Module, modules: Sequence[nn.Module]) -> Iterator[None]:
    """Undo for these modules, before each forward pass, the ``train()`` that the Trainer calls before each step."""

    def undo(*_: object) -> None:
        for module in modules:
            module.eval()

    handle = model.register_forward_pre_hook(undo)
    try:
        yield
    finally:
        handle.remove()


def _frozen_batch_norms(model: nn.Module) -> list[nn.Module]:
    """Batch norms that keep the pretrained statistics, because their scale stays pretrained too."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    return [norm for norm in norms if norm.weight is not None and not norm.weight.requires_grad]
