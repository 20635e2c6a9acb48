"""One configuration, trained once: the model and the data of a comparison, and what a run on them gives."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from inspect import signature
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import nn

from strategies import Stage, Strategy, boundary, count_parameters, enter_stage, trainable_names
from sweeper import schema
from sweeper.assets import cache_root, published_as
from sweeper.calibration import expected_calibration_error, fit_temperature
from sweeper.data import Dataset, Split
from sweeper.data.encoding import EncodedSplit, Encoder
from sweeper.data.images import ImageEncoder, unreadable
from sweeper.data.splits import sample_rows
from sweeper.data.tokenize import TextEncoder, token_summary
from sweeper.drift import head_inputs, linear_cka, mean_cosine
from sweeper.faults import is_out_of_memory
from sweeper.files import share_weights
from sweeper.hashing import digest
from sweeper.models.additions import WithAdditions, max_positions
from sweeper.models.classifier import Classifier
from sweeper.models.predictor import Manifest
from sweeper.models.preprocessing import preprocessing_of
from sweeper.models.pretrained import Pretrained, load_model
from sweeper.models.saved import ADAPTER, save_adapter
from sweeper.search_space import StrategySpec
from sweeper.training.boundary_cache import BoundaryCache
from sweeper.training.checkpoints import Checkpoints
from sweeper.training.fit import FitResult, TrainerSettings, TrainingData, fit, predict, stage_epochs
from sweeper.training.memory import keep_memory
from sweeper.training.micro_batches import release_memory
from sweeper.training.precision import device, measured_precision, resolve_precision
from sweeper.training.read_positions import Known
from sweeper.training.recorder import EpochRecord, scores
from sweeper.training.replicas import ALONE, Replicas
from sweeper.training.seeds import set_seed
from sweeper.training.state_store import StateStore
from sweeper.versions import versions

__all__ = ["DRIFT_ITEMS", "Run", "Task", "TestScores", "predictions_table"]

logger = logging.getLogger(__name__)

DRIFT_ITEMS = 1000  # validation inputs that features are compared on
THROUGHPUT_ITEMS = 128  # test inputs that the speed of predictions is measured on


@dataclass(frozen=True)
class TestScores:
    """A trained model on the test split, and on the shifted one if there is; predictions are in the splits' order."""

    metrics: dict[str, float]
    predictions: pd.DataFrame
    shifted_predictions: pd.DataFrame | None = None


@dataclass
class Run:
    """A trained configuration: the model with its best epoch's weights, and how it came about."""

    strategy: Strategy
    model: nn.Module
    fit: FitResult
    sizes: dict[str, float]
    micro_batch_size: int
    learning_rate: float
    seed: int

    def metrics(self) -> dict[str, float]:
        """The single metrics of the schema that trials and finals share."""
        best = self.fit.best
        return {
            schema.BEST_EPOCH: best.epoch,
            schema.BEST_VALIDATION_ACCURACY: best.validation_accuracy,
            schema.BEST_VALIDATION_MACRO_F1: best.validation_macro_f1,
            schema.BEST_VALIDATION_LOSS: best.validation_loss,
            schema.EPOCHS_RUN: len(self.fit.history),
            schema.TRAIN_SECONDS: self.fit.train_seconds,
            schema.PEAK_MEMORY_MB: self.fit.peak_memory_mb,
            schema.MICRO_BATCH_SIZE: self.micro_batch_size,
            **({schema.RECORDED_SECONDS: self.fit.recorded_seconds} if self.fit.recorded_seconds else {}),
            **self.sizes,
        }


