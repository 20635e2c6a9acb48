"""Sweeps whose parts are killed at random moments, continued until they end, and what was lost.

``python -m tests.soak.kills --rounds 50`` prints a table of all rounds, and ends with status 1 if anything is wrong.
"""

from __future__ import annotations

import argparse
import collections
import os
import random
import signal
import sys
import tempfile
import time
from contextlib import ExitStack
from multiprocessing.process import BaseProcess
from pathlib import Path

from tests.mlflow_server import Server as MlflowServer
from tests.postgres import serve as serve_postgres
from tests.soak.sweeps import WorkersGone, arguments, begin, problems, workers_of

ENGINES = ("inline", "processes", "ray")
FAULTS = ("worker", "owner", "server", "database")
TRIALS, FINALS, EPOCHS = 5, 1, 20
STARTS = 8  # of one sweep; a kill costs one, and a run that is interrupted three times counts as failed
LIMIT_SECONDS = 900


def main() -> None:
    """Run the rounds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--engines", nargs="+", default=list(ENGINES), choices=ENGINES)
    parser.add_argument("--faults", nargs="+", default=list(FAULTS), choices=FAULTS)
    asked = parser.parse_args()
    draw = random.Random(asked.seed)
    with tempfile.TemporaryDirectory(prefix="thawline-soak-") as folder:
        top = Path(folder)
        given = arguments(top / "model", trials=TRIALS, finals=FINALS, epochs=EPOCHS)
        usual: dict[str, float] = {}  # engine -> seconds of a sweep that nothing happens to
        table: dict[tuple[str, str], list[int]] = collections.defaultdict(lambda: [0, 0, 0, 0])
        for number in range(asked.rounds):
            engine = draw.choice(asked.engines)
            faults = [fault for fault in asked.faults if fault != "worker" or engine != "inline"]
            fault = draw.choice(faults)
            if engine not in usual:
                started = time.monotonic()
                wrong, starts, _ = _round(top / f"usual-{engine}", given, engine, "", 0.0)
                usual[engine] = time.monotonic() - started
                print(f"{engine}, nothing killed: {usual[engine]:.0f} s; {'; '.join(wrong) or 'right'}", flush=True)
            # Workers are there for a part of a sweep alone, and the time counts from then.
            share = draw.uniform(0.0, 0.4) if fault == "worker" else draw.uniform(0.1, 0.9)
            wrong, starts, killed = _round(top / str(number), given, engine, fault, share * usual[engine])
            row = table[engine, fault]
            for place, value in enumerate((1, killed, starts - 1, bool(wrong))):
                row[place] += int(value)
            said = "; ".join(wrong) or "right"
            print(f"round {number + 1}: {engine}, {fault}: {starts} starts; {said}", flush=True)
        print("\n| engine | killed | rounds | kills that hit | continued by the same command | wrong |")
        print("|---|---|---|---|---|---|")
        for (engine, fault), row in sorted(table.items()):
            print(f"| {engine} | {fault} | {' | '.join(map(str, row))} |")
        sys.exit(any(row[3] for row in table.values()))


def _round(output: Path, given: list[str], engine: str, fault: str, after: float) -> tuple[list[str], int, bool]:
    """A sweep, a kill after so many seconds, and the same command until it ends.

    Returns:
        What is wrong, how often the command was started, and whether there was something to kill.
    """
    with ExitStack() as stack:
        output.mkdir()
        storage, tracking = f"sqlite:///{output / 'optuna.db'}", f"sqlite:///{output / 'mlflow.db'}"
        server = database = None
        if fault == "server":
            server = MlflowServer(output / "server")
            server.start()
            stack.callback(server.kill)
            tracking = server.uri
        if fault == "database":
            database = stack.enter_context(serve_postgres(output / "postgres"))
            storage = database.url.replace("postgresql://", "postgresql+psycopg://")
        workers = [] if engine == "inline" else ["engine.workers=2"]
        options = [f"engine={engine}", *workers, f"tracking.uri={tracking}"]
        options += [f"study.storage={database.url}"] if database else []
        starts, hit = 0, False
        while True:
            process = begin(output, [*given, *options])
            starts += 1
            if starts == 1 and fault:
                if fault == "worker":
                    _await_workers(process)
                process.join(after)
                if hit := process.exitcode is None:
                    if fault == "owner":
                        os.kill(process.pid or 0, signal.SIGKILL)
                    elif fault == "worker":
                        try:
                            os.kill(workers_of(process.pid or 0)[0], signal.SIGKILL)
                        except (WorkersGone, ProcessLookupError):
                            hit = False
                    elif server is not None:
                        server.kill()
                        process.join(2)
                        server.start()
                    elif database is not None:
                        database.stop()
                        database.start()
            process.join(LIMIT_SECONDS)
            if process.exitcode is None:
                process.kill()
                return [f"still running after {LIMIT_SECONDS} seconds"], starts, hit
            if process.exitcode == 0:
                return problems(storage, tracking, trials=TRIALS, finals=FINALS), starts, hit
            if starts == STARTS:
                last = (output / "printed.log").read_text().strip().splitlines()[-2:]
                return [f"did not end in {STARTS} starts: {' '.join(last)}"], starts, hit


def _await_workers(process: BaseProcess) -> None:
    while process.exitcode is None:
        try:
            workers_of(process.pid or 0)
        except WorkersGone:
            process.join(0.2)
        else:
            return


if __name__ == "__main__":
    main()
