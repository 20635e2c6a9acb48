"""A text classification dataset in memory: three splits, a fingerprint and a summary for the reports."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sweeper.data.splits import text_key

__all__ = ["TextDataset", "TextSplit", "assemble"]

SPLITS = ("train", "validation", "test")
FEW_ROWS_PER_CLASS = 10
FEW_TEST_ROWS = 200  # a 95% interval of an accuracy near 0.75 is then about 0.12 wide
SHIFTED_SHARE = 0.1


@dataclass(frozen=True, eq=False)
class TextSplit:
    """The rows of one split, in the order of the source.

    Attributes:
        texts: the texts.
        labels: int64 index into the dataset's ``label_names``, shape (rows,).
        groups: what rows belong together (a film, a patient); ``None`` when nothing does.
        items: int64 ids of the rows, shape (rows,): stable between runs, unique within the dataset.
    """

    texts: list[str]
    labels: np.ndarray
    groups: list[str] | None
    items: np.ndarray

    def __post_init__(self) -> None:
        lengths = {len(self.texts), len(self.labels), len(self.items)}
        if self.groups is not None:
            lengths.add(len(self.groups))
        if len(lengths) != 1:
            raise ValueError(f"texts, labels, groups and items differ in length: {sorted(lengths)}")

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True, eq=False)
class TextDataset:
    """Three splits of one dataset.

    Attributes:
        name: what ``dataset=`` calls it.
        label_names: the name of each class, in the order of the labels.
        train: rows to train on.
        validation: rows that trials are scored on.
        test: rows that finals are scored on.
        fingerprint: 16 hex digits of a sha256 over the texts, labels and items of the three splits.
        summary: values that JSON can hold. By split: ``sizes``, ``pool_sizes``, ``class_counts``, ``class_shares``,
            ``words`` (mean, median, p95 and max per text), ``groups``. For all: ``duplicates_across_splits`` (texts
            that occur in more than one split, apart from case and punctuation), ``source`` (what the loader did to the
            raw rows), ``unlabelled`` (how many texts) and ``warnings``, a list of sentences.
        unlabelled: texts of the training side that are in no split, their labels dropped; never one that occurs in
            validation or test. Empty where the train split takes the whole pool.
    """

    name: str
    label_names: list[str]
    train: TextSplit
    validation: TextSplit
    test: TextSplit
    fingerprint: str
    summary: dict[str, Any]
    unlabelled: list[str] = field(default_factory=list)


def assemble(
    name: str,
    label_names: Sequence[str],
    splits: Mapping[str, TextSplit],
    *,
    pool_sizes: Mapping[str, int] | None = None,
    source: Mapping[str, Any] | None = None,
    unlabelled: Iterable[str] = (),
) -> TextDataset:
    """Put the splits ``train``, ``validation`` and ``test`` together, with their fingerprint and summary.

    Args:
        name: the dataset's name.
        label_names: the name of each class.
        splits: the three splits by name.
        pool_sizes: rows each split was sampled from; the splits' own sizes by default.
        source: what the loader did to the raw rows, for the summary.
        unlabelled: texts of the training side without their labels; those that occur in validation or test, apart
            from case and punctuation, are left out.
    """
    held_out = {text_key(text) for split in ("validation", "test") for text in splits[split].texts}
    unlabelled = [text for text in unlabelled if text_key(text) not in held_out]
    sizes = {split: len(splits[split]) for split in SPLITS}
    summary: dict[str, Any] = {
        "name": name,
        "label_names": list(label_names),
        "sizes": sizes,
        "pool_sizes": dict(pool_sizes) if pool_sizes is not None else sizes,
        "class_counts": {split: _class_counts(splits[split].labels, label_names) for split in SPLITS},
        "words": {split: _words(splits[split].texts) for split in SPLITS},
        "groups": {split: None if (g := splits[split].groups) is None else len(set(g)) for split in SPLITS},
        "duplicates_across_splits": _shared({split: map(text_key, splits[split].texts) for split in SPLITS}),
        "unlabelled": len(unlabelled),
        "source": dict(source or {}),
    }
    summary["class_shares"] = {
        split: {label: count / sizes[split] for label, count in counts.items()}
        for split, counts in summary["class_counts"].items()
    }
    summary["warnings"] = _warnings(summary, splits)
    return TextDataset(
        name=name,
        label_names=list(label_names),
        train=splits["train"],
        validation=splits["validation"],
        test=splits["test"],
        fingerprint=_fingerprint(splits),
        summary=summary,
        unlabelled=unlabelled,
    )


def _class_counts(labels: np.ndarray, label_names: Sequence[str]) -> dict[str, int]:
    counts = np.bincount(labels, minlength=len(label_names)).tolist()
    return dict(zip(label_names, counts, strict=True))


def _words(texts: Sequence[str]) -> dict[str, float]:
    """Words per text, separated by white space."""
    words = np.array([len(text.split()) for text in texts])
    p95 = float(np.percentile(words, 95))
    return {"mean": float(words.mean()), "median": float(np.median(words)), "p95": p95, "max": int(words.max())}


def _shared(values: Mapping[str, Iterable[str]]) -> int:
    """How many distinct values occur in more than one split."""
    holders = Counter(value for of_split in values.values() for value in set(of_split))
    return sum(count > 1 for count in holders.values())


def _fingerprint(splits: Mapping[str, TextSplit]) -> str:
    digest = hashlib.sha256()
    for name in SPLITS:
        split = splits[name]
        for item, label, text in zip(split.items.tolist(), split.labels.tolist(), split.texts, strict=True):
            digest.update(json.dumps([name, item, label, text]).encode())
    return digest.hexdigest()[:16]


def _warnings(summary: Mapping[str, Any], splits: Mapping[str, TextSplit]) -> list[str]:
    """What a reader of the results should know about the data, in sentences."""
    found = []
    if duplicates := summary["duplicates_across_splits"]:
        found.append(f"{duplicates} texts occur in more than one split: scores may be too good.")
    shared_groups = _shared({name: split.groups or () for name, split in splits.items()})
    if shared_groups:
        found.append(f"{shared_groups} groups occur in more than one split: scores may be too good.")
    for split, counts in summary["class_counts"].items():
        few = [f"{label} ({count})" for label, count in counts.items() if count < FEW_ROWS_PER_CLASS]
        if few:
            found.append(f"The {split} split has fewer than {FEW_ROWS_PER_CLASS} rows of {', '.join(few)}.")
    shares = summary["class_shares"]
    for label, share in shares["train"].items():
        if abs(share - shares["test"][label]) > SHIFTED_SHARE:
            found.append(f"Class {label} is {share:.0%} of train but {shares['test'][label]:.0%} of test.")
    if summary["sizes"]["test"] < FEW_TEST_ROWS:
        found.append(f"The test split has only {summary['sizes']['test']} rows: expect wide intervals.")
    return found
