"""One training run of one configuration: transformers' Trainer with a strategy's groups, the best epoch kept."""

from __future__ import annotations

import functools
import itertools
import math
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from sklearn.metrics import f1_score
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import SequentialSampler
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments, set_seed
from transformers.trainer_pt_utils import LengthGroupedSampler

from strategies import Layout, NotApplicable, Stage, Strategy, enter_stage, prefix_modules
from sweeper.data.encoding import EncodedSplit, Encoder
from sweeper.training.boundary_cache import Attached, BoundaryCache, autocast, device
from sweeper.training.dropout import PooledDropout
from sweeper.training.head import train_head

__all__ = [
    "Diverged",
    "EpochRecord",
    "FitResult",
    "ShuffledBatches",
    "TrainerSettings",
    "TrainingData",
    "fit",
    "predict",
    "resolve_precision",
    "stage_epochs",
    "training_arguments",
]

EVAL_BATCH_SIZE = 64
Items = Sequence[Mapping[str, Any]]


class Diverged(Exception):
    """The training or validation loss is no longer finite; the message says which and when."""


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


@dataclass(frozen=True)
class EpochRecord:
    """The scores of one epoch (1-based)."""

    epoch: int
    train_loss: float
    validation_loss: float
    validation_accuracy: float
    validation_macro_f1: float
    train_samples_per_second: float

    def metrics(self) -> dict[str, float]:
        """Every score by its name in the schema, without the epoch."""
        return {name: value for name, value in asdict(self).items() if name != "epoch"}


@dataclass(frozen=True, eq=False)
class TrainingData:
    """What a run trains and is scored on, how its batches are made, and what is recorded of it already."""

    train: EncodedSplit
    validation: EncodedSplit
    encoder: Encoder
    cache: BoundaryCache | None = None


@dataclass
class FitResult:
    """What a run did; the model it trained carries the weights of ``best``."""

    best: EpochRecord
    history: list[EpochRecord]
    train_seconds: float
    peak_memory_mb: float


def resolve_precision(asked: str) -> str:
    """``auto`` becomes ``bf16`` where this device computes in it natively, else ``fp32``; others stay as asked.

    Raises:
        ValueError: fp16 without a CUDA device.
    """
    cuda = torch.cuda.is_available()
    if asked == "fp16" and not cuda:
        raise ValueError("trainer.precision=fp16 needs a CUDA device; allowed here are auto, fp32, bf16")
    if asked != "auto":
        return asked
    if cuda:
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return "bf16" if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else "fp32"


