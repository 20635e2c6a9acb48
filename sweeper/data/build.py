"""From the rows of a source to a dataset: labels, pools, samples, and what is wrong with them."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from sweeper.data.dataset import SPLITS, Dataset, Split, assemble
from sweeper.data.images import unreadable
from sweeper.data.request import DataRequest
from sweeper.data.splits import carve_validation, group_split, sample_splits
from sweeper.errors import DataError

__all__ = ["SHARES", "Source", "build"]

logger = logging.getLogger(__name__)

#: Shares of the rows of a dataset that brings no split of its own.
SHARES: Final[Mapping[str, float]] = {"train": 0.7, "validation": 0.1, "test": 0.2}
POOL_SEED = 0  # the pools do not depend on dataset.seed, which chooses rows within them
SHOWN = 5


@dataclass(frozen=True, eq=False)
class Source:
    """The usable rows of a source, before they are split.

    Attributes:
        inputs: texts, pairs of texts, or images.
        labels: the name of each row's class; ``None`` where a row has none, and is used unlabelled.
        items: a number of each row that stays the same: its place in the source.
        splits: the split each row was given, by name; empty where the source has no split.
        groups: what each row belongs to; empty where nothing belongs together.
        label_names: the classes in their order; empty for the sorted names that train has.
        counts: what was read, skipped and why.
        warnings: what a person should know of it, in sentences.
    """

    inputs: list[Any]
    labels: list[str | None]
    items: list[int]
    splits: list[str] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    label_names: list[str] = field(default_factory=list)
    counts: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def build(request: DataRequest, source: Source, *, shares: Mapping[str, float] = SHARES) -> Dataset:
    """Split the rows where the source does not, sample each pool, and put the dataset together.

    A test split that is missing is carved from all rows by its share; a validation split that is missing is carved
    from train, as many rows as are asked for or else its share, and never from test. Both are stratified, and by
    group where there are groups. Images that cannot be decoded are skipped, with a warning.

    Args:
        request: what is asked for.
        source: the rows.
        shares: of a source without splits.

    Raises:
        DataError: there are too few rows or classes, labels that train has not, or sizes that are not possible.
    """
    where = f"dataset {request.name!r}"
    labelled = [row for row, label in enumerate(source.labels) if label is not None]
    if not labelled:
        raise DataError(f"{where} has no labelled rows", "Check the file and dataset.label_column.")
    pool_of = [source.splits[row] for row in labelled] if source.splits else ["train"] * len(labelled)
    label_names = source.label_names or _sorted_names(
        {str(source.labels[row]) for row, split in zip(labelled, pool_of, strict=True) if split == "train"}
    )
    _check_labels(where, [str(source.labels[row]) for row in labelled], pool_of, label_names)
    number = {name: index for index, name in enumerate(label_names)}
    labels = np.array([number[str(source.labels[row])] for row in labelled], dtype=np.int64)
    groups = [source.groups[row] for row in labelled] if source.groups else None
    pools = _pools(where, labels, label_names, groups, pool_of, request, shares)
    sizes = {split: getattr(request, f"{split}_size") for split in SPLITS}
    taken = sample_splits(pools, labels, sizes, seed=request.seed)
    warnings, counts = list(source.warnings), dict(source.counts)
    if request.modality == "image":
        taken = _without_unreadable(where, source, labelled, taken, warnings, counts)
    _check_taken(where, labels, label_names, taken)
    splits = {
        split: Split(
            inputs=[source.inputs[labelled[row]] for row in rows],
            labels=labels[rows],
            groups=None if groups is None else [groups[row] for row in rows],
            items=np.array([source.items[labelled[row]] for row in rows], dtype=np.int64),
        )
        for split, rows in taken.items()
    }
    rest = [labelled[row] for row in np.setdiff1d(pools["train"], taken["train"])]
    held_out = set() if groups is None else {groups[row] for split in ("validation", "test") for row in pools[split]}
    given = [
        row
        for row, label in enumerate(source.labels)
        if label is None
        and (not source.splits or source.splits[row] == "train")
        and not (source.groups and source.groups[row] in held_out)
    ]
    for split, size in sizes.items():
        if groups is not None and split != "train" and size is not None and len(pools[split]) > 2 * size:
            warnings.append(
                f"dataset.{split}_size={size} scores {size:,} of the {len(pools[split]):,} rows whose groups are kept "
                f"out of train for {split}: null, or a larger number, scores more of them at no cost to train."
            )
    return assemble(
        request.name,
        label_names,
        splits,
        modality=request.modality,
        pool_sizes={split: len(rows) for split, rows in pools.items()},
        source=counts,
        unlabelled=[source.inputs[row] for row in sorted([*rest, *given])],
        warnings=warnings,
    )


def _sorted_names(names: set[str]) -> list[str]:
    """Numbers by their value, other names by the alphabet."""
    try:
        numbers = {name: float(name) for name in names}
    except ValueError:
        return sorted(names)
    return sorted(names, key=lambda name: (numbers[name], name) if math.isfinite(numbers[name]) else (math.inf, name))


def _check_labels(where: str, labels: Sequence[str], splits: Sequence[str], names: Sequence[str]) -> None:
    if len(names) < 2:
        raise DataError(
            f"{where} has one class only ({', '.join(names)}): classification needs at least 2",
            "Check dataset.label_column, or the folders of labels.",
        )
    if len(names) > max(len(labels) // 2, 2):
        raise DataError(
            f"{where} has {len(names)} labels for {len(labels)} rows: that is no classification",
            "Check dataset.label_column: it may name the texts, or numbers on a scale.",
        )
    known = set(names)
    for split in ("validation", "test"):
        unknown = Counter(label for label, of in zip(labels, splits, strict=True) if of == split and label not in known)
        if unknown:
            shown = ", ".join(f"{label} ({count})" for label, count in unknown.most_common(SHOWN))
            raise DataError(
                f"{where}: {len(unknown)} labels of {split} are not in train: {shown}",
                f"Train has {', '.join(names[:SHOWN])}{' ...' * (len(names) > SHOWN)}. Remove or rename those rows.",
            )


def _check_taken(where: str, labels: np.ndarray, label_names: Sequence[str], taken: Mapping[str, np.ndarray]) -> None:
    """What is scored must have been there to train on; groups and unreadable images may have kept it away."""
    trained = set(labels[taken["train"]].tolist())
    if len(trained) < 2:
        raise DataError(
            f"{where}: train is left with one class only, {', '.join(label_names[label] for label in trained)}",
            "Bring more rows, or images that can be read.",
        )
    for split in ("validation", "test"):
        untrained = sorted(set(labels[taken[split]].tolist()) - trained)
        if untrained:
            raise DataError(
                f"{where}: no row of train has {', '.join(label_names[label] for label in untrained[:SHOWN])}, "
                f"which {split} has",
                "Use a group column with smaller groups, bring more rows, or bring splits of your own.",
            )


def _pools(
    where: str,
    labels: np.ndarray,
    label_names: Sequence[str],
    groups: list[str] | None,
    pool_of: Sequence[str],
    request: DataRequest,
    shares: Mapping[str, float],
) -> dict[str, np.ndarray]:
    """Row numbers of each split's pool."""
    given = np.array(pool_of)
    pools = {split: np.flatnonzero(given == split) for split in SPLITS}
    if len(pools["train"]) == 0:
        raise DataError(f"{where} has no train rows", "Name the train split, or leave the splits out.")
    if groups is not None and len(pools["test"]) == len(pools["validation"]) == 0:
        if request.source == "embedded":
            return group_split(groups, labels, shares, salt=request.name)
        return group_split(groups, labels, _wide_enough(shares, request, len(labels)), salt="")
    if len(pools["test"]) == 0:
        share = shares["test"] / (1 - (shares["validation"] if len(pools["validation"]) else 0))
        pools["train"], pools["test"] = _carve(where, "test", pools["train"], labels, label_names, groups, None, share)
    if len(pools["validation"]) == 0:
        share = shares["validation"] / (shares["train"] + shares["validation"])
        pools["train"], pools["validation"] = _carve(
            where, "validation", pools["train"], labels, label_names, groups, request.validation_size, share
        )
    return pools


