"""Fingerprint, summary and warnings of a dataset put together by hand."""

from __future__ import annotations

import numpy as np
import pytest

from sweeper.data.dataset import Split, assemble


def split(texts, labels, first_item, groups=None) -> Split:
    items = np.arange(first_item, first_item + len(texts))
    return Split(list(texts), np.array(labels, dtype=np.int64), groups, items)


def dataset(test_text="good one", groups=(None, None, None), test_labels=(0, 1)):
    splits = {
        "train": split(["Good one!", "bad one"], [1, 0], 0, groups[0]),
        "validation": split(["so so", "fine"], [0, 1], 2, groups[1]),
        "test": split([test_text, "a dull one"], test_labels, 4, groups[2]),
    }
    return assemble("made_up", ["no", "yes"], splits)


def test_texts_and_groups_on_two_sides_are_warned_about():
    found = dataset(groups=(["a", "b"], ["c", "d"], ["b", "e"]))
    assert found.summary["duplicates_across_splits"] == 1
    warnings = " ".join(found.summary["warnings"])
    assert "1 texts occur in more than one split" in warnings
    assert "1 groups occur in more than one split" in warnings
    assert dataset("something else").summary["duplicates_across_splits"] == 0


def test_small_and_shifted_splits_are_warned_about():
    warnings = " ".join(dataset(test_labels=(1, 1)).summary["warnings"])
    assert "The test split has only 2 rows" in warnings
    assert "Class yes is 50% of train but 100% of test." in warnings
    assert "The test split has fewer than 10 rows of no (0), yes (2)." in warnings


def test_the_fingerprint_sees_texts_and_labels():
    prints = {dataset().fingerprint, dataset("good two").fingerprint, dataset(test_labels=(1, 0)).fingerprint}
    assert len(prints) == 3
    assert dataset().fingerprint == dataset().fingerprint


def test_columns_of_different_length_are_refused():
    with pytest.raises(ValueError, match="differ in length"):
        Split(["a", "b"], np.array([0]), None, np.array([0, 1]))


def test_unlabelled_texts_of_validation_and_test_are_left_out():
    def split(*texts: str) -> Split:
        return Split(list(texts), np.arange(len(texts)) % 2, None, np.arange(len(texts)))

    splits = {"train": split("a", "b"), "validation": split("Held out.", "c"), "test": split("d", "seen?")}
    made = assemble("mine", ["x", "y"], splits, unlabelled=["new", "held out", "SEEN", "other"])
    assert made.unlabelled == ["new", "other"]
    assert made.fingerprint == assemble("mine", ["x", "y"], splits).fingerprint, "comparisons do not depend on them"
