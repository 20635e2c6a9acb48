"""One process owns an output folder: its databases have a single writer."""

from __future__ import annotations

import os
import time
from pathlib import Path

import filelock

from sweeper.errors import StudyError

__all__ = ["Owner"]


class Owner:
    """The lock by which one process owns an output folder, as a context manager.

    Raises:
        StudyError: another process holds it; the message says which.
    """

    def __init__(self, output_dir: Path) -> None:
        self._folder = output_dir
        self._lock = filelock.FileLock(output_dir / ".lock")

    def __enter__(self) -> None:
        note = self._folder / ".owner"
        try:
            self._lock.acquire(timeout=0)
        except filelock.Timeout:
            owner = note.read_text().strip() if note.exists() else "another process"
            raise StudyError(
                f"{self._folder} is in use by {owner}",
                "Wait until it ends, or give this run its own folder: output_dir=<folder>.",
            ) from None
        note.write_text(f"process {os.getpid()} (since {time.strftime('%Y-%m-%d %H:%M:%S')})\n")

    def __exit__(self, *_: object) -> None:
        (self._folder / ".owner").unlink(missing_ok=True)
        self._lock.release()
