"""What a shell offers for the command and its flags; group, option and key come from Hydra."""

from __future__ import annotations

import os
from collections.abc import Iterable

from sweeper.tools import TOOLS, parser_of

__all__ = ["VARIABLE", "offered"]

#: Hydra's scripts for bash, zsh and fish leave the line here that is being typed.
VARIABLE = "COMP_LINE"


def offered(commands: Iterable[str]) -> list[str] | None:
    """Words that fit the end of the line, if it is a command or a flag; ``None`` where Hydra is to be asked.

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
    if words[0] in commands:
        os.environ[VARIABLE] = " ".join([program, *words[1:], last])
    return None
