"""Scores that mean what they say: temperature scaling, and how far scores are from the truth."""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

__all__ = ["expected_calibration_error", "fit_temperature"]

BINS = 15
LOWEST, HIGHEST = 0.05, 20.0


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """What to divide logits by, so that the likelihood of held-out labels is highest.

    One number for all classes, which changes no prediction (Guo et al. 2017, section 4.2, arXiv:1706.04599). Labels
    are smoothed by one over the number of items plus two, after Platt (1999): on a split without a single error the
    likelihood would grow without end as the temperature falls.

    Args:
        logits: (items, classes), of items that were not trained on.
        labels: (items,), as numbers of classes.
    """
    items, classes = logits.shape
    smoothing = 1 / (items + 2)
    targets = np.full((items, classes), smoothing / classes)
    targets[np.arange(items), labels] += 1 - smoothing

    def loss(log_temperature: float) -> float:
        return float(-(targets * log_softmax(logits / np.exp(log_temperature), axis=-1)).sum(-1).mean())

    found = minimize_scalar(loss, bounds=(np.log(LOWEST), np.log(HIGHEST)), method="bounded")
    return float(np.exp(found.x))


def expected_calibration_error(logits: np.ndarray, labels: np.ndarray, temperature: float = 1.0) -> float:
    """Mean distance between the score of the likeliest class and how often it is right, in 15 bins of equal width.

    As Guo et al. (2017, section 2), weighted by the items in each bin; 0 is best.
    """
    probabilities = softmax(logits / temperature, axis=-1)
    score, right = probabilities.max(-1), probabilities.argmax(-1) == labels
    bins = np.minimum((score * BINS).astype(int), BINS - 1)
    gaps = np.bincount(bins, weights=score - right, minlength=BINS)
    return float(np.abs(gaps).sum() / len(labels))
