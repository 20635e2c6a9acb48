"""How sure a report is: intervals of test accuracy, and of differences between two strategies.

The seeds of a strategy are all scored on the same test items, so seeds and items are crossed, and both are samples: of
other seeds and of other items. What is paired stays paired: two strategies are compared on the same items and the same
seeds. Their difference is held against a standard error that counts both (:func:`crossed_components`) and a quantile
for all pairs of the strategies compared (:func:`paired_difference`). Everything here is a plain function of arrays or
tables; nothing knows MLflow. ``docs/statistics.md`` has the rates at which it errs on data of known truth.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import pandas as pd
from scipy import stats

from sweeper import schema
from sweeper.errors import ConfigError

__all__ = [
    "AGREEMENT",
    "METHOD_CROSSED",
    "METHOD_NONE",
    "METHOD_SCORE",
    "METHOD_T",
    "Components",
    "Interval",
    "Pool",
    "SeedScores",
    "accuracy_interval",
    "check_confidence",
    "critical_value",
    "crossed_components",
    "difference_components",
    "paired_difference",
    "pool",
    "rounded_degrees",
    "seed_scores",
    "t_interval",
    "wilson_interval",
]

METHOD_CROSSED = "crossed"  # seeds and test items (or groups of items)
METHOD_T = "t"  # seeds only
METHOD_SCORE = "score"  # test items only: Wilson, or Newcombe for a difference
METHOD_NONE = "none"

AGREEMENT = 2e-3  # how far logged accuracy and logged predictions may lie apart


@dataclass(frozen=True)
class Interval:
    """A mean with its confidence interval, as fractions; NaN bounds where ``method`` is ``none``.

    For a difference, ``tie`` says whether zero lies inside; without bounds nothing can be said and it is ``None``.
    ``p_value`` is that of the test which the interval inverts, corrected as the interval is, so that it is below
    1 - confidence where there is no tie. NaN of an accuracy, and of a difference between two single scores.
    """

    mean: float
    low: float
    high: float
    method: str
    p_value: float = math.nan

    @property
    def tie(self) -> bool | None:
        """Whether zero is inside the interval (its ends included)."""
        return None if math.isnan(self.low) or math.isnan(self.high) else self.low <= 0.0 <= self.high


@dataclass(frozen=True)
class Components:
    """Where the uncertainty of a mean over crossed seeds and test items comes from.

    Attributes:
        seeds: variance between seeds, on infinitely many items.
        items: variance between items, over infinitely many seeds. Items that lie in groups: so much per item that
            ``items / n_items`` is the variance of their mean.
        residual: variance of a single item of a single seed that neither explains.
        n_seeds: seeds that were seen.
        n_items: items that were seen.
        n_groups: groups of these items, as many as items where there are none.
        degrees: of freedom of ``seeds``; ``None`` where it was estimated from these seeds alone, n_seeds - 1.
    """

    seeds: float
    items: float
    residual: float
    n_seeds: int
    n_items: int
    n_groups: int
    degrees: float | None = None

    @property
    def seed_degrees(self) -> float:
        """Degrees of freedom of ``seeds``; 0 where nothing is known of it."""
        return self.n_seeds - 1.0 if self.degrees is None else self.degrees

    def variance(self, n_seeds: int | None = None, n_items: int | None = None) -> tuple[float, float]:
        """Variance of the mean, and its degrees of freedom, with the seen or other numbers of seeds and items.

        The degrees of freedom are Satterthwaite's: those of the part that seeds contribute, ``seed_degrees`` (more with
        more seeds), and of the items' part, groups - 1, each by its weight. One seed alone says nothing about seeds.
        """
        n_seeds, n_items = n_seeds or self.n_seeds, n_items or self.n_items
        by_items = self.items / n_items
        by_seeds = (self.seeds + self.residual / n_items) / n_seeds
        groups = max(2.0, self.n_groups * n_items / self.n_items)
        weights = by_items**2 / (groups - 1)
        if self.seed_degrees:
            weights += by_seeds**2 / (self.seed_degrees * max(1, n_seeds - 1) / max(1, self.n_seeds - 1))
        variance = by_items + by_seeds
        return variance, variance**2 / weights if weights else 1.0


@dataclass(frozen=True)
class Pool:
    """What the strategies of a comparison say together about the difference of any two of them.

    Attributes:
        compared: number of strategies; their pairs share one error rate.
        seed_variance: of a pair's difference between seeds, over all strategies; 0 where it cannot be known.
        degrees: of freedom of ``seed_variance``.
    """

    compared: int = 2
    seed_variance: float = 0.0
    degrees: float = 0.0

    def with_floor(self) -> Pool:
        """For one strategy against a floor: a floor has no seeds, so that half of the variance is left."""
        return Pool(2, self.seed_variance / 2, self.degrees)


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
    if any(abs(hit.mean() - logged) > AGREEMENT for hit, logged in zip(hits, accuracies, strict=True)):
        return SeedScores(accuracies, test_size=test_size, fixed=fixed)
    correct = pd.concat(hits, axis=1, join="inner", keys=list(accuracies.index))
    if correct.empty:
        return SeedScores(accuracies, test_size=test_size, fixed=fixed)
    groups = tables[0]["group"].reindex(correct.index)
    grouped = bool((groups != "").all()) and groups.nunique() > 1
    return SeedScores(accuracies, correct, groups if grouped else None, len(correct), fixed)


_PAIR = Pool()


def crossed_components(values: np.ndarray, groups: np.ndarray | None = None) -> Components:
    """Variance components of the mean of ``values`` over crossed seeds and test items, both random.

    The model is that of studies in which several readers judge the same cases: Obuchowski & Rockette (1995),
    Communications in Statistics 24(2), with Hillis' (2007, Statistics in Medicine 26:596) degrees of freedom; Gallas,
    Pennello & Myers (2007), JOSA A 24(12):B70, for binary outcomes; Obuchowski (1997), Biometrics 53:567, for items in
    groups. The covariance of the seeds' means over items (or groups) has the items' part off its diagonal, and residual
    on it; what the seeds' means vary beyond the residual is the seeds' part. A part that comes out negative is zero.

    McNemar's test, or resampling items, takes the seeds for the only ones there are; permuting the signs of three seeds
    has no p-value below 0.25; percentile limits of a bootstrap over seeds and items cover too rarely when a few
    seeds differ, because three seeds say little about their own spread (``benchmarks/simulation.py`` measures it).

    One pair of items that disagree is added, 1 / items^2 in the variance, after Agresti & Min (2005), Statistics in
    Medicine 24:729: strategies that agree on every item of a small split are not certain to agree elsewhere.

    Args:
        values: (items, seeds): correctness as 0 and 1, or differences of correctness.
        groups: (items,) labels of items that belong together, or ``None``.

    Raises:
        ValueError: ``values`` has no item or no seed.
    """
    values = np.asarray(values, dtype=float)
    if values.ndim != 2 or not values.size:
        raise ValueError(f"values must be (items, seeds) and not empty, got shape {values.shape}")
    n_items, n_seeds = values.shape
    means = values.mean(axis=0)
    parts = (values - means) / n_items  # what each item (or group) adds to the seeds' means, (units, seeds)
    if groups is not None:
        _, member = np.unique(np.asarray(groups).astype(str), return_inverse=True)
        parts = np.zeros((member.max() + 1, n_seeds))
        np.add.at(parts, member, (values - means) / n_items)
    n_groups = len(parts)
    covariance = parts.T @ parts * n_groups / max(1, n_groups - 1)
    own = float(np.trace(covariance)) / n_seeds
    shared = own if n_seeds == 1 else (float(covariance.sum()) / n_seeds - own) / (n_seeds - 1)
    shared = max(0.0, shared)
    residual = max(0.0, own - shared)
    between = float(means.var(ddof=1)) if n_seeds > 1 else 0.0
    return Components(
        seeds=max(0.0, between - residual),
        items=(shared + 1 / n_items**2) * n_items,
        residual=residual * n_items,
        n_seeds=n_seeds,
        n_items=n_items,
        n_groups=n_groups,
    )


def pool(scores: Mapping[str, SeedScores]) -> Pool:
    """Pool the spread between seeds over all strategies of a comparison, floors left out.

    It is twice the mean square of strategy by seed in the two-way analysis of variance (Obuchowski & Rockette 1995),
    over seeds in common. Strategies with few seeds are left out where that leaves more degrees of freedom: what one
    strategy lacks does not take the spread from the others. Of three seeds alone a pair has two degrees of freedom, and
    pairs whose seeds happen to agree would pass for certain. A pair's own spread is used where it is larger, with the
    degrees of freedom of the pair: strategies differ.
    """
    tested = [score.accuracies for score in scores.values() if not score.fixed and not score.accuracies.empty]
    if len(tested) < 2:
        return Pool()
    tested.sort(key=len, reverse=True)
    tables = [pd.concat(tested[:number], axis=1, join="inner").to_numpy() for number in range(2, len(tested) + 1)]
    table = max(tables, key=lambda table: (len(table) - 1) * (table.shape[1] - 1))
    if len(table) < 2:
        return Pool(len(tested))
    residual = table - table.mean(axis=0) - table.mean(axis=1, keepdims=True) + table.mean()
    degrees = (len(table) - 1) * (table.shape[1] - 1)
    return Pool(len(tested), 2 * float((residual**2).sum()) / degrees, degrees)


@lru_cache(maxsize=1024)
def critical_value(confidence: float, compared: int, degrees: float) -> float:
    """Standard errors on either side of a difference, so that all pairs of ``compared`` strategies hold at once.

    Quantile of the studentized range over the square root of 2; for two strategies Student's t. With pairs that have a
    variance and degrees of freedom of their own it is the procedure of Games & Howell (1976), Journal of Educational
    Statistics 1:113. All pairs count, although a report shows those with the best strategy, because
    the scores decide which one is the best.

    Args:
        confidence: e.g. 0.95, for all pairs together.
        compared: number of strategies, from 2.
        degrees: of freedom.
    """
    from scipy.optimize import brentq

    single = float(stats.t.ppf((1 + confidence) / 2, degrees))
    if compared <= 2:
        return single
    pairs = compared * (compared - 1) / 2
    most = float(stats.t.isf((1 - confidence) / 2 / pairs, degrees))  # Bonferroni's is wider
    # A root search is several times faster than `studentized_range.ppf`.
    found: float = brentq(
        lambda q: stats.studentized_range.sf(math.sqrt(2) * q, compared, degrees) - (1 - confidence),
        single,
        most,
        xtol=1e-3,
    )
    return found


def _p_value(mean: float, error: float, compared: int, degrees: float) -> float:
    """Of the test that :func:`critical_value` makes an interval of; no error at all is certain."""
    if error == 0:
        return 1.0 if mean == 0 else 0.0
    statistic = abs(mean) / error
    if compared <= 2:
        return float(2 * stats.t.sf(statistic, degrees))
    return float(stats.studentized_range.sf(math.sqrt(2) * statistic, compared, degrees))


def _around(mean: float, error: float, degrees: float, method: str, confidence: float, compared: int) -> Interval:
    """Interval of a difference with its p-value, within -1 and 1."""
    degrees = rounded_degrees(degrees)
    reach = critical_value(confidence, compared, degrees) * error
    p_value = _p_value(mean, error, compared, degrees)
    return Interval(mean, max(-1.0, mean - reach), min(1.0, mean + reach), method, p_value)


def rounded_degrees(degrees: float) -> float:
    """Degrees of freedom, their inverse up to the next half percent: quantiles take a while, and this many are enough.

    Quantiles are nearly linear in the inverse. Between 1 and 200; the quantile of 200 is half a percent above the last.
    """
    return 200 / math.ceil(max(1.0, 200 / max(1.0, degrees)) - 1e-9)


def t_interval(values: np.ndarray, *, confidence: float = 0.95) -> Interval:
    """Student's t interval of a mean over seeds; it does not know that the test split is a sample too.

    Fewer than two values, or values without any spread, give no bounds.

    Raises:
        ConfigError: ``confidence`` is not between 0 and 1.
    """
    check_confidence(confidence)
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
    check_confidence(confidence)
    hits = min(n_items, max(0, round(accuracy * n_items)))
    bounds = stats.binomtest(hits, n_items).proportion_ci(confidence, method="wilson")
    return Interval(accuracy, float(bounds.low), float(bounds.high), METHOD_SCORE)


def accuracy_interval(scores: SeedScores, *, confidence: float = 0.95) -> Interval:
    """Mean test accuracy with the best interval that the logged scores allow.

    With predictions: over seeds and items (:func:`crossed_components`), as Wilson's interval of so many items as would
    give the same variance, with Student's quantile (Franco et al. 2019, Journal of Survey Statistics and Methodology
    7:334, find it the best of those for proportions of complex samples); it stays between 0 and 1. Without: Student's
    t over seeds; with one seed (or seeds that all agree) Wilson's interval over the test items. Wilson's as
    well when every prediction is right, or every one wrong. With nothing at all: NaN and method ``none``. An accuracy
    stands for itself: its interval is not corrected for the number of strategies.

    Raises:
        ConfigError: ``confidence`` is not between 0 and 1.
    """
    check_confidence(confidence)
    if scores.accuracies.empty:
        return Interval(math.nan, math.nan, math.nan, METHOD_NONE)
    mean = float(scores.accuracies.mean())
    if scores.correct is not None and 0.0 < mean < 1.0:
        groups = None if scores.groups is None else scores.groups.to_numpy()
        variance, degrees = crossed_components(scores.correct.to_numpy(), groups).variance()
        low, high = _wilson(mean, mean * (1 - mean) / variance, critical_value(confidence, 2, degrees))
        return Interval(mean, low, high, METHOD_CROSSED)
    over_seeds = t_interval(scores.accuracies.to_numpy(), confidence=confidence)
    if over_seeds.method != METHOD_NONE:
        return Interval(mean, max(0.0, over_seeds.low), min(1.0, over_seeds.high), METHOD_T)
    if scores.test_size:
        return wilson_interval(mean, scores.test_size, confidence=confidence)
    return over_seeds


def _wilson(mean: float, n_items: float, quantile: float) -> tuple[float, float]:
    """Wilson's limits for any number of items and any quantile; scipy's are for whole counts and the normal one."""
    square = quantile**2
    middle = (mean + square / (2 * n_items)) / (1 + square / n_items)
    reach = quantile / (1 + square / n_items) * math.sqrt(mean * (1 - mean) / n_items + square / (4 * n_items**2))
    return max(0.0, middle - reach), min(1.0, middle + reach)


def paired_difference(
    first: SeedScores, second: SeedScores, *, confidence: float = 0.95, pool: Pool = _PAIR
) -> Interval:
    """Accuracy of ``first`` minus that of ``second``, paired by seed and test item; ``.tie`` says if 0 is inside.

    With predictions on both sides: a t interval over common seeds and common items (:func:`crossed_components`).
    Otherwise a paired t interval over at least two common seeds; otherwise Newcombe's (1998, method 10) score interval
    for two independent proportions, which is wide because it cannot pair; otherwise no bounds and no verdict.

    Args:
        first: one strategy.
        second: the other one, or a floor.
        confidence: that the intervals of all pairs hold.
        pool: of all strategies that are compared with each other (:func:`pool`); by default these two alone.

    Raises:
        ConfigError: ``confidence`` is not between 0 and 1.
    """
    check_confidence(confidence)
    if first.accuracies.empty or second.accuracies.empty:
        return Interval(math.nan, math.nan, math.nan, METHOD_NONE)
    components = difference_components(first, second, pool)
    if components is not None:
        paired = _paired(first, second)
        mean = float((_seed_differences(first, second) if paired is None else paired[0]).mean())
        variance, degrees = components.variance()
        method = METHOD_T if paired is None else METHOD_CROSSED
        return _around(mean, math.sqrt(variance), degrees, method, confidence, pool.compared)
    mean = float(first.accuracies.mean() - second.accuracies.mean())
    if not first.test_size or not second.test_size:
        return Interval(mean, math.nan, math.nan, METHOD_NONE)
    alone = 1 - 2 * float(stats.norm.sf(critical_value(confidence, pool.compared, rounded_degrees(math.inf))))
    a = wilson_interval(float(first.accuracies.mean()), first.test_size, confidence=alone)
    b = wilson_interval(float(second.accuracies.mean()), second.test_size, confidence=alone)
    low = mean - math.hypot(a.mean - a.low, b.high - b.mean)
    high = mean + math.hypot(a.high - a.mean, b.mean - b.low)
    return Interval(mean, low, high, METHOD_SCORE)


def difference_components(first: SeedScores, second: SeedScores, pool: Pool = _PAIR) -> Components | None:
    """Variance components of the paired difference of two strategies.

    Without predictions, those of the seeds alone; ``None`` where there are less than two seeds in common, or
    their differences do not vary.

    Args:
        first: one strategy.
        second: the other one, or a floor.
        pool: of all strategies that are compared.
    """
    paired = _paired(first, second)
    if paired is not None:
        found = crossed_components(*paired)
    else:
        differences = _seed_differences(first, second)
        if differences.size < 2 or np.ptp(differences) == 0:
            return None
        n_items = first.test_size or second.test_size or 1
        found = Components(float(differences.var(ddof=1)), 0.0, 0.0, differences.size, n_items, n_items)
    pooled = max(0.0, pool.seed_variance - found.residual / found.n_items)
    if pool.seed_variance == 0 or (found.n_seeds > 1 and found.seeds > pooled):
        return found
    return replace(found, seeds=pooled, degrees=pool.degrees)


def _paired(first: SeedScores, second: SeedScores) -> tuple[np.ndarray, np.ndarray | None] | None:
    """Differences of correctness, (common items, common seeds), and the items' groups, where predictions allow it."""
    seeds = _common_seeds(first, second)
    if first.correct is None or second.correct is None or not seeds:
        return None
    items = first.correct.index.intersection(second.correct.index)
    if not len(items):
        return None
    left, right = (
        # One column of a floor is held against every seed.
        side.correct.loc[items].to_numpy() if side.fixed else side.correct.loc[items, seeds].to_numpy()
        for side in (first, second)
        if side.correct is not None
    )
    groups = first.groups if first.groups is not None else second.groups
    return left - right, None if groups is None else groups.reindex(items).to_numpy()


def _seed_differences(first: SeedScores, second: SeedScores) -> np.ndarray:
    """Differences of accuracy, one for each common seed."""
    seeds = _common_seeds(first, second)
    left, right = (
        np.full(len(seeds), float(side.accuracies.iloc[0])) if side.fixed else side.accuracies.loc[seeds].to_numpy()
        for side in (first, second)
    )
    return np.asarray(left - right)


def _common_seeds(first: SeedScores, second: SeedScores) -> list[int]:
    if first.fixed or second.fixed:
        return list((second if first.fixed else first).accuracies.index)
    return list(first.accuracies.index.intersection(second.accuracies.index))


def check_confidence(confidence: float) -> None:
    """Raise ``ConfigError`` unless a confidence is between 0 and 1."""
    if not 0.0 < confidence < 1.0:
        raise ConfigError(f"confidence is {confidence}; allowed: between 0 and 1, e.g. 0.95")