@dataclass(frozen=True, eq=False)
class Task:
    """A pretrained model on a dataset: loaded and encoded once, shared by all studies of a comparison.

    ``source`` and ``revision`` say where the model was loaded from. ``backbone_trained`` is true after domain
    pretraining: whatever a strategy trains, all of the model then differs from the published weights.
    """

    dataset: Dataset
    pretrained: Pretrained
    settings: TrainerSettings
    encoder: Encoder
    train: EncodedSplit
    validation: EncodedSplit
    test: EncodedSplit
    source: str | Path
    revision: str | None
    backbone_trained: bool = False
    cache: BoundaryCache | None = None
    shifted: EncodedSplit | None = None
    #: Of each strategy that ran out of memory, the examples that go through its model at once since.
    micro_batch_sizes: dict[str, int] = field(default_factory=dict)
    #: Of each strategy, what it neither trains nor changes: its models share these parameters with the pretrained one.
    _shared: dict[str, frozenset[str]] = field(default_factory=dict, init=False)
    #: Of each strategy, see :meth:`boundaries`.
    _boundaries: dict[str, set[int]] = field(default_factory=dict, init=False)
    _read_positions: Known = field(default_factory=dict, init=False)

    @classmethod
    def load(
        cls,
        dataset: Dataset,
        source: str | Path,
        *,
        head: str,
        pooling: str,
        revision: str | None,
        settings: TrainerSettings,
        max_length: int = 128,
        image_size: int | None = None,
        augmentation: str = "none",
        store: StateStore | None = None,
    ) -> Task:
        """Load the model and encode the data.

        Args:
            dataset: its modality is the model's.
            source: a folder or a name on the hub.
            head: see :func:`~sweeper.models.pretrained.load_model`.
            pooling: likewise.
            revision: likewise.
            settings: what all runs share.
            max_length: of texts, in tokens; what the model itself allows is the most.
            image_size: of images, in pixels of both sides; ``None`` = the model's own.
            augmentation: of images in training, see :class:`~sweeper.data.images.ImageEncoder`.
            store: where recorded states are kept; ``None`` = every trial computes everything.

        Raises:
            ConfigError: the model cannot be loaded.
        """
        keep_memory()
        pretrained = load_model(
            source,
            modality=dataset.modality,
            head=head,
            pooling=pooling,
            label_names=dataset.label_names,
            revision=revision,
            image_size=image_size,
        )
        encoder: Encoder
        if dataset.modality == "text":
            accepted = frozenset(signature(pretrained.model.forward).parameters)
            limit = min(max_length, longest_text(pretrained))
            encoder = TextEncoder(pretrained.processor, limit, accepted)
        else:
            encoder = ImageEncoder(preprocessing_of(pretrained.processor), augmentation)
            settings = replace(settings, length_grouping=False)
        train, validation, test = (
            encoder.encode(split.inputs, split.labels, by_length=split is not dataset.train)
            for split in (dataset.train, dataset.validation, dataset.test)
        )
        if settings.precision == "auto":
            settings = replace(settings, precision=_precision(pretrained, encoder, train))
        cache = None if store is None else BoundaryCache(pretrained, encoder, settings.precision, store)
        shifted = None
        if dataset.shifted is not None:
            shifted = encoder.encode(dataset.shifted.inputs, dataset.shifted.labels, by_length=True)
        return cls(
            dataset,
            pretrained,
            settings,
            encoder,
            train,
            validation,
            test,
            source=source,
            revision=pretrained.revision,
            cache=cache,
            shifted=shifted,
        )

    @cached_property
    def summary(self) -> dict[str, Any]:
        """The dataset's summary, with what this model's tokenizer makes of its texts."""
        if self.dataset.modality != "text":
            return self.dataset.summary
        splits = {"train": self.train, "validation": self.validation, "test": self.test}
        tokens, warnings = token_summary(splits, self.pretrained.processor, longest_text(self.pretrained))
        return {**self.dataset.summary, **tokens, "warnings": [*self.dataset.summary["warnings"], *warnings]}

    def unlabelled(self, size: int | None, seed: int) -> EncodedSplit:
        """At most ``size`` of the dataset's unlabelled inputs, encoded: short texts first, no unreadable images."""
        inputs = [self.dataset.unlabelled[row] for row in sample_rows(len(self.dataset.unlabelled), size, seed=seed)]
        if self.dataset.modality == "image":
            broken = unreadable(inputs)
            inputs = [image for place, image in enumerate(inputs) if place not in broken]
        encoder = self.encoder
        if isinstance(encoder, TextEncoder):
            # Cut at the longest labelled text, for which there is room whatever a strategy adds.
            encoder = replace(encoder, max_length=self._longest())
        return encoder.encode(inputs, None, by_length=True)

    def prepare(self, strategy: Strategy, seed: int) -> tuple[nn.Module, dict[str, float]]:
        """A fresh model as the strategy wants it, and its sizes by the names of the schema.

        Raises:
            ValueError: the strategy does not fit the model, or has more stages than there are epochs.
        """
        set_seed(seed)
        layout = self.pretrained.layout
        shared = self._shared.get(repr(strategy))
        model = strategy.prepare(self.pretrained.fresh(seed, shared or ()), layout)
        self._check_length(model)
        trained = frozenset(trainable_names(model))
        stored = count_parameters(model, layout)["stored_bytes"]
        stages = strategy.stages(layout)
        epochs = stage_epochs(stages, self.settings.epochs)
        counts, depths = [], set()
        for stage in stages:
            enter_stage(model, stage, trained)
            counts.append(count_parameters(model, layout))
            if shared is None:
                depths.add(boundary(model, layout))
        enter_stage(model, Stage(), trained)
        if shared is None:
            self._shared[repr(strategy)] = self.pretrained.unchanged(model) - trained
            self._boundaries[repr(strategy)] = depths
        peak = max(counts, key=lambda count: count["trainable"])
        if self.backbone_trained:
            peak = {**peak, "trainable": peak["total"], "backbone": peak["total"] - peak["head"]}
            stored = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
        over_epochs = sum(count["trainable"] * part for count, part in zip(counts, epochs, strict=True))
        sizes = {
            schema.TRAINABLE_PARAMS: peak["trainable"],
            schema.TRAINABLE_PARAMS_MEAN: over_epochs / sum(epochs),
            schema.TRAINABLE_PARAMS_HEAD: peak["head"],
            schema.TRAINABLE_PARAMS_BACKBONE: peak["backbone"],
            schema.TOTAL_PARAMS: peak["total"],
            schema.TRAINABLE_PCT: 100 * peak["trainable"] / peak["total"],
            schema.STORED_BYTES: stored,
        }
        formula = strategy.closed_form_params(self.pretrained.model, layout)
        if formula is not None and not self.backbone_trained:
            sizes[schema.EXPECTED_TRAINABLE_PARAMS] = peak["head"] + formula
        return model, sizes

    def run(
        self,
        spec: StrategySpec,
        configuration: Mapping[str, Any],
        *,
        seed: int,
        on_epoch: Callable[[EpochRecord], None] = lambda record: None,
        on_step: Callable[[], None] = lambda: None,
        on_sizes: Callable[[dict[str, float]], None] = lambda sizes: None,
        checkpoints: Checkpoints | None = None,
        processes: Replicas = ALONE,
    ) -> Run:
        """Train one configuration on the train split, its best epoch chosen on the validation split.

        Where memory runs out, the run starts anew, or goes on from its last checkpoint, with half the examples of a
        batch going through the model at once, again and again. A step remains one of the whole batch, so that the
        result is the same, but for what draws or measures per pass: dropout's masks, and batch norms that train. Epochs
        that were told of are not told of again.

        Args:
            spec: the strategy and its fixed values.
            configuration: the searched values.
            seed: of the head, of what the strategy adds, of the order of the data and of dropout.
            on_epoch: see :func:`~sweeper.training.fit.fit`.
            on_step: likewise.
            on_sizes: called with the model's sizes before training.
            checkpoints: see :func:`~sweeper.training.fit.fit`; those of anything else are passed over.
            processes: see :func:`~sweeper.training.fit.fit`.

        Raises:
            Diverged: a loss is not finite.
            Exception: of memory, where a single example does not fit.
        """
        strategy, learning_rate = spec.build(configuration)
        told, lost = 0, 0.0

        def on_new_epoch(record: EpochRecord) -> None:
            nonlocal told
            if record.epoch > told:
                told = record.epoch
                on_epoch(record)

        model, sizes = self.prepare(strategy, seed)
        on_sizes(sizes)
        if checkpoints is not None:
            checkpoints = checkpoints.of(digest(self._depends_on(strategy, learning_rate, seed), 24))
        while True:
            size = self.micro_batch_sizes.get(strategy.name, self.settings.batch_size)
            started = time.perf_counter()
            try:
                result = fit(
                    model,
                    self.pretrained.layout,
                    strategy,
                    data=self.data,
                    settings=self.settings,
                    learning_rate=learning_rate,
                    seed=seed,
                    micro_batch_size=size,
                    class_weights=self._class_weights(),
                    on_epoch=on_new_epoch,
                    on_step=on_step,
                    checkpoints=checkpoints,
                    processes=processes,
                )
                processes.agree()
            except Exception as error:
                if size == 1 or not is_out_of_memory(error):
                    raise
                processes.out_of_memory(error)
                logger.warning("out of memory with %d examples at once: tried again with %d", size, size // 2)
            else:
                # What a checkpoint kept of them is in the result already.
                result.train_seconds += max(0.0, lost - result.resumed_seconds)
                return Run(strategy, model, result, sizes, size, learning_rate, seed)
            lost += time.perf_counter() - started
            self.micro_batch_sizes[strategy.name] = size // 2
            del model
            release_memory()
            model, _ = self.prepare(strategy, seed)

    def _depends_on(self, strategy: Strategy, learning_rate: float, seed: int) -> list[Any]:
        """What the weights of a run follow from, but for the examples that pseudo-labels add."""
        data = [self.pretrained.fingerprint, self.train.key, self.validation.key, self.dataset.fingerprint]
        libraries = versions(("torch", "transformers", "accelerate", "peft")).values()
        machine = [device().type, torch.cuda.device_count()]
        return [data, asdict(self.settings), repr(strategy), learning_rate, seed, *machine, *libraries]

    def boundaries(self, strategy: Strategy) -> set[int]:
        """The depth below which nothing trains, in each stage; of a strategy that does not fit, none."""
        if repr(strategy) not in self._boundaries:
            try:
                self.prepare(strategy, seed=0)
            except ValueError:
                return set()
        return self._boundaries[repr(strategy)]

    def record_states(
        self, spec: StrategySpec, configuration: Mapping[str, Any], on_step: Callable[[], None] = lambda: None
    ) -> None:
        """Record what frozen blocks compute for the train and the validation split, before a run asks for it."""
        if self.cache is None:
            return
        strategy, _ = spec.build(configuration)
        model, _ = self.prepare(strategy, seed=0)
        enter_stage(model, strategy.stages(self.pretrained.layout)[0], frozenset(trainable_names(model)))
        model.to(device())
        with self.cache.attached(model, self.validation, on_step) as attached:
            if attached is not None:
                attached.examples(self.train)
                attached.examples(self.validation)

    @property
    def data(self) -> TrainingData:
        """What runs train and are scored on."""
        return TrainingData(self.train, self.validation, self.encoder, self.cache, self._read_positions)

    def predict(self, run: Run, split: EncodedSplit, on_step: Callable[[], None] = lambda: None) -> np.ndarray:
        """Logits of a trained model, (examples, classes), in the order of the split's inputs."""
        return predict(run.model, split, self.data, self.settings.precision, on_step)

    def score_test(self, run: Run) -> TestScores:
        """Score a trained model on the test split, once per final; no other place lets a trained model see it.

        The shifted split is scored beside it.
        """
        test = self._score(run, self.test, self.dataset.test)
        metrics = {
            schema.TEST_ACCURACY: test.accuracy,
            schema.TEST_MACRO_F1: test.macro_f1,
            schema.TEST_LOSS: test.loss,
            schema.TEST_SAMPLES_PER_SECOND: self._throughput(run),
        }
        if self.shifted is None or self.dataset.shifted is None:
            return TestScores(metrics, test.predictions)
        shifted = self._score(run, self.shifted, self.dataset.shifted)
        metrics |= {
            schema.SHIFTED_ACCURACY: shifted.accuracy,
            schema.SHIFTED_MACRO_F1: shifted.macro_f1,
            schema.SHIFTED_LOSS: shifted.loss,
        }
        return TestScores(metrics, test.predictions, shifted.predictions)

    def _throughput(self, run: Run) -> float:
        """Inputs per second, from a text or an image to its class: nothing is read that was recorded for training.

        Of no more than ``THROUGHPUT_ITEMS`` test inputs, spread over their lengths, and of two passes the faster one,
        because the first meets every shape for the first time. Adapters are not merged.
        """
        inputs = [self.test.inputs[row] for row in _spread(len(self.test), THROUGHPUT_ITEMS)]
        data, seconds = replace(self.data, cache=None), []
        for _ in range(2):
            started = time.perf_counter()
            split = self.encoder.encode(inputs, None, by_length=True)
            predict(run.model, split, data, self.settings.precision, lambda: None)
            seconds.append(time.perf_counter() - started)
        return len(inputs) / min(seconds)

    def drift(self, run: Run) -> dict[str, float]:
        """How far the features that the head reads lie from the pretrained ones, on validation inputs.

        Of no more than ``DRIFT_ITEMS`` inputs, spread over their lengths. Empty where a head of the architecture's own
        reads more than one vector. After domain pretraining, its result stands for the pretrained model.
        """
        before, after = self._pretrained_features, self._features(run.model)
        if before is None or after is None:
            return {}
        return {
            schema.DRIFT_CKA: linear_cka(before, after),
            schema.DRIFT_COSINE: mean_cosine(before, after),
            schema.DRIFT_ITEMS: len(after),
        }

    @cached_property
    def _pretrained_features(self) -> np.ndarray | None:
        return self._features(self.pretrained.fresh(0))

    def _features(self, model: nn.Module) -> np.ndarray | None:
        split = self.validation.select(_spread(len(self.validation), DRIFT_ITEMS))
        data = replace(self.data, cache=None)
        return head_inputs(
            model,
            self.pretrained.layout.head,
            lambda: predict(model, split, data, self.settings.precision, lambda: None),
        )

    def _score(self, run: Run, encoded: EncodedSplit, split: Split) -> _Scores:
        """A trained model on a split that it was not trained on."""
        logits = torch.from_numpy(self.predict(run, encoded))
        probabilities = torch.softmax(logits, -1).numpy()
        predicted = probabilities.argmax(-1)
        return _Scores(
            accuracy=float((predicted == split.labels).mean()),
            macro_f1=scores(logits.numpy(), split.labels)["macro_f1"],
            loss=float(torch.nn.functional.cross_entropy(logits, torch.from_numpy(split.labels))),
            predictions=predictions_table(split, predicted, probabilities.max(-1)),
        )

    def save(self, run: Run, folder: Path) -> None:
        """Save a trained model: merged where that is possible, with its tokenizer or image processor and label names.

        Beside it lie :class:`~sweeper.models.predictor.Manifest`, with the temperature that calibrates its scores on
        the validation split, and in ``adapter/`` what peft needs to put the same adapter on the pretrained model.
        """
        logits, labels = self.predict(run, self.validation), self.dataset.validation.labels
        temperature = fit_temperature(logits, labels)
        adapter = None if self.backbone_trained else run.strategy.adapter(run.model, self.pretrained.layout)
        for parameter in run.model.parameters():
            # Merging changes weights, which are shared; files hold no channels-last memory.
            parameter.data = parameter.data.clone(memory_format=torch.contiguous_format)
        model: Any = run.strategy.merge(run.model)
        room = _room(model)
        self.pretrained.save(model, folder, max_length=room)
        base = self._base()
        if adapter is not None:
            save_adapter(folder / ADAPTER, *adapter, source=base["source"], revision=self.revision)
        longest = self.encoder.max_length if isinstance(self.encoder, TextEncoder) else None
        Manifest(
            modality=self.dataset.modality,
            pairs=isinstance(self.validation.inputs[0], tuple),
            max_length=longest if room is None or longest is None else min(longest, room),
            temperature=temperature,
            calibration={
                "items": len(labels),
                "error_before": expected_calibration_error(logits, labels),
                "error_after": expected_calibration_error(logits, labels, temperature),
            },
            strategy={"name": run.strategy.name, **asdict(run.strategy)},
            base=base,
            adapter=None if adapter is None else ADAPTER,
            training={"learning_rate": run.learning_rate, "seed": run.seed, "best_epoch": run.fit.best.epoch},
            versions=versions(("thawline", "torch", "transformers", "peft", "timm")),
        ).write(folder)
        share_weights(folder)

    def _base(self) -> dict[str, Any]:
        """What was trained, as a saved model tells it: by its name on the hub, where the same weights are there."""
        config: Any = self.pretrained.model.config
        own = isinstance(self.pretrained.model, Classifier)
        return {
            "source": published_as(self.source) or str(self.source),
            "revision": self.revision,
            "head": config.head if own else "native",
            "pooling": config.pooling if own else "native",
        }

    def _check_length(self, model: nn.Module) -> None:
        """Refuse virtual tokens beside which the longest text has no place.

        Raises:
            ValueError: it has none.
        """
        if (room := _room(model)) is None:
            return
        if (longest := self._longest()) > room:
            raise ValueError(
                f"virtual tokens leave {room} of the model's positions to a text, and the longest has {longest} "
                f"tokens: fewer num_tokens, or dataset.max_length={room}"
            )

    def _class_weights(self) -> torch.Tensor | None:
        """Rows over (classes times rows of the class), so that all classes of train weigh alike in the loss."""
        if self.settings.class_weights == "none":
            return None
        counts = np.bincount(self.dataset.train.labels, minlength=len(self.dataset.label_names))
        return torch.tensor(counts.sum() / (len(counts) * counts.clip(min=1)), dtype=torch.float32)

    def _longest(self) -> int:
        """Tokens of the longest labelled text."""
        splits = (self.train, self.validation, self.test, *([self.shifted] if self.shifted else []))
        return max(int(split.lengths.max()) for split in splits)


def _precision(pretrained: Pretrained, encoder: Encoder, train: EncodedSplit) -> str:
    """What ``auto`` stands for: of this model, where the device is a CPU with bf16."""
    native = resolve_precision("auto")
    if torch.cuda.is_available() or native == "fp32":
        return native
    batch = encoder.collate([train.examples[row] for row in range(min(8, len(train)))])
    shapes = {name: list(tensor.shape) for name, tensor in encoder.blank(1, 1).items()}
    name = digest([type(pretrained.model).__name__, pretrained.fingerprint, shapes], 24)
    return measured_precision(pretrained.fresh(0), batch, name, cache_root() / "precision")


def longest_text(pretrained: Pretrained) -> int:
    """The most tokens that a text model reads: what its tokenizer says, and what it has positions for."""
    positions = max_positions(pretrained.model.get_submodule(pretrained.layout.backbone))
    return min(pretrained.processor.model_max_length, positions or pretrained.processor.model_max_length)


def _room(model: nn.Module) -> int | None:
    """How many tokens of a text fit beside virtual ones; None for models without any."""
    return model.max_text_tokens() if isinstance(model, WithAdditions) else None


def _spread(rows: int, most: int) -> range:
    """At most so many of the rows, at equal distances."""
    return range(0, rows, -(-rows // most))


class _Scores(NamedTuple):
    accuracy: float
    macro_f1: float
    loss: float
    predictions: pd.DataFrame


def predictions_table(split: Split, predicted: np.ndarray, probabilities: np.ndarray) -> pd.DataFrame:
    """The schema's ``predictions.csv``: a row per item of a split, with the predicted label and its probability."""
    return pd.DataFrame(
        {
            "item": split.items,
            "group": split.groups if split.groups is not None else "",
            "label": split.labels,
            "prediction": predicted,
            "probability": probabilities.round(6),
        }
    )
