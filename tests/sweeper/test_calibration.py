"""Temperature scaling finds what scores were multiplied by, and makes them honest."""

from __future__ import annotations

import numpy as np
import pytest

from sweeper.calibration import expected_calibration_error, fit_temperature


def drawn(items: int, sharpness: float) -> tuple[np.ndarray, np.ndarray]:
    """Logits whose softmax, at temperature ``sharpness``, is the chance of each of three labels."""
    generator = np.random.default_rng(0)
    honest = generator.normal(size=(items, 3)) * 1.5
    chances = np.exp(honest) / np.exp(honest).sum(-1, keepdims=True)
    labels = np.array([generator.choice(3, p=row) for row in chances])
    return honest * sharpness, labels


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 4.0])
def test_the_temperature_undoes_scores_that_are_too_sure_or_not_sure_enough(sharpness: float) -> None:
    logits, labels = drawn(4000, sharpness)
    temperature = fit_temperature(logits, labels)
    assert temperature == pytest.approx(sharpness, rel=0.1)
    assert expected_calibration_error(logits, labels, temperature) < 0.03
    if sharpness > 1:
        assert expected_calibration_error(logits, labels) > 0.1


def test_a_split_without_an_error_does_not_make_scores_certain() -> None:
    logits = np.array([[2.0, -2.0], [-2.0, 2.0]] * 10)
    labels = np.array([0, 1] * 10)
    temperature = fit_temperature(logits, labels)
    best = 1 / (1 + np.exp(-4 / temperature))
    assert 0.9 < best < 1 - 1 / 50


def test_the_error_is_the_distance_between_score_and_accuracy() -> None:
    sure = np.array([[10.0, -10.0]] * 4)
    assert expected_calibration_error(sure, np.array([0, 0, 0, 1])) == pytest.approx(0.25, abs=1e-6)
