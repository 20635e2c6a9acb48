"""What a command asks for: the configurations to compose, checked, and the command line that reproduces them."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweeper.config import config_dir
from sweeper.errors import ConfigError
from sweeper.files import check_writable
from sweeper.overrides import check_overrides, compared, config_folders, for_strategies, group_options, variant
from sweeper.secrets import redacted

__all__ = ["ALL", "COMPARED", "CONFIG_DIR_FLAGS", "Invocation", "interpret", "shown"]

#: What ``compare`` runs where nothing names strategies: the steps from the head alone to everything.
COMPARED = ("frozen", "lora", "partial", "full")
ALL = "all"
CONFIG_DIR_FLAGS = ("--config-dir", "-cd")


@dataclass(frozen=True)
class Invocation:
    """A command that is understood.

    Attributes:
        overrides: of each configuration that is to be composed, at least one.
        several: whether it names what to run itself, as ``compare`` does.
        everything: whether all strategies were asked for, so that those that do not fit may be left out.
        text: the command line that reproduces it, without secrets.
    """

    overrides: list[list[str]]
    several: bool
    everything: bool
    text: str


def interpret(
    command: str, overrides: Sequence[str], extra_dir: str | None, flags: Sequence[str] = (), *, check: bool = True
) -> Invocation:
    """Understand a command of Hydra's kind.

    Args:
        command: ``sweep``, ``compare`` or ``report``.
        overrides: ``key=value``.
        extra_dir: the user's own folder of YAML files.
        flags: Hydra's, which the text repeats.
        check: whether keys and values are checked, and that the output folder can be written to.

    Raises:
        ConfigError: every mistake that shows before the data are looked at.
        StudyError: the output folder cannot be written to.
    """
    given = [_listed(item) for item in overrides] if command == "report" else list(overrides)
    entries, everything = _entries(command, given, extra_dir)
    own = [variant(entry) for entry in entries]
    variants = for_strategies(_without_strategy(given), own, config_dir(), extra_dir) if own else [given]
    if check:
        _check(variants, extra_dir)
        folders = [item.partition("=")[2].strip("'\"") for item in given if item.startswith("output_dir=")]
        check_writable(Path(folders[-1] if folders else "outputs"))  # Hydra writes there before it calls anything
    named = all(isinstance(entry, str) for entry in entries)  # else the experiment says it better
    asked = [f"strategy={ALL if everything else ','.join(entries)}"] if entries and named else []
    kept = [*_without_strategy(given), *asked] if entries else given
    return Invocation(variants, bool(entries), everything, shown(command, *flags, *kept))


def shown(*arguments: str) -> str:
    """A command line as it is recorded: to be run again once each ``***`` is the secret that stood there."""
    return shlex.join(["python", "-m", "sweeper", *map(redacted, arguments)])


def _listed(override: str) -> str:
    """``report.comparison=a,b`` as the list that it means; to Hydra it is a choice to sweep over."""
    key, _, value = override.partition("=")
    return f"{key}=[{value}]" if key == "report.comparison" and "," in value and value[0] not in "['\"" else override


def _without_strategy(overrides: Sequence[str]) -> list[str]:
    return [item for item in overrides if not item.startswith("strategy=")]


def _entries(command: str, overrides: list[str], extra_dir: str | None) -> tuple[list[Any], bool]:
    """What to compare, none for another command, and whether all strategies were asked for.

    The command line wins over the experiment, the experiment over ``COMPARED``.
    """
    given = [item for item in overrides if item.startswith("strategy=")]
    entries = None if given or command == "report" else compared(overrides, config_dir(), extra_dir)
    if command != "compare":
        if entries is not None and command == "sweep":
            raise ConfigError(
                f"compare={_names(entries)} is for several strategies, and sweep runs one",
                "Run `thawline compare` (`make compare`) with the same arguments, or name one strategy with "
                "strategy=...",
            )
        return [], False
    if entries is not None:
        if not entries:
            raise ConfigError("compare=[] names no strategy")
        return entries, False
    available = group_options("strategy", config_folders(config_dir(), extra_dir))
    names = given[-1].removeprefix("strategy=").strip("[]").split(",") if given else COMPARED
    names = list(dict.fromkeys(name.strip() for name in names if name.strip()))
    if not names:
        raise ConfigError(f"strategy= names none: allowed: {ALL}, {', '.join(available)}")
    return (available, True) if names == [ALL] else (list(names), False)


def _names(entries: list[Any]) -> str:
    shown = [entry.get("label") or entry.get("strategy") if isinstance(entry, dict) else entry for entry in entries]
    return f"[{', '.join(map(str, shown))}]"


def _check(variants: list[list[str]], extra_dir: str | None) -> None:
    problems = [problem for variant in variants for problem in check_overrides(variant, config_dir(), extra_dir)]
    if problems:
        hint = "`thawline --help` lists commands and choices, `thawline --cfg job` every key with its value."
        raise ConfigError(list(dict.fromkeys(problems)), hint)
