"""What pruning saves, and what it costs: the same studies with and without it, over several seeds.

    python -m benchmarks.pruning --seeds 5

Each seed is one `compare` of frozen, partial, LoRA and full without finals and report, run with `study.pruner=none` and
then with the pruner, in processes of their own with empty caches. Prints seconds, epochs and the best validation
accuracy of each, and the paired difference of the best accuracies with its t interval over seeds.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
from pathlib import Path

import numpy as np
from rich.console import Console
from scipy import stats

from benchmarks.__main__ import Case, run_ours, studies_of

STRATEGIES = ("frozen", "partial", "lora", "full")


def main() -> None:
    """Run all seeds and print what they came to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--train", type=int, default=1000)
    parser.add_argument("--validation", type=int, default=500)
    parser.add_argument("--pruner", default="hyperband")
    parser.add_argument("--engine", choices=("inline", "processes"), default="processes")
    given = parser.parse_args()
    console = Console(highlight=False)
    case = Case("mixed", STRATEGIES, given.trials, given.epochs, given.train, given.validation)
    ratios, differences = [], []
    for seed in range(given.seeds):
        best, seconds, epochs = {}, {}, {}
        for pruner in ("none", given.pruner):
            with tempfile.TemporaryDirectory(prefix="thawline-bench-") as folder:
                done = run_ours(dataclasses.replace(case, pruner=pruner), seed, Path(folder), given.engine)
                trials = [
                    trial
                    for study in studies_of(Path(folder) / "outputs" / "optuna.db")
                    for trial in study.get_trials(deepcopy=False)
                ]
            best[pruner] = max(trial.value for trial in trials if trial.value is not None)
            seconds[pruner] = done.seconds
            epochs[pruner] = sum(len(trial.intermediate_values) for trial in trials)
            console.print(
                f"seed {seed}, {pruner}: {done.seconds:.1f} s, {epochs[pruner]} epochs, best {best[pruner]:.4f}"
            )
        ratios.append(seconds["none"] / seconds[given.pruner])
        differences.append(best[given.pruner] - best["none"])
    low, high = stats.t.interval(0.95, len(differences) - 1, np.mean(differences), stats.sem(differences))
    console.print(
        f"{given.pruner} against none, {given.seeds} seeds: {statistics.median(ratios):.2f}x "
        f"[{min(ratios):.2f}, {max(ratios):.2f}]; best validation accuracy {np.mean(differences):+.4f} "
        f"[{low:+.4f}, {high:+.4f}]"
    )


if __name__ == "__main__":
    main()
