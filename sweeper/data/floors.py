"""What a comparison is measured against: the majority class, and logistic regression on features without pretraining.

The features are TF-IDF of texts, and the raw pixels of images. A strategy that does not beat that has bought nothing
with its pretrained weights. scikit-learn, whose import takes a second or two, is imported by what runs: a comparison
scores its floors once.
"""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from PIL import Image

from sweeper.data.dataset import Dataset, Split, content

__all__ = [
    "FLOORS",
    "MAJORITY",
    "PIXELS_LOGREG",
    "REGULARISATION",
    "TFIDF_LOGREG",
    "FloorResult",
    "floors",
    "score_floor",
]

MAJORITY: Final = "majority"
TFIDF_LOGREG: Final = "tfidf_logreg"
PIXELS_LOGREG: Final = "pixels_logreg"
#: The floors of each modality.
FLOORS: Final = {"text": (MAJORITY, TFIDF_LOGREG), "image": (MAJORITY, PIXELS_LOGREG)}
#: Width and height that images are reduced to before their pixels become features.
PIXELS: Final = 16
#: Values of scikit-learn's ``C`` that are tried, the strongest regularisation first.
REGULARISATION: Final = (0.3, 1.0, 3.0, 10.0, 30.0)


@dataclass(frozen=True, eq=False)
class FloorResult:
    """One floor, fitted on train, chosen on validation and scored once on test.

    Attributes:
        name: one of ``FLOORS``, or the name of a strategy that trains nothing.
        validation_accuracy: share of validation rows that are right; ``None`` where they were not asked about.
        test_accuracy: share of test rows that are right.
        test_macro_f1: unweighted mean of the F1 of each class on test; a class that is never predicted has 0.
        trainable_params: fitted coefficients and intercepts; 0 for the majority class.
        seconds: wall time of fitting, choosing and scoring.
        predictions: int64 label predicted for each test row, shape (rows,).
        probabilities: float64 probability of that label, shape (rows,); NaN where it is not known.
    """

    name: str
    validation_accuracy: float | None
    test_accuracy: float
    test_macro_f1: float
    trainable_params: int
    seconds: float
    predictions: np.ndarray
    probabilities: np.ndarray


def floors(dataset: Dataset) -> list[FloorResult]:
    """Both floors of a dataset, the majority class first; deterministic, on one CPU core for a few seconds."""
    return [_majority(dataset), (_tfidf_logreg if dataset.modality == "text" else _pixels_logreg)(dataset)]


def _majority(dataset: Dataset) -> FloorResult:
    """Always the most frequent class of train (the first of equals); its share of train is the probability."""
    start = time.perf_counter()
    counts = np.bincount(dataset.train.labels, minlength=len(dataset.label_names))
    label = int(counts.argmax())
    predictions = np.full(len(dataset.test), label, dtype=np.int64)
    probabilities = np.full(len(dataset.test), counts[label] / counts.sum())
    return score_floor(
        MAJORITY, dataset, float((dataset.validation.labels == label).mean()), 0, start, predictions, probabilities
    )


def _tfidf_logreg(dataset: Dataset) -> FloorResult:
    """Words and pairs of words, sublinear TF-IDF; the vocabulary comes from train alone."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    start = time.perf_counter()
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    try:
        train = vectorizer.fit_transform(map(content, dataset.train.inputs))
    except ValueError:  # not one word of two letters in all of train
        vectorizer = TfidfVectorizer(analyzer="char", sublinear_tf=True)
        train = vectorizer.fit_transform(map(content, dataset.train.inputs))
    validation, test = (
        vectorizer.transform(map(content, split.inputs)) for split in (dataset.validation, dataset.test)
    )
    return _logreg(TFIDF_LOGREG, dataset, start, train, validation, test)


def _pixels_logreg(dataset: Dataset) -> FloorResult:
    """The pixels of images reduced to 16x16, each centred and scaled by its mean and deviation over train."""
    from sklearn.preprocessing import StandardScaler

    start = time.perf_counter()
    scaler = StandardScaler().fit(train := _pixels(dataset.train))
    train, validation, test = (
        scaler.transform(pixels) for pixels in (train, _pixels(dataset.validation), _pixels(dataset.test))
    )
    return _logreg(PIXELS_LOGREG, dataset, start, train, validation, test)


def _pixels(split: Split) -> np.ndarray:
    """float32 features, shape (rows, 16 * 16 * 3)."""
    reduced = [image.open().resize((PIXELS, PIXELS), Image.Resampling.BOX) for image in split.inputs]
    return np.stack([np.asarray(image, dtype=np.float32).ravel() for image in reduced])


def _logreg(name: str, dataset: Dataset, start: float, train: Any, validation: Any, test: Any) -> FloorResult:
    """L2-regularised logistic regression; ``C`` is chosen on validation, of equally good values the smallest."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    best_accuracy, best = -1.0, LogisticRegression()
    for strength in REGULARISATION:
        # The vectors are short: threads that wait for each other made the fit up to ten times slower.
        with threadpool_limits(limits=1), warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model = LogisticRegression(C=strength, max_iter=1000).fit(train, dataset.train.labels)
        accuracy = float((model.predict(validation) == dataset.validation.labels).mean())
        if accuracy > best_accuracy:
            best_accuracy, best = accuracy, model
    chances = best.predict_proba(test)
    columns = chances.argmax(axis=1)
    predictions = best.classes_[columns].astype(np.int64)
    probabilities = chances[np.arange(len(columns)), columns]
    params = int(best.coef_.size + best.intercept_.size)
    return score_floor(name, dataset, best_accuracy, params, start, predictions, probabilities)


def score_floor(
    name: str,
    dataset: Dataset,
    validation_accuracy: float | None,
    params: int,
    start: float,
    predictions: np.ndarray,
    probabilities: np.ndarray,
) -> FloorResult:
    """The result of one floor from its predictions for the test split; ``start`` is a ``time.perf_counter()``."""
    from sklearn.metrics import f1_score

    labels = dataset.test.labels
    classes = list(range(len(dataset.label_names)))
    return FloorResult(
        name=name,
        validation_accuracy=validation_accuracy,
        test_accuracy=float((predictions == labels).mean()),
        test_macro_f1=float(f1_score(labels, predictions, labels=classes, average="macro", zero_division=0.0)),
        trainable_params=params,
        seconds=time.perf_counter() - start,
        predictions=predictions,
        probabilities=probabilities,
    )
