"""What fails under a study: what is its outcome, what stops it, what it says, and how it goes on afterwards."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from PIL import Image

from sweeper.__main__ import main
from sweeper.data.images import ImageEncoder, StoredImage
from sweeper.engine import WorkerDied
from sweeper.errors import DataError
from sweeper.faults import failure_reason
from sweeper.interruption import Interrupted
from sweeper.models.preprocessing import Preprocessing
from sweeper.objective import Run, Task
from tests.cli import TINY_SWEEP, command, give_database, run, runs

TINY = [
    *TINY_SWEEP,
    "trainer.epochs=2",
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


@pytest.fixture(autouse=True)
def loggers() -> Iterator[None]:
    """Hydra disables all that there are when a command starts, which here is not the process's only one."""
    yield
    for logger in logging.root.manager.loggerDict.values():
        if isinstance(logger, logging.Logger):
            logger.disabled = False


def fill(disk: Path, *, free: int) -> Path:
    """A file that leaves so many bytes of a disk."""
    filler = disk / "filler"
    filler.unlink(missing_ok=True)
    status = os.statvfs(disk)
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


def sweep(monkeypatch: pytest.MonkeyPatch, output: Path, tiny: list[str], failing: dict[int, BaseException]) -> int:
    """Sweep in this process; the runs of these numbers end with these errors. Returns the status."""
    train, numbers = Task.run, iter(range(100))

    def run_or_fail(self: Task, *args: Any, **kwargs: Any) -> Run:
        if (error := failing.get(next(numbers))) is not None:
            raise error
        return train(self, *args, **kwargs)

    monkeypatch.setattr(Task, "run", run_or_fail)
    arguments = ["study.n_trials=4", "final.seeds=2", "study.max_failure_rate=0.6", f"output_dir={output}"]
    monkeypatch.setattr(sys, "argv", ["sweeper", "sweep", "strategy=frozen", *tiny, *arguments])
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    finally:
        monkeypatch.setattr(Task, "run", train)
    return 0


MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
ROW = DataError("image shelf/7.png cannot be read any more: truncated", "Put it back.")
DIED = WorkerDied("worker 1 was ended by SIGKILL")
STOPPED = Interrupted("SIGTERM")


@pytest.mark.slow
def test_failures_are_outcomes_with_reasons_everywhere(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny: list[str]
) -> None:
    give_database(tmp_path)
    assert sweep(monkeypatch, tmp_path, tiny, {0: MEMORY, 3: ROW, 4: MEMORY}) == 0
    failed = runs(tmp_path, state="failed")
    assert failed["tags.thawline.kind"].tolist() == ["trial", "trial", "final"]
    reasons = ["out of memory: CUDA out of memory. Tried to allocate 2.00 GiB.", f"data: {ROW.message}"]
    assert failed["tags.thawline.reason"].tolist() == [*reasons, reasons[0]]
    (report,) = tmp_path.glob("reports/*/report.md")
    for sentence in (f"failed: {reasons[0]}; {reasons[1]}", f"1 final ended without a test score: {reasons[0]}"):
        assert sentence in report.read_text().replace("\\", "")

    assert sweep(monkeypatch, tmp_path, tiny, {}) == 0
    assert len(runs(tmp_path, kind="trial")) == 4, "failed trials count"
    assert len(runs(tmp_path, kind="final", state="complete")) == 2, "a failed final is trained again"
    assert "1 final ended" not in report.read_text()


@pytest.mark.slow
@pytest.mark.parametrize(("runs_that_fail", "what"), [((0, 1, 2), "3 of 3 trials"), ((4, 5), "2 of 2 finals")])
def test_too_many_failures_stop_a_study_with_a_summary(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    tiny: list[str],
    capsys: pytest.CaptureFixture[str],
    runs_that_fail: tuple[int, ...],
    what: str,
) -> None:
    give_database(tmp_path)
    assert sweep(monkeypatch, tmp_path, tiny, dict.fromkeys(runs_that_fail, MEMORY)) == 2
    error = capsys.readouterr().err
    assert (
        what in error and f"failed: out of memory: CUDA out of memory. Tried to allocate 2.00 GiB. ({what[0]}" in error
    )
    assert "run the same command, or raise study.max_failure_rate" in error
    assert "RUNNING" not in set(runs(tmp_path)["status"])
    assert sweep(monkeypatch, tmp_path, tiny, {}) == 0, "the cause is mended: the study goes on"


