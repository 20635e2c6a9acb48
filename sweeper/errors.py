"""Every error the project raises on purpose; the command line prints them in two lines, without a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

from sweeper.secrets import redacted

__all__ = [
    "AssetError",
    "ConfigError",
    "DataError",
    "EndpointError",
    "ExportError",
    "StudyError",
    "ThawlineError",
    "near_matches",
]


class ThawlineError(Exception):
    """Root of the project's errors: what was given and what is allowed, then what to do next.

    Secrets in either are masked (:func:`sweeper.secrets.redacted`).

    Args:
        message: what was given and what is allowed.
        hint: the next step for the reader; printed on a line of its own.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        self.message = redacted(message)
        self.hint = redacted(hint)
        super().__init__(self.message)

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message


class ConfigError(ThawlineError):
    """One or more mistakes in the configuration; ``problems`` lists each of them once."""

    def __init__(self, problems: Sequence[str] | str, hint: str = "") -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        lines = self.problems if len(self.problems) == 1 else [f"{len(self.problems)} mistakes:"]
        if len(self.problems) > 1:
            lines = lines + [f"  - {problem}" for problem in self.problems]
        super().__init__("\n".join(lines), hint)


class AssetError(ThawlineError):
    """An embedded model or dataset cannot be fetched, or what was fetched is not what was pinned."""


class DataError(ThawlineError):
    """The dataset cannot be used as asked: too few rows, one class only, a missing column."""


class EndpointError(ThawlineError):
    """A prompted model cannot be asked: no endpoint, no valid key, no such model, no answer in time."""


class ExportError(ThawlineError):
    """A saved model cannot be exported, or what came out does not compute what the model does."""


class StudyError(ThawlineError):
    """A study cannot be created, continued or finished."""


def near_matches(given: str, allowed: Iterable[str]) -> str:
    """``did you mean 'lora'? allowed: frozen, full, lora``: the allowed names, the likeliest first named."""
    names = sorted(allowed)
    close = difflib.get_close_matches(given, names, n=3, cutoff=0.6)
    question = f"did you mean {' or '.join(repr(name) for name in close)}? " if close else ""
    return f"{question}allowed: {', '.join(names)}"
