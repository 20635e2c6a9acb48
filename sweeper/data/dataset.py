"""A classification dataset in memory: three splits of texts or images, a fingerprint and a summary for the reports."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from sweeper.data.images import StoredImage
from sweeper.data.splits import text_key

__all__ = ["Dataset", "Input", "Split", "assemble", "content", "fingerprint", "storable"]

#: A text, a text and a second one, or an image.
Input = str | tuple[str, str] | StoredImage

SPLITS = ("train", "validation", "test")
FEW_ROWS_PER_CLASS = 10
FEW_TEST_ROWS = 200  # a 95% interval of an accuracy near 0.75 is then about 0.12 wide
SHIFTED_SHARE = 0.1
RARE_SHARE = 0.1  # of the most frequent class


@dataclass(frozen=True, eq=False)
class Split:
    """The rows of one split, in the order of the source.

    Attributes:
        inputs: texts, pairs of texts, or images.
        labels: int64 index into the dataset's ``label_names``, shape (rows,).
        groups: what rows belong together (a film, a patient); ``None`` when nothing does.
        items: int64 ids of the rows, shape (rows,): stable between runs, unique within the dataset.
    """

    inputs: list[Any]
    labels: np.ndarray
    groups: list[str] | None
    items: np.ndarray

    def __post_init__(self) -> None:
        lengths = {len(self.inputs), len(self.labels), len(self.items)}
        if self.groups is not None:
            lengths.add(len(self.groups))
        if len(lengths) != 1:
            raise ValueError(f"inputs, labels, groups and items differ in length: {sorted(lengths)}")

    def __len__(self) -> int:
        return len(self.inputs)

    def rows(self, chosen: np.ndarray) -> Split:
        """Some of the rows, by their places."""
        return Split(
            inputs=[self.inputs[row] for row in chosen],
            labels=self.labels[chosen],
            groups=None if self.groups is None else [self.groups[row] for row in chosen],
            items=self.items[chosen],
        )

    def frame(self, label_names: Sequence[str]) -> pd.DataFrame:
        """The rows as a table of their content (of images: where they come from) and the names of their labels."""
        shown = [str(item) if isinstance(item, StoredImage) else item for item in self.inputs]
        columns: dict[str, Any] = {"input": shown}
        if shown and isinstance(shown[0], tuple):
            columns = {"input": [pair[0] for pair in shown], "second_input": [pair[1] for pair in shown]}
        return pd.DataFrame({**columns, "label": [label_names[label] for label in self.labels]})


@dataclass(frozen=True, eq=False)
class Dataset:
    """Three splits of one dataset.

    Attributes:
        name: what ``dataset=`` calls it.
        modality: ``text`` or ``image``.
        label_names: the name of each class, in the order of the labels.
        train: rows to train on.
        validation: rows that trials are scored on.
        test: rows that finals are scored on.
        fingerprint: 16 hex digits of a sha256 over the contents, labels and items of the three splits.
        summary: values that JSON can hold. By split: ``sizes``, ``pool_sizes``, ``class_counts``, ``class_shares``,
            ``groups``, and ``words`` per text or ``pixels`` per side of an image (mean, median, p95 and max). For all:
            ``duplicates_across_splits`` (inputs that occur in more than one split; texts apart from case and
            punctuation), ``source`` (what the loader did to the raw rows), ``unlabelled`` (how many inputs) and
            ``warnings``, a list of sentences.
        unlabelled: inputs of the training side that are in no split, their labels dropped; never one that occurs in
            validation or test. Empty where the train split takes the whole pool.
        shifted: rows of a second dataset that finals are scored on too, or ``None``.
    """

    name: str
    modality: str
    label_names: list[str]
    train: Split
    validation: Split
    test: Split
    fingerprint: str
    summary: dict[str, Any]
    unlabelled: list[Any] = field(default_factory=list)
    shifted: Split | None = None


def assemble(
    name: str,
    label_names: Sequence[str],
    splits: Mapping[str, Split],
    *,
    modality: str = "text",
    pool_sizes: Mapping[str, int] | None = None,
    source: Mapping[str, Any] | None = None,
    unlabelled: Iterable[Input] = (),
    warnings: Iterable[str] = (),
) -> Dataset:
    """Put the splits ``train``, ``validation`` and ``test`` together, with their fingerprint and summary.

    Args:
        name: the dataset's name.
        label_names: the name of each class.
        splits: the three splits by name.
        modality: ``text`` or ``image``.
        pool_sizes: rows each split was sampled from; the splits' own sizes by default.
        source: what the loader did to the raw rows, for the summary.
        unlabelled: inputs of the training side without their labels; those that occur in validation or test, texts
            apart from case and punctuation, are left out.
        warnings: what the loader found, in sentences.
    """
    keys = {split: [input_key(item) for item in splits[split].inputs] for split in SPLITS}
    held_out = {*keys["validation"], *keys["test"]}
    unlabelled = [item for item in unlabelled if input_key(item) not in held_out]
    sizes = {split: len(splits[split]) for split in SPLITS}
    measure, values = ("words", _words) if modality == "text" else ("pixels", _pixels)
    summary: dict[str, Any] = {
        "name": name,
        "modality": modality,
        "label_names": list(label_names),
        "sizes": sizes,
        "pool_sizes": dict(pool_sizes) if pool_sizes is not None else sizes,
        "class_counts": {split: _class_counts(splits[split].labels, label_names) for split in SPLITS},
        measure: {split: _distribution(values(splits[split].inputs)) for split in SPLITS},
        "groups": {split: None if (g := splits[split].groups) is None else len(set(g)) for split in SPLITS},
        "duplicates_across_splits": _shared(keys),
        "unlabelled": len(unlabelled),
        "source": dict(source or {}),
    }
    summary["class_shares"] = {
        split: {label: count / sizes[split] for label, count in counts.items()}
        for split, counts in summary["class_counts"].items()
    }
    summary["warnings"] = [*warnings, *_warnings(summary, splits)]
    return Dataset(
        name=name,
        modality=modality,
        label_names=list(label_names),
        train=splits["train"],
        validation=splits["validation"],
        test=splits["test"],
        fingerprint=fingerprint({name: splits[name] for name in SPLITS}),
        summary=summary,
        unlabelled=unlabelled,
    )


def content(item: Input) -> str:
    """What identifies an input: a text itself, a pair's two texts, a hash of an image."""
    if isinstance(item, StoredImage):
        return item.digest()
    return item if isinstance(item, str) else "\n".join(item)


