"""The floors: known scores on the review lines, and what holds for any dataset."""

from __future__ import annotations

import numpy as np
import pytest

from sweeper.data import load_dataset
from sweeper.data.dataset import Split, assemble
from sweeper.data.floors import floors


@pytest.fixture(scope="module")
def measured():
    dataset = load_dataset("review_lines", train_size=1000, validation_size=500, test_size=None)
    return dataset, {result.name: result for result in floors(dataset)}


def test_both_floors_score_what_they_are_known_to_score(measured):
    _, results = measured
    assert list(results) == ["majority", "tfidf_logreg"]
    assert results["majority"].test_accuracy == pytest.approx(0.580, abs=0.001)
    assert results["majority"].test_macro_f1 == pytest.approx(0.367, abs=0.001)
    assert results["majority"].trainable_params == 0
    assert results["tfidf_logreg"].test_accuracy == pytest.approx(0.68, abs=0.015)
    assert 10_000 < results["tfidf_logreg"].trainable_params < 30_000


def test_scores_follow_from_the_predictions(measured):
    dataset, results = measured
    for result in results.values():
        assert result.predictions.shape == result.probabilities.shape == (len(dataset.test),)
        assert result.test_accuracy == (result.predictions == dataset.test.labels).mean()
        assert (result.probabilities >= 0.5).all() and (result.probabilities <= 1).all()
        assert result.seconds > 0


def test_probabilities_mean_something(measured):
    dataset, results = measured
    floor = results["tfidf_logreg"]
    right = floor.predictions == dataset.test.labels
    assert floor.probabilities[right].mean() > floor.probabilities[~right].mean()


def words(label: int, count: int, first: int) -> Split:
    texts = [f"{('red', 'green', 'blue')[(label + i) % 3]} thing" for i in range(count)]
    labels = np.array([(label + i) % 3 for i in range(count)], dtype=np.int64)
    return Split(texts, labels, None, np.arange(first, first + count))


def test_three_classes_that_words_tell_apart():
    splits = {"train": words(0, 31, 0), "validation": words(0, 9, 31), "test": words(1, 12, 40)}
    majority, tfidf = floors(assemble("colours", ["r", "g", "b"], splits))
    assert tfidf.test_accuracy == tfidf.test_macro_f1 == 1.0
    assert tfidf.trainable_params == 3 * (7 + 1), "4 words and 3 pairs, and an intercept, per class"
    assert set(majority.predictions) == {0} and majority.probabilities == pytest.approx(11 / 31)
    assert majority.test_macro_f1 == pytest.approx(0.5 / 3)
