"""What a person sees while a study runs: a line per finished trial, and on a terminal a live bar below them.

A trial has one number wherever it is named: Optuna's, which counts from 0 and goes on over interruptions and resumed
studies. Behind it, in brackets, is how many of those asked for that makes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress

from sweeper import schema
from sweeper.secrets import redacted
from sweeper.training.recorder import EpochRecord

__all__ = ["Line", "Progress", "duration"]

_STYLES = {schema.STATE_COMPLETE: "green", schema.STATE_PRUNED: "dim", schema.STATE_INTERRUPTED: "yellow"}


class Progress:
    """Progress of the studies of one command; a context manager.

    Args:
        console: where to write; the bar appears only if it is a terminal.
        verbosity: ``quiet`` (nothing but warnings), ``normal`` (a line per trial), ``verbose`` (and one per epoch).
    """

    def __init__(self, console: Console, verbosity: str) -> None:
        self._console = console
        self._verbosity = verbosity
        self._bar = RichProgress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[detail]}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=verbosity == "quiet" or not console.is_terminal,
        )
        self._task: TaskID | None = None
        self._epochs = 1
        self._units = 0.0
        self._done = 0.0
        self._best: float | None = None
        self._started = 0.0
        self._lines: list[Line] = []

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def note(self, text: str) -> None:
        """A line of its own, unless quiet."""
        if self._verbosity != "quiet":
            self._console.print(text, highlight=False, soft_wrap=True)

    def items(self, label: str, done: int, total: int) -> None:
        """So many items of something that is neither a trial nor a final are done."""
        if done == 0:
            self._replace_task(label, float(total))
        assert self._task is not None, "counting begins with 0"
        self._bar.update(self._task, completed=done, detail=f"{done}/{total}", visible=done < total)

    def study_started(self, strategy: str, n_trials: int, final_seeds: int, epochs: int, already: int) -> None:
        """A study of so many trials and finals begins; ``already`` trials are finished from earlier."""
        self._epochs, self._units = epochs, float((n_trials - already + final_seeds) * epochs)
        self._done, self._best, self._lines = 0.0, None, []
        self._started = time.monotonic()
        self._replace_task(strategy, self._units)
        resumed = f", {already} of them finished earlier" if already else ""
        trials, finals = _plural(n_trials, "trial"), _plural(final_seeds, "final")
        self.note(
            f"[bold]{escape(strategy)}[/bold]: {trials} of up to {_plural(epochs, 'epoch')}{resumed}, then {finals}"
        )

    def trial_started(self, number: int, position: int, total: int, values: Mapping[str, Any]) -> Line:
        """A trial begins with these values; ``number`` is Optuna's, ``position`` counts those asked for, from 1."""
        return self._begin(f"trial {number} ({position}/{total})", values)

    def final_started(self, number: int, total: int) -> Line:
        """A final begins; numbers count from 0, as those of trials."""
        return self._begin(f"final {number} ({number + 1}/{total})", {})

    def _replace_task(self, label: str, total: float) -> None:
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task(escape(label), total=total, detail="")

    def _begin(self, label: str, values: Mapping[str, Any]) -> Line:
        line = Line(self, label, escape("  ".join(f"{name} {_short(value)}" for name, value in values.items())))
        self._lines.append(line)
        self._update()
        return line

    def _epoch(self, line: Line, record: EpochRecord) -> None:
        self._update()
        if self._verbosity == "verbose":
            self.note(
                f"    {line.label} epoch {record.epoch}/{self._epochs}: train loss {record.train_loss:.4f}, "
                f"validation loss {record.validation_loss:.4f}, accuracy {record.validation_accuracy:.4f}, "
                f"{record.train_samples_per_second:.0f} samples/s"
            )

    def _end(self, line: Line, text: str, style: str, best: float | None) -> None:
        self._lines.remove(line)
        self._done += self._epochs
        self._best = self._best if best is None else best
        self._update()
        self.note(f"  [{style}]{line.label:<16}[/{style}] {duration(line.seconds):>9}  {text}")

    def _update(self) -> None:
        if self._task is None:
            return
        parts = [line.detail(self._epochs) for line in self._lines]
        if self._best is not None:
            parts.append(f"best {self._best:.3f}")
        if done := self._done + sum(line.epochs for line in self._lines):
            left = (time.monotonic() - self._started) / done * (self._units - done)
            parts.append(f"about {duration(left)} left")
        self._bar.update(self._task, completed=done, detail="  ".join(parts))


class Line:
    """A trial or a final under way; several may be at a time. Made by :class:`Progress`."""

    def __init__(self, progress: Progress, label: str, values: str) -> None:
        self.label = label
        self.epochs = 0
        self._progress, self._values, self._score = progress, values, math.nan
        self._started = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self._started

    def detail(self, epochs: int) -> str:
        """What the bar says of it."""
        done = f"epoch {self.epochs}/{epochs}  score {self._score:.3f}" if self.epochs else "starting"
        return f"{self.label}  {done}"

    def epoch(self, record: EpochRecord, score: float) -> None:
        """An epoch was scored on the validation split."""
        self.epochs, self._score = record.epoch, score
        self._progress._epoch(self, record)

    def trial_finished(self, state: str, reason: str, value: float | None, best: float | None) -> None:
        """The trial ended in a state of the schema; ``best`` is the best score of all so far."""
        outcome = f"score {value:.4f}" if value is not None else state
        because = f" ({escape(redacted(reason))})" if reason else ""
        best_text = f"  best {best:.4f}" if best is not None else ""
        text = f"{outcome:<13}{best_text}  {self._values}{because}"
        self._progress._end(self, text, _STYLES.get(state, "red"), best)

    def final_finished(self, state: str, reason: str, accuracy: float | None) -> None:
        """The final ended; ``accuracy`` is its score on the test split."""
        outcome = f"test accuracy {accuracy:.4f}" if accuracy is not None else f"{state} ({escape(redacted(reason))})"
        self._progress._end(self, outcome, _STYLES.get(state, "red"), None)


def duration(seconds: float) -> str:
    """``8.3 s``, ``1 min 12 s``, ``2 h 5 min``."""
    if seconds < 59.95:
        return f"{max(seconds, 0):.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _plural(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
