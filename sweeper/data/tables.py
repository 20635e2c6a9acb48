"""A user's own table: a row for each text, pair of texts or image, with its label."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from sweeper.data.build import Source
from sweeper.data.columns import Columns, find_columns
from sweeper.data.dataset import Input
from sweeper.data.images import StoredImage
from sweeper.data.paths import leaves, split_paths
from sweeper.data.request import DataRequest
from sweeper.data.table_files import MOST_BAD, Table, cell_text, is_nested, read_table
from sweeper.errors import ConfigError, DataError, near_matches

__all__ = ["SPLIT_NAMES", "read"]

#: What a split may be called, in small letters.
SPLIT_NAMES: Final = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}


def read(request: DataRequest) -> Source:
    """Read the rows of ``dataset.path``, and of ``dataset.validation_path`` and ``dataset.test_path`` if given.

    Rows without a text, or whose image is missing, are counted and left out; rows without a label are kept as
    unlabelled, and of those with a blank group each is a group of its own. An image's path is relative to its table's
    folder; absolute ones may lie anywhere. Labels that are whole numbers lose the ``.0`` that other tools write.

    Raises:
        ConfigError: a file or a column does not exist, or it is not clear which column is meant.
        DataError: a file cannot be read, a split has no labelled row or a name that is none, the path of an image
            leaves its folder, or most images are missing.
    """
    paths = split_paths(request, folder=False)
    tables = {split: read_table(path) for split, path in paths.items()}
    columns = find_columns(request, tables["train"])
    _check_same_columns(tables, columns)

    cells = {name: [cell for table in tables.values() for cell in table.frame[name]] for name in columns.names()}
    items: list[int] = []
    for table in tables.values():  # a file's rows are numbered on from those of the file before
        first = items[-1] + 1 if items else 0
        items += [first + place for place in table.rows]
    splits = [split for split, table in tables.items() for _ in table.rows] if len(tables) > 1 else []
    if columns.split is not None:
        splits = _given_splits(columns.split, cells[columns.split])

    report = _Report([warning for table in tables.values() for warning in table.warnings])
    bad = sum(table.bad for table in tables.values())
    report.counts["columns"] = columns.by_part(request.modality)
    report.count("rows", len(items) + bad)
    report.count("bad_rows", bad)
    labels = _labels(cells[columns.label])
    report.count("nested_labels", sum(map(is_nested, cells[columns.label])), "Rows whose label is a list")
    texts = [[cell_text(cell) for cell in cells[name]] for name in columns.inputs]
    if request.modality == "image":
        folders = [paths[split].parent for split, table in tables.items() for _ in table.rows]
        inputs = _images(folders, texts[0], report)
    else:
        inputs = _texts(texts)
        report.count("empty_texts", inputs.count(None), "Rows without a text, left out")
    kept = [row for row, item in enumerate(inputs) if item is not None]
    what = " and ".join(columns.inputs)
    if not kept:
        raise DataError(f"dataset {request.name!r}: no row has anything usable in {what}", "Check the columns' names.")
    train = [row for row in kept if not splits or splits[row] == "train"]
    bare, used = (sum(labels[row] is None for row in rows) for rows in (kept, train))
    report.count("unlabelled_rows", used, "Rows without a label, used unlabelled")
    report.count("unlabelled_held_out", bare - used, "Rows of validation or test without a label, left out")
    _count_copies([inputs[row] for row in train], [labels[row] for row in train], report)
    source = Source(
        inputs=[inputs[row] for row in kept],
        labels=[labels[row] for row in kept],
        items=[items[row] for row in kept],
        splits=[splits[row] for row in kept] if splits else [],
        groups=_groups([cells[columns.group][row] for row in kept], [items[row] for row in kept])
        if columns.group
        else [],
        counts=report.counts,
        warnings=report.warnings,
    )
    _check_labelled(request.name, source)
    return source


class _Report:
    """What is counted, and what of it a person should know."""

    def __init__(self, warnings: Sequence[str]) -> None:
        self.counts: dict[str, Any] = {}
        self.warnings = list(warnings)

    def count(self, name: str, number: int, what: str = "", example: str = "") -> None:
        if number:
            self.counts[name] = number
            if what:
                self.warnings.append(f"{what}: {number}{', such as ' * bool(example)}{example}.")


def _check_same_columns(tables: dict[str, Table], columns: Columns) -> None:
    problems = [
        f"dataset.{split}_path: {table.name} lacks the column {name} of {tables['train'].name}; "
        f"{near_matches(name, table.frame.columns)}"
        for split, table in tables.items()
        for name in columns.names()
        if name not in table.frame.columns
    ]
    if problems:
        raise ConfigError(problems, "All files of a dataset must have the same columns.")


def _given_splits(column: str, cells: Sequence[Any]) -> list[str]:
    names = [(cell_text(cell) or "").strip() for cell in cells]
    unknown = Counter(name for name in names if name.lower() not in SPLIT_NAMES)
    if unknown:
        shown = ", ".join(f"{name or 'nothing'} ({count})" for name, count in unknown.most_common(5))
        raise DataError(
            f"dataset.split_column={column}: rows say {shown}; allowed: {', '.join(SPLIT_NAMES)}",
            "Rename them, or leave dataset.split_column out.",
        )
    return [SPLIT_NAMES[name.lower()] for name in names]


def _labels(cells: Sequence[Any]) -> list[str | None]:
    labels = [None if (text := cell_text(cell)) is None else text.strip() for cell in cells]
    if all(re.fullmatch(r"[+-]?\d+(\.0+)?", label) for label in labels if label is not None):
        return [None if label is None else label.partition(".")[0] for label in labels]
    return labels


def _groups(cells: Sequence[Any], items: Sequence[int]) -> list[str]:
    return [cell_text(cell) or f"row {item}" for cell, item in zip(cells, items, strict=True)]


def _texts(columns: Sequence[Sequence[str | None]]) -> list[Input | None]:
    """Texts, or pairs of texts; ``None`` where one is blank."""
    if len(columns) == 1:
        return list(columns[0])
    return [
        None if first is None or second is None else (first, second) for first, second in zip(*columns, strict=True)
    ]


def _images(folders: Sequence[Path], names: Sequence[str | None], report: _Report) -> list[Input | None]:
    """The images that the rows name; ``None`` where there is no such file.

    Raises:
        DataError: a relative path leaves the table's folder, or most images are missing.
    """
    images: list[Input | None] = []
    missing = []
    for folder, name in zip(folders, names, strict=True):
        path = None if name is None else folder / name.strip()
        if name is not None and path is not None and not os.path.isabs(name.strip()):
            outside = not Path(os.path.normpath(path.absolute())).is_relative_to(folder.absolute())
            if outside or (os.path.isfile(path) and leaves(path, folder)):
                raise DataError(
                    f"the image {name} lies outside of {folder}, the folder of its table",
                    "Move the images beside the table, or give absolute paths.",
                )
        if path is None or not os.path.isfile(path) or not os.access(path, os.R_OK):
            missing.append(name or "no path at all")
            images.append(None)
        else:
            images.append(StoredImage(path, name.strip() if name else ""))
    if len(missing) > MOST_BAD * len(images):
        raise DataError(
            f"{len(missing)} of {len(images)} images do not exist, such as {missing[0]}",
            f"Paths are absolute, or relative to the folder of their table: {folders[0]}.",
        )
    if missing:
        report.count("missing_images", len(missing), "Images that do not exist, left out", missing[0])
    return images


def _count_copies(inputs: Sequence[Input | None], labels: Sequence[str | None], report: _Report) -> None:
    keys = [str(item) if isinstance(item, StoredImage) else item for item in inputs]
    report.count("duplicate_rows", len(keys) - len(set(keys)), "Rows that repeat another one")
    given: dict[Any, set[str]] = {}
    for key, label in zip(keys, labels, strict=True):
        if label is not None:
            given.setdefault(key, set()).add(label)
    contradictory = sum(len(different) > 1 for different in given.values())
    report.count("contradictory_inputs", contradictory, "Inputs that occur with different labels")


def _check_labelled(name: str, source: Source) -> None:
    """Where a split is given, it must have labels: another one would be carved in its place."""
    labelled = {split for split, label in zip(source.splits, source.labels, strict=False) if label is not None}
    if lacking := sorted(set(source.splits) - labelled):
        raise DataError(
            f"dataset {name!r}: no row of {' and '.join(lacking)} has a label",
            "Give a file with labels, or leave it out: a split that is not given is carved from the others.",
        )
