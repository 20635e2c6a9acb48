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
from sweeper.files import beside
from sweeper.ownership import sqlite_file
from sweeper.versions import versions

__all__ = ["new_database"]


@contextmanager
def new_database(address: str) -> Iterator[None]:
    """Around what makes MLflow open ``address``: an SQLite file that is not there yet begins as a copy.

    Args:
        address: a tracking URI; any other kind, and a database that is there, are left alone.
    """
    path = sqlite_file(sqlalchemy.make_url(address)) if address.startswith("sqlite") else None
    if path is None or path.exists():
        yield
        return
    empty = cache_root() / "mlflow" / f"{versions(('mlflow',))['mlflow']}.db"
    copied = False
    with contextlib.suppress(OSError, sqlite3.Error):
        copied = _copy(empty, path)
    try:
        yield
    except Exception:
        if copied:  # whatever is wrong with it, no other database shall begin so
            with contextlib.suppress(OSError):
                empty.unlink()
        raise
    with contextlib.suppress(OSError, sqlite3.Error):
        if path.exists() and not empty.exists():
            _keep(path, empty)


def _copy(empty: Path, path: Path) -> bool:
    """Put a copy of the empty database where there is none; a damaged one is removed instead. Whether it was put."""
    # What is left of a database that was removed: SQLite would write it into this one.
    if any(path.with_name(path.name + suffix).exists() for suffix in ("-journal", "-wal")):
        return False
    with beside(path) as fresh:
        shutil.copyfile(empty, fresh)
        if not _whole(fresh):
            empty.unlink()
            return False
        os.link(fresh, path)  # not a rename: another process may have begun the same database by now
        return True


def _whole(database: Path) -> bool:
    """Whether the file is undamaged, and holds MLflow's tables."""
    with contextlib.suppress(sqlite3.Error), closing(sqlite3.connect(database)) as opened:
        sound = opened.execute("PRAGMA quick_check").fetchone() == ("ok",)
        return sound and opened.execute("SELECT version_num FROM alembic_version").fetchone() is not None
    return False


def _keep(path: Path, empty: Path) -> None:
    """Copy a database that MLflow has just made, without its experiment, which names a folder."""
    empty.parent.mkdir(parents=True, exist_ok=True)
    with beside(empty) as fresh:
        with closing(sqlite3.connect(path)) as made, closing(sqlite3.connect(fresh)) as copy:
            made.backup(copy)
            # Another process may share the database, and record something already.
            (experiments,) = copy.execute("SELECT COUNT(*) FROM experiments").fetchone()
            if experiments > 1 or copy.execute("SELECT 1 FROM runs").fetchone():
                return
            copy.execute("DELETE FROM experiments")
            copy.commit()
        fresh.replace(empty)
