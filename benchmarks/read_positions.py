"""What it saves that the last block computes only the position that a head reads.

    python -m benchmarks.read_positions --repetitions 3

Trains the last blocks of MiniLM under a head that reads the first token (`model.pooling=first`), on recorded states as
a sweep does, with and without, in turn, with one seed. Prints the seconds of training and their ratios.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from contextlib import nullcontext
from pathlib import Path
from unittest import mock

from rich.console import Console

from benchmarks.parity import settings
from sweeper.assets import fetch
from sweeper.data import load_dataset
from sweeper.objective import Task
from sweeper.search_space import parse_strategy
from sweeper.training.state_store import StateStore


def main() -> None:
    """Print a line for each number of blocks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--blocks", type=int, nargs="*", default=[1, 2, 6])
    parser.add_argument("--train", type=int, default=1000)
    parser.add_argument("--validation", type=int, default=500)
    given = parser.parse_args()
    console = Console(highlight=False)
    dataset = load_dataset("review_lines", train_size=given.train, validation_size=given.validation, test_size=100)
    with tempfile.TemporaryDirectory(prefix="thawline-bench-") as folder:
        task = Task.load(
            dataset,
            fetch("minilm"),
            head="linear",
            pooling="first",
            revision=None,
            settings=settings(),
            store=StateStore(Path(folder), 4 << 30),
        )
        for blocks in given.blocks:
            seconds(task, blocks, lean=True)  # records the states
            times = [
                (seconds(task, blocks, lean=False), seconds(task, blocks, lean=True)) for _ in range(given.repetitions)
            ]
            ratios = [whole / lean for whole, lean in times]
            whole, lean = (statistics.median(side) for side in zip(*times, strict=True))
            console.print(
                f"last {blocks}: {whole:.1f} s without, {lean:.1f} s with; "
                f"{statistics.median(ratios):.2f} times as long without ({min(ratios):.2f} to {max(ratios):.2f})"
            )


def seconds(task: Task, blocks: int, *, lean: bool) -> float:
    """Of training this many last blocks."""
    spec, problems = parse_strategy({"name": "partial", "num_blocks": blocks}, 1e-4)
    assert spec is not None, problems
    whole = mock.patch("sweeper.training.fit.only_read_positions", lambda *_: nullcontext(()))
    with nullcontext() if lean else whole:
        return task.run(spec, {}, seed=0).fit.train_seconds


if __name__ == "__main__":
    main()
