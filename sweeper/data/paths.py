"""Paths that a user names: that they exist, and that what they name lies where it seems to."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from pathlib import Path

from sweeper.data.request import DataRequest
from sweeper.errors import ConfigError

__all__ = ["existing", "leaves", "split_paths"]


def existing(given: Mapping[str, str | None], *, folder: bool) -> dict[str, Path]:
    """The paths that are given, by their keys; ``~`` is the home folder.

    Args:
        given: key of the configuration -> path; ``None`` is left out.
        folder: whether folders are wanted, and not files.

    Raises:
        ConfigError: with every path that does not exist, is of the other kind, or may not be read.
    """
    paths = {key: Path(os.path.expanduser(path)) for key, path in given.items() if path is not None}
    problems = [f"{key}={path}: {problem}" for key, path in paths.items() if (problem := _problem(path, folder))]
    if problems:
        raise ConfigError(problems, f"Paths are absolute, or relative to {Path.cwd()}.")
    return paths


def split_paths(request: DataRequest, *, folder: bool) -> dict[str, Path]:
    """The path of each split that has one of its own; see :func:`existing`."""
    asked = {"train": "dataset.path", "validation": "dataset.validation_path", "test": "dataset.test_path"}
    paths = existing({key: getattr(request, key.partition(".")[2]) for key in asked.values()}, folder=folder)
    return {split: paths[key] for split, key in asked.items() if key in paths}


def leaves(path: Path, root: Path) -> bool:
    """Whether an existing path lies, once its links are followed, outside of ``root``."""
    return not path.resolve().is_relative_to(root.resolve())


def _problem(path: Path, folder: bool) -> str:
    if "\0" in str(path) or not os.path.lexists(path):
        return f"does not exist{_alike(path)}"
    if not path.exists():
        return "is a link that leads nowhere"
    if folder and not path.is_dir():
        return "is a file: dataset=image_folder reads a folder, dataset=csv and dataset=image_csv read tables"
    if not folder and not path.is_file():
        return "is no file: dataset=csv and dataset=image_csv read tables, dataset=image_folder reads a folder"
    return "" if os.access(path, os.R_OK | (os.X_OK if folder else 0)) else "may not be read: no permission"


def _alike(path: Path) -> str:
    """What stands beside a missing path and has a similar name."""
    try:
        beside = sorted(os.listdir(path.parent))
    except (OSError, ValueError):
        return ""
    close = difflib.get_close_matches(path.name, beside, n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(str(path.parent / name) for name in close)}?" if close else ""
