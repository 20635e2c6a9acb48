"""A new MLflow database is a copy of an empty one: the second is there at once, and is one of its own."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.store.db import utils

from sweeper.assets import CACHE_VARIABLE
from sweeper.new_database import new_database


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache" / "mlflow"


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The databases whose tables MLflow makes."""
    found: list[str] = []
    make = utils._initialize_tables

    def note(engine: object) -> None:
        found.append(Path(str(engine.url.database)).name)  # type: ignore[attr-defined]
        make(engine)

    for module in ("db.utils", "tracking.sqlalchemy_store", "model_registry.sqlalchemy_store"):
        monkeypatch.setattr(f"mlflow.store.{module}._initialize_tables", note, raising=False)
    return found


def begin(path: Path) -> MlflowClient:
    with new_database(f"sqlite:///{path}"):
        return MlflowClient(f"sqlite:///{path}")


def experiments(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as database:
        return [name for (name,) in database.execute("SELECT name FROM experiments ORDER BY name")]


def test_the_first_is_mlflows_own_work_and_later_ones_are_copies(tmp_path: Path, cache: Path, made: list[str]) -> None:
    first, second = begin(tmp_path / "first.db"), begin(tmp_path / "second.db")
    assert made == ["first.db"]
    assert len(list(cache.iterdir())) == 1
    first.create_experiment("ours")
    run = second.create_run(second.create_experiment("theirs")).info.run_id
    second.log_metric(run, "loss", 0.5)
    assert second.get_run(run).data.metrics == {"loss": 0.5}
    assert experiments(tmp_path / "first.db") == ["Default", "ours"]
    assert experiments(tmp_path / "second.db") == ["Default", "theirs"]
    assert experiments(next(cache.iterdir())) == []


def test_a_database_that_is_there_stays_as_it_is(tmp_path: Path) -> None:
    begin(tmp_path / "first.db").create_experiment("ours")
    begin(tmp_path / "first.db")
    assert experiments(tmp_path / "first.db") == ["Default", "ours"]


def test_what_another_process_recorded_meanwhile_is_not_kept(tmp_path: Path, cache: Path) -> None:
    with new_database(uri := f"sqlite:///{tmp_path / 'shared.db'}"):
        client = MlflowClient(uri)
        client.create_run("0")
    assert list(cache.iterdir()) == []
    begin(tmp_path / "second.db")
    assert len(list(cache.iterdir())) == 1


@pytest.mark.parametrize("damage", ["cut", "nonsense"])
def test_a_damaged_copy_is_made_anew(tmp_path: Path, cache: Path, made: list[str], damage: str) -> None:
    begin(tmp_path / "first.db")
    (empty,) = cache.iterdir()
    content = empty.read_bytes()
    empty.write_bytes(content[: len(content) // 2] if damage == "cut" else b"nonsense" * 1000)
    begin(tmp_path / "second.db").create_experiment("ours")
    assert made == ["first.db", "second.db"]
    assert begin(tmp_path / "third.db") and made == ["first.db", "second.db"]
    assert experiments(tmp_path / "second.db") == ["Default", "ours"]


def test_without_a_cache_folder_mlflow_makes_it(tmp_path: Path, made: list[str]) -> None:
    (tmp_path / "cache").write_text("a file is in the way")
    begin(tmp_path / "first.db")
    begin(tmp_path / "second.db")
    assert made == ["first.db", "second.db"]
