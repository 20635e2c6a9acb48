"""The generic helpers, on small made-up rows."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from sweeper.data.splits import (
    carve_validation,
    group_split,
    sample_splits,
    stratified_subsample,
    text_key,
)
from sweeper.errors import DataError

LABELS = np.array([0] * 70 + [1] * 25 + [2] * 5, dtype=np.int64)


def test_text_key_ignores_case_punctuation_and_spacing_only():
    assert text_key("A  pretentious mess.") == text_key("'a pretentious\nMess'")
    assert text_key("café") != text_key("cafe")
    assert text_key("!!!") != text_key("?!")


@pytest.mark.parametrize("size", [3, 10, 20, 50, 100])
def test_a_sample_keeps_the_shares_of_the_classes(size):
    counts = np.bincount(LABELS[stratified_subsample(LABELS, size, seed=0)])
    assert counts.sum() == size
    assert counts.min() >= 1
    assert counts == pytest.approx(np.array([0.70, 0.25, 0.05]) * size, abs=1.3)


def test_smaller_samples_lie_in_larger_ones():
    samples = [set(stratified_subsample(LABELS, size, seed=3)) for size in range(3, 101)]
    assert all(small < large for small, large in pairwise(samples))


def test_the_seed_and_nothing_else_chooses_the_sample():
    assert np.array_equal(stratified_subsample(LABELS, 30, seed=1), stratified_subsample(LABELS, 30, seed=1))
    assert not np.array_equal(stratified_subsample(LABELS, 30, seed=1), stratified_subsample(LABELS, 30, seed=2))


@pytest.mark.parametrize("size", [-1, 0, 2, 101])
def test_impossible_samples_are_refused(size):
    with pytest.raises(DataError, match=r"allowed are 3|more than the 100 rows"):
        stratified_subsample(LABELS, size, seed=0)


def made_up_groups() -> tuple[list[str], np.ndarray]:
    random = np.random.default_rng(0)
    groups, labels = [], []
    for number in range(120):
        rows = int(random.integers(1, 20))
        groups += [f"group {number}"] * rows
        labels += (random.random(rows) < random.random()).astype(int).tolist()
    return groups, np.array(labels)


def test_a_group_split_keeps_groups_whole_and_shares_near():
    groups, labels = made_up_groups()
    shares = {"train": 0.7, "validation": 0.1, "test": 0.2}
    split = group_split(groups, labels, shares, salt="s")
    assert sorted(np.concatenate(list(split.values()))) == list(range(len(groups)))
    sides = [{groups[row] for row in rows} for rows in split.values()]
    assert len(set.union(*sides)) == sum(map(len, sides))
    for name, rows in split.items():
        assert len(rows) / len(groups) == pytest.approx(shares[name], abs=0.02)
        assert labels[rows].mean() == pytest.approx(labels.mean(), abs=0.05)
    other = group_split(groups, labels, shares, salt="another")
    assert not np.array_equal(other["test"], split["test"])


def test_a_group_split_with_too_few_groups_is_refused():
    with pytest.raises(DataError, match="2 groups"):
        group_split(
            ["a"] * 5 + ["b"] * 5, np.array([0, 1] * 5), {"train": 0.7, "validation": 0.1, "test": 0.2}, salt=""
        )


def test_validation_is_carved_from_train_without_overlap():
    train, validation = carve_validation(LABELS, 20, seed=0)
    assert sorted([*train, *validation]) == list(range(100))
    assert np.bincount(LABELS[validation]).tolist() == pytest.approx([14, 5, 1], abs=1)


def test_validation_carved_by_group_shares_no_group_with_train():
    groups, labels = made_up_groups()
    train, validation = carve_validation(labels, 100, seed=0, groups=groups)
    assert 100 <= len(validation) < 120, "no more than the last group goes beyond"
    assert not {groups[row] for row in train} & {groups[row] for row in validation}
    assert sorted([*train, *validation]) == list(range(len(groups))), "no row is lost"


def test_validation_must_leave_every_class_to_train_on():
    with pytest.raises(DataError, match="no training row"):
        carve_validation(LABELS, 100, seed=0)


def test_one_class_alone_cannot_be_sampled():
    labels = np.zeros(10, dtype=np.int64)
    with pytest.raises(DataError, match="at least 2"):
        sample_splits({"train": np.arange(10)}, labels, {"train": None}, seed=0)
