"""The commands that take flags: a table of them, and how one is called. Each is a module of this package.

Its ``add_arguments(parser)`` declares the flags, its ``run(arguments)`` does the work and raises
:class:`~sweeper.errors.ThawlineError`. It is imported when it is asked for, and heavy libraries later still.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence
from typing import NoReturn

from sweeper.errors import ConfigError, near_matches

__all__ = ["TOOLS", "main"]

#: Name of the command, which is that of its module -> what it does, in a line.
TOOLS = {
    "predict": "labels and calibrated scores of texts or images, by the chosen model or another",
    "serve": "answer requests for predictions by MLflow's scoring server, on this machine only",
    "ui": "browse the runs in the MLflow UI, on this machine only",
}


def main(arguments: Sequence[str]) -> None:
    """Run one command.

    Args:
        arguments: its name, a key of ``TOOLS``, and its flags.

    Raises:
        ThawlineError: a flag is wrong, or the command fails.
        SystemExit: after ``--help``, or with the status of a command that ends with another than 0.
    """
    name, *flags = arguments
    module = importlib.import_module(f"sweeper.tools.{name}")
    summary = TOOLS[name]
    parser = _Parser(prog=f"thawline {name}", description=f"{summary[0].upper()}{summary[1:]}.", allow_abbrev=False)
    module.add_arguments(parser)
    given, unknown = parser.parse_known_args(flags)
    if unknown:
        options = [option for option in parser._option_string_actions if option.startswith("--")]
        parser.error(f"unknown argument {unknown[0]}: {near_matches(unknown[0].partition('=')[0], options)}")
    module.run(given)


class _Parser(argparse.ArgumentParser):
    """argparse, whose errors are those of the project."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message, f"`{self.prog} --help` shows its arguments.")
