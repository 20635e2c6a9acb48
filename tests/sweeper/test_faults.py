"""What fails under a study: what is its outcome, what stops it, what it says, and how it goes on afterwards."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest

from tests.cli import give_database, run, runs

TINY = [
    "model=local",
    "dataset.train_size=64",
    "dataset.validation_size=40",
    "dataset.test_size=60",
    "trainer.epochs=2",
    "trainer.precision=fp32",
    "final.seeds=1",
    "study.n_trials=2",
    "study.pruner=none",
]


@pytest.fixture(scope="module")
def tiny(tiny_checkpoint: Path) -> list[str]:
    return [*TINY, f"model.path={tiny_checkpoint}"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 16 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("mounting needs root")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def fill(disk: Path, *, free: int) -> Path:
    """A file that leaves so many bytes of a disk."""
    status = os.statvfs(disk)
    filler = disk / "filler"
    filler.write_bytes(b"\0" * (status.f_bavail * status.f_frsize - free))
    return filler


def error_of(text: str) -> list[str]:
    """The error that a command ended with, a message and a hint."""
    assert "Traceback" not in text, text
    lines = text.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("error: "))
    assert len(lines) == start + 2, text
    return lines[start:]


def finished(output: Path) -> int:
    storage = f"sqlite:///{output / 'optuna.db'}"
    (name,) = optuna.get_all_study_names(storage)
    states = [trial.state.name for trial in optuna.load_study(study_name=name, storage=storage).trials]
    assert "RUNNING" not in states
    return states.count("COMPLETE")


@pytest.mark.slow
@pytest.mark.parametrize("free", [60_000, 200_000, 400_000, 4_700_000], ids=["database", "trial", "model", "report"])
def test_a_full_disk_is_said_and_the_same_command_goes_on_with_room(
    small_disk: Path, tiny: list[str], free: int
) -> None:
    output = small_disk / "out"
    give_database(output)
    filler = fill(small_disk, free=free)
    message, hint = error_of(run(output, "sweep", "strategy=frozen", *tiny, status=2))
    assert "disk is full" in message or "No space left" in message
    assert "the same command" in hint or "output_dir" in hint
    filler.unlink()
    for left in (*output.rglob(".*.new"), *output.glob("reports/*/*")):
        pytest.fail(f"half-written: {left}")
    run(output, "sweep", "strategy=frozen", *tiny)
    assert finished(output) == 2
    assert set(runs(output)["status"]) <= {"FINISHED", "KILLED", "FAILED"}
    assert len(runs(output, kind="final", state="complete")) == 1
    assert len(list(output.glob("reports/*/report.md"))) == 1


@pytest.mark.slow
def test_a_full_cache_costs_time_and_nothing_else(small_disk: Path, tmp_path: Path, tiny: list[str]) -> None:
    """What is recorded lies in mapped memory, which a full disk ends by a signal where no room is reserved."""
    fill(small_disk, free=4_096)
    text = run(tmp_path / "out", "sweep", "strategy=frozen", *tiny, f"cache.dir={small_disk}")
    assert "states cannot be recorded" in text and "No space left on device" in text
    assert finished(tmp_path / "out") == 2


@pytest.mark.slow
def test_a_read_only_folder_is_said_before_anything_is_loaded(small_disk: Path, tiny: list[str]) -> None:
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    text = run(small_disk / "out", "sweep", "strategy=frozen", *tiny, status=2)
    assert f"output_dir={small_disk}" in error_of(text)[0]
    assert "Loading" not in text


@pytest.mark.slow
@pytest.mark.parametrize("name", ["optuna.db", "mlflow.db"])
@pytest.mark.parametrize("damage", ["overwritten", "cut"])
def test_a_damaged_database_is_named(tmp_path: Path, tiny: list[str], name: str, damage: str) -> None:
    swept = tmp_path / "swept"
    run(swept, "sweep", "strategy=frozen", *tiny)
    path = swept / name
    content = path.read_bytes()
    path.write_bytes(os.urandom(len(content)) if damage == "overwritten" else content[: len(content) // 2])
    message, hint = error_of(run(swept, "sweep", "strategy=frozen", *tiny, "study.n_trials=3", status=2))
    assert "damaged" in message and str(path) in message and "output_dir" in hint
