"""``r8``: the eight largest topics of the Reuters-21578 newswire, with its usual split into train and test."""

from __future__ import annotations

import csv

from sweeper.assets import fetch
from sweeper.data.build import Source, build
from sweeper.data.dataset import Dataset
from sweeper.data.request import DataRequest

__all__ = ["load"]


def load(request: DataRequest) -> Dataset:
    """Load the dataset; validation is carved from train.

    Raises:
        DataError: a size is larger than its pool, or too small to hold every class.
        AssetError: the files cannot be fetched.
    """
    folder = fetch("r8")
    inputs: list[str] = []
    labels: list[str | None] = []
    splits: list[str] = []
    for split in ("train", "test"):
        with (folder / f"r8-{split}.tab").open(encoding="utf-8", newline="") as file:
            # Orange's format: three rows of names, kinds and roles of the columns come first.
            names, _, _, *rows = (row for row in csv.reader(file, delimiter="\t") if row)
        text, label = names.index("Text"), names.index("Category")
        inputs += [" ".join(row[text].split()) for row in rows]
        labels += [row[label] for row in rows]
        splits += [split] * len(rows)
    counts = {"rows": len(inputs)}
    return build(request, Source(inputs, labels, list(range(len(inputs))), splits=splits, counts=counts))
