"""Many short trials of one study by several workers: none lost, doubled or stuck, and how many a minute.

``python -m tests.soak.workers --trials 500 --workers 1 2 4 8`` prints a row for each number of workers; all but the
last are given a fifth of the trials.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.soak.sweeps import arguments, begin, problems

LIMIT_SECONDS = 4 * 3600


def main() -> None:
    """Run the studies."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", default="processes", choices=("processes", "ray"))
    parser.add_argument("--trials", type=int, default=500)
    parser.add_argument("--workers", nargs="+", type=int, default=[1, 2, 4, 8])
    asked = parser.parse_args()
    bad = False
    with tempfile.TemporaryDirectory(prefix="thawline-soak-") as folder:
        top = Path(folder)
        print("| workers | trials | seconds | trials a minute | wrong |\n|---|---|---|---|---|", flush=True)
        for workers in asked.workers:
            trials = asked.trials if workers == asked.workers[-1] else max(1, asked.trials // 5)
            output = top / str(workers)
            given = arguments(top / "model", trials=trials, epochs=1, finals=0)
            started = time.monotonic()
            process = begin(output, [*given, f"engine={asked.engine}", f"engine.workers={workers}"])
            process.join(LIMIT_SECONDS)
            seconds = time.monotonic() - started
            wrong = [f"status {process.exitcode}"] if process.exitcode else []
            if process.exitcode is None:
                process.kill()
                wrong = ["stuck"]
            if not wrong:
                databases = [f"sqlite:///{output / name}" for name in ("optuna.db", "mlflow.db")]
                wrong = problems(*databases, trials=trials, finals=0)
            bad = bad or bool(wrong)
            said = "; ".join(wrong) or "nothing"
            print(f"| {workers} | {trials} | {seconds:.0f} | {60 * trials / seconds:.0f} | {said} |", flush=True)
    sys.exit(bad)


if __name__ == "__main__":
    main()
