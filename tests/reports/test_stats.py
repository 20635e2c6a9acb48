"""The intervals hold what they promise on scores whose truth is known."""

from __future__ import annotations

import math
import time

import numpy as np
import pandas as pd
import pytest

from reports import stats
from reports.stats import SeedScores
from sweeper.errors import ConfigError


def draw(rng: np.random.Generator, easy: np.ndarray, shift: float, n_seeds: int) -> np.ndarray:
    """(items, seeds) of 0/1: an item is right when its easiness, the seed's luck and noise add up to more than 0."""
    luck = rng.normal(0, 0.05, n_seeds)
    return (easy[:, None] + shift + luck + rng.normal(0, 0.7, (len(easy), n_seeds)) > 0).astype(float)


def scores(correct: np.ndarray, seeds: range | None = None, groups: list[str] | None = None) -> SeedScores:
    items = [f"i{i}" for i in range(len(correct))]
    table = pd.DataFrame(correct, index=items, columns=list(seeds or range(correct.shape[1])))
    return SeedScores(table.mean(), table, None if groups is None else pd.Series(groups, items), len(items))


def test_equal_strategies_are_called_ties_about_as_often_as_promised():
    rng = np.random.default_rng(0)
    ties = 0
    for _ in range(100):
        easy = rng.normal(1, 2, 600)
        first, second = (scores(draw(rng, easy, 0.0, 3)) for _ in range(2))
        ties += bool(stats.paired_difference(first, second).tie)
    assert 90 <= ties <= 100


def test_interval_covers_the_true_accuracy_about_as_often_as_promised():
    rng = np.random.default_rng(1)
    truth = 0.5 * (1 + math.erf(1 / math.sqrt(4 + 0.05**2 + 0.7**2) / math.sqrt(2)))
    covered = 0
    for _ in range(100):
        interval = stats.accuracy_interval(scores(draw(rng, rng.normal(1, 2, 600), 0.0, 3)))
        covered += interval.low <= truth <= interval.high
    assert 88 <= covered <= 100


def test_known_difference_is_found_with_the_right_sign():
    rng = np.random.default_rng(2)
    easy = rng.normal(1, 2, 2000)
    better, worse = scores(draw(rng, easy, 0.5, 3)), scores(draw(rng, easy, 0.0, 3))
    gap = stats.paired_difference(better, worse)
    assert gap.tie is False and gap.low > 0
    assert gap.mean == pytest.approx(better.accuracies.mean() - worse.accuracies.mean())
    back = stats.paired_difference(worse, better)
    assert back.high < 0


def test_pairing_by_item_finds_what_the_intervals_alone_would_hide():
    """Two strategies that fail on the same hard items: their intervals overlap, their difference is still clear."""
    first = np.tile((np.arange(1000) < 800).astype(float)[:, None], (1, 3))
    second = first.copy()
    second[780:800] = 0  # 2 points worse, on 20 items
    a, b = scores(first), scores(second)
    assert stats.accuracy_interval(b).high > stats.accuracy_interval(a).low
    assert stats.paired_difference(a, b).tie is False


def test_groups_widen_the_interval_when_items_of_a_group_agree():
    block = (np.random.default_rng(3).random(50) < 0.7).astype(float)
    correct = np.repeat(block, 20)[:, None]
    groups = [f"film {i // 20}" for i in range(1000)]
    alone, together = stats.accuracy_interval(scores(correct)), stats.accuracy_interval(scores(correct, groups=groups))
    assert together.high - together.low > 3 * (alone.high - alone.low)


def test_spread_between_seeds_widens_the_interval():
    same = np.tile((np.arange(1000) < 800).astype(float)[:, None], (1, 3))
    spread = np.column_stack([np.arange(1000) < limit for limit in (700, 800, 900)]).astype(float)
    narrow, wide = stats.accuracy_interval(scores(same)), stats.accuracy_interval(scores(spread))
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)


def test_fast_enough_and_repeatable():
    rng = np.random.default_rng(4)
    easy = rng.normal(1, 2, 2500)
    four = [scores(draw(rng, easy, 0.1 * k, 5)) for k in range(4)]
    started = time.perf_counter()
    first = [stats.accuracy_interval(s) for s in four] + [stats.paired_difference(s, four[0]) for s in four[1:]]
    assert time.perf_counter() - started < 5  # 0.5 s on two idle cores
    assert first[:4] == [stats.accuracy_interval(s) for s in four]


