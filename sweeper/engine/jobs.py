"""What an engine is asked to train, and what it tells about it. All of it can be sent to another process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from strategies import Frozen
from sweeper.data.encoding import EncodedSplit
from sweeper.models.classifier import Classifier
from sweeper.objective import Task
from sweeper.search_space import StrategySpec
from sweeper.training.checkpoints import Checkpoints
from sweeper.training.pseudo_label import PseudoLabelling, Round, self_train
from sweeper.training.recorder import EpochRecord
from sweeper.training.replicas import ALONE, Replicas

__all__ = ["Job", "Listener", "Trained", "Workload", "is_brief", "train"]


def is_brief(spec: StrategySpec, task: Task) -> bool:
    """Whether runs train a head on recorded features, which takes less time than sending them elsewhere."""
    recorded = task.cache is not None and not task.encoder.augments and isinstance(task.pretrained.model, Classifier)
    return recorded and issubclass(spec.cls, Frozen)


@dataclass(frozen=True, eq=False)
class Workload:
    """What all runs of a study share.

    Attributes:
        task: model and data, after domain pretraining.
        spec: the strategy and its fixed values.
        pseudo_label: around each run.
        unlabelled: what it labels.
    """

    task: Task
    spec: StrategySpec
    pseudo_label: PseudoLabelling
    unlabelled: EncodedSplit

    @property
    def brief(self) -> bool:
        """See :func:`is_brief`."""
        return is_brief(self.spec, self.task)


@dataclass(frozen=True)
class Job:
    """One run of a study's strategy.

    Attributes:
        configuration: the searched values.
        seed: of the head, of what the strategy adds, of the order of the data and of dropout.
        test: score the test split, and the shifted one, as finals do.
        drift: measure how far the features moved from the pretrained ones.
        checkpoints: from whose newest the run goes on.
    """

    configuration: Mapping[str, Any]
    seed: int
    test: bool = False
    drift: bool = False
    checkpoints: Checkpoints | None = None


@dataclass(frozen=True)
class Trained:
    """What a run came to.

    Attributes:
        best: its best epoch.
        metrics: single ones, by the names of the schema.
        predictions: on the test split, where it was scored.
        shifted_predictions: on the shifted one.
        saved_seconds: of computing, by reading recorded states, in a process other than the owner's.
        resumed_seconds: of training, before the checkpoint that the run went on from.
    """

    best: EpochRecord
    metrics: dict[str, float]
    predictions: pd.DataFrame | None = None
    shifted_predictions: pd.DataFrame | None = None
    saved_seconds: float = 0.0
    resumed_seconds: float = 0.0


class Listener:
    """What the owner of a study does when something happens to a run; every method may raise to end the run.

    :meth:`on_end` is called once for each job that was started, whatever became of it; what it raises ends the
    engine's work.
    """

    def on_sizes(self, sizes: dict[str, float]) -> None:
        """The model is prepared; its sizes by the names of the schema."""

    def on_round(self, labelling: Round) -> None:
        """The items of a round of pseudo-labelling are labelled."""

    def on_epoch(self, record: EpochRecord) -> None:
        """An epoch was scored on the validation split."""

    def on_trained(self, trained: Trained) -> Path | None:
        """Training and scoring are over; returns the folder where the model is to be saved, if it is."""
        return None

    def on_end(self, error: BaseException | None) -> None:
        """The run is over; ``error`` is what ended it early."""
        if error is not None:
            raise error


def train(
    workload: Workload, job: Job, listener: Listener, on_step: Callable[[], None], processes: Replicas = ALONE
) -> None:
    """Train a run to its end, in this process and thread.

    Args:
        workload: of its study.
        job: the run.
        listener: told of everything but the end.
        on_step: called between steps; may raise to end the run.
        processes: that train it together, each of them here.

    Raises:
        Exception: what ended the run early; see :func:`~sweeper.training.pseudo_label.self_train`.
    """
    task = workload.task
    run = self_train(
        task,
        workload.spec,
        job.configuration,
        settings=workload.pseudo_label,
        unlabelled=workload.unlabelled,
        seed=job.seed,
        on_epoch=listener.on_epoch,
        on_step=on_step,
        on_sizes=listener.on_sizes,
        on_round=listener.on_round,
        checkpoints=job.checkpoints,
        processes=processes,
    )
    metrics, predictions, shifted = run.metrics(), None, None
    if job.test:
        scores = task.score_test(run)
        metrics |= scores.metrics
        predictions, shifted = scores.predictions, scores.shifted_predictions
    if job.drift:
        metrics |= task.drift(run)
    trained = Trained(run.fit.best, metrics, predictions, shifted, resumed_seconds=run.fit.resumed_seconds)
    folder = listener.on_trained(trained)
    if folder is not None:
        task.save(run, folder)
