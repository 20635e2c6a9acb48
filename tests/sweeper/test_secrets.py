"""No password or token of a user's is printed, logged or stored."""

from __future__ import annotations

from pathlib import Path

import pytest

from sweeper.errors import ConfigError
from sweeper.secrets import redacted
from tests.cli import TINY_SWEEP, run, runs

SECRET = "hunter2-and-more"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"postgresql+psycopg://me:{SECRET}@host:5432/db", "postgresql+psycopg://me:***@host:5432/db"),
        (f"postgresql://me:a/b@{SECRET}@host/db?sslmode=require", "postgresql://me:***@host/db?sslmode=require"),
        (f"reading http://me:{SECRET}@host/x failed", "reading http://me:***@host/x failed"),
        (f"https://{SECRET}@host/x", "https://***@host/x"),
        (f"sqlite:///x.db?a=1&api_token={SECRET}&b=2", "sqlite:///x.db?a=1&api_token=***&b=2"),
        (f"postgresql://host/db?user=me&password={SECRET}", "postgresql://host/db?user=me&password=***"),
        ("sqlite:////data/optuna.db", "sqlite:////data/optuna.db"),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("postgresql://me@host/db, me@example.org", "postgresql://me@host/db, me@example.org"),
    ],
)
def test_secrets_in_urls_are_masked(text: str, shown: str) -> None:
    assert redacted(text) == shown


@pytest.mark.parametrize("name", ["HF_TOKEN", "OPENAI_API_KEY", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"])
def test_secrets_of_the_environment_are_masked(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, SECRET)
    assert SECRET not in str(ConfigError([f"401 for Bearer {SECRET}", "another"], f"not {SECRET}"))


@pytest.mark.slow
def test_a_sweep_leaves_no_secret_anywhere(tmp_path: Path, tiny_checkpoint: Path) -> None:
    output = tmp_path / "out"
    arguments = [
        *TINY_SWEEP,
        f"model.path={tiny_checkpoint}",
        "strategy=frozen",
        "trainer.epochs=1",
        "final.seeds=1",
        "study.n_trials=1",
        f"study.storage='sqlite:///file:{output / 'optuna.db'}?uri=true&password={SECRET}'",
    ]
    printed = [run(output, "sweep", *arguments, "dry_run=true"), run(output, "sweep", *arguments)]
    (study,) = runs(output, kind="study").to_dict("records")
    assert "optuna.db?uri=true&password=***" in study["tags.thawline.command"]
    # Errors, of our own and of libraries, name the storage.
    away = f"study.storage=postgresql+psycopg2://me:{SECRET}@127.0.0.1:1/db"
    printed.append(run(output, "sweep", *arguments[:-1], away, status=2))
    assert "postgresql+psycopg2://me:***@127.0.0.1:1/db" in printed[-1]
    printed.append(run(output, "report", f"tracking.uri=http://me:{SECRET}@127.0.0.1:1", status=2))
    assert not [text for text in printed if SECRET in text]
    files = [path for path in output.rglob("*") if path.is_file()]
    assert any(path.name == "overrides.yaml" for path in files) and any(path.name == "report.md" for path in files)
    assert not [path for path in files if SECRET.encode() in path.read_bytes()]
