"""Runs in worker processes: the same results as inline, and nothing lost when a worker or a run ends early."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from strategies import Full
from sweeper.engine import Assignment, InlineEngine, Job, Listener, Trained, WorkerDied, Workload
from sweeper.engine.processes import ProcessEngine
from sweeper.interruption import Interrupted, StopSignal
from sweeper.objective import Task
from sweeper.search_space import StrategySpec
from sweeper.training.pseudo_label import PseudoLabelling
from sweeper.training.recorder import Diverged, EpochRecord
from tests.tasks import load_task


class Seen(Listener):
    """Keeps what it is told, and raises or kills where it is asked to."""

    def __init__(self, *, folder: Path | None = None, raises: Exception | None = None, kills: int = 0) -> None:
        self.epochs: list[EpochRecord] = []
        self.sizes: dict[str, float] = {}
        self.trained: Trained | None = None
        self.ends: list[BaseException | None] = []
        self.folder, self.raises, self.kills = folder, raises, kills

    def on_sizes(self, sizes: dict[str, float]) -> None:
        self.sizes = sizes

    def on_epoch(self, record: EpochRecord) -> None:
        self.epochs.append(record)
        if self.kills:
            for process in ENGINE.processes() if self.kills == signal.SIGKILL else [os.getpid()]:
                os.kill(process, self.kills)
        if self.raises is not None:
            raise self.raises

    def on_trained(self, trained: Trained) -> Path | None:
        self.trained = trained
        return self.folder

    def on_end(self, error: BaseException | None) -> None:
        self.ends.append(error)
        if isinstance(error, Interrupted):
            raise error


class ENGINE:
    """The engine under test, for listeners that kill its workers."""

    now: ProcessEngine

    @classmethod
    def processes(cls) -> list[int]:
        return [worker.remote.process.pid for worker in cls.now._pool]  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def task(tiny_checkpoint: Path) -> Task:
    return load_task(tiny_checkpoint, (48, 24, 24), max_length=24, epochs=2)


@pytest.fixture(scope="module")
def workload(task: Task) -> Workload:
    spec = StrategySpec(Full, {}, {})
    return Workload(task, spec, PseudoLabelling(0, 0.9, None), task.train.select([]))


@pytest.fixture(scope="module")
def engine() -> Iterator[ProcessEngine]:
    with ProcessEngine(2) as made:
        ENGINE.now = made
        yield made


def run(
    engine: InlineEngine | ProcessEngine,
    workload: Workload,
    listeners: list[Seen],
    rate: float = 1e-3,
    stop: StopSignal | None = None,
) -> None:
    jobs = [(Job({"learning_rate": rate}, seed=7 + i, test=True), listener) for i, listener in enumerate(listeners)]
    waiting = iter(jobs)

    def next_job() -> Assignment | None:
        return next(waiting, None)

    engine.run(workload, next_job, stop or StopSignal())


def test_a_worker_trains_what_the_owner_would(engine: ProcessEngine, workload: Workload, tmp_path: Path) -> None:
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


def test_an_error_ends_the_run_that_raised_it_alone(engine: ProcessEngine, workload: Workload) -> None:
    pruned, other = Seen(raises=RuntimeError("enough")), Seen()
    run(engine, workload, [pruned, other])
    assert len(pruned.epochs) == 1 and str(pruned.ends[0]) == "enough"
    assert len(other.epochs) == 2 and other.ends == [None]


def test_what_a_worker_raises_arrives_with_its_type_and_place(engine: ProcessEngine, workload: Workload) -> None:
    (seen,) = listeners = [Seen()]
    run(engine, workload, listeners, rate=1e30)
    assert isinstance(seen.ends[0], Diverged) and "recorder.py" in str(seen.ends[0].__cause__)


def test_a_killed_worker_ends_its_run_and_another_takes_its_place(engine: ProcessEngine, workload: Workload) -> None:
    killed, later = Seen(kills=signal.SIGKILL), [Seen(), Seen()]
    run(engine, workload, [killed, *later])
    (error,) = killed.ends
    assert isinstance(error, WorkerDied) and "SIGKILL" in str(error)
    died = [seen for seen in later if seen.ends != [None]]  # the one beside it, if it was under way
    assert len(died) <= 1 and all(isinstance(seen.ends[0], WorkerDied) for seen in died)
    again = [Seen(), Seen()]
    run(engine, workload, again)
    assert [seen.ends for seen in again] == [[None], [None]]


def test_a_signal_ends_every_run_between_two_steps(engine: ProcessEngine, workload: Workload) -> None:
    seen = [Seen(kills=signal.SIGTERM), Seen(kills=signal.SIGTERM)]
    with StopSignal() as stop, pytest.raises(Interrupted, match="SIGTERM"):
        run(engine, workload, seen, stop=stop)
    assert [str(each.ends[0]) for each in seen] == ["SIGTERM", "SIGTERM"]
    run(engine, workload, again := [Seen()])  # the workers are free
    assert again[0].ends == [None]


def test_workers_end_with_the_engine(workload: Workload) -> None:
    with ProcessEngine(1) as engine:
        run(engine, workload, [Seen()])
        (worker,) = engine._pool
        pid = worker.remote.process.pid  # type: ignore[attr-defined]
    time.sleep(0.1)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
