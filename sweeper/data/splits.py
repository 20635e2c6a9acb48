"""Which rows go where: group splits, validation carved from train, and nested stratified samples.

Every choice orders things by a hash of the seed and a name or a row number, so that it depends neither on the platform
nor on the version of a random number generator.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from sweeper.errors import DataError

__all__ = [
    "carve_validation",
    "group_split",
    "sample_rows",
    "sample_splits",
    "size_problem",
    "stratified_subsample",
    "text_key",
]

_NO_WORD = re.compile(r"[\W_]+")


def text_key(text: str) -> str:
    """What two copies of a text have in common: its words in lower case, without punctuation and spacing.

    A text without any letter or digit is its own key.
    """
    return " ".join(_NO_WORD.sub(" ", text.casefold()).split()) or text


def group_split(
    groups: Sequence[str], labels: np.ndarray, shares: Mapping[str, float], *, salt: str
) -> dict[str, np.ndarray]:
    """Row numbers of each split, with no group on two sides and nearly the same class shares on all.

    Groups are taken in the order of a hash of (salt, group). Each goes where it brings the counts of every class,
    and the count of groups, nearest to their targets: the least sum of (count - target)^2 / target over the splits. The
    result depends on the groups, their labels and the salt alone.

    Args:
        groups: the group of each row.
        labels: int64 class of each row, shape (rows,).
        shares: split -> share of the rows, summing to 1.
        salt: another salt gives another split.

    Returns:
        split -> sorted int64 row numbers, shape (rows of the split,).

    Raises:
        DataError: a split would stay empty, because there are too few groups or one of them holds nearly all rows.
    """
    names, classes = list(shares), int(labels.max()) + 1
    counts: dict[str, np.ndarray] = {group: np.zeros(classes + 1) for group in groups}
    for group, label in zip(groups, labels, strict=True):
        counts[group][label] += 1
    for count in counts.values():
        count[classes] = 1  # the group itself, so that small groups do not gather in a small split
    target = np.outer(list(shares.values()), sum(counts.values(), np.zeros(classes + 1)))  # (splits, classes + 1)
    scale = np.maximum(target, 1e-9)  # a class number that no row has
    filled = np.zeros_like(target)
    side: dict[str, str] = {}
    for group in sorted(counts, key=lambda name: _hash(salt, name)):
        before = (filled - target) ** 2 / scale
        after = (filled + counts[group] - target) ** 2 / scale
        choice = int((after - before).sum(axis=1).argmin())
        filled[choice] += counts[group]
        side[group] = names[choice]
    empty = [split for split in names if split not in side.values()]
    if empty:
        largest = max(int(count[:classes].sum()) for count in counts.values())
        raise DataError(
            f"the split by group leaves {', '.join(empty)} empty: {len(groups)} rows in {len(counts)} groups, "
            f"the largest with {largest} rows",
            "Use a group column with more and smaller groups, or bring a split of your own.",
        )
    return {split: np.array([i for i, g in enumerate(groups) if side[g] == split], dtype=np.int64) for split in names}


def stratified_subsample(labels: np.ndarray, size: int, *, seed: int) -> np.ndarray:
    """Sorted row numbers of ``size`` rows whose classes have nearly the shares they have in ``labels``.

    Samples are nested: with the same labels and seed, a smaller one is a subset of a larger one. Each class has at
    least one row, and its count is otherwise within one row or so of its share.

    Args:
        labels: int64 class of each row, shape (rows,).
        size: number of rows, at least the number of classes and at most ``len(labels)``.
        seed: which rows.

    Raises:
        DataError: the size is not possible.
    """
    problem = size_problem(size, labels, "sample")
    if problem:
        raise DataError(problem)
    order = sorted(range(len(labels)), key=lambda row: _hash(seed, row))
    totals = Counter(labels.tolist())
    seen: Counter[int] = Counter()
    queue = []
    for place, row in enumerate(order):
        label = int(labels[row])
        # The k-th row of n comes after (k + 0.5) / n of its class: taking rows in that order keeps all classes level.
        turn = -1.0 if seen[label] == 0 else (seen[label] + 0.5) / totals[label]
        seen[label] += 1
        queue.append((turn, place, row))
    return np.sort(np.array([row for _, _, row in sorted(queue)[:size]], dtype=np.int64))


def sample_rows(rows: int, size: int | None, *, seed: int) -> list[int]:
    """Sorted numbers of at most ``size`` of so many rows, whatever they hold; ``None`` takes all.

    Samples are nested: with the same seed, a smaller one is a subset of a larger one.
    """
    order = sorted(range(rows), key=lambda row: _hash(seed, row))
    return sorted(order[:size])


def carve_validation(
    labels: np.ndarray, size: int, *, seed: int, groups: Sequence[str] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Split the rows of a dataset without a validation split of its own; the test split is never touched.

    Without groups the validation rows are a stratified sample. With groups, whole groups are put aside in the order of
    a hash until they hold ``size`` rows and every class; all of their rows are validation rows.

    Args:
        labels: int64 class of each training row, shape (rows,).
        size: number of validation rows; with groups, the least.
        seed: which rows.
        groups: the group of each training row, when rows belong together.

    Returns:
        Sorted row numbers of train and of validation; no row, and no group, is in both.

    Raises:
        DataError: the size is not possible, or nothing would be left to train on.
    """
    problem = size_problem(size, labels, "validation")
    if problem:
        raise DataError(problem)
    if groups is None:
        validation = stratified_subsample(labels, size, seed=seed)
    else:
        classes = len(set(labels.tolist()))
        by_group: dict[str, list[int]] = {}
        for row, group in enumerate(groups):
            by_group.setdefault(group, []).append(row)
        aside: list[int] = []
        for group in sorted(by_group, key=lambda name: _hash(f"validation {seed}", name)):
            if len(aside) >= size and len(set(labels[aside].tolist())) == classes:
                break
            aside += by_group[group]
        validation = np.array(sorted(aside), dtype=np.int64)
    train = np.setdiff1d(np.arange(len(labels)), validation)
    lost = sorted(set(labels.tolist()) - set(labels[train].tolist()))
    if lost:
        raise DataError(
            f"validation_size={size} leaves no training row of class {', '.join(map(str, lost))} "
            f"({len(labels)} rows in all)",
            "Ask for fewer validation rows.",
        )
    return train, validation


