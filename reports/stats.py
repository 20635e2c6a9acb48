"""How sure a report is: intervals of test accuracy, and of differences between two strategies.

The seeds of a strategy are all scored on the same test items, so seeds and items are crossed. Both are resampled, and
what is paired stays paired: two strategies are compared on the same items and the same seeds. Everything here is a
plain function of arrays or tables; nothing knows MLflow.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from sweeper import schema
from sweeper.errors import ConfigError

__all__ = [
    "METHOD_BOOTSTRAP",
    "METHOD_NONE",
    "METHOD_SCORE",
    "METHOD_T",
    "Interval",
    "SeedScores",
    "accuracy_interval",
    "bootstrap_mean",
    "paired_difference",
    "seed_scores",
    "t_interval",
    "wilson_interval",
]

METHOD_BOOTSTRAP = "bootstrap"  # seeds and test items (or groups of items)
METHOD_T = "t"  # seeds only
METHOD_SCORE = "score"  # test items only: Wilson, or Newcombe for a difference
METHOD_NONE = "none"

_RESAMPLES = 2000
_MOST_CELLS = 10_000_000  # of one block of resampling weights: 80 MB
_AGREEMENT = 2e-3  # how far logged accuracy and logged predictions may lie apart


@dataclass(frozen=True)
class Interval:
    """A mean with its confidence interval, as fractions; NaN bounds where ``method`` is ``none``.

    For a difference, ``tie`` says whether zero lies inside; without bounds nothing can be said and it is ``None``.
    """

    mean: float
    low: float
    high: float
    method: str

    @property
    def tie(self) -> bool | None:
        """Whether zero is inside the interval (its ends included)."""
        return None if math.isnan(self.low) or math.isnan(self.high) else self.low <= 0.0 <= self.high


@dataclass(frozen=True)
class SeedScores:
    """The test scores of one strategy (or floor).

    Attributes:
        accuracies: seed -> test accuracy.
        correct: (items, seeds) of 0 and 1, or ``None`` when predictions are missing for some seed.
        groups: item -> group for items that belong together (all lines about one film), else ``None``.
        test_size: items in the test split, if known.
        fixed: scored once and without a seed (a floor): it is compared with every seed of the other side.
    """

    accuracies: pd.Series
    correct: pd.DataFrame | None = None
    groups: pd.Series | None = None
    test_size: int | None = None
    fixed: bool = False


def seed_scores(runs: pd.DataFrame, predictions: Mapping[str, pd.DataFrame], *, fixed: bool = False) -> SeedScores:
    """Collect the scores of one strategy's counted finals, or of one floor.

    Predictions are used when every run has them, for the items that all of them share, and only if they give the
    accuracy that was logged; otherwise ``correct`` is ``None``.

    Args:
        runs: rows with ``run_id``, ``seed``, ``test_accuracy``, ``test_size``.
        predictions: run id -> columns ``item``, ``group``, ``label``, ``prediction``.
        fixed: whether the runs are a floor.
    """
    accuracies = pd.Series(
        runs[schema.TEST_ACCURACY].to_numpy(float),
        index=[-1] * len(runs) if fixed else runs[schema.PARAM_SEED].fillna(-1).astype(int),
    )
    sizes = pd.to_numeric(runs[schema.PARAM_TEST_SIZE], errors="coerce").dropna()
    test_size = int(sizes.iloc[0]) if len(sizes) else None
    tables = [predictions[run_id].set_index("item") for run_id in runs["run_id"] if run_id in predictions]
    if not tables or len(tables) != len(runs):
        return SeedScores(accuracies, test_size=test_size, fixed=fixed)
    hits = [(table["label"] == table["prediction"]).astype(float) for table in tables]
    if any(abs(hit.mean() - logged) > _AGREEMENT for hit, logged in zip(hits, accuracies, strict=True)):
        return SeedScores(accuracies, test_size=test_size, fixed=fixed)
    correct = pd.concat(hits, axis=1, join="inner", keys=list(accuracies.index))
    if correct.empty:
        return SeedScores(accuracies, test_size=test_size, fixed=fixed)
    groups = tables[0]["group"].reindex(correct.index)
    grouped = bool((groups != "").all()) and groups.nunique() > 1
    return SeedScores(accuracies, correct, groups if grouped else None, len(correct), fixed)


def bootstrap_mean(
    values: np.ndarray,
    groups: np.ndarray | None = None,
    *,
    confidence: float = 0.95,
    n_resamples: int = _RESAMPLES,
    seed: int = 0,
    bounds: tuple[float, float] = (-math.inf, math.inf),
) -> Interval:
    """Percentile interval of the mean of ``values`` over seeds and test items, both resampled.

    Each resample draws items (whole groups, if given) and, independently, seeds, with replacement: the crossed
    two-level bootstrap of McCullagh (2000), "Resampling and exchangeable arrays", and Owen (2007), "The pigeonhole
    bootstrap", which is mildly conservative; for hierarchical resampling and percentile limits in general see Davison &
    Hinkley (1997), section 3.8, and Efron & Tibshirani (1993), chapter 13. Resampled seeds vary too little by a
    factor of (n - 1) / n, and n is small here: their deviations are scaled by sqrt(n / (n - 1)). Even so, with
    three seeds the spread between seeds is itself known only roughly. With one seed the interval speaks of the
    test items alone.

    Args:
        values: (items, seeds): correctness as 0 and 1, or differences of correctness.
        groups: (items,) labels of what is drawn together; ``None`` draws single items.
        confidence: e.g. 0.95.
        n_resamples: number of resamples.
        seed: of the random generator; equal input gives equal limits.
        bounds: what a mean can be; scaled deviations may pass them.

    Raises:
        ConfigError: ``confidence`` is not between 0 and 1.
        ValueError: ``values`` has no item or no seed.
    """
    _check(confidence)
    values = np.asarray(values, dtype=float)
    if values.ndim != 2 or not values.size:
        raise ValueError(f"values must be (items, seeds) and not empty, got shape {values.shape}")
    n_seeds = values.shape[1]
    rows = np.column_stack([values, np.ones(len(values))])  # sums over each seed, and the number of items
    if groups is not None:
        _, member = np.unique(np.asarray(groups).astype(str), return_inverse=True)
        totals = np.zeros((member.max() + 1, n_seeds + 1))
        np.add.at(totals, member, rows)
        rows = totals
    # Items with equal outcomes are interchangeable: drawing how often each outcome occurs is the same bootstrap.
    n_units = len(rows)
    rows, multiplicity = np.unique(rows, axis=0, return_counts=True)
    rng = np.random.default_rng(seed)
    means = np.empty((n_resamples, n_seeds))
    block = max(1, _MOST_CELLS // len(rows))
    for start in range(0, n_resamples, block):
        stop = min(n_resamples, start + block)
        drawn = rng.multinomial(n_units, multiplicity / n_units, size=stop - start) @ rows
        means[start:stop] = drawn[:, :-1] / drawn[:, -1:]
    resampled = means.mean(axis=1)
    if n_seeds > 1:
        share = rng.multinomial(n_seeds, np.full(n_seeds, 1 / n_seeds), size=n_resamples) / n_seeds
        deviation = (share * means).sum(axis=1) - resampled
        resampled = resampled + math.sqrt(n_seeds / (n_seeds - 1)) * deviation
    low, high = np.quantile(resampled, [(1 - confidence) / 2, (1 + confidence) / 2]).clip(*bounds)
    return Interval(float(values.mean()), float(low), float(high), METHOD_BOOTSTRAP)


def t_interval(values: np.ndarray, *, confidence: float = 0.95) -> Interval:
    """Student's t interval of a mean over seeds; it does not know that the test split is a sample too.

    Fewer than two values, or values without any spread, give no bounds.

    Raises:
        ConfigError: ``confidence`` is not between 0 and 1.
    """
    _check(confidence)
    values = np.asarray(values, dtype=float)
    mean = float(values.mean()) if values.size else math.nan
    if values.size < 2 or np.ptp(values) == 0:
        return Interval(mean, math.nan, math.nan, METHOD_NONE)
    low, high = stats.t.interval(confidence, values.size - 1, loc=mean, scale=stats.sem(values))
    return Interval(mean, float(low), float(high), METHOD_T)


def wilson_interval(accuracy: float, n_items: int, *, confidence: float = 0.95) -> Interval:
    """Wilson's (1927) score interval of an accuracy on ``n_items`` test items; it knows nothing of seeds.

    Raises:
        ConfigError: ``confidence`` is not between 0 and 1.
    """
    _check(confidence)
    hits = min(n_items, max(0, round(accuracy * n_items)))
    bounds = stats.binomtest(hits, n_items).proportion_ci(confidence, method="wilson")
    return Interval(accuracy, float(bounds.low), float(bounds.high), METHOD_SCORE)


def accuracy_interval(scores: SeedScores, *, confidence: float = 0.95, seed: int = 0) -> Interval:
    """Mean test accuracy with the best interval that the logged scores allow.

    With predictions: the bootstrap over seeds and items. Without: Student's t over seeds; with one seed (or seeds that
    all agree) Wilson's interval over the test items. Wilson's as well when every prediction is right, or every one
    wrong, because resampling cannot then see any uncertainty. With nothing at all: NaN and method ``none``.

    Raises:
        ConfigError: ``confidence`` is not between 0 and 1.
    """
    _check(confidence)
    if scores.accuracies.empty:
        return Interval(math.nan, math.nan, math.nan, METHOD_NONE)
    mean = float(scores.accuracies.mean())
    if scores.correct is not None and 0.0 < mean < 1.0:
        groups = None if scores.groups is None else scores.groups.to_numpy()
        found = bootstrap_mean(scores.correct.to_numpy(), groups, confidence=confidence, seed=seed, bounds=(0, 1))
        return Interval(mean, found.low, found.high, found.method)
    over_seeds = t_interval(scores.accuracies.to_numpy(), confidence=confidence)
    if over_seeds.method != METHOD_NONE:
        return Interval(mean, max(0.0, over_seeds.low), min(1.0, over_seeds.high), METHOD_T)
    if scores.test_size:
        return wilson_interval(mean, scores.test_size, confidence=confidence)
    return over_seeds


def paired_difference(first: SeedScores, second: SeedScores, *, confidence: float = 0.95, seed: int = 0) -> Interval:
    """Accuracy of ``first`` minus that of ``second``, paired by seed and test item; ``.tie`` says if 0 is inside.

    With predictions on both sides: the bootstrap over common seeds and common items. Otherwise a paired t interval over
    at least two common seeds; otherwise Newcombe's (1998, method 10) score interval for two independent proportions,
    which is wide because it cannot pair; otherwise no bounds and no verdict. The limits are for this one pair: they
    are not corrected for the number of pairs looked at.

    Raises:
        ConfigError: ``confidence`` is not between 0 and 1.
    """
    _check(confidence)
    if first.accuracies.empty or second.accuracies.empty:
        return Interval(math.nan, math.nan, math.nan, METHOD_NONE)
    if first.fixed and not second.fixed:
        found = paired_difference(second, first, confidence=confidence, seed=seed)
        return Interval(-found.mean, -found.high, -found.low, found.method)
    if second.fixed:
        seeds = first.accuracies.index
        other = pd.Series(float(second.accuracies.iloc[0]), index=seeds)
    else:
        seeds = first.accuracies.index.intersection(second.accuracies.index)
        other = second.accuracies.reindex(seeds)
    if first.correct is not None and second.correct is not None and len(seeds):
        items = first.correct.index.intersection(second.correct.index)
        if len(items):
            left = first.correct.loc[items, list(seeds)].to_numpy()
            right = second.correct.loc[items].to_numpy() if second.fixed else second.correct.loc[items, list(seeds)]
            groups = None if first.groups is None else first.groups.reindex(items).to_numpy()
            return bootstrap_mean(left - np.asarray(right), groups, confidence=confidence, seed=seed, bounds=(-1, 1))
    differences = first.accuracies.reindex(seeds) - other
    paired = t_interval(differences.to_numpy(), confidence=confidence)
    if paired.method != METHOD_NONE:
        return paired
    mean = float(first.accuracies.mean() - second.accuracies.mean())
    if not first.test_size or not second.test_size:
        return Interval(mean, math.nan, math.nan, METHOD_NONE)
    a = wilson_interval(float(first.accuracies.mean()), first.test_size, confidence=confidence)
    b = wilson_interval(float(second.accuracies.mean()), second.test_size, confidence=confidence)
    low = mean - math.hypot(a.mean - a.low, b.high - b.mean)
    high = mean + math.hypot(a.high - a.mean, b.mean - b.low)
    return Interval(mean, low, high, METHOD_SCORE)


def _check(confidence: float) -> None:
    if not 0.0 < confidence < 1.0:
        raise ConfigError(f"confidence is {confidence}; allowed: between 0 and 1, e.g. 0.95")
