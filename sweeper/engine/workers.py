"""The owner's side of runs that are trained elsewhere: who is free, what they say, and what becomes of the dead."""

from __future__ import annotations

import contextlib
import itertools
import time
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from sweeper.engine.base import Assignment, Engine, WorkerDied
from sweeper.engine.inline import InlineEngine
from sweeper.engine.jobs import Job, Listener, Trained, Workload
from sweeper.engine.worker import GO, STOP, Ended, Pipe, Save, Saved, Shared
from sweeper.interruption import Interrupted, StopSignal
from sweeper.training.pseudo_label import Round
from sweeper.training.recorder import EpochRecord

__all__ = ["Remote", "WorkerEngine"]

POLL_SECONDS = 0.2  # how long a signal may wait
STOP_SECONDS = 60.0  # how long a run that is told to stop may take, to the end of its step or evaluation


class Remote(Pipe, Protocol):
    """A worker as the owner reaches it."""

    def kill(self) -> None:
        """End it at once."""

    def how_it_ended(self) -> str:
        """For people; asked once the pipe is broken, or to find that it is not."""


@dataclass
class _Worker:
    remote: Remote
    number: int
    workload: Workload | None = None
    listener: Listener | None = None
    stopped_by: BaseException | None = None  # what the listener raised


class WorkerEngine(Engine):
    """Gives runs to workers; those that train a head on recorded features stay with the owner.

    Which trials the sampler knows of when it draws the next one depends on which worker was faster: trials are not the
    same ones in every repetition.
    """

    def __init__(self) -> None:
        self._pool: list[_Worker] = []
        self._inline = InlineEngine()
        self._shared: tuple[Workload, Shared] | None = None

    def room(self) -> bool:
        """Whether a worker can be started now; where it cannot, those that are there go on without it."""
        return True

    @abstractmethod
    def start(self, number: int) -> Remote:
        """Start a worker; ``number`` is the smallest that no living one has."""

    @abstractmethod
    def share(self, workload: Workload, job: Job, stop: StopSignal) -> Shared:
        """Put a workload where all workers can read it, until the next one is; ``job`` is its first."""

    @abstractmethod
    def wait(self, remotes: Sequence[Remote], seconds: float) -> list[Remote]:
        """Those that have something to say, or died, as soon as there are any, within so many seconds."""

    def run(self, workload: Workload, next_job: Callable[[], Assignment | None], stop: StopSignal) -> None:
        """See :meth:`Engine.run`."""
        if workload.brief:
            self._inline.run(workload, next_job, stop)
            return
        try:
            while True:
                stop.check()
                done = not self._assign(workload, next_job, stop)
                busy = self._busy()
                if done and not busy:
                    return
                for worker in self._ready(busy, POLL_SECONDS):
                    self._receive(worker)
        except BaseException as error:
            stop.closing()
            self._abandon(error)
            raise

    def _busy(self) -> list[_Worker]:
        return [worker for worker in self._pool if worker.listener is not None]

    def _ready(self, workers: Sequence[_Worker], seconds: float) -> list[_Worker]:
        ready = self.wait([worker.remote for worker in workers], seconds)
        return [worker for worker in workers if worker.remote in ready]

    def _assign(self, workload: Workload, next_job: Callable[[], Assignment | None], stop: StopSignal) -> bool:
        """Give a run to each worker that is free; False where there are no more runs."""
        while (free := next((worker for worker in self._pool if worker.listener is None), None)) or (
            len(self._pool) < self.workers and self.room()
        ):
            assigned = next_job()
            if assigned is None:
                return False
            job, listener = assigned
            try:
                shared = self._share(workload, job, stop)
                worker = free or self._new()
            except BaseException as error:
                listener.on_end(error)
                continue
            worker.listener, worker.stopped_by = listener, None
            try:
                if worker.workload is not workload:
                    worker.remote.send(shared)
                    worker.workload = workload
                worker.remote.send(job)
            except OSError:  # it died while it was idle
                self._lost(worker)
        return True

    def _share(self, workload: Workload, job: Job, stop: StopSignal) -> Shared:
        if self._shared is None or self._shared[0] is not workload:
            self._shared = workload, self.share(workload, job, stop)
        return self._shared[1]

    def _new(self) -> _Worker:
        taken = {worker.number for worker in self._pool}
        number = next(number for number in itertools.count() if number not in taken)
        self._pool.append(_Worker(self.start(number), number))
        return self._pool[-1]

    def _receive(self, worker: _Worker) -> None:
        """One message of a worker, and the answer to it."""
        listener = worker.listener
        assert listener is not None, "only a busy worker speaks"
        try:
            message = worker.remote.recv()
        except (EOFError, OSError):
            self._lost(worker)
            return
        if isinstance(message, Ended):
            worker.listener = None
            listener.on_end(worker.stopped_by or message.error())
            return
        answer: object = GO
        try:
            if worker.stopped_by is not None:
                raise worker.stopped_by
            answer = _tell(listener, message)
        except BaseException as error:
            worker.stopped_by, answer = error, STOP
        with contextlib.suppress(OSError):  # its end is the next message
            worker.remote.send(answer)

    def _lost(self, worker: _Worker) -> None:
        """A worker died: another one takes its place when there is work."""
        listener, worker.listener = worker.listener, None
        self._pool.remove(worker)
        if listener is not None:
            listener.on_end(worker.stopped_by or WorkerDied(worker.remote.how_it_ended()))

    def _abandon(self, because: BaseException) -> None:
        """End every run under way, as interrupted."""
        reason = str(because) if isinstance(because, Interrupted) else "the end of the sweep"
        for worker in self._busy():
            worker.stopped_by = worker.stopped_by or Interrupted(reason)
            with contextlib.suppress(OSError):
                worker.remote.send(STOP)
        deadline = time.monotonic() + STOP_SECONDS
        while busy := self._busy():
            ready = self._ready(busy, max(0.0, deadline - time.monotonic()))
            for worker in ready:
                with contextlib.suppress(BaseException):  # the first error is what ends the sweep
                    self._receive(worker)
            if not ready:
                for worker in busy:
                    worker.remote.kill()
                deadline = time.monotonic() + STOP_SECONDS


def _tell(listener: Listener, message: object) -> object:
    """Tell a listener what a worker says, and return the answer to it."""
    if isinstance(message, EpochRecord):
        listener.on_epoch(message)
    elif isinstance(message, Round):
        listener.on_round(message)
    elif isinstance(message, Saved):
        message.write()
    elif isinstance(message, Trained):
        folder = listener.on_trained(message)
        return GO if folder is None else Save(folder)
    else:
        assert isinstance(message, dict), message
        listener.on_sizes(message)
    return GO
