"""What an error is: the outcome of one run, storage that fails under all of them, or a mistake in the code."""

from __future__ import annotations

import errno
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sweeper.errors import DataError, StudyError, ThawlineError

__all__ = ["chain", "failure_reason", "failure_summary", "is_out_of_memory", "said_of_storage", "storage_error"]

LONGEST_REASON = 300  # characters

# What a failed allocation says where it has no exception class of its own: the CPU's allocator, C++, CUDA's libraries.
_NO_MEMORY = ("can't allocate memory", "not enough memory", "std::bad_alloc", "CUBLAS_STATUS_ALLOC_FAILED")
_FULL = ("No space left on device", "database or disk is full", "Disk quota exceeded")
_READ_ONLY = ("Read-only file system", "attempt to write a readonly database")
_DAMAGED = ("file is not a database", "database disk image is malformed")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on whichever device; a smaller batch may then go through."""
    import torch  # reports do without
    from accelerate.utils.memory import should_reduce_batch_size

    if isinstance(error, torch.OutOfMemoryError | MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return True
    if not isinstance(error, RuntimeError):
        return False
    return should_reduce_batch_size(error) or any(text in str(error) for text in _NO_MEMORY)


def failure_reason(error: Exception) -> str | None:
    """Why one trial or final failed, in a line; ``None`` where the error is not its own and the study has to stop.

    Its own are memory that runs out, in the smallest batches too, and a row of the data that cannot be read (any
    more). Full disks and mistakes in the code would meet every other run as well.
    """
    if storage_error(error) is not None:
        return None
    if is_out_of_memory(error):
        return f"out of memory: {_first_line(error)}"[:LONGEST_REASON]
    if isinstance(error, DataError):
        return f"data: {error.message}"[:LONGEST_REASON]
    return None


def failure_summary(what: str, of: int, reasons: Iterable[str]) -> StudyError:
    """The error that ends a study of which too much failed.

    Args:
        what: failed, in the plural, and of which study.
        of: how many there are, whatever became of them.
        reasons: of those that failed.
    """
    counts = Counter(reason.splitlines()[0] if reason else "no reason given" for reason in reasons)
    shown = "; ".join(f"{reason} ({count} times)" if count > 1 else reason for reason, count in counts.most_common())
    hint = "Mend the cause and run the same command, or raise study.max_failure_rate."
    if any(reason.startswith("out of memory") for reason in counts):
        hint = f"Search smaller models, a lower dataset.max_length or dataset.image_size. {hint}"
    return StudyError(f"{counts.total()} of {of} {what} failed: {shown}", hint)


def storage_error(error: BaseException, folder: Path | None = None) -> StudyError | None:
    """What to say where a disk or a database of the run fails; ``None`` where the error is of another kind.

    Args:
        error: with what it was raised from, which is looked at too.
        folder: of the output, whose damaged databases are named.
    """
    for link in chain(error):
        text, number = str(link), getattr(link, "errno", None)
        file = getattr(link, "filename", None)
        where = f": {file} cannot be written" if file else ""
        if number in (errno.ENOSPC, errno.EDQUOT) or any(sign in text for sign in _FULL):
            return StudyError(
                f"the disk is full{where or f': {_first_line(link)}'}",
                "Make room and run the same command: what finished is kept, and it continues where this one stopped.",
            )
        if number == errno.EROFS or any(sign in text for sign in _READ_ONLY):
            return StudyError(
                f"the disk is read-only{where or f': {_first_line(link)}'}",
                "Make it writable and run the same command, or name another output_dir.",
            )
        if any(sign in text for sign in _DAMAGED):
            named = ", ".join(str(path) for path in _damaged(folder)) if folder is not None else ""
            return StudyError(
                f"a database is damaged: {named or _first_line(link)}",
                "Put a copy of it from before in its place, or name another output_dir; `sqlite3 FILE .recover` "
                "rescues what is left.",
            )
    return None


def chain(error: BaseException) -> Iterator[BaseException]:
    """An error, and those that it was raised from or beside."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or link.__context__


@contextmanager
def said_of_storage(folder: Path) -> Iterator[None]:
    """Give the errors of disks and databases in the words of :func:`storage_error`.

    Raises:
        StudyError: instead of such an error.
    """
    try:
        yield
    except ThawlineError:
        raise
    except Exception as error:
        if (said := storage_error(error, folder)) is not None:
            raise said from error
        raise


def _damaged(folder: Path) -> list[Path]:
    """The databases of a folder that SQLite finds fault with."""
    found = []
    for path in sorted(folder.glob("*.db")):
        try:
            connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
            try:
                sound = connection.execute("PRAGMA quick_check(1)").fetchone() == ("ok",)
            finally:
                connection.close()
        except sqlite3.DatabaseError:
            sound = False
        if not sound:
            found.append(path)
    return found


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
