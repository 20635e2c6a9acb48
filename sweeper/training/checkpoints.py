"""Checkpoints of a training run in progress: written whole or not at all, verified before they are read."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import pickle
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from sweeper.faults import chain

__all__ = ["Checkpoints"]

logger = logging.getLogger(__name__)

KEPT = 2  # the newest, and the one before it in case the newest is damaged
_DIGEST = 32  # hex digits of SHA-256 in a file's name


@dataclass
class _Clock:
    """When a run began or its last checkpoint was written, in seconds of this process; whether there was any."""

    last: float | None = None
    used: bool = False


@dataclass(frozen=True, eq=False)
class Checkpoints:
    """Where the checkpoints of one run lie, what each of them holds, and when the next is due.

    A checkpoint is one file, ``<number>-<digest of its content>.pt``. It is written beside, synced and renamed, so that
    a file of that name is complete; the digest shows what a disk lost later. It holds tensors and plain values alone
    and is read by torch's ``weights_only``: nothing in it is ever executed.

    Attributes:
        folder: of this run alone; made with the first checkpoint.
        seconds: that pass between two checkpoints. Shorter runs write none.
        key: of what the run depends on; checkpoints of another key are left alone.
        parts: what every checkpoint holds, by name, computed when it is written.
    """

    folder: Path
    seconds: float
    key: str = ""
    parts: Mapping[str, Callable[[], Any]] = field(default_factory=dict)
    _clock: _Clock = field(default_factory=_Clock)

    def within(self, name: str) -> Checkpoints:
        """Those of a part of the run, such as a round; one is due as often in all parts together."""
        return replace(self, folder=self.folder / name)

    def of(self, key: str) -> Checkpoints:
        """Those of runs that depend on what this key stands for."""
        return replace(self, key=key)

    def holding(self, **parts: Callable[[], Any]) -> Checkpoints:
        """The same, with further parts."""
        return replace(self, parts={**self.parts, **parts})

    def due(self) -> bool:
        """Whether so much time passed since the last one, or since the run began."""
        if self._clock.last is None:
            self._clock.last = time.monotonic()
        return time.monotonic() - self._clock.last >= self.seconds

    def due_at_end(self) -> bool:
        """Whether the end of a part of the run is worth one: where any was written or read, or is due anyway."""
        return self._clock.used or self.due()

    def save(self, **more: Any) -> None:
        """Write a checkpoint of all parts and of ``more``, and remove all but the newest two.

        A disk that is full or read-only is logged, and leaves the earlier checkpoints as they are.
        """
        fresh = self.folder / ".new"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with fresh.open("wb") as file:
                torch.save({name: part() for name, part in self.parts.items()} | more | {"key": self.key}, file)
                file.flush()
                os.fsync(file.fileno())
            files = self._files()
            number = 1 + (int(files[-1].name.split("-")[0]) if files else 0)
            path = self.folder / f"{number:06d}-{_digest(fresh)}.pt"
            fresh.rename(path)
            _sync(self.folder)
            for old in [*files, path][:-KEPT]:
                old.unlink()
            self._clock.used = True
        except (OSError, RuntimeError) as error:  # torch's own error hides the disk's, which is its context
            reason = next((link for link in chain(error) if isinstance(link, OSError)), None)
            if reason is None:
                raise
            with contextlib.suppress(OSError):
                fresh.unlink(missing_ok=True)
            logger.warning(
                "no checkpoint could be written in %s (%s): training goes on, and an interruption loses what was "
                "trained since the last one",
                self.folder,
                reason.strerror or reason,
            )
        self._clock.last = time.monotonic()

    def load(self) -> dict[str, Any] | None:
        """What the newest complete checkpoint holds, tensors on the CPU; ``None`` where there is none of this key.

        One that is damaged, or of other settings, data or versions of libraries, is logged and passed over.
        """
        self.due()  # the run begins
        for path in reversed(self._files()):
            try:
                state = _read(path)
            except OSError as error:
                logger.warning("the checkpoint %s cannot be read: passed over (%s)", path, error.strerror or error)
                continue
            if state is None:
                logger.warning("the checkpoint %s is damaged: removed, the one before it is used", path)
                path.unlink(missing_ok=True)
            elif state.pop("key", None) != self.key:
                logger.warning("the checkpoint %s is of other settings, versions or data: passed over", path)
            else:
                self._clock.last = time.monotonic()
                self._clock.used = True
                return state
        return None

    def clear(self) -> None:
        """Remove all of them: the run has ended."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("[0-9]*-*.pt"))


def _read(path: Path) -> dict[str, Any] | None:
    """What a checkpoint holds; ``None`` = it is not what was written."""
    if path.stem.split("-")[-1] != _digest(path):
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:  # it holds something else than values, which is not executed
        return None
    return state


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:_DIGEST]


def _sync(folder: Path) -> None:
    """A rename is on the disk when its folder is; where folders cannot be synced, the system chooses the time."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
