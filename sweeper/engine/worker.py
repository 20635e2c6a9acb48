"""A worker's side: trains what it is sent, tells the owner what happens, and stops when it is told to."""

from __future__ import annotations

import contextlib
import pickle
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from sweeper.engine.jobs import Job, Listener, Trained, Workload, train
from sweeper.training.boundary_cache import BoundaryCache
from sweeper.training.pseudo_label import Round
from sweeper.training.recorder import EpochRecord

__all__ = ["GO", "STOP", "Ended", "Pipe", "Save", "Saved", "Shared", "serve"]

GO, STOP = "go", "stop"  # answers to a worker


@dataclass(frozen=True)
class Save:
    """The answer to a worker that has trained: save the model here."""

    folder: Path


@dataclass(frozen=True)
class Saved:
    """A saved model, from a worker that the owner's folders are out of reach of.

    Attributes:
        folder: where the owner wants it.
        files: by their paths within it.
    """

    folder: Path
    files: dict[str, bytes]

    def write(self) -> None:
        """Write them, on the owner's side."""
        for name, content in self.files.items():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


@dataclass(frozen=True)
class Shared:
    """A workload that waits where a worker can read it; what it is depends on the engine."""

    where: Any


class Pipe(Protocol):
    """Two ends that send objects to each other; ``EOFError`` or ``OSError`` where the other end is gone."""

    def send(self, message: Any, /) -> None:
        """Send an object."""

    def recv(self) -> Any:
        """The next object, waiting for it."""

    def poll(self) -> bool:
        """Whether an object, or the end, is there without waiting."""


class Ended:
    """The end of a run; an error comes with the place where it was raised, which does not travel by itself."""

    def __init__(self, error: BaseException | None) -> None:
        self._pickled = b""
        self._text = ""
        if error is not None:
            self._text = "".join(traceback.format_exception(error))
            try:
                self._pickled = pickle.dumps(error)
                pickle.loads(self._pickled)  # some can be written and not be read
            except Exception:
                self._pickled = pickle.dumps(RuntimeError(f"{type(error).__name__}: {error}"))

    def error(self) -> BaseException | None:
        """What ended the run early; ``None`` where nothing did."""
        if not self._pickled:
            return None
        error: BaseException = pickle.loads(self._pickled)
        error.__cause__ = _RemoteTraceback(self._text)
        return error


class _RemoteTraceback(Exception):
    """Where an error was raised, in a worker."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


class _Stopped(BaseException):
    """The owner wants the run to end."""


class _OwnerDied(BaseException):
    """The owner is gone."""


def serve(pipe: Pipe, read: Callable[[Shared], Workload], *, apart: bool = False) -> None:
    """A worker's life: a workload or a job at a time, until the owner is gone.

    Args:
        pipe: to the owner.
        read: makes a workload of what the owner shared.
        apart: the owner's folders are out of reach: a model that is to be saved is sent, checkpoints are not written.
    """
    shared: Shared | None = None
    workload: Workload | None = None
    with contextlib.suppress(EOFError, OSError, _OwnerDied):
        while True:
            message = pipe.recv()
            if message == STOP:  # it crossed the end of the run it was for
                continue
            if isinstance(message, Shared):
                shared, workload = message, None  # so that two are never held
                continue
            assert shared is not None and isinstance(message, Job), message
            try:
                workload = read(shared) if workload is None else workload
            except Exception as error:
                pipe.send(Ended(error))
            else:
                pipe.send(_carry_out(workload, message, pipe, apart))


def _carry_out(workload: Workload, job: Job, pipe: Pipe, apart: bool) -> Ended:
    try:
        with tempfile.TemporaryDirectory(prefix="thawline-") if apart else contextlib.nullcontext() as folder:
            owner = _Owner(pipe, workload.task.cache, None if folder is None else Path(folder, "model"))
            if apart:
                job = replace(job, checkpoints=None)  # the owner could neither find nor remove them
            train(workload, job, owner, owner.look)
            owner.send_saved()
    except _Stopped:
        return Ended(None)
    except Exception as error:
        return Ended(error)
    return Ended(None)


class _Owner(Listener):
    """The owner as a worker sees it: told of everything, asked whether to go on.

    ``folder`` is where a model is saved before it is sent, where the owner's folders are out of reach.
    """

    def __init__(self, pipe: Pipe, cache: BoundaryCache | None, folder: Path | None) -> None:
        self._pipe = pipe
        self._cache = cache
        self._saved_before = 0.0 if cache is None else cache.saved_seconds
        self._folder = folder
        self._wanted: Path | None = None

    def on_sizes(self, sizes: dict[str, float]) -> None:
        self._ask(sizes)

    def on_round(self, labelling: Round) -> None:
        self._ask(labelling)

    def on_epoch(self, record: EpochRecord) -> None:
        self._ask(record)

    def on_trained(self, trained: Trained) -> Path | None:
        saved = 0.0 if self._cache is None else self._cache.saved_seconds - self._saved_before
        answer = self._ask(replace(trained, saved_seconds=saved))
        if not isinstance(answer, Save):
            return None
        self._wanted = answer.folder
        return self._folder or answer.folder

    def send_saved(self) -> None:
        """Send the model that was saved, if the owner cannot reach it."""
        if self._wanted is not None and self._folder is not None:
            files = [path for path in self._folder.rglob("*") if path.is_file()]
            contents = {path.relative_to(self._folder).as_posix(): path.read_bytes() for path in files}
            self._ask(Saved(self._wanted, contents))

    def look(self) -> None:
        """Between two steps: is the run still wanted?"""
        with _owner_may_die():
            if self._pipe.poll():
                self._obey(self._pipe.recv())

    def _ask(self, message: object) -> Any:
        with _owner_may_die():
            self._pipe.send(message)
            return self._obey(self._pipe.recv())

    def _obey(self, answer: Any) -> Any:
        if answer == STOP:
            raise _Stopped
        return answer


@contextmanager
def _owner_may_die() -> Iterator[None]:
    try:
        yield
    except (EOFError, OSError) as error:
        raise _OwnerDied from error
