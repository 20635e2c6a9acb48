"""Hidden states on disk: memory-mapped, verified, limited in size, and safe between processes."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import torch

from sweeper.files import replaced, reserved

__all__ = ["StateStore", "States"]

_VALUES, _RECORD = "values.bin", "record.json"
_CHUNK = 1 << 24
_WAIT_SECONDS = 0.2


@dataclass(frozen=True, eq=False)
class States:
    """Hidden states of the examples of a split, in its order.

    Attributes:
        values: shape (tokens of all examples, width) where ``offsets`` are given, else (examples, ...).
        offsets: where each example's tokens begin, and the end of the last; shape (examples + 1,).
        seconds: what it took to compute them.
    """

    values: torch.Tensor
    offsets: np.ndarray | None
    seconds: float = 0.0

    def __getitem__(self, row: int) -> torch.Tensor:
        if self.offsets is None:
            return self.values[row]
        return self.values[int(self.offsets[row]) : int(self.offsets[row + 1])]


class StateStore:
    """A folder of entries, the least recently used of which go when it grows beyond its limit.

    Args:
        folder: created when missing; several processes may share it.
        max_bytes: of all entries together.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder = folder
        self.max_bytes = max_bytes
        self._open: dict[str, States] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_open": {}}  # another process maps the files itself

    def fits(self, size: int) -> bool:
        """Whether an entry of so many bytes can be held, if others go."""
        return size <= self.max_bytes

    def read(self, key: str) -> States | None:
        """An entry, its values compared with their checksum on the first read of a process; ``None`` if there is none.

        A damaged entry is removed.
        """
        if key in self._open:
            self._open[key] = self._open.pop(key)  # the newest
            return self._open[key]
        folder = self._folder / key
        try:
            record = json.loads((folder / _RECORD).read_text())
            values = folder / _VALUES
            if values.stat().st_size != record["bytes"] or _checksum(values, record) != record["crc32"]:
                raise ValueError("its values have changed")
            states = _mapped(values, record, writable=False)
        except OSError:  # there is none, or not now
            return None
        except (ValueError, KeyError, TypeError, AttributeError):
            shutil.rmtree(folder, ignore_errors=True)
            return None
        with contextlib.suppress(OSError):  # another user's
            os.utime(folder / _RECORD)  # used now
        self._open[key] = states
        return states

    @contextmanager
    def building(self, key: str, on_step: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Hold what lets one process alone build an entry; another finds it there when its turn comes.

        ``on_step`` is called while it waits; it may raise to end that.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        lock = self._lock(key)
        while True:
            try:
                lock.acquire(timeout=_WAIT_SECONDS)
                break
            except filelock.Timeout:
                on_step()
        try:
            yield
        finally:
            lock.release()

    def _lock(self, key: str) -> filelock.BaseFileLock:
        return filelock.FileLock(self._folder / f"{key}.lock")

    @contextmanager
    def writing(
        self,
        key: str,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        offsets: np.ndarray | None,
        seconds: Callable[[], float],
    ) -> Iterator[States]:
        """An entry to be filled; it is there, whole, when the block ends without an error.

        ``seconds`` is asked at the end what it took to compute its values.

        Raises:
            OSError: no room, on the disk or beside what this process reads.
        """
        record: dict[str, Any] = {
            "shape": list(shape),
            "dtype": str(dtype).removeprefix("torch."),
            "offsets": None if offsets is None else offsets.tolist(),
            "bytes": int(np.prod(shape)) * dtype.itemsize,
        }
        self._make_room(record["bytes"])
        with replaced(self._folder / key) as fresh:
            fresh.mkdir(parents=True)
            values = fresh / _VALUES
            with values.open("wb") as file:
                reserved(file, record["bytes"])
            yield _mapped(values, record, writable=True)
            record["seconds"] = seconds()
            record["crc32"] = _checksum(values, record)
            (fresh / _RECORD).write_text(json.dumps(record))

    def _make_room(self, size: int) -> None:
        """Remove what killed processes left, and the entries that were used longest ago, until so many bytes are free.

        Not the two that this process used last: a run reads two splits.

        Raises:
            OSError: the others are not enough.
        """
        used, entries = 0, []
        for values in self._folder.glob(f"*/{_VALUES}"):
            with contextlib.suppress(OSError):
                folder, bytes_ = values.parent, values.stat().st_size
                if not folder.name.startswith("."):
                    entries.append(((folder / _RECORD).stat().st_mtime, bytes_, folder))
                elif self._is_left(folder):
                    shutil.rmtree(folder)
                    continue
                used += bytes_
        kept = list(self._open)[-2:]
        for _, bytes_, folder in sorted(entries):
            if used + size <= self.max_bytes:
                return
            if folder.name not in kept:
                shutil.rmtree(folder, ignore_errors=True)  # a process that reads it keeps its mapping
                used -= bytes_
        if used + size > self.max_bytes:
            raise OSError(errno.ENOSPC, "cache.max_gb is taken by what runs read or record now")

    def _is_left(self, unfinished: Path) -> bool:
        """Whether nobody builds this entry any more."""
        try:
            with self._lock(unfinished.name.removeprefix(".").rpartition(".")[0]).acquire(timeout=0):
                return True
        except filelock.Timeout:
            return False


def _mapped(path: Path, record: Mapping[str, Any], *, writable: bool) -> States:
    dtype = getattr(torch, record["dtype"])
    shape = tuple(record["shape"])
    if 0 in shape:
        values = torch.empty(shape, dtype=dtype)
    else:
        try:
            values = torch.from_file(str(path), shared=writable, size=int(np.prod(shape)), dtype=dtype).view(shape)
        except RuntimeError as error:  # removed meanwhile, or no memory to map it into
            raise OSError(str(error)) from error
    offsets = record["offsets"]
    return States(values, None if offsets is None else np.array(offsets, dtype=np.int64), record.get("seconds", 0.0))


def _checksum(path: Path, record: Mapping[str, Any]) -> int:
    """Of the values and of what says how to read them."""
    value = zlib.crc32(json.dumps([record["shape"], record["dtype"], record["offsets"]]).encode())
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            value = zlib.crc32(chunk, value)
    return value