def test_without_predictions_the_interval_falls_back_step_by_step():
    seeds = SeedScores(pd.Series([0.80, 0.82, 0.81], index=[1, 2, 3]))
    assert stats.accuracy_interval(seeds).method == stats.METHOD_T
    assert stats.accuracy_interval(seeds).low == pytest.approx(0.81 - 4.302653 * 0.01 / math.sqrt(3), abs=1e-6)
    one = SeedScores(pd.Series([0.8], index=[1]), test_size=100)
    wilson = stats.accuracy_interval(one)
    assert wilson.method == stats.METHOD_SCORE
    assert (wilson.low, wilson.high) == pytest.approx((0.7112, 0.8666), abs=1e-4)
    bare = stats.accuracy_interval(SeedScores(pd.Series([0.8], index=[1])))
    assert (bare.mean, bare.method) == (0.8, stats.METHOD_NONE) and math.isnan(bare.low)
    assert math.isnan(stats.accuracy_interval(SeedScores(pd.Series([], dtype=float))).mean)


def test_difference_without_predictions_pairs_the_common_seeds():
    first = SeedScores(pd.Series([0.80, 0.82, 0.81, 0.99], index=[1, 2, 3, 9]))
    second = SeedScores(pd.Series([0.70, 0.719, 0.711], index=[1, 2, 3]))
    gap = stats.paired_difference(first, second)
    assert gap.method == stats.METHOD_T and gap.mean == pytest.approx(0.1, abs=1e-6) and gap.tie is False
    apart = stats.paired_difference(
        SeedScores(pd.Series([0.8], index=[1]), test_size=100), SeedScores(pd.Series([0.78], index=[2]), test_size=100)
    )
    assert apart.method == stats.METHOD_SCORE and apart.tie is True
    unknown = stats.paired_difference(SeedScores(pd.Series([0.8], index=[1])), SeedScores(pd.Series([0.7], index=[1])))
    assert unknown.tie is None


def test_perfect_scores_are_not_called_certain():
    interval = stats.accuracy_interval(scores(np.ones((100, 3))))
    assert interval.method == stats.METHOD_SCORE and 0.95 < interval.low < 0.98


def test_floor_is_compared_with_every_seed():
    right = (np.arange(1000) < 800).astype(float)
    strategy = scores(np.tile(right[:, None], (1, 3)), seeds=range(1000, 1003))
    floor = scores((np.arange(1000) < 700).astype(float)[:, None])
    floor = SeedScores(floor.accuracies, floor.correct, fixed=True)
    gap = stats.paired_difference(strategy, floor)
    assert gap.mean == pytest.approx(0.1) and gap.tie is False
    assert stats.paired_difference(floor, strategy).mean == pytest.approx(-0.1)


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95.0, -1.0])
def test_impossible_confidence_is_refused(confidence):
    with pytest.raises(ConfigError, match="between 0 and 1"):
        stats.accuracy_interval(SeedScores(pd.Series([0.8], index=[1]), test_size=9), confidence=confidence)


def test_predictions_that_contradict_the_logged_accuracy_are_not_used():
    runs = pd.DataFrame({"run_id": ["a"], "seed": [1], "test_accuracy": [0.9], "test_size": [2]})
    table = pd.DataFrame({"item": ["1", "2"], "group": "", "label": ["x", "y"], "prediction": ["x", "x"]})
    assert stats.seed_scores(runs, {"a": table}).correct is None
    runs["test_accuracy"] = 0.5
    assert stats.seed_scores(runs, {"a": table}).correct is not None


def test_an_accuracy_stays_between_0_and_1() -> None:
    correct = np.ones((24, 2))
    correct[:2, 0] = 0  # the seeds differ, and their spread is scaled up
    items = pd.DataFrame(correct)
    scores = stats.SeedScores(items.mean(), items, None, 24, False)
    interval = stats.accuracy_interval(scores)
    assert 0 < interval.low < interval.mean < interval.high < 1


