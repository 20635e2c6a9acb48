"""Files and folders that are written whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sweeper.errors import ThawlineError

__all__ = ["inside", "replaced", "written"]


@contextmanager
def replaced(folder: Path) -> Iterator[Path]:
    """A fresh path beside ``folder``, to be filled; it takes the folder's place when the block ends without an error.

    What a killed process left of an earlier attempt is removed first.
    """
    fresh, old = (inside(folder.parent, f".{folder.name}.{state}") for state in ("new", "old"))
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
    yield fresh
    if folder.exists():
        folder.rename(old)
    fresh.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def written(path: Path, text: str) -> None:
    """Write a text file; another process sees all of it or nothing."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.write_text(text, encoding="utf-8")
    fresh.replace(path)


def inside(folder: Path, name: str) -> Path:
    """``folder/name``, which lies directly in the folder, links followed.

    Raises:
        ThawlineError: the name or a link of that name leads elsewhere.
    """
    path = folder / name
    if path.resolve() != folder.resolve() / name:
        raise ThawlineError(f"{path} leads out of {folder}", "Remove the link, or choose another name or output_dir.")
    return path
