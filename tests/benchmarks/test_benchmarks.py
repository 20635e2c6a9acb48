"""The scripts behind published numbers run, and all sides train the same trials."""

from __future__ import annotations

import statistics
import subprocess
import sys

import pytest

from benchmarks.__main__ import Case, run_round, table


def test_accuracies_are_of_the_trials_that_all_sides_ran() -> None:
    ran = {"ours": {"frozen": [0.1], "full": [0.3]}, "A": {"frozen": [0.2, 0.9], "full": [0.4, 0.9]}}
    records = [
        {
            "case": "mixed",
            "round": 0,
            "side": side,
            "seconds": 1.0,
            "peak_mb": 1.0,
            "measured_trials": 2,
            "accuracies": of,
        }
        for side, of in ran.items()
    ]
    shown = table(records)
    (cell,) = next(column for column in shown.columns if str(column.header).startswith("accuracy")).cells
    assert cell == "0.200 / 0.300 / "


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("strategies", [("frozen",), ("partial", "lora")])
def test_all_sides_train_the_same_trials_to_like_accuracies(strategies: tuple[str, ...]) -> None:
    case = Case("tiny", strategies, trials=2, epochs=2, train=120, validation=100)
    ours, plain, tuned = run_round(case, 0, ["ours", "A", "B"], engine="processes")
    assert [result.side for result in (ours, plain, tuned)] == ["ours", "A", "B"]
    for side in (ours, plain, tuned):
        assert {name: len(values) for name, values in side.accuracies.items()} == dict.fromkeys(strategies, 2)
    for other in (plain, tuned):
        for name, values in ours.accuracies.items():
            assert abs(statistics.mean(values) - statistics.mean(other.accuracies[name])) < 0.15


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_steps_are_measured_for_every_model_and_strategy() -> None:
    command = [
        sys.executable,
        "-m",
        "benchmarks.step",
        "--size",
        "small",
        "--steps",
        "1",
        "--batch",
        "2",
        "--tokens",
        "8",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    rows = [line.split()[:2] for line in done.stdout.splitlines()[2:]]
    assert rows == [[model, name] for model in ("text", "image") for name in ("frozen", "partial", "lora", "full")]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_what_reading_one_position_saves_is_measured() -> None:
    given = ["--repetitions", "1", "--blocks", "1", "2", "--train", "64", "--validation", "40"]
    command = [sys.executable, "-m", "benchmarks.read_positions", *given]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert [line.split(":")[0] for line in done.stdout.splitlines() if "times" in line] == ["last 1", "last 2"]
