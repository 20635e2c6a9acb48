"""What every engine can do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from types import TracebackType

from sweeper.engine.jobs import Job, Listener, Workload
from sweeper.interruption import StopSignal

__all__ = ["Assignment", "Engine", "WorkerDied"]

Assignment = tuple[Job, Listener]


class WorkerDied(Exception):
    """A worker ended while it trained; the message says how."""


class Engine(ABC):
    """Trains runs; a context manager, at whose end no worker is left.

    Attributes:
        workers: runs that are trained side by side.
        description: for people, such as ``2 processes of 1 thread``.
    """

    workers: int = 1
    description: str = ""

    @property
    def processes(self) -> int:
        """How many train, side by side or together."""
        return self.workers

    @abstractmethod
    def run(self, workload: Workload, next_job: Callable[[], Assignment | None], stop: StopSignal) -> None:
        """Train runs of a study until there are no more.

        Args:
            workload: what they share.
            next_job: asked whenever a run can start; ``None`` = none can, until one of those under way ends.
            stop: checked often; where it raises, so does this, after every run that was started has ended.

        Raises:
            Interrupted: a signal came.
            Exception: what a listener's ``on_end`` raised.
        """

    @abstractmethod
    def close(self) -> None:
        """End the workers, where there are any."""

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
