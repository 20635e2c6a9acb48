"""Runs in worker processes of this machine."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

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


def test_what_a_killed_owner_left_is_removed_and_what_is_in_use_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    left = tmp_path / "thawline-workers-left"
    left.mkdir()
    (left / "1.pickle").write_bytes(b"a model and its data")
    with ProcessEngine(1):
        (in_use,) = (path for path in tmp_path.iterdir() if path != left)
        for path in (left, in_use):
            os.utime(path, (0, 0))
        with ProcessEngine(1):
            assert in_use.exists() and not left.exists()
    assert not list(tmp_path.iterdir())
