"""Files that hold a table: CSV, JSON lines and parquet, each also packed by gzip, as columns of cells."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import math
import sys
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from sweeper.data.dataset import storable
from sweeper.errors import ConfigError, DataError

__all__ = ["SUFFIXES", "Table", "cell_text", "is_nested", "read_table"]

#: Endings of file names, to each of which ``.gz`` may be added, and how such a file is read.
SUFFIXES: Final = {
    ".csv": "csv",
    ".tsv": "csv",
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".parquet": "parquet",
}
DELIMITERS: Final = ",;\t|"
MOST_BAD: Final = 0.5  # share of the rows that cannot be read
MOST_COLUMNS: Final = 1000
SNIFFED_ROWS: Final = 50


@dataclass(frozen=True, eq=False)
class Table:
    """What was read of a file.

    Attributes:
        name: the file's name.
        frame: cells as they are stored (texts, of CSV), one row for each that could be read.
        rows: where each of them stands in the file, counted from 0 without the header; what cannot be read counts.
        bad: how many rows could not be read.
        warnings: what a person should know of it, in sentences.
    """

    name: str
    frame: pd.DataFrame
    rows: list[int]
    bad: int = 0
    warnings: list[str] = field(default_factory=list)


def read_table(path: Path) -> Table:
    """Read a file by its ending.

    The delimiter of a CSV file is what its header is separated by: comma, semicolon, tab or bar. Text is UTF-8, with
    or without its mark, or UTF-16 with its mark; what is neither is read as latin-1, with a warning. Rows that cannot
    be read (another number of fields than the header has, no JSON object) are counted and left out.

    Raises:
        ConfigError: the ending is unknown.
        DataError: the file is empty, damaged, no text, has no rows or no names for its columns, or more than half of
            its rows cannot be read.
    """
    ending = path.name.lower().removesuffix(".gz")
    kind = next((kind for suffix, kind in SUFFIXES.items() if ending.endswith(suffix)), None)
    if kind is None:
        raise ConfigError(
            f"{path}: a table's name must end in {', '.join(SUFFIXES)}, or one of these and .gz",
            "Rename the file, or store the table as CSV.",
        )
    data = _bytes(path)
    if not data.strip():
        raise DataError(f"{path} is empty", "Give a file with a row for each example.")
    return _parquet(path, data) if kind == "parquet" else _text_table(path, kind, data)


def cell_text(value: Any) -> str | None:
    """A cell as text that can be stored anywhere; ``None`` where it is missing, blank or no single value."""
    if value is None or value is pd.NaT or is_nested(value) or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    text = storable(str(value))
    return text if text.strip() else None


def is_nested(value: Any) -> bool:
    """Whether a cell holds several values."""
    return isinstance(value, Mapping) or (isinstance(value, Sequence) and not isinstance(value, str | bytes))


# --- bytes and text ----------------------------------------------------------------------------------------------


def _bytes(path: Path) -> bytes:
    try:
        data = path.read_bytes()
        return gzip.decompress(data) if path.name.lower().endswith(".gz") and data else data
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}", "Is the file whole, and packed by gzip?") from error


def _decode(path: Path, data: bytes, warnings: list[str]) -> str:
    marked = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    for encoding in ["utf-16"] if marked else ["utf-8-sig", "latin-1"]:
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            continue
        if "\0" in text:
            break
        if encoding == "latin-1":
            warnings.append(f"{path.name} is not UTF-8 and was read as latin-1: check letters with accents.")
        return text
    raise DataError(f"{path} holds no text but binary data", "A spreadsheet has to be stored as CSV, in UTF-8, first.")


@dataclass
class _Rows:
    """What was parsed: names of the columns, cells by row, where each row begins, and what is wrong with others."""

    names: list[str]
    cells: list[list[Any]] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    bad: dict[str, list[int]] = field(default_factory=dict)  # reason -> lines

    def spoil(self, reason: str, lines: Sequence[int]) -> None:
        self.bad.setdefault(reason, []).extend(lines)

    @property
    def number_bad(self) -> int:
        return sum(map(len, self.bad.values()))


def _text_table(path: Path, kind: str, data: bytes) -> Table:
    warnings: list[str] = []
    text = _decode(path, data, warnings)
    rows = _csv(path, text) if kind == "csv" else _json(path, text)
    bad, total = rows.number_bad, len(rows.cells) + rows.number_bad
    shown = "; ".join(f"{reason} ({len(lines)}, first in line {lines[0]})" for reason, lines in rows.bad.items())
    if bad > MOST_BAD * total:
        raise DataError(
            f"{path}: {bad} of {total} rows cannot be read: {shown}",
            "Check that the file is what its name says: CSV with a header, or one JSON object a line.",
        )
    if bad:
        warnings.append(f"Rows of {path.name} that cannot be read, left out: {bad} of {total}: {shown}.")
    return _table(path, rows.names, list(zip(*rows.cells, strict=True)), rows.places, bad, warnings)


def _table(
    path: Path, names: Sequence[str], columns: Sequence[Sequence[Any]], places: list[int], bad: int, warnings: list[str]
) -> Table:
    if not places:
        raise DataError(f"{path} has no rows", "Give a file with a row for each example, in CSV below a header.")
    if len(names) > MOST_COLUMNS:
        raise DataError(f"{path} has {len(names)} columns; at most {MOST_COLUMNS} are read", "Store fewer columns.")
    names = [storable(name).strip() or f"column {place}" for place, name in enumerate(names, start=1)]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"{path}: several columns are called {', '.join(twice)}", "Give each column its own name.")
    frame = pd.DataFrame(
        {name: pd.Series(list(cells), dtype=object) for name, cells in zip(names, columns, strict=True)}
    )
    return Table(path.name, frame, places, bad, warnings)


# --- CSV ---------------------------------------------------------------------------------------------------------


def _csv(path: Path, text: str) -> _Rows:
    csv.field_size_limit(sys.maxsize)
    delimiter = "\t" if ".tsv" in path.suffixes else _delimiter(text)
    rows = _csv_rows(path, text, delimiter, csv.QUOTE_MINIMAL)
    if rows.bad and delimiter == "\t":  # where a tab separates, quotation marks are often nothing but that
        rows = min(rows, _csv_rows(path, text, delimiter, csv.QUOTE_NONE), key=lambda read: read.number_bad)
    return rows


def _csv_rows(path: Path, text: str, delimiter: str, quoting: Any) -> _Rows:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, quoting=quoting, strict=True)
    rows, last = _Rows([]), 0
    while True:
        try:
            fields = next(reader, None)
        except csv.Error as error:
            # One stray quotation mark may swallow many lines: each of them is lost.
            rows.spoil(f"quotation marks that do not match: {error}", range(last + 1, reader.line_num + 1))
            last = reader.line_num
            continue
        if fields is None:
            break
        line, last = last + 1, reader.line_num
        if not fields:
            continue  # a blank line
        if not rows.names:
            rows.names = fields
        elif len(fields) == len(rows.names):
            rows.cells.append(fields)
            rows.places.append(line)
        else:
            rows.spoil(f"not the header's {len(rows.names)} fields", [line])
    if not rows.names:
        raise DataError(f"{path} has no header that can be read", "The first line must name the columns.")
    return rows


def _delimiter(text: str) -> str:
    """The one that splits the header, and then most rows into as many fields."""

    def fit(delimiter: str) -> tuple[bool, int, int]:
        lengths = []
        try:
            for fields in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter):
                lengths += [len(fields)] if fields else []
                if len(lengths) > SNIFFED_ROWS:
                    break
        except csv.Error:
            pass
        columns = lengths[0] if lengths else 0
        return columns > 1, lengths.count(columns), columns

    return max(DELIMITERS, key=fit)


# --- JSON and parquet --------------------------------------------------------------------------------------------


def _json(path: Path, text: str) -> _Rows:
    """One object a line, or an array of objects."""
    rows = _Rows([])
    found: list[tuple[int, dict[str, Any]]] = []
    values: list[tuple[int, Any]] = []
    if text.lstrip().startswith("["):
        try:
            values = list(enumerate(json.loads(text), start=1))
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path} is no JSON: {error}", "Give one object a line, or an array of objects.") from error
    else:
        for line, part in enumerate(text.split("\n"), start=1):
            if part.strip():
                try:
                    values.append((line, json.loads(part)))
                except (ValueError, RecursionError):
                    rows.spoil("no JSON", [line])
    for place, value in values:
        if isinstance(value, dict):
            found.append((place, value))
        else:
            rows.spoil("no JSON object", [place])
    rows.names = list(dict.fromkeys(name for _, row in found for name in row))
    if len(rows.names) <= MOST_COLUMNS:  # more are refused in any case
        rows.cells = [[row.get(name) for name in rows.names] for _, row in found]
    rows.places = [place for place, _ in found]
    return rows


def _parquet(path: Path, data: bytes) -> Table:
    try:
        table = pq.read_table(io.BytesIO(data))
        columns = [_cells(column) for column in table.columns]
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError, OverflowError, NotImplementedError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{path} is no parquet file that can be read: {reason}", "Store the table anew.") from error
    return _table(path, table.column_names, columns, list(range(table.num_rows)), 0, [])


def _cells(column: pa.ChunkedArray) -> list[Any]:
    """The cells as values of Python; times, which may lie beyond those, as text."""
    return list((column.cast(pa.string()) if pa.types.is_temporal(column.type) else column).to_pylist())
