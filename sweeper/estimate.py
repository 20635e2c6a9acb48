"""How long a study will take, from a few timed steps of the real training."""

from __future__ import annotations

import itertools
import math
import statistics
import time
from dataclasses import dataclass, replace

from sweeper import schema
from sweeper.data.tokenize import TokenizedSplit
from sweeper.objective import Task
from sweeper.search_space import LEARNING_RATE, StrategySpec
from sweeper.training.trainer import EVAL_BATCH_SIZE

__all__ = ["Estimate", "estimate"]

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


def estimate(task: Task, spec: StrategySpec, n_trials: int, final_seeds: int) -> Estimate:
    """Train a few steps of the largest configuration, on examples of every length, and multiply.

    Args:
        task: model and data.
        spec: the strategy and its space.
        n_trials: trials of the study.
        final_seeds: finals of the study.
    """
    low, high = (task.prepare(spec.build(corner)[0], seed=0)[1] for corner in spec.corners())
    batch = task.settings.batch_size * task.settings.gradient_accumulation_steps
    train = _spread(task.train, batch * TIMED_STEPS)
    validation = _spread(task.validation, EVAL_BATCH_SIZE * 2)
    marks: list[float] = []
    short = replace(task, settings=replace(task.settings, epochs=1), train=train, validation=validation)
    lowest, highest = spec.corners()
    # The lowest rate: the highest may diverge, and the time is the same.
    timed = {**highest, **{key: value for key, value in lowest.items() if key == LEARNING_RATE}}
    short.run(spec, timed, seed=0, on_step=lambda: marks.append(time.perf_counter()))
    steps = [after - before for before, after in itertools.pairwise(marks)]
    train_steps = max(1, math.ceil(len(train) / batch) - 1)
    timed_train = steps[min(WARM_UP_STEPS, train_steps - 1) : train_steps] or steps
    timed_evaluation = steps[train_steps:] or timed_train
    evaluation_step = statistics.median(timed_evaluation)
    epoch = statistics.median(timed_train) * math.ceil(len(task.train) / batch)
    epoch += evaluation_step * math.ceil(len(task.validation) / EVAL_BATCH_SIZE)
    test = evaluation_step * math.ceil(len(task.test) / EVAL_BATCH_SIZE)
    runs = n_trials + final_seeds
    trainable = sorted((int(low[schema.TRAINABLE_PARAMS]), int(high[schema.TRAINABLE_PARAMS])))
    return Estimate(
        (trainable[0], trainable[1]),
        int(high[schema.TOTAL_PARAMS]),
        runs * task.settings.epochs * epoch + final_seeds * test,
    )


def _spread(split: TokenizedSplit, size: int) -> TokenizedSplit:
    """A few examples of a split, of all its lengths alike."""
    by_length = sorted(split.examples, key=lambda example: len(example["input_ids"]))
    step = max(1, len(by_length) // size)
    return replace(split, examples=by_length[::step][:size])