def test_more_strategies_widen_intervals_and_p_values_agree_with_ties() -> None:
    rng = np.random.default_rng(5)
    easy = rng.normal(1, 2, 400)
    drawn = {f"s{k}": scores(draw(rng, easy, 0.06 * k, 3)) for k in range(6)}
    shared = stats.pool(drawn)
    assert shared.compared == 6 and shared.seed_variance > 0
    ties = set()
    for label in list(drawn)[1:]:
        alone = stats.paired_difference(drawn[label], drawn["s0"])
        together = stats.paired_difference(drawn[label], drawn["s0"], pool=stats.Pool(compared=6))
        pooled = stats.paired_difference(drawn[label], drawn["s0"], pool=shared)
        assert together.low < alone.low < alone.mean < alone.high < together.high
        assert together.p_value >= alone.p_value
        assert all((gap.p_value < 0.05) != gap.tie for gap in (alone, together, pooled))
        ties |= {alone.tie, together.tie}
    assert ties == {True, False}


def test_three_seeds_that_differ_widen_a_difference_far_beyond_the_items() -> None:
    """Student's quantile with 2 degrees of freedom is 4.3, not 2."""
    steady = np.tile((np.arange(50_000) < 40_000).astype(float)[:, None], (1, 3))
    moved = np.column_stack([np.arange(50_000) < limit for limit in (39_000, 40_000, 41_000)]).astype(float)
    gap = stats.paired_difference(scores(moved), scores(steady))
    assert gap.high == pytest.approx(4.3 * 0.02 / math.sqrt(3), rel=0.05)


def moved(*wrong: int, items: int = 10_000, first: int = 1) -> SeedScores:
    """So many wrong answers in each seed, on the same items as far as they go."""
    return scores(
        np.column_stack([np.arange(items) >= count for count in wrong]).astype(float), range(first, 9)[: len(wrong)]
    )


def test_a_pair_whose_seeds_differ_more_than_the_others_has_its_own_degrees_of_freedom() -> None:
    """Seven steady strategies say nothing about how well the spread of the eighth is known."""
    drawn = {f"s{k}": moved(2000, 2010 + k, 2005) for k in range(7)} | {"unstable": moved(1600, 2000, 2400)}
    shared = stats.pool(drawn)
    assert (shared.compared, shared.degrees) == (8, 14)
    assert stats.difference_components(drawn["unstable"], drawn["s0"], shared).seed_degrees == 2
    assert stats.difference_components(drawn["s1"], drawn["s0"], shared).seed_degrees == 14


def test_a_strategy_with_one_final_leaves_the_others_their_pool_and_takes_its_spread_from_it() -> None:
    full = {"a": moved(2000, 2300, 2600), "b": moved(2500, 2200, 2000), "c": moved(2100, 2050, 2500)}
    one = moved(2200)
    shared, with_one = stats.pool(full), stats.pool({"one": one, **full})
    assert (with_one.seed_variance, with_one.degrees) == (shared.seed_variance, shared.degrees) and shared.degrees == 4
    assert with_one.compared == 4
    alone = stats.paired_difference(one, full["a"])
    pooled = stats.paired_difference(one, full["a"], pool=with_one)
    assert alone.tie is False and pooled.tie is True
    spread = math.sqrt(shared.seed_variance)
    assert pooled.high - pooled.mean == pytest.approx(stats.critical_value(0.95, 4, 4) * spread, rel=0.05)


def test_a_floor_is_held_against_the_spread_of_all_strategies() -> None:
    """Seeds that happen to agree do not make one strategy certain."""
    drawn = {"agrees": moved(2000, 2000, 2000), "a": moved(2000, 2300, 2600), "b": moved(2500, 2200, 2000)}
    shared = stats.pool(drawn).with_floor()
    assert (shared.compared, shared.degrees) == (2, 4)
    floor = moved(2150)
    floor = SeedScores(floor.accuracies, floor.correct, fixed=True)
    assert stats.paired_difference(drawn["agrees"], floor).tie is False
    assert stats.paired_difference(drawn["agrees"], floor, pool=shared).tie is True


def test_strategies_that_agree_everywhere_are_not_certain_to_agree_elsewhere() -> None:
    same = scores(np.tile((np.arange(20) < 15).astype(float)[:, None], (1, 3)))
    gap = stats.paired_difference(same, same)
    assert gap.tie and gap.high > 0.05
