"""The Optuna storage: which database, whose, and what happens while its server is away."""

from __future__ import annotations

import importlib.util
import os
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
import sqlalchemy

from sweeper.errors import StudyError
from sweeper.ownership import StudyOwner
from sweeper.storage import existing_storage, open_storage, storage_url
from tests import postgres
from tests.cli import TINY_SWEEP, piped, run, runs


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[postgres.Server]:
    with postgres.serve(tmp_path_factory.mktemp("postgres") / "cluster") as server:
        yield server


def test_a_bare_url_of_postgresql_gets_the_driver_that_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {"psycopg2"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name if name in installed else None)
    assert storage_url("postgresql://me@host/db", Path("x")) == "postgresql+psycopg2://me@host/db"
    installed.add("psycopg")
    assert storage_url("postgres://me@host/db", Path("x")) == "postgresql+psycopg://me@host/db"
    assert storage_url(None, Path("x")) == "sqlite:///x/optuna.db"
    installed.clear()
    with pytest.raises(StudyError, match=r"thawline\[postgresql\]"):
        storage_url("postgresql://me:secret@host/db", Path("x"))


def test_looking_for_a_storage_creates_nothing(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'optuna.db'}"
    assert existing_storage(url) is None and not list(tmp_path.iterdir())
    open_storage(url).create_new_study([optuna.study.StudyDirection.MAXIMIZE], "mine")
    assert [study.study_name for study in existing_storage(url).get_all_studies()] == ["mine"]  # type: ignore[union-attr]
    (tmp_path / "optuna.db").write_bytes(b"no database at all, but long enough to be looked at" * 100)
    with pytest.raises(StudyError, match="a database is damaged"):
        existing_storage(url)


def test_a_locked_database_is_waited_for_and_named_in_the_end(tmp_path: Path) -> None:
    path = tmp_path / "optuna.db"
    storage = open_storage(f"sqlite:///{path}?timeout=0")
    study = optuna.create_study(storage=storage)
    with sqlalchemy.create_engine(f"sqlite:///{path}").connect() as other:
        other.exec_driver_sql("BEGIN EXCLUSIVE")
        storage.patience = 0.2
        with pytest.raises(StudyError, match=r"optuna\.db.* cannot be used: database is locked"):
            study.set_user_attr("a", 1)
        other.rollback()
    study.set_user_attr("a", 2)
    assert study.user_attrs == {"a": 2}
    assert storage.patience > 1, "a storage that answers again is waited for again"


@pytest.mark.slow
def test_a_study_in_postgresql_has_one_owner_even_after_a_restart(server: postgres.Server) -> None:
    url = sqlalchemy.make_url(storage_url(server.url, Path()))
    with StudyOwner(url, ["a", "b"]) as owner, StudyOwner(url, ["c"]):
        for _ in range(2):
            with pytest.raises(StudyError, match=f"b in .* is in use by process {os.getpid()} on ") as refused:
                StudyOwner(url, ["b"]).__enter__()
            assert postgres.PASSWORD not in str(refused.value)
            server.stop()
            server.start()
            owner.confirm()
    with StudyOwner(url, ["a", "b"]):
        pass


@pytest.mark.slow
def test_a_storage_waits_for_its_server_and_loses_nothing(server: postgres.Server) -> None:
    storage = open_storage(storage_url(server.url, Path()))
    with storage.owned(["waiting"]):
        study = optuna.create_study(storage=storage, study_name="waiting")
        for restart in (False, True, True):
            trial = study.ask({"x": optuna.distributions.FloatDistribution(0, 1)})
            if restart:
                server.stop()
                back = threading.Timer(2, server.start)
                back.start()
            trial.report(trial.params["x"], 1)
            study.tell(trial, trial.params["x"])
            if restart:
                back.join()
        assert [trial.state.name for trial in study.get_trials()] == ["COMPLETE"] * 3
        server.stop()
        storage.patience = 0.5
        with pytest.raises(StudyError, match=r"cannot be used: .*(?s:.)*the same command continues") as given_up:
            study.set_user_attr("a", 1)
        assert postgres.PASSWORD not in str(given_up.value)
        server.start()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_sweep_in_postgresql_survives_its_server_and_its_own_death(
    server: postgres.Server, tmp_path: Path, tiny_checkpoint: Path
) -> None:
    arguments = [
        "sweep",
        *TINY_SWEEP,
        f"model.path={tiny_checkpoint}",
        "strategy=frozen",
        "trainer.epochs=100",
        "final.seeds=1",
        "study.pruner=none",
    ]
    given = {"THAWLINE_STORAGE": server.url}
    first = piped(tmp_path / "a", *arguments, "study.n_trials=1000", "verbosity=verbose", **given)
    try:
        assert first.stdout is not None
        assert any("epoch 2/" in line for line in first.stdout)
        other = run(tmp_path / "b", *arguments, f"study.storage='{server.url}'", status=2)
        assert f"is in use by process {first.pid} on " in other and postgres.PASSWORD not in other
        server.stop()
        server.start()
        assert any("epoch 2/" in line for line in first.stdout), "it goes on"
    finally:
        first.kill()
        first.communicate()
    storage = open_storage(storage_url(server.url, Path()))
    (name,) = (name for name in optuna.get_all_study_names(storage) if "frozen" in name)

    def states() -> Counter[str]:
        return Counter(trial.state.name for trial in optuna.load_study(study_name=name, storage=storage).trials)

    before = states()
    text = run(tmp_path / "a", *arguments, f"study.n_trials={before['COMPLETE'] + 1}", f"study.storage='{server.url}'")
    assert postgres.PASSWORD not in text
    assert states() == {"COMPLETE": before["COMPLETE"] + 1, "FAIL": before["RUNNING"]}
    assert "RUNNING" not in set(runs(tmp_path / "a")["status"])
    assert not [
        path for path in tmp_path.rglob("*") if path.is_file() and postgres.PASSWORD.encode() in path.read_bytes()
    ]
