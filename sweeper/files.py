"""Files and folders that are written whole or not at all."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from sweeper.errors import StudyError, ThawlineError

__all__ = ["beside", "check_writable", "inside", "replaced", "reserved", "share_weights", "written"]

LEAST_ROOM = 1 << 16  # bytes that a command writes before it starts anything


@contextmanager
def replaced(folder: Path) -> Iterator[Path]:
    """A fresh path beside ``folder``, to be filled; it takes the folder's place when the block ends without an error.

    What a killed process left of an earlier attempt is removed first.
    """
    fresh, old = (inside(folder.parent, f".{folder.name}.{state}") for state in ("new", "old"))
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
    try:
        yield fresh
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)  # on a full disk it would be in the way
        raise
    if folder.exists():
        folder.rename(old)
    fresh.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def beside(path: Path) -> Iterator[Path]:
    """A path beside a file that no other process takes, on whichever machine.

    What lies there when the block ends is removed.
    """
    fresh = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        yield fresh
    finally:
        fresh.unlink(missing_ok=True)


def written(path: Path, text: str) -> None:
    """Write a text file; another process sees all of it or nothing."""
    with beside(path) as fresh:
        fresh.write_text(text, encoding="utf-8")
        fresh.replace(path)


def share_weights(folder: Path) -> None:
    """Give the weights in a folder the rights that the umask gives to all files, as to ``config.json`` beside them.

    safetensors writes them as temporary files, which their owner alone may read: not a server, nor a colleague.
    """
    mode = stat.S_IMODE((folder / "config.json").stat().st_mode)
    for path in folder.rglob("*.safetensors"):
        path.chmod(mode)


def check_writable(folder: Path) -> None:
    """See that a folder can be written to, or created, and that there is room to begin.

    Raises:
        StudyError: it cannot: by its rights, or because its disk is full or read-only.
    """
    nearest = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=nearest) as probe:
            reserved(probe, LEAST_ROOM)
    except OSError as error:
        raise StudyError(
            f"output_dir={folder} cannot be written to: {error.strerror}",
            "Make room, or make it writable, and run the same command; or name another output_dir.",
        ) from error


def reserved(file: BinaryIO, size: int) -> None:
    """Make a new file so many bytes long, with room for all of them on the disk.

    Without it, what is mapped into memory fails when it is written to: by a signal that ends the process. Only systems
    that have ``posix_fallocate`` can, such as Linux.

    Raises:
        OSError: there is no room.
    """
    if size and hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
    else:
        file.truncate(size)


def inside(folder: Path, name: str) -> Path:
    """``folder/name``, which lies directly in the folder, links followed.

    Raises:
        ThawlineError: the name or a link of that name leads elsewhere.
    """
    path = folder / name
    if path.resolve() != folder.resolve() / name:
        raise ThawlineError(f"{path} leads out of {folder}", "Remove the link, or choose another name or output_dir.")
    return path
