"""One run after another, in the owner's process."""

from __future__ import annotations

from collections.abc import Callable

from sweeper.engine.base import Assignment, Engine
from sweeper.engine.jobs import Job, Listener, Workload, train
from sweeper.interruption import StopSignal

__all__ = ["InlineEngine"]


class InlineEngine(Engine):
    """One run after another, in the owner's process, with all of its threads: the same order of trials each time."""

    description = "inline"

    def run(self, workload: Workload, next_job: Callable[[], Assignment | None], stop: StopSignal) -> None:
        """See :meth:`Engine.run`."""
        while True:
            stop.check()
            assigned = next_job()
            if assigned is None:
                return
            job, listener = assigned
            ended_by: BaseException | None = None
            try:
                self.train(workload, job, listener, stop)
            except BaseException as error:
                ended_by = error
            listener.on_end(ended_by)

    def train(self, workload: Workload, job: Job, listener: Listener, stop: StopSignal) -> None:
        """Train a run to its end; what ends it early is raised."""
        train(workload, job, listener, stop.check)

    def close(self) -> None:
        """There is no worker."""
