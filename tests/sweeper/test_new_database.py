"""A new MLflow database is a copy of an empty one: the second is there at once, and is one of its own."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
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


@pytest.mark.parametrize("damage", ["cut", "nonsense", "nothing"])
def test_a_damaged_copy_is_made_anew(tmp_path: Path, cache: Path, made: list[str], damage: str) -> None:
    begin(tmp_path / "first.db")
    (empty,) = cache.iterdir()
    content = empty.read_bytes()
    empty.write_bytes({"cut": content[: len(content) // 2], "nonsense": b"nonsense" * 1000, "nothing": b""}[damage])
    begin(tmp_path / "second.db").create_experiment("ours")
    assert made == ["first.db", "second.db"]
    assert begin(tmp_path / "third.db") and made == ["first.db", "second.db"]
    assert experiments(tmp_path / "second.db") == ["Default", "ours"]


def test_a_copy_that_mlflow_does_not_take_is_not_kept(tmp_path: Path, cache: Path, made: list[str]) -> None:
    begin(tmp_path / "first.db")
    (empty,) = cache.iterdir()
    with closing(sqlite3.connect(empty)) as database:  # as of a development version of MLflow
        database.execute("UPDATE alembic_version SET version_num = 'another'")
        database.commit()
    with pytest.raises(MlflowException, match="schema"):
        begin(tmp_path / "second.db").search_experiments()
    begin(tmp_path / "third.db").create_experiment("ours")
    assert experiments(tmp_path / "third.db") == ["Default", "ours"]


def test_a_database_that_another_process_has_begun_meanwhile_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(tmp_path / "first.db")
    path = tmp_path / "shared.db"

    def meanwhile(database: Path) -> bool:
        begin_alone = sqlite3.connect(path)
        begin_alone.execute("CREATE TABLE theirs (number INTEGER)")
        begin_alone.close()
        return True

    monkeypatch.setattr("sweeper.new_database._whole", meanwhile)
    with new_database(f"sqlite:///{path}"), closing(sqlite3.connect(path)) as database:
        assert database.execute("SELECT name FROM sqlite_master").fetchall() == [("theirs",)]
    assert [each.name for each in tmp_path.glob(".*")] == []


def test_what_a_removed_database_left_behind_does_not_damage_the_next(tmp_path: Path, made: list[str]) -> None:
    """A process that was ended while it wrote leaves a journal, which SQLite rolls back into whatever it finds."""
    begin(tmp_path / "first.db").create_experiment("ours")
    path = tmp_path / "second.db"
    shutil.copyfile(tmp_path / "first.db", path)
    writing = "import os, sqlite3, sys; d = sqlite3.connect(sys.argv[1]); d.execute('PRAGMA cache_size = 1'); "
    writing += "d.execute('UPDATE experiments SET name = name || hex(randomblob(200000))'); os._exit(0)"
    subprocess.run([sys.executable, "-c", writing, path], check=True)
    assert path.with_name("second.db-journal").stat().st_size
    path.unlink()
    begin(path).create_experiment("theirs")
    assert made == ["first.db", "second.db"]
    assert experiments(path) == ["Default", "theirs"]


def test_without_a_cache_folder_mlflow_makes_it(tmp_path: Path, made: list[str]) -> None:
    (tmp_path / "cache").write_text("a file is in the way")
    begin(tmp_path / "first.db")
    begin(tmp_path / "second.db")
    assert made == ["first.db", "second.db"]


def test_a_cache_folder_that_must_not_be_entered_is_none(
    tmp_path: Path, cache: Path, made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    exists = Path.exists

    def denied(path: Path) -> bool:
        if cache in path.parents:
            raise PermissionError(13, "Permission denied", str(path))
        return exists(path)

    monkeypatch.setattr(Path, "exists", denied)  # whom tests run as may enter every folder
    begin(tmp_path / "first.db").create_experiment("ours")
    assert experiments(tmp_path / "first.db") == ["Default", "ours"]