def _wide_enough(shares: Mapping[str, float], request: DataRequest, rows: int) -> dict[str, float]:
    """Shares that hold the sizes that are asked for, with room for groups that do not fill them exactly."""
    wide = dict(shares)
    for split in ("validation", "test"):
        size = getattr(request, f"{split}_size") or 0
        if size > shares[split] * rows:
            wide[split] = min(1.1 * size / rows, 0.9)
    wide["train"] = max(1 - wide["validation"] - wide["test"], 0.0)
    return wide


def _carve(
    where: str,
    split: str,
    train: np.ndarray,
    labels: np.ndarray,
    label_names: Sequence[str],
    groups: list[str] | None,
    size: int | None,
    share: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Take a split out of train; returns what is left, and the split."""
    counts = Counter(labels[train].tolist())
    single = [label_names[label] for label, count in sorted(counts.items()) if count == 1]
    if single:
        raise DataError(
            f"{where} has too few rows of {', '.join(single[:SHOWN])}: none is left for train beside one for {split}",
            "Bring at least 3 rows of each label, one for each split, or remove the rows of such labels.",
        )
    classes = len(counts)
    number = size if size is not None else max(round(share * len(train)), classes)
    try:
        rest, carved = carve_validation(
            labels[train], number, seed=POOL_SEED, groups=None if groups is None else [groups[row] for row in train]
        )
    except DataError as error:
        raise DataError(
            f"{where} has no {split} split, and none can be carved from its {len(train)} rows: {error.message}",
            f"Bring more rows, or a {split} split of your own.",
        ) from error
    return train[rest], train[carved]


def _without_unreadable(
    where: str,
    source: Source,
    labelled: Sequence[int],
    taken: Mapping[str, np.ndarray],
    warnings: list[str],
    counts: dict[str, Any],
) -> dict[str, np.ndarray]:
    kept = {}
    skipped = []
    for split, rows in taken.items():
        images = [source.inputs[labelled[row]] for row in rows]
        broken = unreadable(images)
        skipped += [f"{images[place]} ({message})" for place, message in broken.items()]
        kept[split] = np.delete(rows, list(broken))
        if len(kept[split]) == 0:
            raise DataError(f"{where}: no image of the {split} split can be read, such as {skipped[-1]}")
    if skipped:
        counts["unreadable_images"] = len(skipped)
        warnings.append(f"Images that cannot be read, left out: {len(skipped)}, such as {skipped[0]}.")
        for line in skipped:
            logger.info("left out: %s", line)
    return kept
