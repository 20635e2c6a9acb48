"""Datasets of the Hugging Face hub: rows, labels and columns as their features describe them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, cast

from sweeper.data.build import Source, build
from sweeper.data.dataset import SPLITS, Dataset
from sweeper.data.images import StoredImage
from sweeper.data.request import DataRequest
from sweeper.errors import DataError, near_matches
from sweeper.hub import commit_of

__all__ = ["load", "read"]

#: What the splits of a dataset are called, where the user does not say.
_USUAL: Final[Mapping[str, tuple[str, ...]]] = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test",),
}
_TEXTS = ("string", "large_string")


def load(request: DataRequest) -> Dataset:
    """Load a dataset through the library of the hub, which keeps it in a cache of its own.

    Raises:
        ConfigError: the hub does not have or does not give the dataset.
        DataError: it has no such subset, it needs a script to be read, or what :func:`read` finds wrong.
    """
    return read(request, _tables(request))


def read(request: DataRequest, tables: Mapping[str, Any]) -> Dataset:
    """Make a dataset of the tables of the hub's library (``datasets.Dataset``), which are its splits by name.

    A column that is not named is the only one of its kind: labels those of class labels, else ``label``; texts those
    of strings, else ``text``; images those of images. Rows whose class label is -1, as in hidden test splits, are
    unlabelled. A test split without any label is left out, with a warning, unless it was asked for.

    Raises:
        DataError: there is no such split or column, the columns do not tell what they are, or what
            :func:`~sweeper.data.build.build` finds wrong with the rows.
    """
    tables = {name: _undecoded(table) for name, table in tables.items()}
    chosen = _choose_splits(request, tables)
    columns = _choose_columns(request, tables[chosen["train"]])
    rows = _Rows()
    for split, name in chosen.items():
        _check_columns(request.name, tables[name], columns, name)
        rows.add(split, tables[name], columns, of=name)
        if split != "train" and not rows.is_labelled(split):
            rows.leave_out(request, split, name)
    if rows.empty:
        rows.warnings.append(f"{rows.empty} rows without a {request.modality} are left out.")
    known = {label for label, split in zip(rows.labels, rows.splits, strict=True) if split == "train"}
    names = getattr(tables[chosen["train"]].features[columns["label"]], "names", [])
    source = Source(
        inputs=rows.inputs,
        labels=rows.labels,
        items=rows.items,
        splits=rows.splits,
        groups=rows.groups,
        label_names=[name for name in names if name in known],
        counts={
            "rows": {name: len(tables[name]) for name in chosen.values()},
            "columns": columns,
            "empty": rows.empty,
            "unlabelled": sum(label is None for label in rows.labels),
        },
        warnings=rows.warnings,
    )
    return build(request, source)


# --- what the hub has --------------------------------------------------------------------------------------------


def _tables(request: DataRequest) -> Mapping[str, Any]:
    """The splits of the dataset by name."""
    commit = commit_of(request.name, request.revision, kind="dataset")
    import datasets  # takes a second, which other sources do without
    from huggingface_hub import is_offline_mode

    datasets.disable_progress_bars()
    datasets.utils.logging.set_verbosity_error()
    datasets.config.HF_HUB_OFFLINE = is_offline_mode()  # it looked once, when it was imported
    where = f"dataset {request.name!r}"
    try:
        tables = datasets.load_dataset(request.name, request.subset, revision=commit)
    except RuntimeError as error:
        if "scripts are no longer supported" not in str(error):
            raise
        raise DataError(
            f"{where} is a script that would have to run to read the data, which is not supported",
            "Look for a copy of it in parquet on the hub (dataset.revision=refs/convert/parquet may be one), or save "
            "its rows to a file: dataset=csv dataset.path=...",
        ) from error
    except (datasets.exceptions.DatasetsError, OSError, ValueError) as error:
        line = (str(error).strip() or type(error).__name__).replace("\n", " ")
        raise DataError(
            f"{where} cannot be read: {line}", "Check dataset.name, dataset.subset and dataset.revision."
        ) from error
    files = [file["filename"] for table in tables.values() for file in table.cache_files]
    if any(commit not in file for file in files):
        raise DataError(
            f"{where} cannot be read at commit {commit[:12]}; the library falls back on another version in its cache",
            "Without a connection, name the version that was read last (dataset.revision). With one, this version may "
            "be a script: dataset.revision=refs/convert/parquet is the hub's own copy of many.",
        )
    return cast(Mapping[str, Any], tables)


def _undecoded(table: Any) -> Any:
    """The table with its images as they are stored."""
    from datasets import Image

    for column, kind in table.features.items():
        if isinstance(kind, Image):
            table = table.cast_column(column, Image(decode=False))
    return table


def _choose_splits(request: DataRequest, tables: Mapping[str, Any]) -> dict[str, str]:
    """The names that the dataset has for train, validation and test; those it has not are left out."""
    asked = {"train": request.train_split, "validation": request.validation_split, "test": request.test_split}
    problems = [
        f"dataset.{split}_split={name}: {near_matches(name, tables)}"
        for split, name in asked.items()
        if name and name not in tables
    ]
    if problems:
        raise DataError(f"dataset {request.name!r}: {'; '.join(problems)}")
    chosen = {split: name for split, name in asked.items() if name}
    for split in SPLITS:
        free = (name for name in _USUAL[split] if name in tables and name not in chosen.values())
        if split not in chosen and (name := next(free, None)):
            chosen[split] = name
    if "train" not in chosen and len(tables) == 1:
        chosen["train"] = next(iter(tables))
    if "train" not in chosen:
        raise DataError(
            f"dataset {request.name!r} has no split train; it has {', '.join(tables)}", "Set dataset.train_split."
        )
    if len(set(chosen.values())) < len(chosen):
        shown = ", ".join(f"{split}={name}" for split, name in chosen.items())
        raise DataError(f"dataset {request.name!r}: one split cannot be two ({shown})", "Name different splits.")
    return {split: chosen[split] for split in SPLITS if split in chosen}


def _choose_columns(request: DataRequest, table: Any) -> dict[str, str]:
    """The columns of the inputs, the labels and the groups, by their part."""
    from datasets import ClassLabel, Image

    kinds = table.features
    asked = {
        "label": request.label_column,
        "group": request.group_column,
        **({"image": request.image_column} if request.modality == "image" else {"text": request.text_column}),
        **({"second_text": request.second_text_column} if request.modality == "text" else {}),
    }
    columns = {part: name for part, name in asked.items() if name}
    _check_columns(request.name, table, columns, "train")

    def find(part: str, candidates: list[str], usual: Sequence[str]) -> None:
        if part in columns:
            return
        free = [name for name in candidates if name not in columns.values()]
        named = [name for name in usual if name in free]
        if len(free) != 1 and not named:
            which = f"columns {', '.join(free)} could all be it" if free else "no free column is of that kind"
            raise DataError(
                f"dataset {request.name!r}: which column holds the {part}s is not clear: {which}; it has "
                + ", ".join(f"{name} ({_kind(kind)})" for name, kind in kinds.items()),
                f"Set dataset.{part}_column" + (", or dataset.modality" if not free else "") + ".",
            )
        columns[part] = free[0] if len(free) == 1 else named[0]

    classes = [name for name, kind in kinds.items() if isinstance(kind, ClassLabel)]
    plain = [name for name in ("label", "labels") if name in kinds]
    find("label", classes or plain, ("label", "labels"))
    if request.modality == "image":
        find("image", [name for name, kind in kinds.items() if isinstance(kind, Image)], ("image", "img"))
    else:
        find("text", [n for n, kind in kinds.items() if getattr(kind, "dtype", "") in _TEXTS], ("text", "sentence"))
    kind = kinds[columns["label"]]
    if not isinstance(getattr(kind, "dtype", None), str) or kind.dtype.startswith(("float", "struct", "list", "dict")):
        raise DataError(
            f"dataset {request.name!r}: dataset.label_column={columns['label']} holds {_kind(kind)}; allowed are "
            "class labels, text, integers, and true or false",
            "One label for each row: neither numbers on a scale nor several labels.",
        )
    return columns


def _check_columns(where: str, table: Any, columns: Mapping[str, str], split: str) -> None:
    problems = [
        f"dataset.{part}_column={name}: {near_matches(name, table.features)}"
        for part, name in columns.items()
        if name not in table.features
    ]
    if problems:
        raise DataError(f"dataset {where!r}, split {split}: {'; '.join(problems)}")


def _kind(feature: Any) -> str:
    """What a person calls a feature: ``string``, ``int64``, ``ClassLabel``, ``Image``."""
    return feature.dtype if type(feature).__name__ == "Value" else type(feature).__name__


# --- rows --------------------------------------------------------------------------------------------------------


@dataclass
class _Rows:
    """The fields of :class:`Source`, filled split by split."""

    inputs: list[Any] = field(default_factory=list)
    labels: list[str | None] = field(default_factory=list)
    items: list[int] = field(default_factory=list)
    splits: list[str] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    empty: int = 0
    seen: int = 0  # rows, the empty ones too: the number of the next one

    def add(self, split: str, table: Any, columns: Mapping[str, str], *, of: str) -> None:
        """Read the rows of a table that is called ``of``."""
        labels = _labels(table, columns["label"])
        groups = table[columns["group"]] if "group" in columns else None
        inputs = _images(table, columns["image"], of) if "image" in columns else _texts(table, columns)
        for row, item in enumerate(inputs):
            if item is None:
                self.empty += 1
                continue
            self.inputs.append(item)
            self.labels.append(labels[row])
            self.items.append(self.seen + row)
            self.splits.append(split)
            if groups is not None:
                self.groups.append(f"row {self.seen + row}" if groups[row] is None else str(groups[row]))
        self.seen += len(table)

    def is_labelled(self, split: str) -> bool:
        """Whether any row of the split has a label."""
        return any(label is not None for label, of in zip(self.labels, self.splits, strict=True) if of == split)

    def leave_out(self, request: DataRequest, split: str, name: str) -> None:
        """Drop a split in which nothing is labelled.

        Raises:
            DataError: it was asked for by name.
        """
        said = f"the split {name} has no labels"
        if getattr(request, f"{split}_split"):
            raise DataError(
                f"dataset {request.name!r}: dataset.{split}_split={name}, and {said}",
                "Name another split, or leave it out: then one is carved from train.",
            )
        kept = [place for place, of in enumerate(self.splits) if of != split]
        self.inputs = [self.inputs[place] for place in kept]
        self.labels = [self.labels[place] for place in kept]
        self.items = [self.items[place] for place in kept]
        self.groups = [self.groups[place] for place in kept] if self.groups else []
        self.splits = [self.splits[place] for place in kept]
        advice = "; dataset.test_split=validation takes another" if split == "test" else ""
        self.warnings.append(f"In {request.name}, {said}: {split} is carved from train instead{advice}.")


def _labels(table: Any, column: str) -> list[str | None]:
    """The names of the classes; ``None`` where there is none, as which the hub counts class label -1."""
    names = getattr(table.features[column], "names", None)
    values = list(table[column])
    if names is not None:
        return [None if value is None or value < 0 else names[value] for value in values]
    return [None if value is None or not str(value).strip() else str(value).strip() for value in values]


def _texts(table: Any, columns: Mapping[str, str]) -> Iterator[Any]:
    """Texts or pairs of texts; ``None`` where one is missing or blank."""
    parts = [list(table[columns[part]]) for part in ("text", "second_text") if part in columns]
    for texts in zip(*parts, strict=True):
        if any(text is None or not str(text).strip() for text in texts):
            yield None
        else:
            yield str(texts[0]) if len(texts) == 1 else tuple(map(str, texts))


def _images(table: Any, column: str, split: str) -> Iterator[StoredImage | None]:
    """Images that stay in the file of the hub's cache until they are opened; ``None`` where there is none."""
    missing = table.data.column(column).is_null().to_pylist()
    for row, absent in enumerate(missing):
        yield None if absent else StoredImage(partial(_bytes, table, column, row), f"{split}/{row}")


def _bytes(table: Any, column: str, row: int) -> bytes:
    stored = table[row][column]
    if stored["bytes"] is not None:
        return bytes(stored["bytes"])
    with open(stored["path"], "rb") as file:
        return file.read()
