"""The scripts behind published numbers run, and all sides train the same trials."""

from __future__ import annotations

import subprocess
import sys

import pytest

from benchmarks.__main__ import Case, run_round

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.mark.parametrize("strategies", [("frozen",), ("partial", "lora")])
def test_all_sides_train_the_same_trials_to_like_accuracies(strategies: tuple[str, ...]) -> None:
    case = Case("tiny", strategies, trials=2, epochs=2, train=120, validation=100)
    ours, plain, tuned = run_round(case, 0, ["ours", "A", "B"])
    assert [result.side for result in (ours, plain, tuned)] == ["ours", "A", "B"]
    assert len(ours.accuracies) == len(plain.accuracies) == len(tuned.accuracies) == 2 * len(strategies)
    for own, other in ((ours, plain), (ours, tuned)):
        means = [sum(side.accuracies) / len(side.accuracies) for side in (own, other)]
        assert abs(means[0] - means[1]) < 0.15


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


def test_what_reading_one_position_saves_is_measured() -> None:
    given = ["--repetitions", "1", "--blocks", "1", "2", "--train", "64", "--validation", "40"]
    command = [sys.executable, "-m", "benchmarks.read_positions", *given]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert [line.split(":")[0] for line in done.stdout.splitlines() if "times" in line] == ["last 1", "last 2"]
