"""What MLflow is to be told, on disk until it is told: a transactional outbox in one SQLite file.

Every write is committed here before the caller goes on, so that neither a tracking server that is down nor a killed
process loses one. :mod:`sweeper.tracking` writes entries and sends them, each as often as it takes.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweeper.errors import StudyError

__all__ = ["FILE", "Entry", "Outbox", "waiting_for"]

FILE = "outbox.db"  # in output_dir

_TABLES = """
CREATE TABLE IF NOT EXISTS stores (id INTEGER PRIMARY KEY, uri TEXT, experiment TEXT, experiment_id TEXT, made INTEGER);
CREATE TABLE IF NOT EXISTS runs (id TEXT PRIMARY KEY, store INTEGER, tags TEXT, mlflow_id TEXT, tried INTEGER);
CREATE TABLE IF NOT EXISTS entries (
    id INTEGER PRIMARY KEY, store INTEGER, run TEXT, kind TEXT, body TEXT, content BLOB, time INTEGER);
"""


@dataclass(frozen=True)
class Entry:
    """One write that waits; ``time`` is when it was made, in milliseconds since 1970."""

    id: int
    run: str
    kind: str
    body: dict[str, Any]
    time: int


class Outbox:
    """The outbox of an output folder, for one process and any of its threads.

    A *store* is an experiment of one MLflow; runs have ids of our own, because a server that is down gives none.

    Args:
        path: the file; made when missing.

    Raises:
        StudyError: of every method: the file cannot be opened or written, for example because the disk is full.
            What was committed before stays as it is.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.RLock()
        with self._explained():
            # The lock of output_dir keeps other processes out, so that WAL needs no shared memory, which a network disk
            # lacks. A commit is a write without a wait for the disk: it outlives the process, and sync() the power.
            self._db = sqlite3.connect(path, timeout=5, isolation_level=None, check_same_thread=False)
            for pragma in ("auto_vacuum = FULL", "locking_mode = EXCLUSIVE", "journal_mode = WAL"):
                self._db.execute(f"PRAGMA {pragma}")
            self._db.execute("PRAGMA synchronous = NORMAL")
            self._db.executescript(_TABLES)

    def close(self) -> None:
        """Close the file; later calls raise."""
        with self._lock:
            self._db.close()

    # --- stores ------------------------------------------------------------------------------------------------------

    def store(self, uri: str, experiment: str, experiment_id: str, made: int) -> int:
        """The store with this experiment, now found at ``uri``. One that was emptied or replaced is another store."""
        with self._transaction() as db:
            identity = (experiment, experiment_id, made)
            row = db.execute(
                "SELECT id FROM stores WHERE experiment = ? AND experiment_id = ? AND made = ?", identity
            ).fetchone()
            if row is not None:
                db.execute("UPDATE stores SET uri = ? WHERE id = ?", (uri, row[0]))
                return int(row[0])
            inserted = db.execute(
                "INSERT INTO stores (uri, experiment, experiment_id, made) VALUES (?, ?, ?, ?)", (uri, *identity)
            )
            return int(inserted.lastrowid or 0)

    def known_store(self, uri: str, experiment: str) -> tuple[int, str] | None:
        """The store that answered at ``uri`` last, and the id of its experiment."""
        query = "SELECT id, experiment_id FROM stores WHERE uri = ? AND experiment = ? ORDER BY id DESC LIMIT 1"
        rows = self._rows(query, (uri, experiment))
        return (int(rows[0][0]), str(rows[0][1])) if rows else None

    # --- runs --------------------------------------------------------------------------------------------------------

    def add_run(self, store: int, run: str, tags: Mapping[str, str], mlflow_id: str | None = None) -> None:
        """Note a run, with the id that MLflow gave it if it has."""
        with self._transaction() as db:
            db.execute(
                "INSERT OR REPLACE INTO runs VALUES (?, ?, ?, ?, 0)", (run, store, json.dumps(dict(tags)), mlflow_id)
            )

    def has_run(self, store: int, run: str) -> bool:
        """Whether the run is one of this store."""
        return bool(self._rows("SELECT 1 FROM runs WHERE id = ? AND store = ?", (run, store)))

    def mlflow_id(self, run: str) -> str | None:
        """What MLflow calls the run; None before it was told of it."""
        rows = self._rows("SELECT mlflow_id FROM runs WHERE id = ?", (run,))
        return rows[0][0] if rows else None

    def set_mlflow_id(self, run: str, mlflow_id: str) -> None:
        """Note what MLflow calls the run."""
        with self._transaction() as db:
            db.execute("UPDATE runs SET mlflow_id = ? WHERE id = ?", (mlflow_id, run))

    def try_runs(self, runs: Collection[str]) -> set[str]:
        """Note, on the disk, that MLflow is about to be told of these runs; those for which this was noted before."""
        marks = ",".join("?" * len(runs))
        with self._transaction(durable=True) as db:
            rows = db.execute(f"SELECT id FROM runs WHERE tried AND id IN ({marks})", tuple(runs)).fetchall()
            db.execute(f"UPDATE runs SET tried = 1 WHERE id IN ({marks})", tuple(runs))
        return {row[0] for row in rows}

    def update_tags(self, run: str, tags: Mapping[str, str | None]) -> None:
        """Set the tags by which :meth:`find` finds a run; None removes one."""
        with self._transaction() as db:
            db.execute("UPDATE runs SET tags = json_patch(tags, ?) WHERE id = ?", (json.dumps(dict(tags)), run))

    def find(self, store: int, tags: Mapping[str, str]) -> list[str]:
        """The runs of a store that carry these tags, the newest first."""
        where = "".join(" AND json_extract(tags, ?) = ?" for _ in tags)
        values = [part for key, value in tags.items() for part in (f'$."{key}"', value)]
        query = f"SELECT id FROM runs WHERE store = ?{where} ORDER BY rowid DESC"
        return [row[0] for row in self._rows(query, (store, *values))]

    # --- entries -----------------------------------------------------------------------------------------------------

    def put(self, store: int, run: str, kind: str, body: Mapping[str, Any], content: bytes | None = None) -> None:
        """Add a write to the end."""
        with self._transaction() as db:
            values = (store, run, kind, json.dumps(dict(body)), content, int(time.time() * 1000))
            db.execute("INSERT INTO entries (store, run, kind, body, content, time) VALUES (?, ?, ?, ?, ?, ?)", values)

    def sync(self) -> None:
        """Wait until the disk has everything that was put."""
        self._rows("PRAGMA wal_checkpoint", ())

    def first(self, store: int, limit: int, without: Sequence[str] = ()) -> list[Entry]:
        """The oldest writes of a store, except those of some runs."""
        skip = f" AND run NOT IN ({','.join('?' * len(without))})" if without else ""
        query = f"SELECT id, run, kind, body, time FROM entries WHERE store = ?{skip} ORDER BY id LIMIT ?"
        rows = self._rows(query, (store, *without, limit))
        return [Entry(row[0], row[1], row[2], json.loads(row[3]), row[4]) for row in rows]

    def content(self, entry: Entry) -> bytes:
        """The file that a write is about."""
        return bytes(self._rows("SELECT content FROM entries WHERE id = ?", (entry.id,))[0][0])

    def remove(self, entries: Sequence[Entry]) -> None:
        """Forget writes that arrived."""
        with self._transaction() as db:
            db.executemany("DELETE FROM entries WHERE id = ?", [(entry.id,) for entry in entries])

    def waiting(self, store: int) -> int:
        """How many writes of a store wait."""
        return int(self._rows("SELECT count(*) FROM entries WHERE store = ?", (store,))[0][0])

    # --- the file ----------------------------------------------------------------------------------------------------

    def _rows(self, query: str, values: Sequence[Any]) -> list[Any]:
        with self._explained(), self._lock:
            return self._db.execute(query, values).fetchall()

    @contextmanager
    def together(self) -> Iterator[None]:
        """What is written in this block is on the disk as a whole or not at all."""
        with self._transaction():
            yield

    @contextmanager
    def _transaction(self, *, durable: bool = False) -> Iterator[sqlite3.Connection]:
        with self._explained(), self._lock:
            if self._db.in_transaction:
                yield self._db
                return
            if durable:
                self._db.execute("PRAGMA synchronous = FULL")
            try:
                self._db.execute("BEGIN IMMEDIATE")
                yield self._db
                self._db.execute("COMMIT")
            finally:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                if durable:
                    self._db.execute("PRAGMA synchronous = NORMAL")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise _explained(self.path, error) from error


def waiting_for(path: Path, uri: str, experiment: str) -> int:
    """How many writes for the store at ``uri`` wait in a file that may be missing, or in use.

    Raises:
        StudyError: the file is damaged.
    """
    if not path.exists():
        return 0
    query = """SELECT count(*) FROM entries JOIN stores ON stores.id = entries.store
               WHERE stores.uri = ? AND stores.experiment = ?"""
    try:
        with closing(sqlite3.connect(path, timeout=1)) as db:
            return int(db.execute(query, (uri, experiment)).fetchone()[0])
    except sqlite3.OperationalError:  # the process that uses it sends what waits
        return 0
    except sqlite3.Error as error:
        raise _explained(path, error) from error


def _explained(path: Path, error: sqlite3.Error) -> StudyError:
    if "malformed" in str(error) or "not a database" in str(error):
        return StudyError(
            f"{path}, where writes wait for MLflow, is damaged: {error}",
            "Move it away. MLflow will lack what it held alone; Optuna's record of the study is not touched.",
        )
    return StudyError(
        f"what MLflow is to be told cannot be written to {path}: {error}",
        "Make room on the disk, or the folder writable; what was written is whole, and the same command goes on.",
    )
