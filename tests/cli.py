"""The real command line in a process of its own, and what it left in MLflow."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import mlflow
import pandas as pd

__all__ = ["command", "run", "runs"]


def command(output: Path, *arguments: str) -> list[str]:
    """The arguments of a process that writes to ``output``."""
    return [sys.executable, "-m", "sweeper", *arguments, f"output_dir={output}"]


def run(output: Path, *arguments: str, status: int = 0, cwd: Path | None = None) -> str:
    """Run it to its end, which must have this status; what it printed."""
    result = subprocess.run(command(output, *arguments), capture_output=True, text=True, timeout=300, cwd=cwd)
    assert result.returncode == status, result.stdout + result.stderr
    return result.stdout + result.stderr


def runs(output: Path, **tags: str) -> pd.DataFrame:
    """The MLflow runs with these tags, oldest first; ``kind="trial"`` stands for ``thawline.kind``."""
    mlflow.set_tracking_uri(f"sqlite:///{output / 'mlflow.db'}")
    query = " and ".join(f"tags.`thawline.{key}` = '{value}'" for key, value in tags.items())
    return mlflow.search_runs(search_all_experiments=True, filter_string=query, order_by=["attributes.start_time"])
