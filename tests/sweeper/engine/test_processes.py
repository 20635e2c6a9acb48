"""Runs in worker processes of this machine."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest

from sweeper.engine import Workload
from sweeper.engine.processes import ProcessEngine
from sweeper.engine.workers import WorkerEngine
from tests.sweeper.engine.engine_contract import EngineContract, Seen, run


class TestProcesses(EngineContract):
    @pytest.fixture(scope="class")
    @classmethod
    def engine(cls) -> Iterator[WorkerEngine]:
        with ProcessEngine(2) as made:
            yield made

    def pids(self, engine: WorkerEngine) -> list[int]:
        return [worker.remote.process.pid for worker in engine._pool]  # type: ignore[attr-defined]

    def test_workers_end_with_the_engine(self, workload: Workload) -> None:
        with ProcessEngine(1) as engine:
            run(engine, workload, [Seen()])
            (pid,) = self.pids(engine)
        time.sleep(0.1)
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
