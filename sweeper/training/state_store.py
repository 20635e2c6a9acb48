"""Hidden states on disk: memory-mapped, verified, limited in size, and safe between processes."""

from __future__ import annotations

import contextlib
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
        self._max_bytes = max_bytes
        self._open: dict[str, States] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_open": {}}  # another process maps the files itself

    def fits(self, size: int) -> bool:
        """Whether an entry of so many bytes can be held, if others go."""
        return size <= self._max_bytes

    def read(self, key: str) -> States | None:
        """An entry, its values compared with their checksum on the first read of a process; ``None`` if there is none.

        A damaged entry is removed.
        """
        if key in self._open:
            return self._open[key]
        folder = self._folder / key
        try:
            record = json.loads((folder / _RECORD).read_text())
            values = folder / _VALUES
            if values.stat().st_size != record["bytes"] or _checksum(values) != record["crc32"]:
                raise ValueError("its values have changed")
            states = _mapped(values, record, writable=False)
            os.utime(folder / _RECORD)  # used now
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError):
            shutil.rmtree(folder, ignore_errors=True)
            return None
        self._open[key] = states
        return states

    @contextmanager
    def building(self, key: str) -> Iterator[None]:
        """Hold what lets one process alone build an entry; another finds it there when its turn comes."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(self._folder / f"{key}.lock"):
            yield

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
            record["crc32"] = _checksum(values)
            (fresh / _RECORD).write_text(json.dumps(record))

    def _make_room(self, size: int) -> None:
        """Remove the entries that were used longest ago until so many bytes are free."""
        entries = []
        for path in self._folder.glob(f"*/{_RECORD}"):
            with contextlib.suppress(OSError, ValueError, KeyError):
                entries.append((path.stat().st_mtime, json.loads(path.read_text())["bytes"], path.parent))
        used = sum(bytes_ for _, bytes_, _ in entries)
        for _, bytes_, folder in sorted(entries):
            if used + size <= self._max_bytes:
                return
            shutil.rmtree(folder, ignore_errors=True)  # a process that reads it keeps its mapping
            used -= bytes_


def _mapped(path: Path, record: Mapping[str, Any], *, writable: bool) -> States:
    dtype = getattr(torch, record["dtype"])
    shape = tuple(record["shape"])
    if 0 in shape:
        values = torch.empty(shape, dtype=dtype)
    else:
        values = torch.from_file(str(path), shared=writable, size=int(np.prod(shape)), dtype=dtype).view(shape)
    offsets = record["offsets"]
    return States(values, None if offsets is None else np.array(offsets, dtype=np.int64), record.get("seconds", 0.0))


def _checksum(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            value = zlib.crc32(chunk, value)
    return value
