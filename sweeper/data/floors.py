"""What a comparison is measured against: the majority class, and logistic regression on TF-IDF features.

A strategy that does not beat the second has bought nothing with its pretrained weights.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from sweeper.data.text import TextDataset

__all__ = ["MAJORITY", "NUMBER_OF_FLOORS", "REGULARISATION", "TFIDF_LOGREG", "FloorResult", "floors", "score_floor"]

NUMBER_OF_FLOORS: Final = 2
MAJORITY: Final = "majority"
TFIDF_LOGREG: Final = "tfidf_logreg"
#: Values of scikit-learn's ``C`` that are tried, the strongest regularisation first.
REGULARISATION: Final = (0.3, 1.0, 3.0, 10.0, 30.0)


@dataclass(frozen=True, eq=False)
class FloorResult:
    """One floor, fitted on train, chosen on validation and scored once on test.

    Attributes:
        name: ``majority``, ``tfidf_logreg`` or the name of a strategy that trains nothing.
        validation_accuracy: share of validation rows that are right.
        test_accuracy: share of test rows that are right.
        test_macro_f1: unweighted mean of the F1 of each class on test; a class that is never predicted has 0.
        trainable_params: fitted coefficients and intercepts; 0 for the majority class.
        seconds: wall time of fitting, choosing and scoring.
        predictions: int64 label predicted for each test row, shape (rows,).
        probabilities: float64 probability of that label, shape (rows,).
    """

    name: str
    validation_accuracy: float
    test_accuracy: float
    test_macro_f1: float
    trainable_params: int
    seconds: float
    predictions: np.ndarray
    probabilities: np.ndarray


def floors(dataset: TextDataset) -> list[FloorResult]:
    """Both floors of a dataset, the majority class first; deterministic, on one CPU core for a few seconds."""
    return [_majority(dataset), _tfidf_logreg(dataset)]


def _majority(dataset: TextDataset) -> FloorResult:
    """Always the most frequent class of train (the first of equals); its share of train is the probability."""
    start = time.perf_counter()
    counts = np.bincount(dataset.train.labels, minlength=len(dataset.label_names))
    label = int(counts.argmax())
    predictions = np.full(len(dataset.test), label, dtype=np.int64)
    probabilities = np.full(len(dataset.test), counts[label] / counts.sum())
    return score_floor(
        MAJORITY, dataset, float((dataset.validation.labels == label).mean()), 0, start, predictions, probabilities
    )


def _tfidf_logreg(dataset: TextDataset) -> FloorResult:
    """Words and pairs of words, sublinear TF-IDF, L2-regularised logistic regression; ``C`` is chosen on validation.

    The vocabulary comes from train alone. Of equally good values of ``C`` the smallest is taken.
    """
    start = time.perf_counter()
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    train = vectorizer.fit_transform(dataset.train.texts)
    validation = vectorizer.transform(dataset.validation.texts)
    best_accuracy, best = -1.0, LogisticRegression()
    for strength in REGULARISATION:
        # The vectors are short: threads that wait for each other made the fit up to ten times slower.
        with threadpool_limits(limits=1):
            model = LogisticRegression(C=strength, max_iter=1000).fit(train, dataset.train.labels)
        accuracy = float(accuracy_score(dataset.validation.labels, model.predict(validation)))
        if accuracy > best_accuracy:
            best_accuracy, best = accuracy, model
    chances = best.predict_proba(vectorizer.transform(dataset.test.texts))
    columns = chances.argmax(axis=1)
    predictions = best.classes_[columns].astype(np.int64)
    probabilities = chances[np.arange(len(columns)), columns]
    params = int(best.coef_.size + best.intercept_.size)
    return score_floor(TFIDF_LOGREG, dataset, best_accuracy, params, start, predictions, probabilities)


def score_floor(
    name: str,
    dataset: TextDataset,
    validation_accuracy: float,
    params: int,
    start: float,
    predictions: np.ndarray,
    probabilities: np.ndarray,
) -> FloorResult:
    """The result of one floor from its predictions for the test split; ``start`` is a ``time.perf_counter()``."""
    labels = dataset.test.labels
    classes = list(range(len(dataset.label_names)))
    return FloorResult(
        name=name,
        validation_accuracy=validation_accuracy,
        test_accuracy=float(accuracy_score(labels, predictions)),
        test_macro_f1=float(f1_score(labels, predictions, labels=classes, average="macro", zero_division=0.0)),
        trainable_params=params,
        seconds=time.perf_counter() - start,
        predictions=predictions,
        probabilities=probabilities,
    )
