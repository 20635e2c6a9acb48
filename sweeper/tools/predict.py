"""``thawline predict``: labels and calibrated scores of texts or images, by a saved model."""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from sweeper.errors import ConfigError, DataError
from sweeper.files import inside
from sweeper.winners import chosen_model

if TYPE_CHECKING:
    from sweeper.models.predictor import Predictor

__all__ = [
    "add_arguments",
    "add_input_arguments",
    "add_model_arguments",
    "check_input",
    "load_predictor",
    "run",
    "said_of_model",
    "usable_inputs",
]

CHUNK = 256  # rows between two writes
WRITTEN = {".csv": "csv", ".jsonl": "jsonl"}
SHOWN = 60  # letters of an input on the terminal


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("inputs", nargs="*", metavar="INPUT", help="texts; of a model of images, their files")
    add_input_arguments(parser)
    add_model_arguments(parser)
    parser.add_argument("--output", type=Path, metavar="FILE", help="write a table there: .csv or .jsonl")
    parser.add_argument("--force", action="store_true", help="replace FILE where it exists")
    parser.add_argument("--all-scores", action="store_true", help="a column of scores for each label")
    parser.add_argument("--batch-size", type=int, default=32, metavar="N", help="inputs at a time (default: 32)")


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare which model is used."""
    parser.add_argument(
        "--model", type=Path, metavar="FOLDER", help="a saved model (default: what the newest report chose)"
    )
    parser.add_argument("--output-dir", type=Path, default=Path("outputs"), metavar="FOLDER", help="default: outputs")


def add_input_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare where inputs are read from, if not from the command line."""
    parser.add_argument(
        "--input",
        type=Path,
        metavar="PATH",
        help="a table (.csv, .jsonl, .parquet), a text file with a text in each line, an image, or a folder of images",
    )
    parser.add_argument("--text-column", metavar="NAME", help="of the table, where it is not clear")
    parser.add_argument("--second-text-column", metavar="NAME", help="of a model of pairs")
    parser.add_argument("--image-column", metavar="NAME", help="of the table: paths of images, seen from its folder")


def load_predictor(arguments: argparse.Namespace) -> Predictor:
    """The model that is meant; which one it is goes to stderr.

    Raises:
        ThawlineError: there is none, or it cannot be read.
    """
    from sweeper.models.predictor import Predictor
    from sweeper.quiet import quieten_libraries

    folder = chosen_model(arguments.model, arguments.output_dir)
    quieten_libraries()
    with said_of_model(folder):
        predictor = Predictor.load(folder)
    print(f"model: {folder}", file=sys.stderr)
    return predictor


@contextmanager
def said_of_model(folder: Path) -> Iterator[None]:
    """Say what is wrong with a saved model that cannot be read.

    Raises:
        ConfigError: it cannot.
    """
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(
            f"the model in {folder} cannot be read: {reason}", "Name another with --model, or train it again."
        ) from error


def run(arguments: argparse.Namespace) -> None:
    """Predict, and write as it goes.

    Raises:
        ConfigError: no input or both kinds, an output of an unknown ending or one that exists, a column that is
            missing, or no such model.
        DataError: the input cannot be read.
    """
    if bool(arguments.inputs) == (arguments.input is not None):
        raise ConfigError(
            "no input" if arguments.input is None else "both inputs on the command line and --input",
            'Give texts (thawline predict "a triumph"), or --input with a file or a folder.',
        )
    if arguments.output is not None and arguments.output.suffix not in WRITTEN:
        raise ConfigError(
            f"--output {arguments.output}: its name must end in {' or '.join(WRITTEN)}", "Name a file that does."
        )
    if arguments.output is not None and arguments.output.exists() and not arguments.force:
        raise ConfigError(
            f"--output {arguments.output} exists already", "Replace it with --force, or name another file."
        )
    if arguments.batch_size < 1:
        raise ConfigError(f"--batch-size {arguments.batch_size}: must be at least 1", "The default is 32.")
    check_input(arguments)
    predictor = load_predictor(arguments)
    rows = _given(predictor, arguments.inputs) if arguments.inputs else _read(predictor, arguments)
    if rows.cells and (names := _added(rows.cells[0], ()))[0] != "prediction":
        print(f"the input has columns of these names already: ours are {' and '.join(names)}", file=sys.stderr)
    unusable = 0
    # Decoded images are large; texts are sorted by length within a part.
    size = arguments.batch_size if predictor.manifest.modality == "image" else max(CHUNK, arguments.batch_size)
    with _writer(arguments.output, arguments.input is not None or arguments.all_scores) as write:
        for start in range(0, len(rows.inputs), size):
            chunk = rows.part(start, start + size)
            unusable += _predict(predictor, chunk, arguments)
            write(chunk.cells)
    if unusable:
        print(f"without a prediction: {unusable} of {len(rows.inputs)} rows, empty or unreadable", file=sys.stderr)
    if arguments.output is not None:
        number = len(rows.inputs)
        print(f"{number} {'row' if number == 1 else 'rows'} written to {arguments.output}", file=sys.stderr)


