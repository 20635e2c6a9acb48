"""A new MLflow database in milliseconds: MLflow takes seconds for one, which is the same each time.

The first one on a machine is MLflow's own work, of which an empty copy is kept in the cache folder, by MLflow's
version. Later ones begin as copies of that. Where anything is in the way, MLflow makes the database itself.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import sqlalchemy

from sweeper.assets import cache_root
from sweeper.ownership import sqlite_file
from sweeper.versions import versions

__all__ = ["new_database"]


@contextmanager
def new_database(address: str) -> Iterator[None]:
    """Around what makes MLflow open ``address``, of which SQLite files that are not there yet are meant.

    Args:
        address: a tracking URI; any other kind is left alone.
    """
    path = sqlite_file(sqlalchemy.make_url(address)) if address.startswith("sqlite") else None
    if path is None or path.exists():
        yield
        return
    empty = cache_root() / "mlflow" / f"{versions(('mlflow',))['mlflow']}.db"
    with contextlib.suppress(OSError, sqlite3.Error):
        _copy(empty, path)
    yield
    if path.exists() and not empty.exists():
        with contextlib.suppress(OSError, sqlite3.Error):
            _keep(path, empty)


def _copy(empty: Path, path: Path) -> None:
    """Put a copy of the empty database where there is none; a damaged one is removed instead."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        shutil.copyfile(empty, fresh)
        if not _whole(fresh):
            empty.unlink()
            return
        os.link(fresh, path)  # not a rename: another process may have begun the same database by now
    finally:
        fresh.unlink(missing_ok=True)


def _whole(database: Path) -> bool:
    with contextlib.suppress(sqlite3.Error), closing(sqlite3.connect(database)) as opened:
        return bool(opened.execute("PRAGMA quick_check").fetchone() == ("ok",))
    return False


def _keep(path: Path, empty: Path) -> None:
    """Copy a database that MLflow has just made, without its experiment, which names a folder."""
    empty.parent.mkdir(parents=True, exist_ok=True)
    fresh = empty.with_name(f".{empty.name}.{os.getpid()}")
    try:
        with closing(sqlite3.connect(path)) as made, closing(sqlite3.connect(fresh)) as copy:
            made.backup(copy)
            # Another process may share the database, and record something already.
            if copy.execute("SELECT (SELECT COUNT(*) FROM experiments) > 1 OR EXISTS (SELECT * FROM runs)").fetchone()[
                0
            ]:
                return
            copy.execute("DELETE FROM experiments")
            copy.commit()
        fresh.replace(empty)
    finally:
        fresh.unlink(missing_ok=True)