def size_problem(size: int | None, labels: np.ndarray, split: str) -> str | None:
    """What is wrong with taking ``size`` rows of a pool with these labels, or ``None``; size ``None`` takes all.

    A pool must hold two classes, and a sample one row of each.
    """
    pool, classes = len(labels), len(set(labels.tolist()))
    if classes < 2:
        return f"the {split} pool ({pool} rows) holds {classes} class(es), and classification needs at least 2"
    if size is None:
        return None
    if isinstance(size, bool) or not isinstance(size, int | np.integer):
        return f"{split}_size={size!r} is not a whole number; give a number of rows, or null for all {pool}"
    if size < classes:
        return f"{split}_size={size} is too small: allowed are {classes} (one row per class) to {pool}, or null for all"
    if size > pool:
        return f"{split}_size={size} is more than the {pool} rows of the {split} pool; null takes all of them"
    return None


def sample_splits(
    pools: Mapping[str, np.ndarray], labels: np.ndarray, sizes: Mapping[str, int | None], *, seed: int
) -> dict[str, np.ndarray]:
    """Row numbers of each split after sampling its pool down to its size.

    Args:
        pools: split -> row numbers of its pool.
        labels: int64 class of every row, shape (rows,).
        sizes: split -> number of rows; ``None`` takes the whole pool.
        seed: which rows.

    Raises:
        DataError: with every size that is not possible.
    """
    problems = [size_problem(sizes[split], labels[rows], split) for split, rows in pools.items()]
    found = [problem for problem in problems if problem]
    if found:
        raise DataError(
            "\n".join(found), "Change the size under `dataset.` in the configuration or on the command line."
        )
    taken = {}
    for split, rows in pools.items():
        size = sizes[split]
        taken[split] = rows if size is None else rows[stratified_subsample(labels[rows], size, seed=seed)]
    return taken


def _hash(salt: object, name: object) -> bytes:
    return hashlib.sha256(f"{salt}\n{name}".encode()).digest()
