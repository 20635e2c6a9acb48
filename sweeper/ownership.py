"""One process owns an output folder, and one process each study in a storage: what it writes has a single writer."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import filelock
import sqlalchemy
from sqlalchemy.exc import DBAPIError

from sweeper.errors import StudyError
from sweeper.hashing import derive_seed

__all__ = ["Owner", "StudyOwner", "holder", "sqlite_file"]


class Owner:
    """The lock by which one process owns an output folder, as a context manager.

    Raises:
        StudyError: another process holds it; the message says which.
    """

    def __init__(self, output_dir: Path) -> None:
        hint = "Wait until it ends, or give this run its own folder: output_dir=<folder>."
        self._held = _held(output_dir / ".lock", output_dir / ".owner", str(output_dir), hint)

    def __enter__(self) -> None:
        self._held.__enter__()

    def __exit__(self, *_: object) -> None:
        self._held.__exit__(None, None, None)


class StudyOwner:
    """The lock by which one process owns studies in an Optuna storage, whatever its output folder; a context manager.

    A file of SQLite is locked whole, by a file beside it, because SQLite has one writer. In PostgreSQL each study has
    an advisory lock, held by a connection of its own, so that it ends with its owner, however that ends. Other
    databases are not guarded.

    Args:
        url: of the storage.
        studies: names of studies there.

    Raises:
        StudyError: another process holds one of them.
    """

    def __init__(self, url: sqlalchemy.URL, studies: Sequence[str]) -> None:
        self._url = url
        self._studies = studies
        self._file: AbstractContextManager[None] | None = None
        self._connection: sqlalchemy.Connection | None = None

    def __enter__(self) -> StudyOwner:
        path = sqlite_file(self._url)
        if path is not None:
            lock, note = (path.with_name(f"{path.name}.{ending}") for ending in ("lock", "owner"))
            hint = "Wait until it ends, or give this run a database of its own: study.storage=..."
            self._file = _held(lock, note, f"the Optuna storage {path}", hint)
            self._file.__enter__()
        elif self._url.get_backend_name() == "postgresql":
            self._lock()
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.__exit__(None, None, None)
        self._disconnect()

    def confirm(self) -> None:
        """Take the locks again if they were lost, as by a restart of the server.

        Raises:
            StudyError: another process took one meanwhile.
            sqlalchemy.exc.DBAPIError: the server does not answer.
        """
        if self._connection is None and self._url.get_backend_name() != "postgresql":
            return
        try:
            if self._connection is not None:
                self._connection.execute(sqlalchemy.text("SELECT 1"))
                return
        except DBAPIError:
            self._disconnect()
        self._lock()

    def _lock(self) -> None:
        name = f"process {os.getpid()} on {socket.gethostname()}"[:63]  # so much PostgreSQL keeps of it
        engine = sqlalchemy.create_engine(
            self._url,
            poolclass=sqlalchemy.NullPool,
            isolation_level="AUTOCOMMIT",
            connect_args={"application_name": name, "connect_timeout": 10},
        )
        self._connection = engine.connect()
        # The server notices within minutes that an owner's machine is gone; otherwise after hours.
        for setting, value in (("idle", 60), ("interval", 10), ("count", 6)):
            self._connection.execute(sqlalchemy.text(f"SET tcp_keepalives_{setting} = {value}"))
        for study in self._studies:
            key = {"key": derive_seed("study", study) << 31 | derive_seed("owner", study)}
            if not self._connection.execute(sqlalchemy.text("SELECT pg_try_advisory_lock(:key)"), key).scalar():
                holder = self._connection.execute(sqlalchemy.text(_HOLDER), key).scalar()
                self._disconnect()
                raise StudyError(
                    f"{study} in the Optuna storage {self._url.render_as_string()} is in use by "
                    f"{holder or 'another process'}",
                    "Wait until it ends, or give this study another name: study.name=...",
                )

    def _disconnect(self) -> None:
        if self._connection is not None:
            try:
                self._connection.close()
            except DBAPIError:
                self._connection.invalidate()
            self._connection = None


def sqlite_file(url: sqlalchemy.URL) -> Path | None:
    """The file of an SQLite database; ``None`` for one in memory, or another database."""
    name = url.database or ":memory:"
    if url.get_backend_name() != "sqlite" or ":memory:" in name:
        return None
    return Path(name.removeprefix("file:") if "uri" in url.query else name).resolve()


_HOLDER = """
SELECT application_name FROM pg_locks JOIN pg_stat_activity USING (pid)
WHERE locktype = 'advisory' AND granted AND (classid::bigint << 32 | objid::bigint) = :key
"""


def holder(output_dir: Path) -> str | None:
    """Which process owns an output folder now, as it says itself; ``None`` where none does. Nothing is created."""
    path = output_dir / ".lock"
    if not path.exists():
        return None
    try:
        with filelock.FileLock(path, timeout=0):
            return None
    except filelock.Timeout:
        return _noted(output_dir / ".owner")


@contextmanager
def _held(path: Path, note: Path, what: str, hint: str) -> Iterator[None]:
    """Hold the lock of a file, and say in ``note`` who does."""
    lock = filelock.FileLock(path)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise StudyError(f"{what} is in use by {_noted(note)}", hint) from None
    try:
        note.write_text(f"process {os.getpid()} (since {time.strftime('%Y-%m-%d %H:%M:%S')})\n")
        yield
    finally:
        note.unlink(missing_ok=True)
        lock.release()


def _noted(note: Path) -> str:
    return note.read_text().strip() if note.exists() else "another process"
