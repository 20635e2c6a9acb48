"""What a shell offers for the command, its flags and lists of names; group, option and key come from Hydra."""

from __future__ import annotations

import os
from collections.abc import Iterable

from sweeper.config import config_dir, users_config_dir
from sweeper.overrides import config_folders, group_options
from sweeper.tools import TOOLS, parser_of

__all__ = ["VARIABLE", "offered"]

#: Hydra's scripts for bash, zsh and fish leave the line here that is being typed.
VARIABLE = "COMP_LINE"
_MULTIRUN = ("-m", "--multirun")


def offered(commands: Iterable[str]) -> list[str] | None:
    """Words that fit the end of the line, if Hydra does not know them; ``None`` where it is to be asked.

    It knows neither commands and their flags nor names behind a comma, as in ``strategy=frozen,lo``.

    From the line that Hydra is asked about, the command is taken out, which it would take for an override.

    Args:
        commands: those of Hydra; the others are ``TOOLS``.
    """
    line = os.environ.get(VARIABLE, "")
    if not line.strip():  # the script itself is asked for
        return None
    program, *words = line.split()
    last = "" if line[-1].isspace() or not words else words.pop()
    if not words:
        return [name for name in (*commands, *TOOLS) if name.startswith(last)] or None
    if words[0] in TOOLS:
        flags = parser_of(words[0])._option_string_actions
        return [flag for flag in flags if flag.startswith(last or "--")]
    key, _, given = last.partition("=")
    if "," in given and ((words[0], key) == ("compare", "strategy") or any(flag in words for flag in _MULTIRUN)):
        return _listed(key, *given.rsplit(",", 1))
    if words[0] in commands:
        os.environ[VARIABLE] = " ".join([program, *words[1:], last])
    return None


def _listed(group: str, named: str, begun: str) -> list[str]:
    """The whole word, as a shell replaces it, with each option of the group that begins so and is not in the list."""
    options = group_options(group, config_folders(config_dir(), users_config_dir()))
    return [
        f"{group}={named},{option}" for option in options if option.startswith(begun) and option not in named.split(",")
    ]
