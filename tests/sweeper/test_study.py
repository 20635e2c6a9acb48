"""What a study makes of its trials, beyond running them (tests/sweeper/test_cli.py runs whole ones)."""

from __future__ import annotations

import math

import optuna
import pytest
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import create_trial

from sweeper.study import IMPORTANCE_TRIALS, hyperparameter_importances

SPACE = {"learning_rate": FloatDistribution(1e-5, 1e-3, log=True), "rank": IntDistribution(2, 32)}


def study_of(n_trials: int, *, equal: bool = False) -> optuna.Study:
    """Trials whose score depends on the learning rate alone."""
    study = optuna.create_study(direction="maximize")
    for number in range(n_trials):
        rate, rank = 10 ** (-5 + 2 * (number * 0.618 % 1)), 2 + 7 * number % 31
        score = 0.8 if equal else 0.8 - 0.05 * (math.log10(rate) + 4) ** 2
        params = {"learning_rate": rate, "rank": rank}
        study.add_trial(create_trial(params=params, distributions=dict(SPACE), value=score))
    return study


def test_the_hyperparameter_that_matters_gets_the_larger_share():
    shares = hyperparameter_importances(study_of(16))
    assert list(shares) == ["learning_rate", "rank"]
    assert shares["learning_rate"] > 0.7 and sum(shares.values()) == pytest.approx(1.0)


@pytest.mark.parametrize("study", [study_of(IMPORTANCE_TRIALS - 1), study_of(16, equal=True)])
def test_importances_are_not_told_from_too_few_trials_or_equal_scores(study):
    assert hyperparameter_importances(study) == {}
