"""Each run on all processes that a launcher started: the first one owns the study, the others follow it."""

from __future__ import annotations

import contextlib
import logging
import signal
from dataclasses import replace

from sweeper.engine.inline import InlineEngine
from sweeper.engine.jobs import Job, Listener, Workload, train
from sweeper.interruption import StopSignal
from sweeper.quiet import quieten_libraries
from sweeper.training.recorder import Diverged
from sweeper.training.replicas import Ended, ProcessGone, Replicas, Stopped

__all__ = ["DistributedEngine", "follow"]


class DistributedEngine(InlineEngine):
    """One run after another, each on all processes of a launcher (``accelerate launch``, ``torchrun``).

    Those that train a head on recorded features are the first process's alone.

    Args:
        processes: that train together, this one the first of them.
    """

    def __init__(self, processes: Replicas) -> None:
        self._processes = processes
        self._shared: Workload | None = None
        self.description = f"{processes.size} processes a run"

    @property
    def processes(self) -> int:
        """See :attr:`Engine.processes`."""
        return self._processes.size

    def train(self, workload: Workload, job: Job, listener: Listener, stop: StopSignal) -> None:
        """See :meth:`InlineEngine.train`."""
        if workload.brief:
            super().train(workload, job, listener, stop)
            return
        try:
            if self._shared is not workload:
                # Recorded here: else each process would, one after another.
                workload.task.record_states(workload.spec, job.configuration, stop.check)
                self._processes.of_first(lambda: workload)
                self._shared = workload
            # What follows training is the first process's, and so are checkpoints.
            self._processes.of_first(lambda: replace(job, test=False, drift=False, checkpoints=None))
            train(workload, job, listener, stop.check, self._processes)
        except BaseException:
            with contextlib.suppress(ProcessGone):
                self._processes.stop()
            raise


def follow(processes: Replicas) -> None:
    """The life of every process but the first: train what that one trains, in step with it, until it ends.

    Nothing is printed, written or asked of anyone; a signal is the first one's to obey.

    Raises:
        Exception: one that is this process's own; it ends the launch.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    quieten_libraries()
    logging.disable(logging.WARNING)
    workload: Workload | None = None
    while True:
        try:
            message: Workload | Job | None = processes.of_first(lambda: None)
            if isinstance(message, Workload):
                workload = message
            else:
                assert workload is not None and isinstance(message, Job), message
                train(workload, message, Listener(), lambda: None, processes)
        except (Ended, ProcessGone):
            return
        except (Stopped, Diverged):  # the first process leaves the run as well
            continue