def fit(
    model: nn.Module,
    layout: Layout,
    strategy: Strategy,
    *,
    data: TrainingData,
    settings: TrainerSettings,
    learning_rate: float,
    seed: int,
    class_weights: torch.Tensor | None = None,
    on_epoch: Callable[[EpochRecord], None],
    on_step: Callable[[], None],
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
        class_weights: of each class in the loss, shape (classes,); ``None`` = all 1.
        on_epoch: may raise to end the run (pruning).
        on_step: called between steps; may raise to end the run (interruption).

    Raises:
        Diverged: a loss is not finite.
        NotApplicable: fewer epochs than the strategy has stages.
    """
    set_seed(seed)
    model.to(device())
    trained = frozenset(name for name, parameter in model.named_parameters() if parameter.requires_grad)
    recorder = _EpochRecorder(settings, len(data.train), trained, on_epoch, on_step)
    stages = strategy.stages(layout)
    order = torch.Generator().manual_seed(seed)
    loss = functools.partial(_loss, weight=None if class_weights is None else class_weights.to(device()))
    _reset_peak_memory()
    started = time.perf_counter()
    for stage, epochs in zip(stages, stage_epochs(stages, settings.epochs), strict=True):
        enter_stage(model, stage, trained)
        rate = learning_rate * stage.learning_rate_factor
        arguments = training_arguments(
            epochs=epochs,
            batch_size=settings.batch_size,
            learning_rate=rate,
            warmup_ratio=settings.warmup_ratio,
            weight_decay=settings.weight_decay,
            precision=settings.precision,
            # The seeds go on where a single stage's would: epoch k has the same order in every strategy.
            seed=seed + len(recorder.history),
            per_device_eval_batch_size=EVAL_BATCH_SIZE,
            gradient_accumulation_steps=settings.gradient_accumulation_steps,
            max_grad_norm=settings.max_grad_norm,
            eval_strategy="epoch",
            remove_unused_columns=False,  # an encoder gives what the model takes
        )
        groups = strategy.param_groups(model, layout, rate, settings.weight_decay)
        sampler = ShuffledBatches(
            arguments.train_batch_size * arguments.gradient_accumulation_steps,
            lengths=data.train.lengths.tolist() if settings.length_grouping else [1] * len(data.train),
            generator=order,
        )
        with (
            _in_eval_mode(model, [*prefix_modules(model, layout), *_frozen_batch_norms(model)]),
            _attached(data, model) as attached,
        ):
            if attached is not None and (features := attached.features(data.train, data.validation)):
                with _one_thread():
                    train_head(
                        model,
                        attached.head,
                        groups,
                        arguments,
                        train=features[0],
                        validation=features[1],
                        batches=functools.partial(_batches, sampler, arguments.train_batch_size),
                        loss=loss,
                        score=_scores,
                        autocast=functools.partial(autocast, settings.precision),
                        callback=recorder,
                    )
                continue
            train = data.encoder.training(data.train, seed)
            validation: Items = data.validation.examples
            if attached is not None:
                validation = attached.examples(data.validation) or validation
                if train is data.train.examples:  # an augmented example is another one in every epoch
                    train = attached.examples(data.train) or train
            trainer = _StrategyTrainer(
                model=model,
                args=arguments,
                train_dataset=train,
                eval_dataset=validation,
                data_collator=data.encoder.collate if attached is None else attached.collate,
                compute_metrics=lambda prediction: _scores(prediction.predictions, prediction.label_ids),
                callbacks=[recorder],
                compute_loss_func=None if class_weights is None else _of_outputs(loss),
                groups=groups,
                sampler=sampler,
            )
            trainer.remove_callback(PrinterCallback)
            with PooledDropout():
                trainer.train()
    enter_stage(model, Stage(), trained)
    recorder.restore_best(model)
    return FitResult(
        best=recorder.best,
        history=recorder.history,
        train_seconds=time.perf_counter() - started,
        peak_memory_mb=_peak_memory_mb(),
    )


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
    model.to(device()).eval()
    parts = []
    with _attached(data, model) as attached, torch.no_grad():
        examples: Sequence[Mapping[str, Any]] | None = None if attached is None else attached.examples(split)
        collate = data.encoder.collate if attached is None else attached.collate
        examples = split.examples if examples is None else examples
        for start in range(0, len(split), EVAL_BATCH_SIZE):
            rows = range(start, min(start + EVAL_BATCH_SIZE, len(split)))
            batch = collate([examples[row] for row in rows])
            inputs = {name: value.to(device()) for name, value in batch.items() if name != "labels"}
            with autocast(precision):
                parts.append(model(**inputs).logits.float().cpu().numpy())
            on_step()
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
def _attached(data: TrainingData, model: nn.Module) -> Iterator[Attached | None]:
    if data.cache is None:
        yield None
        return
    with data.cache.attached(model, data.validation) as attached:
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


def _loss(logits: torch.Tensor, labels: torch.Tensor, *, weight: torch.Tensor | None) -> torch.Tensor:
    return cross_entropy(logits.float(), labels, weight=weight)


def _of_outputs(loss: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """A loss of logits and labels, as the Trainer calls one."""
    return lambda outputs, labels, num_items_in_batch=None: loss(outputs.logits, labels)


def _batches(sampler: Iterable[int], size: int) -> Iterator[list[int]]:
    rows = iter(sampler)
    while batch := list(itertools.islice(rows, size)):
        yield batch


class _StrategyTrainer(Trainer):
    """transformers' Trainer with a strategy's optimiser groups, and the order of examples under control."""

    def __init__(self, *args: Any, groups: list[dict[str, Any]], sampler: ShuffledBatches, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.compute_loss_func is not None:
            self.loss_is_scaled_for_ga = False  # it is a mean over each batch, of which several make a step
        self._groups = groups
        self._sampler = sampler
        # Architectures that take loss arguments would otherwise be trusted to divide by the accumulated batches.
        self.model_accepts_loss_kwargs = False

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            self.optimizer = torch.optim.AdamW(self._groups, lr=self.args.learning_rate, fused=True)
        return self.optimizer

    def _get_train_sampler(self, train_dataset: Any = None) -> ShuffledBatches:
        # Its own generator: from the global one dropout draws too, and each strategy another number of times.
        return self._sampler

    def _get_eval_sampler(self, eval_dataset: Any) -> SequentialSampler:
        # Whatever the Trainer would do: scores are of all examples in their order.
        return SequentialSampler(eval_dataset)


class ShuffledBatches(LengthGroupedSampler):
    """Batches of similar length, in random order: transformers' own go from long to short again and again."""

    def __iter__(self) -> Iterator[int]:
        indices = list(super().__iter__())
        whole = len(indices) // self.batch_size
        for batch in torch.randperm(whole, generator=self.generator).tolist():
            yield from indices[batch * self.batch_size : (batch + 1) * self.batch_size]
        yield from indices[whole * self.batch_size :]


class _EpochRecorder(TrainerCallback):
    """Record each epoch of all stages, keep the weights of the best one in memory, end a stage early."""

    def __init__(
        self,
        settings: TrainerSettings,
        examples: int,
        trained: Collection[str],
        on_epoch: Callable[[EpochRecord], None],
        on_step: Callable[[], None],
    ) -> None:
        self.history: list[EpochRecord] = []
        self._settings = settings
        self._examples = examples
        self._trained = trained
        self._on_epoch = on_epoch
        self._on_step = on_step
        self._weights: dict[str, torch.Tensor] = {}
        self._train_loss = math.nan
        self._epoch_started = 0.0
        self._epoch_seconds = 0.0
        self._waited = 0
        self._stage_started = 0

    @property
    def best(self) -> EpochRecord:
        """The first of the epochs with the best score."""
        pick = max if self._settings.maximize else min
        return pick(self.history, key=lambda record: getattr(record, self._settings.metric))

    def restore_best(self, model: nn.Module) -> None:
        """Copy the best epoch's weights back into the model."""
        with torch.no_grad():
            for name, tensor in _trained_state(model, self._trained).items():
                tensor.copy_(self._weights[name])

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._waited = 0
        self._stage_started = len(self.history)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._epoch_started = time.perf_counter()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._epoch_seconds = time.perf_counter() - self._epoch_started

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._on_step()

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._on_step()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if logs and "loss" in logs:
            self._train_loss = float(logs["loss"])

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        metrics = kwargs["metrics"]
        record = EpochRecord(
            epoch=len(self.history) + 1,
            train_loss=self._train_loss,
            validation_loss=metrics["eval_loss"],
            validation_accuracy=metrics["eval_accuracy"],
            validation_macro_f1=metrics["eval_macro_f1"],
            train_samples_per_second=self._examples / max(self._epoch_seconds, 1e-9),
        )
        for loss in ("train_loss", "validation_loss"):
            if not math.isfinite(value := getattr(record, loss)):
                raise Diverged(f"{loss} is {value} after epoch {record.epoch}")
        self.history.append(record)
        if self.best is record:
            state_now = _trained_state(kwargs["model"], self._trained)
            self._weights = {name: tensor.detach().clone() for name, tensor in state_now.items()}
        if self._stops_early(record):
            control.should_training_stop = True
        self._on_epoch(record)

    def _stops_early(self, record: EpochRecord) -> bool:
        patience, name = self._settings.early_stopping_patience, self._settings.early_stopping_metric
        earlier = [getattr(other, name) for other in self.history[self._stage_started : -1]]
        if patience == 0 or not earlier:
            return False
        value = getattr(record, name)
        improved = value < min(earlier) if name.endswith("loss") else value > max(earlier)
        self._waited = 0 if improved else self._waited + 1
        return self._waited >= patience


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


def _trained_state(model: nn.Module, trained: Collection[str]) -> dict[str, torch.Tensor]:
    """What training may change: the parameters that train in any stage, and the buffers."""
    return {name: parameter for name, parameter in model.named_parameters() if name in trained} | dict(
        model.named_buffers()
    )


def training_arguments(
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    warmup_ratio: float,
    weight_decay: float,
    precision: str,
    seed: int,
    **more: Any,
) -> TrainingArguments:
    """Warm-up and linear decay, a loss per epoch, and nothing written, reported or drawn by the Trainer itself.

    Args:
        epochs: how many.
        batch_size: examples of a step on each device.
        learning_rate: peak rate.
        warmup_ratio: part of all steps.
        weight_decay: AdamW's.
        precision: ``fp32``, ``bf16`` or ``fp16``.
        seed: of the order of the data and of dropout.
        more: further arguments of transformers' ``TrainingArguments``.
    """
    return TrainingArguments(
        output_dir=tempfile.gettempdir(),  # nothing is written there: checkpoints are off
        num_train_epochs=epochs,
        per_device_train_batch_size=batch_size,
        learning_rate=learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=warmup_ratio,
        weight_decay=weight_decay,
        bf16=precision == "bf16",
        fp16=precision == "fp16",
        logging_strategy="epoch",
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        seed=seed,
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
        **more,
    )


def _scores(logits: Any, labels: Any) -> dict[str, float]:
    predicted, truth = np.asarray(logits).argmax(-1), np.asarray(labels)
    return {
        "eval_accuracy": float((predicted == truth).mean()),
        "eval_macro_f1": float(f1_score(truth, predicted, average="macro", zero_division=0)),
    }


def _reset_peak_memory() -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    elif sys.platform == "linux":
        try:
            with open("/proc/self/clear_refs", "w") as file:
                file.write("5")  # proc(5): resets the resident set's high-water mark
        except OSError:
            pass  # the mark then covers the whole process: an upper bound


def _peak_memory_mb() -> float:
    """Peak since the reset: of the device's memory on CUDA, else of the process's resident set."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e6
    if sys.platform == "linux":
        with open("/proc/self/status") as file:
            for line in file:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024 / 1e6
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
