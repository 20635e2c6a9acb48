"""Thousands of runs: nothing is cut, and a report does not take long."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

import reports
from sweeper import schema
from tests.reports.conftest import Recorder

BIG, TRIALS = "c-big", 2000
OTHERS, OTHER_TRIALS = 20, 50
_TABLES = ("runs", "tags", "params", "metrics", "latest_metrics")


def multiply(path: Path, template: str, number: int, tags: dict[str, str], first: int = 0) -> None:
    """Copies of one run in MLflow's own tables, a thousand times faster than by its client."""
    connection = sqlite3.connect(path)
    for trial in range(first, first + number):
        copy = uuid.uuid4().hex
        for table in _TABLES:
            columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
            values = ["?1" if column == "run_uuid" else column for column in columns]
            query = f"INSERT INTO {table} ({','.join(columns)}) SELECT {','.join(values)} FROM {table}"
            connection.execute(f"{query} WHERE run_uuid = ?2", (copy, template))
        connection.execute("UPDATE params SET value = ? WHERE run_uuid = ? AND key = 'trial'", (str(trial), copy))
        for key, value in tags.items():
            connection.execute("UPDATE tags SET value = ? WHERE run_uuid = ? AND key = ?", (value, copy, key))
    connection.commit()
    connection.close()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One comparison of two strategies with 2,000 trials in all, beside twenty smaller ones."""
    folder = tmp_path_factory.mktemp("scale")
    recorder = Recorder(f"sqlite:///{folder / 'mlflow.db'}", folder)
    for strategy in ("lora", "full"):
        study = recorder.study(BIG, strategy, metrics={schema.N_TRIALS: TRIALS / 2})
        params = {f"setting_{i}": i for i in range(15)}  # about as many as the engine logs
        template = recorder.trial(BIG, study, 0, params=params, score=0.7)
        multiply(folder / "mlflow.db", template, TRIALS // 2 - 1, {}, first=1)
        for seed in range(3):
            recorder.final(BIG, study, seed, 0.8 + 0.01 * seed, size=10)
    for i in range(OTHERS):
        study = recorder.study(f"c-{i}", "lora", name=f"m-d-lora-{i}")
        tags = {schema.TAG_COMPARISON: f"c-{i}", schema.TAG_STUDY: study, schema.TAG_STRATEGY: "lora"}
        multiply(folder / "mlflow.db", template, OTHER_TRIALS, tags)
        recorder.final(f"c-{i}", study, 0, 0.8, size=10)
    return recorder.uri


@pytest.mark.slow
def test_a_comparison_of_two_thousand_trials_is_complete(store):
    comparison = reports.load_comparison(store, BIG)
    trials = [comparison.trials(study) for study in comparison.studies["study"]]
    assert [list(rows["trial"]) for rows in trials] == [list(range(TRIALS // 2))] * 2
    assert not comparison.notes
    assert len(reports.list_comparisons(store)) == OTHERS + 1


@pytest.mark.slow
def test_its_report_takes_seconds(store, tmp_path):
    """The whole process; 20 s of its own work at the most, whatever else the machine does."""
    command = [sys.executable, "-m", "sweeper", "report", f"report.comparison={BIG}", f"tracking.uri={store}"]
    before = os.times()
    started = time.perf_counter()
    subprocess.run([*command, f"output_dir={tmp_path}"], check=True, capture_output=True)
    after = os.times()
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    print(f"{time.perf_counter() - started:.1f} s, {spent:.1f} s of a core")
    text = (tmp_path / "reports" / BIG / "report.md").read_text(encoding="utf-8")
    assert text.count("| 1000 | 1000 |") == 2  # asked, complete
    assert spent < 20
