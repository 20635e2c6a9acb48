"""Which column of a table holds the label, and which the texts or the images."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import pandas as pd

from sweeper.data.request import DataRequest
from sweeper.data.table_files import Table, cell_text
from sweeper.errors import ConfigError, near_matches

__all__ = ["IMAGE_SUFFIXES", "Columns", "find_columns", "holds_images", "input_column"]

#: Endings of files that are taken for images, in any case.
IMAGE_SUFFIXES: Final = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
#: Names that say what a column holds: the first one wins, of the others there must be only one.
USUAL: Final = {
    "label": ("label", "labels", "class", "target", "category", "sentiment"),
    "text": ("text",),
    "image": ("image", "images", "file", "file_name", "filename", "path", "image_path"),
}
LONG_TEXT: Final = 20  # letters of a typical text, above which a column holds no mere names
LOOKED_AT: Final = 1000  # rows
SHOWN: Final = 40  # letters of an example value


@dataclass(frozen=True)
class Columns:
    """Names of columns: ``inputs`` are one of texts or images, or two of texts."""

    inputs: tuple[str, ...]
    label: str
    group: str | None
    split: str | None

    def by_part(self, modality: str) -> dict[str, str]:
        """What they hold -> their names, the same parts as of a hub's dataset."""
        parts = ("text", "second_text") if modality == "text" else ("image",)
        named = {**dict(zip(parts, self.inputs, strict=False)), "label": self.label}
        named |= {part: name for part, name in (("group", self.group), ("split", self.split)) if name}
        return named

    def names(self) -> list[str]:
        """All of them, each once."""
        given = (*self.inputs, self.label, self.group, self.split)
        return list(dict.fromkeys(name for name in given if name is not None))


def find_columns(request: DataRequest, table: Table) -> Columns:
    """The columns that are asked for, and where none is named, those that clearly hold what is needed.

    A label is in ``label``, or in the only column with one of the other usual names; texts are in ``text``, or in the
    only column of words, or of long texts where several have words; images are in ``image``, another usual name, or in
    the only column of names of image files.

    Raises:
        ConfigError: a column is missing, or it is not clear which one is meant; the message shows an example of each.
    """
    kind = request.modality
    asked = {
        f"{kind}_column": request.text_column if kind == "text" else request.image_column,
        "label_column": request.label_column,
        "second_text_column": request.second_text_column,
        "group_column": request.group_column,
        "split_column": request.split_column,
    }
    names = list(table.frame.columns)
    missing = [
        f"dataset.{key}={name}: {table.name} has no such column; {near_matches(name, names)}"
        for key, name in asked.items()
        if name is not None and name not in names
    ]
    if missing:
        raise ConfigError(missing, f"Its columns are:\n{_shown(table)}")
    given = [name for name in asked.values() if name is not None]
    if twice := sorted({name for name in given if given.count(name) > 1}):
        keys = ", ".join(f"dataset.{key}" for key, name in asked.items() if name in twice)
        raise ConfigError(f"{keys} name the same column {', '.join(twice)}", f"Its columns are:\n{_shown(table)}")
    free = [name for name in names if name not in given]
    label = asked["label_column"] or _usual("label", free)
    if label is None:
        raise _unclear("label", table, _fewest_values(table, free))
    free = [name for name in free if name != label]
    first = asked[f"{kind}_column"] or _usual(kind, free)
    if first is None:
        candidates = _holding(kind, table, free)
        if len(candidates) != 1:
            raise _unclear(kind, table, [*candidates, *free])
        (first,) = candidates
    second = asked["second_text_column"]
    return Columns(
        inputs=(first,) if second is None else (first, second),
        label=label,
        group=asked["group_column"],
        split=asked["split_column"],
    )


def holds_images(table: Table) -> bool:
    """Whether one of its columns holds names of image files, so that it is a table of images."""
    return bool(_of_images(table, list(table.frame.columns)))


