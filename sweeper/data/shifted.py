"""A second dataset of the same labels, on which finals are scored to see how a strategy bears another distribution."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np

from sweeper.data.build import Source
from sweeper.data.dataset import SPLITS, Dataset, Split, fingerprint, input_key
from sweeper.data.images import unreadable
from sweeper.errors import DataError

__all__ = ["rows_of", "with_shifted"]

SHOWN = 5


def rows_of(dataset: Dataset) -> Source:
    """All rows of a dataset, of whatever split."""
    splits = [getattr(dataset, name) for name in SPLITS]
    return Source(
        inputs=[item for split in splits for item in split.inputs],
        labels=[dataset.label_names[label] for split in splits for label in split.labels],
        items=[int(item) for split in splits for item in split.items],
        groups=[group for split in splits for group in split.groups or ()],
        counts=dict(dataset.summary["source"]),
    )


def with_shifted(dataset: Dataset, name: str, source: Source) -> Dataset:
    """The dataset with the labelled rows of another one as its shifted split; its own rows stay as they are.

    Args:
        dataset: what is trained on.
        name: what the other one is called: the value of ``dataset.shifted``.
        source: its rows, whatever their splits.

    Raises:
        DataError: it holds no labelled rows, other inputs, or labels that the dataset has not.
    """
    where = f"dataset.shifted={name}"
    rows = [row for row, label in enumerate(source.labels) if label is not None]
    if not rows:
        raise DataError(f"{where} has no labelled rows", "Check the file and dataset.label_column.")
    if type(source.inputs[0]) is not type(dataset.train.inputs[0]):
        raise DataError(f"{where} holds other inputs than {dataset.name}", "Give the same: texts, pairs, or images.")
    number = {label: index for index, label in enumerate(dataset.label_names)}
    unknown = Counter(str(source.labels[row]) for row in rows if source.labels[row] not in number)
    if unknown:
        shown = ", ".join(f"{label} ({count})" for label, count in unknown.most_common(SHOWN))
        raise DataError(
            f"{where}: {len(unknown)} labels are not among those of {dataset.name}: {shown}",
            f"It has {', '.join(dataset.label_names[:SHOWN])}{' ...' * (len(number) > SHOWN)}. Rename or remove them.",
        )
    warnings = [f"Shifted data: {warning}" for warning in source.warnings]
    if dataset.modality == "image":
        broken = unreadable([source.inputs[row] for row in rows])
        if broken:
            place, message = next(iter(broken.items()))
            shown = f"{source.inputs[rows[place]]} ({message})"
            warnings.append(f"Shifted data: images that cannot be read, left out: {len(broken)}, such as {shown}.")
        rows = [row for place, row in enumerate(rows) if place not in broken]
        if not rows:
            raise DataError(f"{where}: no image can be read, such as {shown}")
    split = Split(
        inputs=[source.inputs[row] for row in rows],
        labels=np.array([number[str(source.labels[row])] for row in rows], dtype=np.int64),
        groups=[source.groups[row] for row in rows] if source.groups else None,
        items=np.array([source.items[row] for row in rows], dtype=np.int64),
    )
    keys = {input_key(item) for item in split.inputs}
    if shared := sum(input_key(item) in keys for name in SPLITS for item in getattr(dataset, name).inputs):
        warnings.append(f"Shifted data: {shared} inputs of {dataset.name} occur in it too: it may not be another one.")
    unlabelled = [item for item in dataset.unlabelled if input_key(item) not in keys]
    counts = np.bincount(split.labels, minlength=len(number)).tolist()
    summary = {
        "name": name,
        "size": len(split),
        "fingerprint": fingerprint({"shifted": split}),
        "class_counts": dict(zip(dataset.label_names, counts, strict=True)),
        "source": source.counts,
    }
    warnings = [*dataset.summary["warnings"], *warnings]
    return replace(
        dataset,
        shifted=split,
        unlabelled=unlabelled,
        summary={**dataset.summary, "shifted": summary, "unlabelled": len(unlabelled), "warnings": warnings},
    )
