"""Self-training around any strategy: what a trained model is sure about joins the train split."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from sweeper.data.encoding import EncodedSplit
from sweeper.hashing import digest
from sweeper.objective import Run, Task
from sweeper.search_space import StrategySpec
from sweeper.training.checkpoints import Checkpoints
from sweeper.training.fit import FitResult
from sweeper.training.recorder import EpochRecord
from sweeper.training.replicas import ALONE, Replicas

__all__ = ["PseudoLabelling", "Round", "self_train"]


@dataclass(frozen=True)
class PseudoLabelling:
    """What stays the same over the trials of a study; the keys of ``PseudoLabelConfig`` in ``sweeper/config.py``."""

    rounds: int
    threshold: float
    size: int | None

    def epochs(self, of_one_training: int) -> int:
        """The most epochs of a run: those of the first training and of one more per round."""
        return (1 + self.rounds) * of_one_training


@dataclass(frozen=True)
class Round:
    """The labelling that opens a round.

    Attributes:
        number: 1 is the round after the first training.
        labelled: unlabelled items whose prediction reaches the threshold.
        ended: why the round trains nothing and is the last; empty otherwise.
    """

    number: int
    labelled: int
    ended: str = ""


def self_train(
    task: Task,
    spec: StrategySpec,
    configuration: Mapping[str, Any],
    *,
    settings: PseudoLabelling,
    unlabelled: EncodedSplit,
    seed: int,
    on_epoch: Callable[[EpochRecord], None] = lambda record: None,
    on_step: Callable[[], None] = lambda: None,
    on_sizes: Callable[[dict[str, float]], None] = lambda sizes: None,
    on_round: Callable[[Round], None] = lambda done: None,
    checkpoints: Checkpoints | None = None,
    processes: Replicas = ALONE,
) -> Run:
    """Train one configuration, then, in each round, again on the train split and on confident predictions.

    Pseudo-labels after Lee (2013), "Pseudo-Label: the simple and efficient semi-supervised learning method", in rounds
    of a teacher and a student: with the weights of its best epoch, the model of the round before predicts every
    unlabelled item x, and the next one is trained anew, from the pretrained weights and the same seed, on the train
    split and on

        {(x, argmax_c p(c | x)) : max_c p(c | x) >= threshold}.

    Labels are given anew in each round, so that a later model can take back what an earlier one got wrong. Where no
    item reaches the threshold, or the labels are those of the round before, training would only repeat itself: the
    rounds end there. The best epoch of all rounds, by the validation split, is what the run keeps.

    The epochs of round r go on at ``r * epochs + 1``, even where the round before stopped early: an epoch's number
    means the same in every trial, so that a pruner compares like with like.

    Args:
        task: model and data; its train split alone grows.
        spec: the strategy and its fixed values.
        configuration: the searched values.
        settings: 0 rounds train once, as :meth:`~sweeper.objective.Task.run` does.
        unlabelled: examples without labels.
        seed: see :meth:`~sweeper.objective.Task.run`.
        on_epoch: called with the epochs of all rounds; may raise to end the run (pruning).
        on_step: called between steps, those of labelling too; may raise to end the run (interruption).
        on_sizes: called with the model's sizes before the first training.
        on_round: called when the items of a round are labelled.
        checkpoints: of all rounds; a round that ended after the first of them is not trained again, only its labels
            are given again.
        processes: see :func:`~sweeper.training.fit.fit`; the first one labels for all.

    Raises:
        Diverged: a loss is not finite, in whichever round.
    """
    best = task.run(
        spec,
        configuration,
        seed=seed,
        on_epoch=on_epoch,
        on_step=on_step,
        on_sizes=on_sizes,
        checkpoints=checkpoints and checkpoints.within("round-0"),
        processes=processes,
    )
    last, history, seconds, memory = best, list(best.fit.history), best.fit.train_seconds, best.fit.peak_memory_mb
    resumed_seconds = best.fit.resumed_seconds
    labels: dict[int, int] = {}

    def confident(teacher: Run) -> dict[int, int]:
        return _label(task.predict(teacher, unlabelled, on_step), unlabelled, settings.threshold)

    for number in range(1, settings.rounds + 1):
        started = time.perf_counter()
        before, labels = labels, processes.of_first(functools.partial(confident, last))
        seconds += time.perf_counter() - started
        if labels == before:
            why = "the same labels as in the round before" if labels else f"no item reaches {settings.threshold:g}"
            on_round(Round(number, len(labels), f"pseudo-label round {number} added nothing: {why}"))
            break
        on_round(Round(number, len(labels)))
        offset = number * task.settings.epochs

        def later(record: EpochRecord, offset: int = offset) -> EpochRecord:
            return replace(record, epoch=offset + record.epoch)

        train = task.train.joined(unlabelled.select(list(labels), list(labels.values())))
        last = replace(task, train=train).run(
            spec,
            configuration,
            seed=seed,
            on_epoch=lambda record: on_epoch(later(record)),
            on_step=on_step,
            # Of these labels only: those that lead to others are passed over.
            checkpoints=checkpoints and checkpoints.within(f"round-{number}-{digest(sorted(labels.items()), 12)}"),
            processes=processes,
        )
        last.fit = replace(last.fit, best=later(last.fit.best), history=[later(record) for record in last.fit.history])
        history += last.fit.history
        seconds += last.fit.train_seconds
        resumed_seconds += last.fit.resumed_seconds
        memory = max(memory, last.fit.peak_memory_mb)
        if _better(last.fit, best.fit, task):
            best = last
    best.fit = replace(
        best.fit, history=history, train_seconds=seconds, peak_memory_mb=memory, resumed_seconds=resumed_seconds
    )
    return best


def _label(logits: np.ndarray, unlabelled: EncodedSplit, threshold: float) -> dict[int, int]:
    """The class that a model predicts for each example it is sure about, by the example's place.

    ``logits`` are in the order of the inputs, (examples, classes); the examples have an order of their own.
    """
    probabilities, classes = torch.softmax(torch.from_numpy(logits[unlabelled.order]), -1).max(-1)
    sure = (probabilities >= threshold).nonzero().flatten().tolist()
    return {place: int(classes[place]) for place in sure}


def _better(fit: FitResult, than: FitResult, task: Task) -> bool:
    score, other = (getattr(result.best, task.settings.metric) for result in (fit, than))
    return bool(score > other if task.settings.maximize else score < other)
