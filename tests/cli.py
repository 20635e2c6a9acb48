"""The real command line in a process of its own, and what it left in MLflow."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import tempfile
from multiprocessing.process import BaseProcess
from pathlib import Path

import mlflow
import pandas as pd
from mlflow import MlflowClient

from sweeper.new_database import new_database

__all__ = ["TINY_SWEEP", "command", "give_database", "piped", "run", "runs", "start"]

#: The splits and the precision of a tiny sweep on a checkpoint of the tests, whose folder is `model.path`.
TINY_SWEEP = (
    "model=local",
    "dataset.train_size=64",
    "dataset.validation_size=40",
    "dataset.test_size=60",
    "trainer.precision=fp32",
)

# New processes are forked from one that has done the imports, which take longer than most commands.
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["sweeper.__main__", "sweeper.commands", "sweeper.comparison"])


def command(output: Path, *arguments: str) -> list[str]:
    """The arguments of a process started from a shell, writing to ``output``; models are registered where asked for."""
    registers = [] if any(item.startswith("tracking.register=") for item in arguments) else ["tracking.register=false"]
    return [sys.executable, "-m", "sweeper", *arguments, *registers, f"output_dir={output}"]


def run(output: Path, *arguments: str, status: int = 0, cwd: Path | None = None) -> str:
    """Run the command to its end, which must have this status; what it printed."""
    with tempfile.NamedTemporaryFile("r") as printed:
        process = start(output, *arguments, cwd=cwd, printed=Path(printed.name))
        process.join(timeout=300)
        if process.exitcode is None:
            process.kill()
            process.join()
        text = printed.read()
    assert process.exitcode == status, text
    return text


def start(output: Path, *arguments: str, printed: Path, cwd: Path | None = None) -> BaseProcess:
    """Start the command, which writes what it prints to a file that exists."""
    process = _PROCESSES.Process(target=_main, args=(command(output, *arguments)[2:], cwd, str(printed)))
    process.start()
    return process


def piped(output: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """Start the command from a shell, writing to ``output``; what it prints, errors too, is its ``stdout``, at once."""
    return subprocess.Popen(
        command(output, *arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
    )


def _main(arguments: list[str], cwd: Path | None, printed: str) -> None:
    file = os.open(printed, os.O_WRONLY | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.chdir(cwd or os.getcwd())
    sys.argv = arguments
    multiprocessing.current_process().name = "MainProcess"  # what transformers tells data loaders' workers from
    from sweeper.__main__ import main

    main()


def give_database(output: Path) -> None:
    """An ``mlflow.db`` in which nothing is recorded, for what opens it without a sweep."""
    output.mkdir(parents=True, exist_ok=True)
    path = output / "mlflow.db"
    with new_database(f"sqlite:///{path}"):
        pass
    if path.exists():
        return
    # No copy is kept yet; a store that is opened here would keep its files in this folder.
    with tempfile.TemporaryDirectory() as folder, new_database(uri := f"sqlite:///{folder}/mlflow.db"):
        MlflowClient(uri)
    with new_database(f"sqlite:///{path}"):
        pass
    assert path.exists(), "an empty database cannot be kept in the cache folder"


def runs(output: Path, **tags: str) -> pd.DataFrame:
    """The MLflow runs with these tags, oldest first; ``kind="trial"`` stands for ``thawline.kind``."""
    mlflow.set_tracking_uri(f"sqlite:///{output / 'mlflow.db'}")
    query = " and ".join(f"tags.`thawline.{key}` = '{value}'" for key, value in tags.items())
    return mlflow.search_runs(search_all_experiments=True, filter_string=query, order_by=["attributes.start_time"])