def storable(text: str) -> str:
    """The text with halves of surrogate pairs joined, or replaced where one stands alone: such cannot be encoded."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def input_key(item: Input) -> str:
    """What two copies of an input have in common."""
    return content(item) if isinstance(item, StoredImage) else text_key(content(item))


def _class_counts(labels: np.ndarray, label_names: Sequence[str]) -> dict[str, int]:
    counts = np.bincount(labels, minlength=len(label_names)).tolist()
    return dict(zip(label_names, counts, strict=True))


def _words(texts: Sequence[Any]) -> list[int]:
    """Words of each text, or of both texts of a pair, separated by white space."""
    return [len(content(text).split()) for text in texts]


def _pixels(images: Sequence[StoredImage]) -> list[int]:
    """The shorter side of each image."""
    return [min(image.size) for image in images]


def _distribution(values: Sequence[int]) -> dict[str, float]:
    numbers = np.array(values)
    p95 = float(np.percentile(numbers, 95))
    return {"mean": float(numbers.mean()), "median": float(np.median(numbers)), "p95": p95, "max": int(numbers.max())}


def _shared(values: Mapping[str, Iterable[str]]) -> int:
    """How many distinct values occur in more than one split."""
    holders = Counter(value for of_split in values.values() for value in set(of_split))
    return sum(count > 1 for count in holders.values())


def fingerprint(splits: Mapping[str, Split]) -> str:
    """16 hex digits of a sha256 over the names of splits, and their contents, labels and items."""
    digest = hashlib.sha256()
    for name, split in splits.items():
        for item, label, given in zip(split.items.tolist(), split.labels.tolist(), split.inputs, strict=True):
            digest.update(json.dumps([name, item, label, content(given)]).encode())
    return digest.hexdigest()[:16]


def _warnings(summary: Mapping[str, Any], splits: Mapping[str, Split]) -> list[str]:
    """What a reader of the results should know about the data, in sentences."""
    found = []
    if duplicates := summary["duplicates_across_splits"]:
        found.append(f"{duplicates} {summary['modality']}s occur in more than one split: scores may be too good.")
    shared_groups = _shared({name: split.groups or () for name, split in splits.items()})
    if shared_groups:
        found.append(f"{shared_groups} groups occur in more than one split: scores may be too good.")
    for split, counts in summary["class_counts"].items():
        few = [f"{label} ({count})" for label, count in counts.items() if count < FEW_ROWS_PER_CLASS]
        if few:
            found.append(f"The {split} split has fewer than {FEW_ROWS_PER_CLASS} rows of {_some(few)}.")
    counts = summary["class_counts"]["train"]
    rare = [label for label, count in counts.items() if count < RARE_SHARE * max(counts.values())]
    if rare:
        found.append(
            f"Train is unbalanced: {_some(rare)} has less than a tenth of the rows of the largest class; "
            "look at macro-F1 too, or set trainer.class_weights=balanced."
        )
    shares = summary["class_shares"]
    for label, share in shares["train"].items():
        if abs(share - shares["test"][label]) > SHIFTED_SHARE:
            found.append(f"Class {label} is {share:.0%} of train but {shares['test'][label]:.0%} of test.")
    if summary["sizes"]["test"] < FEW_TEST_ROWS:
        found.append(f"The test split has only {summary['sizes']['test']} rows: expect wide intervals.")
    return found


def _some(names: Sequence[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
