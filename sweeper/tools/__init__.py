"""The commands that take flags: a table of them, and how one is called. Each is a module of this package.

Its ``add_arguments(parser)`` declares the flags, its ``run(arguments)`` does the work and raises
:class:`~sweeper.errors.ThawlineError`. It is imported when it is asked for, and heavy libraries later still.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence
from typing import Any, NoReturn

from sweeper.errors import ConfigError, near_matches

__all__ = ["TOOLS", "main", "parser_of"]

#: Name of the command, which is that of its module -> what it does, in a line.
TOOLS = {
    "doctor": "check this machine and its environment, and say how to mend what is wrong",
    "init": "look at your own data and write a commented experiment for them",
    "predict": "labels and calibrated scores of texts or images, by the chosen model or another",
    "serve": "answer requests for predictions by MLflow's scoring server, on this machine only",
    "export": "write a saved model as ONNX or for torch.export, verified and timed against PyTorch",
    "ui": "browse the runs in the MLflow UI, or the studies in Optuna's dashboard, on this machine only",
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
    parser = parser_of(name)
    given, unknown = parser.parse_known_args(flags)
    if unknown:
        options = [option for option in parser._option_string_actions if option.startswith("--")]
        parser.error(f"unknown argument {unknown[0]}: {near_matches(unknown[0].partition('=')[0], options)}")
    _module(name).run(given)


def parser_of(name: str) -> argparse.ArgumentParser:
    """The parser of one command's flags."""
    summary = TOOLS[name]
    parser = _Parser(prog=f"thawline {name}", description=f"{summary[0].upper()}{summary[1:]}.", allow_abbrev=False)
    _module(name).add_arguments(parser)
    return parser


def _module(name: str) -> Any:
    return importlib.import_module(f"sweeper.tools.{name}")


class _Parser(argparse.ArgumentParser):
    """argparse, whose errors are those of the project."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message, f"`{self.prog} --help` shows its arguments.")
