"""Runs side by side, in worker processes of this machine.

Training a small model on two cores is little faster than on one: its steps are made of many short operations, between
which threads wait for each other. Workers with a share of the cores each wait for nobody.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import shutil
import signal
import tempfile
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import cast

import filelock

from sweeper.engine.jobs import Job, Workload
from sweeper.engine.worker import Shared, serve
from sweeper.engine.workers import Remote, WorkerEngine
from sweeper.forking import worker_context
from sweeper.interruption import StopSignal

__all__ = ["ProcessEngine"]

MAX_WORKERS = 4  # by default, on a CPU: each holds a model, its gradients and half a gigabyte of imports
JOIN_SECONDS = 5.0
_PREFIX, _IN_USE = "thawline-workers-", ".in_use"
_LEFT_SECONDS = 60.0  # a younger folder may be about to be locked


class ProcessEngine(WorkerEngine):
    """Workers on this machine, each with a share of the cores or with a GPU.

    Args:
        workers: ``None`` = one for each GPU; without any, one for each core up to ``MAX_WORKERS``.
    """

    def __init__(self, workers: int | None) -> None:
        super().__init__()
        import torch

        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self._gpus = torch.cuda.device_count()
        self.workers = workers or self._gpus or min(cores, MAX_WORKERS)
        self._threads = max(1, cores // self.workers)
        self.description = f"{self.workers} processes of {self._threads} thread{'s' if self._threads > 1 else ''}"
        self._files = _Folder()

    def start(self, number: int) -> Remote:
        """See :meth:`WorkerEngine.start`."""
        context = worker_context()
        ours, theirs = context.Pipe()
        device = str(number % self._gpus) if self._gpus else None
        process = context.Process(
            target=_live, args=(theirs, self._threads, device), name=f"worker {number + 1}", daemon=True
        )
        process.start()
        theirs.close()
        return _Process(process, ours)

    def share(self, workload: Workload, job: Job, stop: StopSignal) -> Shared:
        """See :meth:`WorkerEngine.share`."""
        # Recorded here, with all cores: else one worker would, and the others wait for it.
        workload.task.record_states(workload.spec, job.configuration, stop.check)
        path = self._files.path / f"{time.monotonic_ns()}.pickle"
        with path.open("wb") as file:
            pickle.dump(workload, file, protocol=pickle.HIGHEST_PROTOCOL)
        for older in path.parent.glob("*.pickle"):
            if older != path:
                older.unlink()
        return Shared(path)

    def wait(self, remotes: Sequence[Remote], seconds: float) -> list[Remote]:
        """See :meth:`WorkerEngine.wait`."""
        by_pipe = {cast(_Process, remote).pipe: remote for remote in remotes}
        return [by_pipe[cast(Connection, pipe)] for pipe in wait(list(by_pipe), seconds)]

    def close(self) -> None:
        """See :meth:`Engine.close`."""
        processes = [cast(_Process, worker.remote) for worker in self._pool]
        for process in processes:
            process.pipe.close()  # ends it
        for process in processes:
            process.end()
        self._pool = []
        self._files.remove()


class _Folder:
    """A folder among the system's temporary ones, removed at the end; so are those that killed owners left."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix=_PREFIX))
        self._lock = filelock.FileLock(self.path / _IN_USE)
        self._lock.acquire()
        for other in self.path.parent.glob(f"{_PREFIX}*"):
            with contextlib.suppress(OSError, filelock.Timeout):  # another user's, or in use
                if other != self.path and time.time() - other.stat().st_mtime > _LEFT_SECONDS:
                    with filelock.FileLock(other / _IN_USE).acquire(timeout=0):
                        shutil.rmtree(other)

    def remove(self) -> None:
        """Remove it with all that is in it."""
        self._lock.release()
        shutil.rmtree(self.path, ignore_errors=True)


class _Process:
    """A worker process."""

    def __init__(self, process: BaseProcess, pipe: Connection) -> None:
        self.process, self.pipe = process, pipe
        self.send, self.recv, self.poll = pipe.send, pipe.recv, pipe.poll

    def kill(self) -> None:
        self.process.kill()

    def end(self) -> None:
        """Wait for it, and no longer than that."""
        self.process.join(JOIN_SECONDS)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()

    def how_it_ended(self) -> str:
        self.pipe.close()
        self.end()
        name, code = self.process.name, self.process.exitcode or 0
        if code >= 0:
            return f"{name} ended with status {code}"
        hint = "; the system ends processes so where memory is short" if -code == signal.SIGKILL else ""
        return f"{name} was ended by {signal.Signals(-code).name}{hint}"


# --- in the worker -----------------------------------------------------------------------------------------------


def _live(pipe: Connection, threads: int, device: str | None) -> None:
    """A worker's life."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all of them; the owner says what to do
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = _visible(device)
    import torch

    from sweeper.quiet import quieten_libraries

    torch.set_num_threads(threads)
    quieten_libraries()
    multiprocessing.current_process().name = "MainProcess"  # what transformers tells data loaders' workers from
    serve(pipe, _read)
    os._exit(0)  # takes nothing apart


def _read(shared: Shared) -> Workload:
    with Path(shared.where).open("rb") as file:
        workload: Workload = pickle.load(file)  # written by the owner, in a folder of its own
    return workload


def _visible(device: str) -> str:
    """The GPU of this number among those that the owner sees."""
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    return allowed.split(",")[int(device)] if allowed else device