@pytest.mark.slow
def test_what_takes_its_process_with_it_is_tried_three_times_over_all_commands(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny: list[str]
) -> None:
    give_database(tmp_path)
    for _ in range(2):
        assert sweep(monkeypatch, tmp_path, tiny, {0: DIED, 1: STOPPED}) != 0
    assert sweep(monkeypatch, tmp_path, tiny, {0: DIED, 4: DIED, 5: STOPPED}) != 0  # three trials and a final
    assert sweep(monkeypatch, tmp_path, tiny, {0: DIED, 1: DIED}) == 0
    trials, finals = runs(tmp_path, kind="trial"), runs(tmp_path, kind="final")
    assert Counter(trials["tags.thawline.state"]) == {"interrupted": 4, "failed": 1, "complete": 3}
    assert Counter(finals["tags.thawline.state"]) == {"interrupted": 3, "failed": 1, "complete": 1}
    assert "interrupted 3 times" in set(finals["tags.thawline.reason"])
    assert sweep(monkeypatch, tmp_path, tiny, {}) == 0
    assert len(runs(tmp_path, kind="final")) == 5, "given up for good"


@pytest.mark.slow
def test_a_signal_is_no_attempt_of_the_trial_that_it_ends(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny: list[str]
) -> None:
    give_database(tmp_path)
    for _ in range(4):
        assert sweep(monkeypatch, tmp_path, tiny, {0: STOPPED}) != 0
    assert sweep(monkeypatch, tmp_path, tiny, {}) == 0
    assert finished(tmp_path) == 4


@pytest.mark.slow
def test_a_clock_that_goes_backwards_loses_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny: list[str]
) -> None:
    give_database(tmp_path)
    real, started = time.time, time.time()
    monkeypatch.setattr(time, "time", lambda: started - 60 * (real() - started))
    assert sweep(monkeypatch, tmp_path, tiny, {2: STOPPED}) != 0
    monkeypatch.setattr(time, "time", lambda: real() - 86_400)
    assert sweep(monkeypatch, tmp_path, tiny, {}) == 0
    assert finished(tmp_path) == 4
    every = runs(tmp_path)
    assert "RUNNING" not in set(every["status"])
    kinds = Counter(every.loc[every["tags.thawline.state"] == "complete", "tags.thawline.kind"])
    assert kinds["trial"] == 4 and kinds["final"] == 2
    (report,) = tmp_path.glob("reports/*/report.md")
    assert "2 finals" in report.read_text() or "2 seeds" in report.read_text()


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (MEMORY, "out of memory: CUDA"),
        (MemoryError(), "out of memory: MemoryError"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: 9"), "out of m"),
        (RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"), "out of memory: MPS"),
        (ROW, "data: image shelf/7.png"),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), None),
        (ValueError("a mistake in the code"), None),
        (OSError(28, "No space left on device"), None),
    ],
)
def test_an_error_is_a_runs_own_or_ends_the_study(error: Exception, reason: str | None) -> None:
    found = failure_reason(error)
    assert found is None if reason is None else found is not None and found.startswith(reason)


@pytest.mark.parametrize("augmentation", ["none", "light"])
def test_an_image_that_vanished_is_named(tmp_path: Path, augmentation: str) -> None:
    path = tmp_path / "shelf.png"
    Image.new("RGB", (8, 8)).save(path)
    steps = Preprocessing(lambda image: torch.from_numpy(np.array(image)).permute(2, 0, 1), (8, 8), (0.0,), (1.0,))
    encoder = ImageEncoder(steps, augmentation)
    split = encoder.encode([StoredImage(path)], np.zeros(1, dtype=np.int64), by_length=False)
    examples = encoder.training(split, seed=0)
    if augmentation != "none":
        examples[0]
    path.unlink()
    with pytest.raises(DataError, match=r"image .*shelf\.png cannot be read any more"):
        examples[0]


@pytest.mark.slow
@pytest.mark.parametrize("free", [140_000, 400_000], ids=["database", "model"])
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

    (report,) = output.glob("reports/*/report.md")
    before = report.read_text()
    fill(small_disk, free=100_000)  # enough to begin
    message, _ = error_of(run(output, "report", "report.confidence=0.9", status=2))
    assert "cannot write" in message and "No space left on device" in message
    assert report.read_text().endswith(before[-200:]), "each file is the old one or the new one, whole"
    fill(small_disk, free=0)
    assert f"output_dir={output}" in error_of(run(output, "report", status=2))[0]


@pytest.mark.slow
def test_a_full_cache_costs_time_and_nothing_else(small_disk: Path, tmp_path: Path, tiny: list[str]) -> None:
    """What is recorded lies in mapped memory, which a full disk ends by a signal where no room is reserved."""
    fill(small_disk, free=4_096)
    arguments = command(tmp_path / "out", "sweep", "strategy=frozen", *tiny, f"cache.dir={small_disk}")
    done = subprocess.run(arguments, capture_output=True, text=True)  # in a fork Hydra mutes the loggers that it finds
    assert done.returncode == 0, done.stderr
    assert "states cannot be recorded" in done.stderr and "No space left on device" in done.stderr
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
