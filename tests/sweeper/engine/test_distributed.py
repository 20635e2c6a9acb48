"""Runs that all processes of a launcher train together: the same results as one process, and all end together."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from sweeper.engine import InlineEngine
from sweeper.training.replicas import SHARE, OwnPart, Replicas
from tests.cli import TINY_SWEEP, command, run, runs
from tests.sweeper.engine.distributed_runs import results

pytestmark = pytest.mark.timeout(600)

#: Both launchers, without a GPU.
TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc_per_node=2")
ACCELERATE = (
    *("accelerate.commands.launch", "--multi_gpu", "--num_machines=1", "--num_processes=2", "--main_process_port=0"),
    *("--mixed_precision=bf16", "--dynamo_backend=no"),
)


def launched(launcher: Sequence[str], arguments: Sequence[str], cwd: Path) -> subprocess.Popen[str]:
    """Two processes of ``-m`` and these arguments."""
    return subprocess.Popen(
        [sys.executable, "-m", *launcher, "-m", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
    )


@pytest.fixture(scope="module")
def steady(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One without dropout, whose masks differ between processes."""
    folder = tmp_path_factory.mktemp("checkpoint") / "bert"
    shutil.copytree(tiny_checkpoint, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_the_parts_of_a_batch_make_up_the_batch() -> None:
    labels, visits = torch.tensor([0, 1, 1, 0, 1]), [np.zeros(5, dtype=np.int64) for _ in range(3)]
    examples = [{"row": row} for row in range(5)]
    weights = torch.tensor([1.0, 3.0])[labels]

    def parts(rows: list[int]) -> list[tuple[list[int], float]]:
        read = [
            OwnPart(Replicas(rank, 3), examples, weights, visits[rank], lambda some: {"rows": some})(rows)
            for rank in range(3)
        ]
        return [([example["row"] for example in part["rows"]], part[SHARE]) for part in read]

    assert parts([4, 0, 3, 1]) == [([4, 1], 0.75), ([0], 0.125), ([3], 0.125)]
    assert parts([2]) == [([2], 1.0), ([2], 0.0), ([2], 0.0)], "as many passes in each process"
    # A process counts what others read; what it reads itself, the examples count.
    assert [counted.tolist() for counted in visits] == [[1, 0, 0, 1, 0], [0, 1, 0, 1, 1], [1, 1, 0, 0, 1]]


@pytest.mark.slow
def test_two_processes_train_what_one_does_and_end_together(steady: Path, tmp_path: Path, repository: Path) -> None:
    """In one launch, so that no run leaves a process behind; memory runs out in the second one alone."""
    process = launched(
        TORCHRUN, ["tests.sweeper.engine.distributed_runs", str(steady), str(tmp_path / "two")], repository
    )
    printed, errors = process.communicate(timeout=400)
    assert process.returncode == 0, errors
    two = json.loads(printed)  # the second process prints nothing
    one = results(InlineEngine(), steady, tmp_path / "one")
    for name in ("whole", "resumed", "recorded", "out of memory"):
        assert two[name]["end"] is None
        np.testing.assert_allclose(two[name]["losses"], one[name]["losses"], rtol=1e-4, err_msg=name)
        assert two[name]["metrics"]["test_accuracy"] == one[name]["metrics"]["test_accuracy"]
    assert two["out of memory"]["metrics"]["micro_batch_size"] == 2, "both halve their batches"
    assert two["pruned"]["losses"] == two["whole"]["losses"][:1] and two["pruned"]["end"] == "RuntimeError"
    assert two["resumed"]["resumed"], "from the middle of the epoch after which the other one ended"
    assert two["diverged"]["end"] == one["diverged"]["end"] == "Diverged"


@pytest.mark.slow
def test_a_launched_sweep_is_recorded_once_with_the_scores_of_one_process(
    steady: Path, tmp_path: Path, repository: Path
) -> None:
    given = [
        *("compare", "strategy=full,lora", f"model.path={steady}", *TINY_SWEEP, "trainer.epochs=3"),
        *("trainer.batch_size=24", "study.n_trials=3", "study.pruner=median", "final.seeds=2"),
    ]
    process = launched(ACCELERATE, command(tmp_path / "two", *given)[2:], repository)
    printed, errors = process.communicate(timeout=300)
    assert process.returncode == 0, printed + errors
    run(tmp_path / "one", *given)
    for kind, count in (("trial", 6), ("final", 4)):
        two, one = (
            runs(tmp_path / folder, kind=kind).sort_values("tags.mlflow.runName").reset_index()
            for folder in ("two", "one")
        )
        assert len(two) == count and "RUNNING" not in set(two["status"])
        assert two["tags.thawline.state"].tolist() == one["tags.thawline.state"].tolist()
        assert two["params.device"].str.endswith(", 2 processes a run").all()
        for metric in ("best_validation_loss", *(["test_accuracy"] if kind == "final" else [])):
            np.testing.assert_allclose(two[f"metrics.{metric}"], one[f"metrics.{metric}"], rtol=1e-3)
    assert "pruned" in set(runs(tmp_path / "two", kind="trial")["tags.thawline.state"])
    assert printed.count("Report:") == 1


@pytest.mark.slow
@pytest.mark.parametrize("what", ["a signal to the launcher", "the loss of a process"])
def test_an_end_closes_the_runs_and_leaves_no_process(
    what: str, tiny_checkpoint: Path, tmp_path: Path, repository: Path
) -> None:
    given = [
        *("sweep", "strategy=full", f"model.path={tiny_checkpoint}", *TINY_SWEEP, "study.n_trials=2"),
        *("study.pruner=none", "final.seeds=1", "verbosity=verbose"),
    ]
    process = launched(TORCHRUN, command(tmp_path, *given, "trainer.epochs=300")[2:], repository)
    assert process.stdout is not None
    printed = ""
    for line in process.stdout:
        printed += line
        if "epoch 2/300" in line:
            break
    processes = psutil.Process(process.pid).children(recursive=True)
    if what == "a signal to the launcher":
        process.send_signal(signal.SIGTERM)
    else:
        processes[1].kill()
    rest, errors = process.communicate(timeout=60)
    said = "a process of this launch is gone" in errors or "stopped by SIGTERM" in errors  # the launcher sends it, too
    assert process.returncode != 0 and said, printed + rest + errors
    assert len(processes) == 2 and not psutil.wait_procs(processes, timeout=5)[1]
    (trial,) = runs(tmp_path, kind="trial").to_dict("records")
    assert trial["tags.thawline.state"] == "interrupted" and "RUNNING" not in set(runs(tmp_path)["status"])


@pytest.mark.slow
def test_a_mistake_is_said_once_and_ends_all_processes(tmp_path: Path, repository: Path) -> None:
    process = launched(TORCHRUN, command(tmp_path, "sweep", "engine=processes", "dry_run=true")[2:], repository)
    printed, errors = process.communicate(timeout=120)
    assert process.returncode != 0
    assert (printed + errors).count("started 2 processes, which train each run together") == 1
    assert "exitcode  : 2" in errors and "rank      : 0" in errors
