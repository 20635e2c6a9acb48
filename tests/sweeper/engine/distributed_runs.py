"""Runs on all processes of a launcher, which ``test_distributed.py`` starts with ``-m``; prints what became of them.

Without a launcher :func:`results` says what one process makes of the same runs.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from strategies import Full, Layout, LpFt
from sweeper.engine import Assignment, Engine, Job, Workload, make_engine
from sweeper.engine.distributed import follow
from sweeper.interruption import StopSignal
from sweeper.search_space import StrategySpec
from sweeper.training.checkpoints import Checkpoints
from sweeper.training.pseudo_label import PseudoLabelling
from sweeper.training.recorder import EpochRecord
from sweeper.training.replicas import joined
from sweeper.training.state_store import StateStore
from tests.sweeper.engine.engine_contract import Seen
from tests.tasks import load_task


@dataclass(frozen=True)
class Limited(Full):
    """Everything trains, as long as no more than ``limit`` examples go through the model at once."""

    name: ClassVar[str] = "limited"
    limit: ClassVar[int | None] = None

    def prepare(self, model: nn.Module, layout: Layout) -> nn.Module:
        model = super().prepare(model, layout)
        model.register_forward_pre_hook(self._check, with_kwargs=True)
        return model

    def _check(self, model: nn.Module, _: object, inputs: dict[str, Any]) -> None:
        if model.training and self.limit is not None and len(inputs["input_ids"]) > self.limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def enough() -> None:
    raise RuntimeError("enough")


def results(engine: Engine, checkpoint: Path, folder: Path) -> dict[str, Any]:
    """What became of each run, by what is special about it."""
    # Steps of 2 batches of 8, the last of an epoch of a single row; classes that weigh differently.
    settings = {"batch_size": 8, "gradient_accumulation_steps": 2, "class_weights": "balanced", "epochs": 2}
    task = load_task(checkpoint, (41, 30, 20), max_length=24, store=StateStore(folder / "states", 10**9), **settings)
    seen: dict[str, Seen] = {}

    def run(
        name: str, strategy: Any, task: Any, rate: float, then: Callable[[], None] = lambda: None, **of: Any
    ) -> None:
        jobs: Iterator[Assignment] = iter([(Job({"learning_rate": rate}, seed=7, test=True, **of), Seen(then=then))])
        workload = Workload(task, StrategySpec(strategy, {}, {}), PseudoLabelling(0, 0.9, None), task.train.select([]))

        def next_job() -> Assignment | None:
            job = next(jobs, None)
            if job is not None:
                assert isinstance(job[1], Seen)
                seen[name] = job[1]
            return job

        engine.run(workload, next_job, StopSignal())

    run("whole", Full, task, 1e-3)
    run("recorded", LpFt, task, 1e-3)
    checkpoints = Checkpoints(folder / "checkpoints", seconds=0)
    run("pruned", Full, task, 1e-3, enough, checkpoints=checkpoints)
    run("resumed", Full, task, 1e-3, checkpoints=checkpoints)
    run("diverged", Full, task, 1e30)
    run("out of memory", Limited, replace(task, micro_batch_sizes={}), 1e-3)
    return {name: _told(run) for name, run in seen.items()}


def _told(run: Seen) -> dict[str, Any]:
    def loss(epoch: EpochRecord) -> tuple[float, float]:
        return epoch.train_loss, epoch.validation_loss

    (end,) = run.ends
    return {
        "losses": [loss(epoch) for epoch in run.epochs],
        "end": None if end is None else type(end).__name__,
        "metrics": None if run.trained is None else run.trained.metrics,
        "resumed": run.trained is not None and run.trained.resumed_seconds > 0,
    }


def main() -> None:
    with joined() as processes:
        if processes.rank:
            Limited.limit = 2
            follow(processes)
        else:
            print(json.dumps(results(make_engine("inline", None), Path(sys.argv[1]), Path(sys.argv[2]))))


if __name__ == "__main__":
    main()
