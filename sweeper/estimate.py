"""How long a study will take, from a few timed steps of the real training."""

from __future__ import annotations

import itertools
import math
import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

from sweeper import schema
from sweeper.data.encoding import EncodedSplit
from sweeper.objective import Task
from sweeper.search_space import LEARNING_RATE, StrategySpec
from sweeper.training.domain_pretrain import DomainPretraining, pretrain_language_model
from sweeper.training.fit import stage_epochs
from sweeper.training.pseudo_label import PseudoLabelling

__all__ = ["Estimate", "estimate", "estimate_pretraining"]

TIMED_STEPS = 6
WARM_UP_STEPS = 2


@dataclass(frozen=True)
class Estimate:
    """What a study would train, and its duration without pruning.

    Attributes:
        trainable_params: at both ends of the search space, the smaller first.
        total_params: at its high end.
        seconds: of all trials and finals.
    """

    trainable_params: tuple[int, int]
    total_params: int
    seconds: float


def estimate(
    task: Task, spec: StrategySpec, n_trials: int, final_seeds: int, pseudo_label: PseudoLabelling
) -> Estimate:
    """Train a few steps of the largest configuration, on examples of every length, and multiply.

    With recorded states, the examples' own are recorded for it, and recording all of them is counted once.

    Args:
        task: model and data.
        spec: the strategy and its space.
        n_trials: trials of the study.
        final_seeds: finals of the study.
        pseudo_label: its rounds are counted as if all unlabelled items joined the train split.
    """
    lowest, highest = spec.corners()
    low, high = (task.prepare(spec.build(corner)[0], seed=0)[1] for corner in (lowest, highest))
    # The lowest rate: the highest may diverge, and the time is the same.
    timed = {**highest, **{key: value for key, value in lowest.items() if key == LEARNING_RATE}}
    stages = spec.build(timed)[0].stages(task.pretrained.layout)
    batch = task.settings.batch_size * task.settings.gradient_accumulation_steps
    evaluated = task.encoder.evaluation_batch_size
    train = _spread(task.train, batch * TIMED_STEPS)
    validation = _spread(task.validation, evaluated * 2)
    settings = replace(task.settings, epochs=len(stages), early_stopping_patience=0)
    marks: list[list[float]] = [[]]  # the ends of steps, of each epoch and so of each stage
    recording = 0.0
    with tempfile.TemporaryDirectory() as folder:
        few = replace(task, settings=settings, train=train, validation=validation, cache=None)
        if task.cache is not None:
            # Room in proportion: what will not fit, and is computed in every epoch, does not fit here either.
            share = _tokens(train, validation) / _tokens(task.train, task.validation)
            cache = task.cache.within(Path(folder), share)
            few = replace(few, train=replace(train, key="train"), validation=replace(validation, key="validation"))
            few = replace(few, cache=cache)
            few.run(spec, timed, seed=0)
            whole = [task.train, task.validation, *([task.test] if final_seeds else [])]
            recording = cache.recording_seconds * _tokens(*whole) / _tokens(train, validation)
        run = few.run(
            spec,
            timed,
            seed=0,
            on_step=lambda: marks[-1].append(time.perf_counter()),
            on_epoch=lambda record: marks.append([]),
        )
    train_steps = math.ceil(len(train) / batch)
    evaluation_step = math.inf
    train_step = 0.0  # of all epochs of one run
    for of_stage, epochs in zip(marks[:-1], stage_epochs(stages, task.settings.epochs), strict=True):
        steps = [after - before for before, after in itertools.pairwise(of_stage)]
        steps = steps or [run.fit.train_seconds / len(stages)]  # of one step there is nothing better
        timed_train = steps[min(WARM_UP_STEPS, train_steps - 2) : train_steps - 1] or steps
        evaluation_step = min(evaluation_step, statistics.median(steps[train_steps - 1 :] or timed_train))
        train_step += epochs * statistics.median(timed_train)
    evaluations = task.settings.epochs * evaluation_step * math.ceil(len(task.validation) / evaluated)

    def training(examples: int) -> float:
        return train_step * math.ceil(examples / batch) + evaluations

    available = len(task.dataset.unlabelled)
    unlabelled = available if pseudo_label.size is None else min(pseudo_label.size, available)
    labelling = evaluation_step * math.ceil(unlabelled / evaluated)
    of_run = training(len(task.train)) + pseudo_label.rounds * (labelling + training(len(task.train) + unlabelled))
    test = evaluation_step * math.ceil(len(task.test) / evaluated)
    runs = n_trials + final_seeds
    trainable = sorted((int(low[schema.TRAINABLE_PARAMS]), int(high[schema.TRAINABLE_PARAMS])))
    return Estimate(
        (trainable[0], trainable[1]),
        int(high[schema.TOTAL_PARAMS]),
        recording + runs * of_run + final_seeds * test,
    )


def estimate_pretraining(task: Task, settings: DomainPretraining) -> float:
    """Seconds of domain pretraining: a few steps of it on texts of every length, and multiply."""
    examples = task.unlabelled(settings.size, seed=0)
    few = _spread(examples, settings.batch_size * TIMED_STEPS)
    marks: list[float] = []
    one_epoch = replace(settings, epochs=1)
    _, done = pretrain_language_model(task, few, one_epoch, seed=0, on_step=lambda: marks.append(time.perf_counter()))
    steps = [after - before for before, after in itertools.pairwise(marks)]
    step = statistics.median(steps[WARM_UP_STEPS:] or steps or [done.seconds])
    return settings.epochs * step * math.ceil(len(examples) / settings.batch_size)


def _tokens(*splits: EncodedSplit) -> int:
    return sum(int(split.lengths.sum()) for split in splits)


def _spread(split: EncodedSplit, size: int) -> EncodedSplit:
    """A few examples, of all lengths alike."""
    by_length = split.lengths.argsort(kind="stable").tolist()
    step = max(1, len(by_length) // size)
    return split.select(by_length[::step][:size])
