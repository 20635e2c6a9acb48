"""Runs in workers that Ray places, on a cluster of two nodes of this machine."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sweeper.engine import WorkerDied, Workload, engine_problems
from sweeper.engine.ray import RayEngine, _shares
from sweeper.engine.workers import WorkerEngine
from sweeper.errors import StudyError
from sweeper.training.replicas import Replicas
from tests.cli import TINY_SWEEP, piped, runs
from tests.sweeper.engine.engine_contract import EngineContract, Seen, run

STORE = 100 * 2**20


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Without room for a worker on the head, where the owner is."""
    os.environ.update(
        RAY_USAGE_STATS_ENABLED="0",
        RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0",  # 127.0.0.1 alone
        RAY_AUTH_MODE="disabled",
        RAY_worker_niceness="0",
    )
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": STORE})
    for _ in range(2):
        made.add_node(num_cpus=1, object_store_memory=STORE)
    yield made
    made.shutdown()


@pytest.mark.slow
@pytest.mark.timeout(600)
class TestRay(EngineContract):
    killed = "worker process has died"

    @pytest.fixture(scope="class")
    @classmethod
    def engine(cls, cluster: Any) -> Iterator[WorkerEngine]:
        with RayEngine(2, cluster.address, 1, 0) as made:
            yield made

    def pids(self, engine: WorkerEngine) -> list[int]:
        return [worker.remote.pid for worker in engine._pool]  # type: ignore[attr-defined]

    def test_a_node_that_is_gone_ends_its_run_and_the_others_go_on(
        self, cluster: Any, engine: WorkerEngine, workload: Workload
    ) -> None:
        def remove() -> None:
            if gone.is_set():
                return
            gone.set()
            cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)

        gone = threading.Event()
        run(engine, workload, [Seen(), Seen()])  # a worker on each
        seen = [Seen(then=remove), *(Seen() for _ in range(3))]
        run(engine, workload, seen)
        died = [each for each in seen if each.ends != [None]]
        assert len(died) == 1 and isinstance(died[0].ends[0], WorkerDied)
        assert len(engine._pool) == 1

    def test_a_worker_joins_when_there_is_room_again(
        self, cluster: Any, engine: WorkerEngine, workload: Workload
    ) -> None:
        cluster.add_node(num_cpus=1, object_store_memory=STORE)
        deadline = time.monotonic() + 120
        while not engine.room() and time.monotonic() < deadline:
            time.sleep(0.5)
        run(engine, workload, seen := [Seen(), Seen()])
        assert len(engine._pool) == 2 and [each.ends for each in seen] == [[None], [None]]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_node_that_is_killed_costs_a_sweep_no_trial(cluster: Any, tmp_path: Path, tiny_checkpoint: Path) -> None:
    while len(cluster.worker_nodes) < 2:
        cluster.add_node(num_cpus=1, object_store_memory=STORE)
    given = [
        *("strategy=full", *TINY_SWEEP, f"model.path={tiny_checkpoint}", "trainer.epochs=20", "study.pruner=none"),
        *("study.n_trials=5", "final.seeds=2", "verbosity=verbose", "engine=ray", f"engine.address={cluster.address}"),
        *("engine.workers=2", "engine.cpus_per_worker=1", "engine.gpus_per_worker=0"),
    ]
    owner = piped(tmp_path, "sweep", *given)
    assert owner.stdout is not None
    printed = ""
    for line in owner.stdout:
        if "epoch 2/20" in line and "epoch 2/20" not in printed:
            cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
        printed += line
    assert owner.wait(60) == 0, printed
    states = runs(tmp_path, kind="trial")["tags.thawline.state"].tolist()
    assert states.count("complete") == 5 and states.count("interrupted") == 1 and len(states) == 6, printed
    assert len(runs(tmp_path, kind="final", state="complete")) == 2
    assert "RUNNING" not in set(runs(tmp_path)["status"])


def node(cpus: float, gpus: float = 0) -> dict[str, float]:
    return {"CPU": cpus, **({"GPU": gpus} if gpus else {})}


@pytest.mark.parametrize(
    ("nodes", "asked", "got"),
    [
        ([node(8)], (None, None, None), (4, 2, 0)),
        ([node(2), node(3)], (None, None, None), (5, 1, 0)),
        ([node(3), node(3)], (3, None, None), (3, 1, 0)),
        ([node(2)], (8, None, None), (8, 0.25, 0)),
        ([node(0), node(16, 4)], (None, None, None), (4, 4, 1)),
        ([node(16, 1)], (None, None, 0.5), (2, 8, 0.5)),
        ([node(16, 2)], (None, 4, 0), (4, 4, 0)),
    ],
)
def test_what_is_there_is_shared_equally(nodes: list[Any], asked: tuple[Any, ...], got: tuple[float, ...]) -> None:
    assert _shares(nodes, *asked) == got


def test_what_no_machine_has_is_refused_with_what_they_have() -> None:
    with pytest.raises(StudyError, match=r"takes 1 CPUs and 1 GPUs, and no machine has that: 2 CPUs and 0 GPUs; 4"):
        _shares([node(2), node(4)], None, 1, 1)


def test_workers_beside_a_launcher_are_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sweeper.engine.replicas", lambda: Replicas(0, 2))
    (problem,) = engine_problems("processes")
    assert "engine=processes" in problem and "leave engine out" in problem
    assert not engine_problems("inline")


def test_a_missing_ray_is_named_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sweeper.engine.find_spec", lambda name: None)
    (problem,) = engine_problems("ray")
    assert "pip install 'thawline[ray]'" in problem
