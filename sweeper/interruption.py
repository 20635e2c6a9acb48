"""Ctrl-C and SIGTERM end a study between two training steps, so that every run and database is closed properly."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType

__all__ = ["Interrupted", "StopSignal"]


class Interrupted(BaseException):
    """The user or the system asked to stop. Not an ``Exception``: no library on the way may swallow it."""


class StopSignal:
    """While open, the first signal is noted and :meth:`check` raises; a second one interrupts at once."""

    _SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.received = ""
        self._closing = False
        self._previous: dict[int, object] = {}

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._note) for number in self._SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._previous = {}

    def check(self) -> None:
        """Raise :class:`Interrupted` if a signal came."""
        if self.received:
            self.closing()
            raise Interrupted(self.received)

    def closing(self) -> None:
        """From now on signals are passed over: what is open is being closed."""
        self._closing = True

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._closing:  # it takes a moment; ending it half-way would leave runs open
            return
        if self.received:
            raise KeyboardInterrupt
        self.received = signal.Signals(number).name