def check_input(arguments: argparse.Namespace) -> None:
    """See that ``--input``, where it is given, is there.

    Raises:
        ConfigError: it is not.
    """
    if arguments.input is not None and not arguments.input.exists():
        raise ConfigError(f"--input {arguments.input}: no such file or folder", f"Seen from {Path.cwd()}.")


def usable_inputs(predictor: Predictor, arguments: argparse.Namespace) -> Iterator[Any]:
    """The inputs in ``--input`` that can be read, as :meth:`Predictor.encode` takes them; images opened one by one.

    Raises:
        ConfigError: a column is missing.
        DataError: the input cannot be read.
    """
    return (item for item in _opened(predictor, _read(predictor, arguments).inputs) if item is not None)


@dataclass
class _Rows:
    """What is predicted: the model's inputs, ``None`` where a row has none, and the cells that are written with it."""

    inputs: list[Any]
    cells: list[dict[str, Any]] = field(default_factory=list)

    def part(self, start: int, stop: int) -> _Rows:
        return _Rows(self.inputs[start:stop], self.cells[start:stop])


def _predict(predictor: Predictor, rows: _Rows, arguments: argparse.Namespace) -> int:
    """Add ``prediction`` and ``score`` to the cells; how many rows have none."""
    inputs = list(_opened(predictor, rows.inputs))
    usable = [place for place, item in enumerate(inputs) if item is not None]
    names = _added(rows.cells[0], predictor.labels if arguments.all_scores else ())
    for cells in rows.cells:
        cells |= dict.fromkeys(names, "")
    if usable:
        probabilities = predictor.probabilities([inputs[place] for place in usable], arguments.batch_size)
        for place, found in zip(usable, probabilities.tolist(), strict=True):
            best = max(range(len(found)), key=found.__getitem__)
            values = [predictor.labels[best], *(round(score, 4) for score in (found[best], *found))]
            rows.cells[place] |= dict(zip(names, values, strict=False))
    return len(inputs) - len(usable)


def _added(given: Mapping[str, Any], labels: Sequence[str]) -> list[str]:
    """Names of the columns that are added: the prediction, its score, and the score of each label that is named."""
    names = ["prediction", "score", *(f"score_{label}" for label in labels)]
    return [f"thawline_{name}" for name in names] if set(names) & set(given) else names


def _given(predictor: Predictor, inputs: Sequence[str]) -> _Rows:
    """The inputs of the command line: images by their paths, of pairs two texts each."""
    if predictor.manifest.modality == "image":
        return _images([Path(item) for item in inputs])
    if predictor.manifest.pairs:
        if len(inputs) % 2:
            raise ConfigError(f"{len(inputs)} texts: this model reads pairs", "Give two texts for each prediction.")
        pairs = list(zip(inputs[::2], inputs[1::2], strict=True))
        return _Rows(pairs, [{"text": first, "text_pair": second} for first, second in pairs])
    return _Rows([item if item.strip() else None for item in inputs], [{"text": item} for item in inputs])