def input_column(table: Table, kind: str, name: str | None) -> str:
    """The column of texts or images of a table without labels: the one that is named, or that clearly holds them.

    Args:
        table: what was read.
        kind: ``text``, ``second_text`` (which has to be named) or ``image``.
        name: what the user calls it.

    Raises:
        ConfigError: there is no such column, or it is not clear which one is meant.
    """
    names, flag = list(table.frame.columns), f"--{kind.replace('_', '-')}-column"
    if name is not None:
        if name in names:
            return name
        raise ConfigError(
            f"{flag} {name}: {table.name} has no such column; {near_matches(name, names)}",
            f"Name one of these, or leave {flag} out.",
        )
    free = [column for column in names if column != _usual("label", names)]
    found = [usual] if kind in USUAL and (usual := _usual(kind, free)) else _holding(kind, table, free)
    if len(found) != 1:
        raise ConfigError(
            f"{table.name}: which column holds the {kind.replace('_', ' ')}? Its columns are\n{_shown(table)}",
            f"Name it with {flag}.",
        )
    return found[0]


def _holding(kind: str, table: Table, names: Sequence[str]) -> list[str]:
    """The columns that look like texts or images."""
    if kind == "second_text":
        return []
    return _of_words(table, names) if kind == "text" else _of_images(table, names)


def _usual(what: str, names: Sequence[str]) -> str | None:
    first, *others = USUAL[what]
    if first in names:
        return first
    found = [name for name in others if name in names]
    return found[0] if len(found) == 1 else None


def _of_words(table: Table, names: Sequence[str]) -> list[str]:
    """Columns that hold other than numbers; of several, those with long texts."""
    worded = {name: values for name in names if not _are_numbers(values := _values(table, name))}
    if len(worded) == 1:
        return list(worded)
    return [name for name, values in worded.items() if sorted(map(len, values))[len(values) // 2] > LONG_TEXT]


def _of_images(table: Table, names: Sequence[str]) -> list[str]:
    return [
        name
        for name in names
        if (values := _values(table, name))
        and sum(value.lower().endswith(IMAGE_SUFFIXES) for value in values) > len(values) / 2
    ]


def _fewest_values(table: Table, names: Sequence[str]) -> list[str]:
    """The likeliest labels first: few different values, but more than one."""
    different = {name: len(set(_values(table, name))) for name in names}
    return sorted(names, key=lambda name: (different[name] < 2, different[name], len("".join(_values(table, name)))))


def _values(table: Table, name: str) -> list[str]:
    column: pd.Series = table.frame[name].head(LOOKED_AT)
    return [text for value in column if (text := cell_text(value)) is not None]


def _are_numbers(values: Sequence[str]) -> bool:
    """Whether there is nothing but numbers, or nothing at all."""
    return all(re.fullmatch(r"\s*[+-]?[\d.,]+(e[+-]?\d+)?\s*", value, re.IGNORECASE) for value in values)


def _unclear(what: str, table: Table, likely: Sequence[str]) -> ConfigError:
    first, *others = USUAL[what]
    usual = f", and not exactly one {', '.join(others[:-1])} or {others[-1]}" if others else ""
    return ConfigError(
        f"{table.name}: which column holds the {what}? None is called {first}{usual}; the columns are\n{_shown(table)}",
        f"Name it, such as {_override(what, likely[0])}" if likely else "Give a table with more columns.",
    )


def _override(what: str, name: str) -> str:
    quoted = name if re.fullmatch(r"[\w.-]+", name) else f"'{name}'"
    return f"dataset.{what}_column={quoted}"


def _shown(table: Table) -> str:
    """Each column with an example of what it holds."""
    lines = []
    for name in table.frame.columns:
        values = _values(table, name)
        example = " ".join(values[0].split()) if values else "nothing"
        lines.append(f"  {name}: {example[:SHOWN]}{'...' * (len(example) > SHOWN)}")
    return "\n".join(lines) or "  none"
