"""What each epoch of a run came to: recorded, the weights of the best one kept, a stage ended early."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

if TYPE_CHECKING:
    from sweeper.training.fit import TrainerSettings

__all__ = ["Diverged", "EpochRecord", "EpochRecorder", "scores"]


#: Mean cross-entropy, in nats, from which no classifier comes back: its logits are off by ten thousand.
EXPLODED_LOSS = 1e4


class Diverged(Exception):
    """The training or validation loss is no longer finite, or has exploded; the message says which and when."""


@dataclass(frozen=True)
class EpochRecord:
    """The scores of one epoch (1-based).

    ``replayed``: a run that goes on from a checkpoint reports it again, and a later one as well.
    """

    epoch: int
    train_loss: float
    validation_loss: float
    validation_accuracy: float
    validation_macro_f1: float
    train_samples_per_second: float
    replayed: bool = False

    def metrics(self) -> dict[str, float]:
        """Every score by its name in the schema, without the epoch."""
        return {name: value for name, value in asdict(self).items() if name not in ("epoch", "replayed")}


class EpochRecorder:
    """Record each epoch of all stages, keep the weights of the best one in memory, end a stage early.

    Args:
        model: that trains; on the device where it does.
        settings: shared by all runs of a study.
        examples: of the train split.
        trained: names of the parameters that train in any stage.
        on_epoch: called with each record; may raise to end the run.
        on_step: called between steps; may raise to end the run.
    """

    def __init__(
        self,
        model: nn.Module,
        settings: TrainerSettings,
        examples: int,
        trained: Collection[str],
        on_epoch: Callable[[EpochRecord], None],
        on_step: Callable[[], None],
    ) -> None:
        self.history: list[EpochRecord] = []
        self.on_step = on_step
        self._settings = settings
        self._examples = examples
        self._on_epoch = on_epoch
        # What training may change: the parameters that train in any stage, and the buffers.
        self._state: list[torch.Tensor] = [
            *(parameter for name, parameter in model.named_parameters() if name in trained),
            *model.buffers(),
        ]
        self._best_state: list[torch.Tensor] = []
        self._started: float | None = None
        self._seconds = 0.0  # of the current epoch, up to a checkpoint or its end
        self._waited = 0
        self._stage_started = 0

    @property
    def best(self) -> EpochRecord:
        """The first of the epochs with the best score."""
        pick = max if self._settings.maximize else min
        return pick(self.history, key=lambda record: getattr(record, self._settings.metric))

    def restore_best(self) -> None:
        """Copy the best epoch's weights back into the model."""
        with torch.no_grad():
            for tensor, best in zip(self._state, self._best_state, strict=True):
                tensor.copy_(best)

    def state(self) -> dict[str, Any]:
        """What :meth:`restore` needs, the weights that train among it, as tensors and plain values."""
        return {
            "history": [asdict(record) for record in self.history],
            "weights": [tensor.detach() for tensor in self._state],
            "best": self._best_state,
            "waited": self._waited,
            "stage_started": self._stage_started,
            "seconds": self._epoch_seconds(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on where :meth:`state` was called, the model's weights included; the epochs are reported again."""
        with torch.no_grad():
            for tensor, saved in zip(self._state, state["weights"], strict=True):
                tensor.copy_(saved)
        own = zip(self._state, state["best"], strict=True) if state["best"] else ()
        self._best_state = [best.to(tensor.device) for tensor, best in own]
        self._waited, self._stage_started = state["waited"], state["stage_started"]
        self._seconds = state["seconds"]
        for values in state["history"]:
            self.history.append(EpochRecord(**values))
            self._on_epoch(replace(self.history[-1], replayed=len(self.history) < len(state["history"])))

    def stage_begins(self) -> None:
        """Early stopping counts anew."""
        self._waited = 0
        self._stage_started = len(self.history)

    def epoch_begins(self) -> None:
        """Its time counts from now, until :meth:`epoch_trained`; what a checkpoint holds of it counts too."""
        self._started = time.perf_counter() - self._seconds

    def epoch_trained(self) -> None:
        """What follows is the evaluation."""
        self._seconds = self._epoch_seconds()
        self._started = None

    def epoch_ends(self, train_loss: float, validation: dict[str, float]) -> bool:
        """Record an epoch; true where the stage is to stop.

        Args:
            train_loss: mean over the epoch's steps.
            validation: ``loss``, ``accuracy`` and ``macro_f1`` of the validation split.

        Raises:
            Diverged: a loss is not finite, or has exploded.
        """
        record = EpochRecord(
            epoch=len(self.history) + 1,
            train_loss=train_loss,
            validation_loss=validation["loss"],
            validation_accuracy=validation["accuracy"],
            validation_macro_f1=validation["macro_f1"],
            train_samples_per_second=self._examples / max(self._seconds, 1e-9),
        )
        for loss in ("train_loss", "validation_loss"):
            if not abs(value := getattr(record, loss)) < EXPLODED_LOSS:
                shown = f"{value:.3g}" if math.isfinite(value) else value
                raise Diverged(f"{loss} is {shown} after epoch {record.epoch}")
        self._seconds = 0.0
        self.history.append(record)
        if self.best is record:
            self._best_state = [tensor.detach().clone() for tensor in self._state]
        stops = self._stops_early(record)
        self._on_epoch(record)
        return stops

    def _epoch_seconds(self) -> float:
        return self._seconds if self._started is None else time.perf_counter() - self._started

    def _stops_early(self, record: EpochRecord) -> bool:
        patience, name = self._settings.early_stopping_patience, self._settings.early_stopping_metric
        earlier = [getattr(other, name) for other in self.history[self._stage_started : -1]]
        if patience == 0 or not earlier:
            return False
        value = getattr(record, name)
        improved = value < min(earlier) if name.endswith("loss") else value > max(earlier)
        self._waited = 0 if improved else self._waited + 1
        return self._waited >= patience


def scores(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Accuracy and macro-F1 of logits (examples, classes).

    Macro-F1 as in scikit-learn, over the classes that are labelled or predicted, which takes as long as many an epoch
    of a head.
    """
    classes = logits.shape[-1]
    predicted = logits.argmax(-1)
    counts = np.bincount(labels * classes + predicted, minlength=classes * classes).reshape(classes, classes)
    present = (counts.sum(0) + counts.sum(1)).astype(float)
    f1 = 2 * counts.diagonal() / np.where(present, present, 1)
    return {"accuracy": float((predicted == labels).mean()), "macro_f1": float(f1[present > 0].mean())}
