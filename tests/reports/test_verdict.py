"""The choice follows its rule, and the sentences say what is known, on scores and tables of known truth."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from reports import build_report, load_comparison, stats
from reports.power import power, required
from reports.stats import Components, SeedScores
from reports.tables import comparison_table
from reports.verdict import Rule, Verdict, judge, judge_comparison
from tests.reports.conftest import KNOWN

COLUMNS = {"total_params": 1e7, "trainable_pct": 1.0, "train_seconds": 20.0, "peak_memory_mb": 900.0, "seeds": 3.0}


def strategy(wrong: int, items: int = 1000, noise: int = 4, seeds: int = 3, start: int = 0) -> SeedScores:
    """Wrong on about the same items in every seed: ``wrong`` of them, and ``noise`` others that differ by seed."""
    correct = np.ones((items, seeds))
    correct[start : start + wrong] = 0
    for seed in range(seeds):
        correct[items - noise * (seed + 1) : items - noise * seed, seed] = 0
    table = pd.DataFrame(correct, index=[f"i{i}" for i in range(items)])
    return SeedScores(table.mean(), table, None, items)


def decide(scores: dict[str, tuple[float, SeedScores]], rule: Rule | None = None, **more: object) -> Verdict:
    """Judge strategies that are given with their parameters, the fewest first."""
    rows = []
    for label, (size, score) in scores.items():
        interval = stats.accuracy_interval(score)
        rows.append(
            {"strategy": label, "kind": "strategy", "trainable_params": size, **COLUMNS}
            | {"seeds": len(score.accuracies), "test_accuracy": interval.mean}
            | {"test_accuracy_low": interval.low, "test_accuracy_high": interval.high}
        )
    floors = more.pop("floors", {})
    for name, score in floors.items():
        rows.append({"strategy": name, "kind": "floor", "test_accuracy": score.accuracies.mean()})
    return judge(pd.DataFrame(rows), {k: v for k, (_, v) in scores.items()}, floors, rule=rule, **more)


def test_within_delta_is_chosen_though_it_is_shown_to_be_a_little_worse():
    scores = {"small": (770, strategy(106, 20_000)), "large": (1e6, strategy(20, 20_000))}
    verdict = decide(scores)
    gap = verdict.differences["small"]
    assert gap.tie is False and gap.low > -0.01  # worse by 0.4 points, and surely by less than one
    assert (verdict.chosen, verdict.best, verdict.shown) == ("small", "large", True)
    assert "shown to be within 1 point of it" in verdict.summary
    assert decide(scores, Rule(delta=0.001)).chosen == "large"


def test_what_costs_accuracy_is_not_chosen_and_its_cost_is_said():
    verdict = decide({"small": (770, strategy(150)), "large": (1e6, strategy(100))})
    assert verdict.chosen == "large" and verdict.differences["small"].p_value < 0.05
    assert "small costs 5.0 points [" in verdict.summary


def test_ignorance_alone_does_not_make_the_smallest_win():
    """Of 60 items nobody can tell 10 points apart; the smallest is behind by more than delta and is not chosen."""
    scores = {"small": (770, strategy(12, 60, 2, start=8)), "large": (1e6, strategy(6, 60, 2))}
    verdict = decide(scores)
    assert verdict.differences["small"].tie
    assert (verdict.chosen, verdict.undecided) == ("large", "small")
    assert "The smaller small measured 10.0 points less than large, which chance could explain too" in verdict.summary
    assert verdict.requirement.difference == 0.01  # not the 10 points that chance may have made
    assert "To find a true difference of 1 point between small and large" in verdict.summary


def test_the_smallest_of_what_cannot_be_told_apart_is_chosen_and_said_so():
    verdict = decide({"small": (770, strategy(30, 300, start=10)), "large": (1e6, strategy(29, 300))})
    assert (verdict.chosen, verdict.best, verdict.shown, verdict.undecided) == ("small", "large", False, "small")
    assert "the two cannot be told apart" in verdict.summary
    worst = -100 * verdict.differences["small"].low
    assert f"small, which may be up to {worst:.1f} points worse, is the smallest that measured" in verdict.summary
    assert verdict.requirement is not None and verdict.requirement.more_items
    assert "because the test split is too small: about" in verdict.summary


def test_more_seeds_are_named_where_seeds_are_what_differs():
    """Enough items; the seeds of one strategy lie far apart."""
    steady = strategy(1000, 10_000)
    table = steady.correct.copy()
    for seed, extra in enumerate((0, 60, 250)):
        table.iloc[2000 : 2000 + extra, seed] = 0
    verdict = decide({"steady": (770, SeedScores(table.mean(), table, None, 10_000)), "other": (1e6, steady)})
    assert verdict.undecided == "steady" and not verdict.requirement.more_items
    assert 3 < verdict.requirement.seeds <= 50
    assert f"takes about {verdict.requirement.seeds} seeds instead of 3" in verdict.summary
    assert f"(final.seeds={verdict.requirement.seeds}, about " in verdict.summary  # and the time that it takes


def test_what_exceeds_a_budget_is_not_chosen_and_named():
    scores = {"small": (770, strategy(150)), "middle": (1e4, strategy(120)), "large": (1e6, strategy(100))}
    verdict = decide(scores, Rule(max_trainable_params=50_000))
    assert (verdict.chosen, verdict.best) == ("middle", "middle")
    assert verdict.over_budget == {"large": ("trainable_params",)} and "large" in verdict.differences
    assert (
        "Over the budget of 50 k trainable parameters, and not to be chosen: large; large is above middle by 0.02"
        in (verdict.summary)
    )


@pytest.mark.parametrize(
    ("rule", "closest"),
    [
        (Rule(max_trainable_params=700), "small, test accuracy 0.846 [0.8"),
        (Rule(max_train_seconds=10.0), "20 s of training, 2 times the budget"),
        (Rule(max_memory_mb=600.0), "900 MB of memory, 1.5 times the budget"),
    ],
)
def test_where_nothing_fits_the_closest_is_named(rule, closest):
    verdict = decide({"small": (770, strategy(150)), "large": (1e6, strategy(100))}, rule)
    assert verdict.chosen is None and set(verdict.over_budget) == {"small", "large"}
    assert verdict.summary.startswith("Nothing can be chosen: no strategy fits the budget of")
    assert closest in verdict.summary


def test_eighteen_strategies_are_a_short_paragraph():
    scores = {f"s{i:02}": (10.0**3 * 1.5**i, strategy(200 - 12 * min(i, 9), start=i)) for i in range(18)}
    verdict = decide(scores)
    assert len(verdict.differences) == 17
    assert len(verdict.summary.split()) < 120
    assert "others cost" in verdict.summary and "others are indistinguishable" in verdict.summary


def test_one_seed_is_said_to_know_nothing_of_seeds():
    verdict = decide({"small": (770, strategy(30, 300, seeds=1, start=9)), "large": (1e6, strategy(29, 300, seeds=1))})
    assert "over one seed" in verdict.summary and "not how much another seed would change" in verdict.summary
    assert verdict.requirement is None and "raise final.seeds to 3" in verdict.summary


def test_collapsed_strategies_and_a_majority_that_is_not_beaten_are_pointed_out():
    right = (np.arange(1000) < 890).astype(float)[:, None]
    table = pd.DataFrame(right, index=[f"i{i}" for i in range(1000)])
    other = pd.DataFrame(np.roll(right, 5, axis=0), index=table.index)
    floors = {
        "majority": SeedScores(table.mean(), table, None, 1000, fixed=True),
        "tfidf_logreg": SeedScores(other.mean() + 0.001, None, None, 1000, fixed=True),
    }
    verdict = decide({"small": (770, strategy(100))}, floors=floors, collapsed={"small": (2, 3)})
    assert "**Collapsed**: small predicts one class only in 2 of 3 finals." in verdict.summary
    assert "not shown to be better than always naming the majority class" in verdict.summary


def test_where_nothing_beats_the_floor_that_comes_first():
    scores = {"small": (770, strategy(110)), "large": (1e6, strategy(104, start=20))}
    floor = {"majority": replace(strategy(108, seeds=1, start=1), fixed=True)}
    verdict = decide(scores, floors=floor)
    assert verdict.chosen == "small" and verdict.floor_difference.tie and not verdict.above_floor
    first, second = verdict.summary.split(". ")[:2]
    assert first.startswith("**No strategy is shown to beat the majority class floor**, 0.888")
    assert "label more examples, check the labels, or try another model" in first
    assert second.startswith("The choice would be **small**: test accuracy 0.8")
    assert "The choice is a tie with that floor (difference" in verdict.summary and "Train" not in verdict.summary
    alone = decide({"small": scores["small"]}, floors=floor)
    assert alone.summary.startswith("**small is not shown to beat the majority class floor**")
    budget = decide(scores | {"huge": (1e9, strategy(20))}, Rule(max_trainable_params=1e7), floors=floor)
    assert budget.summary.startswith("**No strategy within the budget is shown to beat")


def test_a_choice_that_ties_with_the_floor_names_what_is_above_it():
    scores = {"small": (770, strategy(107, 20_000)), "large": (1e6, strategy(20, 20_000))}
    verdict = decide(scores, floors={"majority": replace(strategy(110, 20_000, seeds=1), fixed=True)})
    assert (verdict.chosen, verdict.above_floor) == ("small", ("large",))
    assert verdict.summary.startswith("Train **small**")
    assert "The choice is a tie with the majority class floor" in verdict.summary
    assert "; shown to be above it: large." in verdict.summary


def test_power_grows_with_seeds_items_and_difference_and_shrinks_with_comparisons():
    seen = Components(seeds=1e-4, items=0.05, residual=0.05, n_seeds=3, n_items=1000, n_groups=1000)
    base = power(seen, 0.03)
    assert 0.05 < base < power(seen, 0.03, n_seeds=6) < power(seen, 0.03, n_seeds=6, n_items=4000) < 1
    assert power(seen, 0.02) < base and power(seen, 0.03, compared=6) < base
    assert power(seen, 0.0) == pytest.approx(0.025, abs=0.001)
    assert all(power(seen, 0.5, n_seeds=n, n_items=10**6) > 0.99 for n in range(3, 50))
    assert required(seen, 0.1, confidence=0.99).items < 5000
    needed = required(seen, 0.03)
    assert power(seen, 0.03, n_seeds=needed.seeds) >= 0.8 > power(seen, 0.03, n_seeds=needed.seeds - 1)
    assert required(seen, 1e-6).seeds is None


def test_a_final_that_predicts_one_class_only_is_found_in_its_predictions(uri):
    loaded = load_comparison(uri, KNOWN)
    runs = loaded.finals(loaded.studies.set_index("label").loc["lora", "study"])["run_id"]
    constant = {run: loaded.predictions[run].assign(prediction="fresh") for run in runs[:1]}
    loaded = replace(loaded, predictions=loaded.predictions | constant)
    verdict = judge_comparison(loaded, comparison_table(loaded))
    assert "**Collapsed**: lora predicts one class only in 1 of 3 finals." in verdict.summary


def test_budgets_reach_the_report(uri, tmp_path):
    report = build_report(uri, reports_dir=tmp_path, comparison=KNOWN, rule=Rule(max_trainable_params=1000))
    assert report.summary.startswith("Train **frozen**")
    row = next(line for line in report.path.read_text().splitlines() if line.startswith("| lora"))
    assert "over budget" in row
    report = build_report(uri, reports_dir=tmp_path, comparison=KNOWN, rule=Rule(max_trainable_params=100))
    assert (
        "The closest is frozen" in report.summary
        and report.path.with_name("accuracy_vs_parameters.svg") in report.files
    )