def _read(predictor: Predictor, arguments: argparse.Namespace) -> _Rows:
    path, images = arguments.input, predictor.manifest.modality == "image"
    from sweeper.data.columns import IMAGE_SUFFIXES

    if path.is_dir():
        if not images:
            raise ConfigError(f"--input {path}: a folder, and this model reads texts", "Give a file with the texts.")
        found = sorted(item for item in path.rglob("*") if item.suffix.lower() in IMAGE_SUFFIXES)
        if not found:
            raise DataError(f"{path} holds no images", f"Their names end in {', '.join(IMAGE_SUFFIXES)}.")
        return _images(found)
    if images and path.suffix.lower() in IMAGE_SUFFIXES:
        return _images([path])
    if not images and path.suffix == ".txt":
        try:
            lines = path.read_text(encoding="utf-8-sig").rstrip("\n").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path} cannot be read: {error}", "Store it as UTF-8, a text in each line.") from error
        return _Rows([line if line.strip() else None for line in lines], [{"text": line} for line in lines])
    return _table(predictor, arguments)


def _table(predictor: Predictor, arguments: argparse.Namespace) -> _Rows:
    from sweeper.data.columns import input_column
    from sweeper.data.table_files import cell_text, read_table

    table = read_table(arguments.input)
    for warning in table.warnings:
        print(f"data: {warning}", file=sys.stderr)
    image = predictor.manifest.modality == "image"
    kind, named = ("image", arguments.image_column) if image else ("text", arguments.text_column)
    names = [input_column(table, kind, named)]
    if predictor.manifest.pairs:
        names.append(input_column(table, "second_text", arguments.second_text_column))
    cells = [dict(row) for row in table.frame.to_dict("records")]
    parts = [[cell_text(row[name]) for name in names] for row in cells]
    inputs: list[Any] = [None if None in part else tuple(part) if len(part) > 1 else part[0] for part in parts]
    if image:
        inputs = [None if item is None else arguments.input.parent / item for item in inputs]
    return _Rows(inputs, cells)


def _images(paths: Sequence[Path]) -> _Rows:
    return _Rows(list(paths), [{"image": str(path)} for path in paths])


def _opened(predictor: Predictor, inputs: Iterable[Any]) -> Iterator[Any]:
    """The inputs, of images what they decode to; ``None`` where there is none that can be read."""
    if predictor.manifest.modality != "image":
        yield from inputs
        return
    from sweeper.data.images import StoredImage
    from sweeper.models.preprocessing import BROKEN

    for path in inputs:
        image = None
        if path is not None:
            with suppress(*BROKEN):
                image = StoredImage(path).open()
        yield image


@contextmanager
def _writer(output: Path | None, table: bool) -> Iterator[Callable[[list[dict[str, Any]]], None]]:
    """What writes rows: to a file, as CSV to a pipe or where a table was read, else in columns to be read."""
    if output is None:
        plain = sys.stdout.isatty() and not table
        yield _lines if plain else _csv(sys.stdout)
        return
    fresh = inside(output.parent, f".{output.name}.part")
    try:
        with fresh.open("w", encoding="utf-8", newline="") as file:
            yield _csv(file) if WRITTEN[output.suffix] == "csv" else _jsonl(file)
        fresh.replace(output)
    except OSError as error:
        raise DataError(f"--output {output} cannot be written: {error.strerror}", "Name another file.") from error
    finally:
        fresh.unlink(missing_ok=True)


def _csv(file: TextIO) -> Callable[[list[dict[str, Any]]], None]:
    writer: csv.DictWriter[str] | None = None

    def write(rows: list[dict[str, Any]]) -> None:
        nonlocal writer
        if writer is None:
            names = list(dict.fromkeys(name for row in rows for name in row))
            writer = csv.DictWriter(file, names, lineterminator="\n", restval="")
            writer.writeheader()
        writer.writerows(rows)
        file.flush()

    return write


def _jsonl(file: TextIO) -> Callable[[list[dict[str, Any]]], None]:
    def write(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            values = {name: None if value == "" else value for name, value in row.items()}
            file.write(f"{json.dumps(values, default=str, ensure_ascii=False)}\n")
        file.flush()

    return write


def _lines(rows: list[dict[str, Any]]) -> None:
    width = max(len(row["prediction"]) for row in rows)
    for row in rows:
        given = " | ".join(text for name, text in row.items() if name in ("text", "text_pair", "image"))
        shown = given if len(given) <= SHOWN else f"{given[: SHOWN - 1]}…"
        score = "" if row["score"] == "" else f"{row['score']:.3f}"
        print(f"{row['prediction']:{width}}  {score:5}  {shown}")
