"""``thawline doctor``: checks the environment, and says how to mend what is wrong."""

from __future__ import annotations

import argparse
import json
import textwrap
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.text import Text

from sweeper.environment import Check, Places, checked

__all__ = ["add_arguments", "run"]

STYLES = {"ok": "green", "warning": "yellow", "problem": "red"}
NAME, STATUS = 12, 9  # columns


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument(
        "--output-dir", type=Path, default=Path("outputs"), metavar="FOLDER", help="of the sweeps (default: outputs)"
    )
    parser.add_argument("--storage", metavar="URL", help="Optuna's; default: THAWLINE_STORAGE, or else in the folder")
    parser.add_argument("--tracking-uri", metavar="URI", help="MLflow's; default: a database in the folder")
    parser.add_argument("--json", action="store_true", help="for programs: a list of checks")


def run(arguments: argparse.Namespace) -> None:
    """Print a line for each check, and for what is wrong the next step below it.

    Raises:
        SystemExit: with status 1, if there is a problem.
    """
    places = Places(arguments.output_dir, arguments.storage, arguments.tracking_uri)
    console, found = Console(highlight=False), []
    for check in checked(places):
        found.append(check)
        if not arguments.json:
            console.print(_line(check, min(console.width, 120)), soft_wrap=True)
    if arguments.json:
        print(json.dumps([asdict(check) for check in found], indent=1))
    if any(check.status == "problem" for check in found):
        raise SystemExit(1)


def _line(check: Check, width: int) -> Text:
    """``name  status  message``, and the hint below; words stay whole, so that paths can be copied."""
    text = Text(f"{check.name:{NAME}}").append(f"{check.status:{STATUS}}", STYLES[check.status])
    indent = " " * (NAME + STATUS)
    lines = [part for given in (check.message, check.hint) for part in _wrapped(given, width - len(indent))]
    return text.append(f"\n{indent}".join(lines))


def _wrapped(text: str, width: int) -> list[str]:
    return [
        line
        for part in text.splitlines()
        for line in textwrap.wrap(part, width, break_long_words=False, break_on_hyphens=False)
    ]
