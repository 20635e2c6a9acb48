"""What every engine of workers keeps to: the same results as inline, and nothing lost when a run ends early.

A test class derives from :class:`EngineContract` and brings the fixture ``engine``, of two workers, and
:meth:`EngineContract.pids`.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from strategies import Full
from sweeper.engine import Assignment, Engine, InlineEngine, Job, Listener, Trained, WorkerDied, Workload
from sweeper.engine.workers import WorkerEngine
from sweeper.interruption import Interrupted, StopSignal
from sweeper.search_space import StrategySpec
from sweeper.training.pseudo_label import PseudoLabelling
from sweeper.training.recorder import Diverged, EpochRecord
from tests.tasks import load_task

__all__ = ["EngineContract", "Seen", "run"]


class Seen(Listener):
    """Keeps what it is told, and does at each epoch what it is asked to."""

    def __init__(self, *, folder: Path | None = None, then: Callable[[], None] = lambda: None) -> None:
        self.epochs: list[EpochRecord] = []
        self.sizes: dict[str, float] = {}
        self.trained: Trained | None = None
        self.ends: list[BaseException | None] = []
        self.folder, self.then = folder, then

    def on_sizes(self, sizes: dict[str, float]) -> None:
        self.sizes = sizes

    def on_epoch(self, record: EpochRecord) -> None:
        self.epochs.append(record)
        self.then()

    def on_trained(self, trained: Trained) -> Path | None:
        self.trained = trained
        return self.folder

    def on_end(self, error: BaseException | None) -> None:
        self.ends.append(error)
        if isinstance(error, Interrupted):
            raise error


def run(
    engine: Engine, workload: Workload, listeners: Sequence[Seen], rate: float = 1e-3, stop: StopSignal | None = None
) -> None:
    jobs = [(Job({"learning_rate": rate}, seed=7 + i, test=True), listener) for i, listener in enumerate(listeners)]
    waiting = iter(jobs)

    def next_job() -> Assignment | None:
        return next(waiting, None)

    engine.run(workload, next_job, stop or StopSignal())


class EngineContract:
    killed = "SIGKILL"  # said of a killed worker

    def pids(self, engine: WorkerEngine) -> list[int]:
        """The workers' processes."""
        raise NotImplementedError

    @pytest.fixture(scope="class")
    @classmethod
    def workload(cls, tiny_checkpoint: Path) -> Workload:
        task = load_task(tiny_checkpoint, (48, 24, 24), max_length=24, epochs=2)
        return Workload(task, StrategySpec(Full, {}, {}), PseudoLabelling(0, 0.9, None), task.train.select([]))

    def test_a_worker_trains_what_the_owner_would(
        self, engine: WorkerEngine, workload: Workload, tmp_path: Path
    ) -> None:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # sums are added up in the order of threads
        try:
            here = [Seen(), Seen()]
            run(InlineEngine(), workload, here)
        finally:
            torch.set_num_threads(threads)
        there = [Seen(folder=tmp_path / "saved"), Seen()]
        run(engine, workload, there)
        for mine, other in zip(here, there, strict=True):
            assert other.ends == [None] and other.sizes == mine.sizes
            assert [e.validation_loss for e in other.epochs] == pytest.approx([e.validation_loss for e in mine.epochs])
            assert mine.trained is not None and other.trained is not None
            assert other.trained.metrics["test_accuracy"] == mine.trained.metrics["test_accuracy"]
            assert other.trained.predictions is not None and len(other.trained.predictions) == 24
        assert (tmp_path / "saved" / "model.safetensors").exists()

    def test_an_error_ends_the_run_that_raised_it_alone(self, engine: WorkerEngine, workload: Workload) -> None:
        def enough() -> None:
            raise RuntimeError("enough")

        pruned, other = Seen(then=enough), Seen()
        run(engine, workload, [pruned, other])
        assert len(pruned.epochs) == 1 and str(pruned.ends[0]) == "enough"
        assert len(other.epochs) == 2 and other.ends == [None]

    def test_what_a_worker_raises_arrives_with_its_type_and_place(
        self, engine: WorkerEngine, workload: Workload
    ) -> None:
        (seen,) = listeners = [Seen()]
        run(engine, workload, listeners, rate=1e30)
        assert isinstance(seen.ends[0], Diverged) and "recorder.py" in str(seen.ends[0].__cause__)

    def test_a_killed_worker_ends_its_run_and_another_takes_its_place(
        self, engine: WorkerEngine, workload: Workload
    ) -> None:
        def kill() -> None:
            for pid in self.pids(engine):
                os.kill(pid, signal.SIGKILL)

        killed, later = Seen(then=kill), [Seen(), Seen()]
        run(engine, workload, [killed, *later])
        (error,) = killed.ends
        assert isinstance(error, WorkerDied) and self.killed in str(error)
        died = [seen for seen in later if seen.ends != [None]]  # the one beside it, if it was under way
        assert len(died) <= 1 and all(isinstance(seen.ends[0], WorkerDied) for seen in died)
        again = [Seen(), Seen()]
        run(engine, workload, again)
        assert [seen.ends for seen in again] == [[None], [None]]

    def test_a_signal_ends_every_run_between_two_steps(self, engine: WorkerEngine, workload: Workload) -> None:
        def terminate() -> None:
            os.kill(os.getpid(), signal.SIGTERM)

        run(engine, workload, [Seen(), Seen()])  # both workers are there
        seen = [Seen(then=terminate), Seen(then=terminate)]
        with StopSignal() as stop, pytest.raises(Interrupted, match="SIGTERM"):
            run(engine, workload, seen, stop=stop)
        assert [str(each.ends[0]) for each in seen] == ["SIGTERM", "SIGTERM"]
        run(engine, workload, again := [Seen()])  # the workers are free
        assert again[0].ends == [None]
