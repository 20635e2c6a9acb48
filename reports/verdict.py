"""The answer of a report: which strategy to choose, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace

import pandas as pd

from reports.formats import count, duration, escape, floor_name, joined, percent, score_interval, size
from reports.load import Comparison
from reports.power import MOST_ITEMS, MOST_SEEDS, POWER, Requirement, required
from reports.stats import Interval, Pool, SeedScores, difference_components, paired_difference, pool
from reports.tables import accounting_table, floor_scores, single_class_finals, strategy_scores
from sweeper import schema

__all__ = ["Rule", "Verdict", "judge", "judge_comparison"]

DEFAULT_CONFIDENCE = 0.95
_MOST_NAMES = 3  # in one sentence; more are counted


@dataclass(frozen=True)
class Rule:
    """What may be chosen: how much accuracy is not worth more parameters, and what training may take.

    Attributes:
        delta: of accuracy, as a fraction. 0.01, one point, by default: 20 items of a test split of 2,000, about as
            much as such a split can tell apart with three seeds; what is less does not decide over a deployment.
        max_trainable_params: of the stage that trains the most; ``None`` = no limit, as below.
        max_train_seconds: of one final.
        max_memory_mb: peak of a final.
    """

    delta: float = 0.01
    max_trainable_params: float | None = None
    max_train_seconds: float | None = None
    max_memory_mb: float | None = None

    def options(self, confidence: float) -> list[str]:
        """What a command that makes the same report is told of the rule, where it is not the default."""
        given = [(part.name, getattr(self, part.name), part.default) for part in fields(self)]
        given.append(("confidence", confidence, DEFAULT_CONFIDENCE))
        return [
            f"report.{name}={value:{'g' if value < 1e6 else '.0f'}}" for name, value, usual in given if value != usual
        ]

    def excess(self, row: pd.Series) -> dict[str, float]:
        """What is beyond its budget in a row of the comparison table: column -> how many times the budget.

        What was not recorded does not fit: infinity.
        """
        budgets = {
            schema.TRAINABLE_PARAMS: self.max_trainable_params,
            schema.TRAIN_SECONDS: self.max_train_seconds,
            schema.PEAK_MEMORY_MB: self.max_memory_mb,
        }
        used = {
            column: math.inf if pd.isna(row[column]) else float(row[column]) / budget
            for column, budget in budgets.items()
            if budget is not None
        }
        return {column: ratio for column, ratio in used.items() if ratio > 1}


@dataclass(frozen=True)
class Verdict:
    """Who wins.

    Attributes:
        chosen: the strategy to train (see :func:`judge`); ``None`` when nothing has a test score or fits the budgets.
        best: the strategy with the highest mean test accuracy of those that fit the budgets, of all if none does; or
            ``None``.
        differences: strategy -> its accuracy minus that of ``best``, for every other strategy with a score; all pairs
            hold at once.
        floor: the strongest floor's name, or ``None``.
        floor_difference: ``chosen`` minus that floor, or ``None``.
        above_floor: the strategies that fit the budgets and are shown to be above that floor; ``None`` without a floor,
            or without intervals that could show it.
        summary: the answer, a short paragraph of markdown.
        shown: whether ``chosen`` is the best or is shown to lie within delta of it.
        over_budget: strategy -> what is beyond its budget (columns of the comparison table).
        undecided: the smallest strategy, no larger than ``chosen``, that cannot be told apart from ``best``, or
            ``None``.
        requirement: what would tell these two apart, or ``None``.
    """

    chosen: str | None
    best: str | None
    differences: dict[str, Interval] = field(default_factory=dict)
    floor: str | None = None
    floor_difference: Interval | None = None
    above_floor: tuple[str, ...] | None = None
    summary: str = ""
    shown: bool = False
    over_budget: dict[str, tuple[str, ...]] = field(default_factory=dict)
    undecided: str | None = None
    requirement: Requirement | None = None

    @property
    def unproven(self) -> bool:
        """Whether there is a floor that nothing is shown to be above."""
        return self.above_floor == ()


def judge_comparison(
    comparison: Comparison, table: pd.DataFrame, confidence: float = 0.95, rule: Rule | None = None
) -> Verdict:
    """Choose a strategy of a comparison; ``table`` is its ``tables.comparison_table``.

    Raises:
        ConfigError: ``confidence`` is not between 0 and 1.
    """
    accounting = accounting_table(comparison)
    unequal = tuple(str(label) for label in accounting.loc[accounting["unequal"], "strategy"])
    return judge(
        table,
        strategy_scores(comparison),
        floor_scores(comparison),
        confidence,
        unequal,
        rule=rule,
        collapsed=_collapsed(comparison),
    )


def judge(
    table: pd.DataFrame,
    scores: dict[str, SeedScores],
    floors: dict[str, SeedScores],
    confidence: float = 0.95,
    unequal: tuple[str, ...] = (),
    *,
    rule: Rule | None = None,
    collapsed: Mapping[str, tuple[int, int]] | None = None,
) -> Verdict:
    """Choose the smallest strategy whose test accuracy is within delta of the best, given the uncertainty.

    The best is the highest mean of those that fit the budgets. Each strategy is held against it by an interval of the
    paired difference that holds for all pairs at once (:func:`reports.stats.paired_difference`); the one notion of a
    tie is that it contains zero. A strategy can be chosen if

    - its interval lies above -delta: it is *shown* to be within delta, also where it is shown to be worse by less. That
      is a test of non-inferiority with the margin delta (Blackwelder 1982, Controlled Clinical Trials 3:345); or
    - it is a tie *and* its mean is within delta of the best. Nothing better is known of it than this measurement, and
      the summary says so, with the number of seeds that would tell.

    Of these, the one with the fewest trainable parameters is chosen. A tie whose mean is further behind is not: else
    the smallest strategy would win the more easily the less was measured. What is shown to be worse and not shown to be
    within delta costs accuracy, and is not chosen however small it is. What exceeds a budget is never chosen, nor is it
    the best that others are held against.

    Args:
        table: of ``tables.comparison_table``.
        scores: strategy label -> test scores.
        floors: floor name -> test score.
        confidence: of the intervals.
        unequal: strategies whose budget of trials differs, named as a caution.
        rule: delta and budgets; one point and none by default.
        collapsed: strategy -> number of its finals that predict one class only, and of all of them.

    Raises:
        ConfigError: ``confidence`` is not between 0 and 1.
    """
    rule = rule or Rule()
    strategies = table[(table["kind"] == "strategy") & table["test_accuracy"].notna()]
    if strategies.empty:
        return Verdict(
            None,
            None,
            summary="Nothing can be chosen yet: no strategy of this comparison has a test score. "
            "The trial accounting below says why.",
        )
    rows = {str(row["strategy"]): row for _, row in strategies.iterrows()}
    over = {label: tuple(excess) for label, row in rows.items() if (excess := rule.excess(row))}
    fitting = [label for label in rows if label not in over]
    # Of equal scores the cheaper one is the best, and the table has the cheaper one first.
    best = max(fitting or rows, key=lambda label: rows[label]["test_accuracy"])
    shared = pool({label: scores[label] for label in rows})
    differences = {
        label: paired_difference(scores[label], scores[best], confidence=confidence, pool=shared)
        for label in rows
        if label != best
    }
    if not fitting:
        return Verdict(None, best, differences, summary=_none_fits(rows, rule), over_budget=over)

    chosen = next(label for label in fitting if label == best or _eligible(differences[label], rule.delta))
    shown = chosen == best or differences[chosen].low >= -rule.delta
    smaller = fitting[: fitting.index(chosen) + 1]
    undecided = next((label for label in smaller if label != best and _open(differences[label], rule.delta)), None)
    requirement = None
    if undecided is not None:
        requirement = _requirement(scores[undecided], scores[best], rule, shared, confidence)
    strongest = table[(table["kind"] == "floor") & table["test_accuracy"].notna()].sort_values("test_accuracy")
    floor = str(strongest["strategy"].iloc[-1]) if len(strongest) else None
    against: dict[str, Interval] = {}
    if floor is not None:
        other = shared.with_floor()
        against = {
            label: paired_difference(scores[label], floors[floor], confidence=confidence, pool=other)
            for label in fitting
        }
    known = {label: gap for label, gap in against.items() if gap.tie is not None}
    above = tuple(label for label, gap in known.items() if gap.low > 0) if known else None
    versus = against.get(chosen)

    verdict = Verdict(chosen, best, differences, floor, versus, above, "", shown, over, undecided, requirement)
    sentences = [
        _nothing_above(fitting, verdict, table),
        _choice(rows, verdict),
        _held_against_best(rows, verdict, rule),
        _ties(rows, verdict),
        _costs(verdict),
        _open_question(rows, verdict),
        _against_floor(verdict, table),
        _against_majority(verdict, scores, floors, confidence, shared),
        _collapses(rows, collapsed or {}),
        _over_budget(verdict, rule),
        _unequal([label for label in unequal if label in rows]) if differences else "",
    ]
    return replace(verdict, summary=" ".join(filter(None, sentences)))


def _eligible(gap: Interval, delta: float) -> bool:
    return gap.low >= -delta or (bool(gap.tie) and gap.mean >= -delta)


def _open(gap: Interval, delta: float) -> bool:
    """A tie of which it is not shown either that it lies within delta."""
    return bool(gap.tie) and gap.low < -delta


def _requirement(
    scores: SeedScores, best: SeedScores, rule: Rule, shared: Pool, confidence: float
) -> Requirement | None:
    """To find a true difference of delta, the least that decides.

    What was seen is no guide to the truth: of a tie it is mostly chance, and plans from it are too optimistic (Hoenig &
    Heisey 2001, The American Statistician 55:19).
    """
    components = difference_components(scores, best, shared)
    if components is None or not rule.delta:
        return None
    return required(components, rule.delta, confidence=confidence, compared=shared.compared)


def _collapsed(comparison: Comparison) -> dict[str, tuple[int, int]]:
    """Strategy -> how many of its counted finals predict one class only, and of how many; none is left out."""
    found = {}
    for _, study in comparison.studies.iterrows():
        single, read = single_class_finals(comparison, study["study"])
        if single:
            found[str(study["label"])] = (len(single), read)
    return found


# --- sentences ---------------------------------------------------------------------------------------------------


def _nothing_above(fitting: list[str], verdict: Verdict, table: pd.DataFrame) -> str:
    """What comes before any choice: none of them is shown to be worth its training, and what to do about it."""
    if verdict.floor is None or not verdict.unproven:
        return ""
    within = " within the budget" if verdict.over_budget else ""
    who = f"{escape(fitting[0])} is not" if len(fitting) == 1 else f"No strategy{within} is"
    return (
        f"**{who} shown to beat the {escape(floor_name(verdict.floor))} floor**, "
        f"{_floor_accuracy(verdict.floor, table)}: label more examples, check the labels, or try another model "
        "(model=...) first."
    )


def _choice(rows: Mapping[str, pd.Series], verdict: Verdict) -> str:
    """The choice with its accuracy and its size."""
    row = rows[str(verdict.chosen)]
    seeds = int(row["seeds"])
    number = f"{seeds} seeds" if seeds > 1 else "one seed"
    worth_it = verdict.above_floor is None or verdict.chosen in verdict.above_floor
    advice = "Train" if worth_it else "The choice would be"
    answer = f"{advice} **{escape(verdict.chosen)}**: test accuracy {_accuracy(row)} over {number}"
    if pd.notna(row["trainable_params"]):
        answer += f", with {count(row['trainable_params'])} trainable parameters"
        if pd.notna(row["total_params"]) and pd.notna(row["trainable_pct"]):
            answer += f" ({percent(row['trainable_pct'])} of {count(row['total_params'])})"
    if seeds > 1:
        return f"{answer}."
    return f"{answer}; its interval knows the test items alone, not how much another seed would change."


def _held_against_best(rows: Mapping[str, pd.Series], verdict: Verdict, rule: Rule) -> str:
    chosen, best = str(verdict.chosen), str(verdict.best)
    if chosen == best:
        return "No strategy scored higher." if len(rows) > 1 and not verdict.over_budget else ""
    gap = verdict.differences[chosen]
    difference = f"difference {score_interval(gap.mean, gap.low, gap.high, difference=True)}"
    answer = f"The highest score is that of {escape(best)}, {_accuracy(rows[best])}{_times(rows, best, chosen)}"
    if verdict.shown:
        tie = "a tie" if gap.tie else "behind"
        return f"{answer}; {escape(chosen)} is {tie}, shown to be within {_points(rule.delta)} of it ({difference})."
    return (
        f"{answer}; the two cannot be told apart ({difference}), and {escape(chosen)}, which may be up to "
        f"{_points(-gap.low)} worse, is the smallest that measured within {_points(rule.delta)} of it."
    )


def _ties(rows: Mapping[str, pd.Series], verdict: Verdict) -> str:
    """Those that are indistinguishable from the best, but for the chosen one and the one that is left open."""
    said = (verdict.chosen, verdict.undecided)
    ties = [label for label, gap in verdict.differences.items() if gap.tie and label not in said]
    ties = [label for label in ties if label not in verdict.over_budget]
    if not ties:
        return ""
    also = " too" if verdict.chosen != verdict.best else ""
    if len(ties) > _MOST_NAMES:
        sizes = [rows[label]["trainable_params"] for label in ties if pd.notna(rows[label]["trainable_params"])]
        span = f", with {count(min(sizes))} to {count(max(sizes))} parameters" if sizes else ""
        return f"{len(ties)} others are indistinguishable from it{also}{span}."
    named = [f"{escape(label)}{_times(rows, label, str(verdict.chosen))}" for label in ties]
    return f"Indistinguishable from it{also}: {joined(named)}."


def _costs(verdict: Verdict) -> str:
    """Those that are shown to be worse than the best, and those of which nothing is known."""
    behind = {label: gap for label, gap in verdict.differences.items() if gap.tie is False and label != verdict.chosen}
    behind = {label: gap for label, gap in behind.items() if gap.mean < 0 and label not in verdict.over_budget}
    against = f" against {escape(verdict.best)}" if verdict.chosen != verdict.best else ""
    sentences = []
    if len(behind) > _MOST_NAMES:
        losses = [-gap.mean for gap in behind.values()]
        least, most = min(losses), max(losses)
        sentences.append(f"{len(behind)} others cost {100 * least:.1f} to {_points(most)}{against}.")
    elif behind:
        costs = [
            f"{escape(label)} costs {_points(-gap.mean)} [{-100 * gap.high:.1f}, {-100 * gap.low:.1f}]"
            for label, gap in behind.items()
        ]
        sentences.append(f"{joined(costs)}{against}.")
    unknown = [escape(label) for label, gap in verdict.differences.items() if gap.tie is None]
    if unknown:
        sentences.append(f"Whether {_named(unknown)} {'is' if len(unknown) == 1 else 'are'} worse cannot be told.")
    return " ".join(sentences)


def _open_question(rows: Mapping[str, pd.Series], verdict: Verdict) -> str:
    """What cannot be told apart, and what would tell."""
    if verdict.undecided is None:
        return ""
    label, best, needed = verdict.undecided, str(verdict.best), verdict.requirement
    answer = ""
    if label != verdict.chosen:
        gap = verdict.differences[label]
        answer = (
            f"The smaller {escape(label)} measured {_points(-gap.mean)} less than {escape(best)}, "
            "which chance could explain too. "
        )
    if needed is None:
        if min(rows[label]["seeds"], rows[best]["seeds"]) < 2:
            return f"{answer}One seed does not say how many would tell: raise final.seeds to 3 first."
        return answer.strip()
    aim = f"To find a true difference of {_points(needed.difference)} between {escape(label)} and {escape(best)}"
    aim += f" ({100 * POWER:.0f} % power)"
    seen = f"{min(rows[label]['seeds'], rows[best]['seeds']):.0f}"
    if needed.seeds is None or needed.items is None:
        return f"{answer}{aim}, neither {MOST_SEEDS} seeds nor {MOST_ITEMS:,} test items would be enough."
    if not needed.more_items:
        more = (needed.seeds - float(seen)) * (rows[label]["train_seconds"] + rows[best]["train_seconds"])
        cost = f", about {duration(more)} more for the two at these times" if pd.notna(more) else ""
        return f"{answer}{aim} takes about {needed.seeds} seeds instead of {seen} (final.seeds={needed.seeds}{cost})."
    return (
        f"{answer}{aim}, {MOST_SEEDS} seeds would not do, because the test split is too small: "
        f"about {_rounded(needed.items):,} test items with {needed.seeds} seeds would."
    )


def _against_floor(verdict: Verdict, table: pd.DataFrame) -> str:
    floor, versus = verdict.floor, verdict.floor_difference
    if floor is None or versus is None:
        return ""
    shown = f"the {escape(floor_name(floor))} floor, {_floor_accuracy(floor, table)}"
    if verdict.unproven:
        shown = "that floor"  # the first sentence names it
    if versus.tie is None:
        return "" if verdict.unproven else f"For scale: {shown}."
    gap = score_interval(versus.mean, versus.low, versus.high, difference=True)
    others = [escape(label) for label in verdict.above_floor or () if label != verdict.chosen]
    also = f"; shown to be above it: {_named(others)}" if others and versus.low <= 0 else ""
    verb = "a tie with" if versus.tie else "above" if versus.mean > 0 else "**below**"
    return f"The choice is {verb} {shown} (difference {gap}){also}."


def _floor_accuracy(floor: str, table: pd.DataFrame) -> str:
    return _accuracy(table[(table["kind"] == "floor") & (table["strategy"] == floor)].iloc[0])


def _against_majority(
    verdict: Verdict,
    scores: Mapping[str, SeedScores],
    floors: Mapping[str, SeedScores],
    confidence: float,
    shared: Pool,
) -> str:
    """A warning where the chosen strategy is not shown to beat always naming one class."""
    if verdict.floor == "majority" or "majority" not in floors:
        return ""
    against = shared.with_floor()
    versus = paired_difference(scores[str(verdict.chosen)], floors["majority"], confidence=confidence, pool=against)
    name = escape(verdict.chosen)
    return f"**{name} is not shown to be better than always naming the majority class.**" if versus.low <= 0 else ""


def _collapses(rows: Mapping[str, pd.Series], collapsed: Mapping[str, tuple[int, int]]) -> str:
    parts = [
        f"{escape(label)} predicts one class only in {number} of {finals} finals"
        for label, (number, finals) in collapsed.items()
        if label in rows
    ]
    return f"**Collapsed**: {_named(parts)}." if parts else ""


def _over_budget(verdict: Verdict, rule: Rule) -> str:
    """Who could not be chosen, and what that costs."""
    if not verdict.over_budget:
        return ""
    labels = [escape(label) for label in verdict.over_budget]
    answer = f"Over the budget of {_budgets(rule)}, and not to be chosen: {_named(labels)}"
    higher = {label: verdict.differences[label] for label in verdict.over_budget if label in verdict.differences}
    gains = {label: gap for label, gap in higher.items() if gap.tie is False and gap.mean > 0}
    if gains:
        top = max(gains, key=lambda label: gains[label].mean)
        gap = gains[top]
        answer += f"; {escape(top)} is above {escape(verdict.best)} by {score_interval(gap.mean, gap.low, gap.high)}"
    return f"{answer}."


def _none_fits(rows: Mapping[str, pd.Series], rule: Rule) -> str:
    excess = {label: rule.excess(row) for label, row in rows.items()}
    closest = min(rows, key=lambda label: max(excess[label].values()))
    row, shown = rows[closest], []
    for column, ratio in excess[closest].items():
        what = _amount(column, row[column])
        shown.append(f"{what}, {ratio:.3g} times the budget" if math.isfinite(ratio) else what)
    return (
        f"Nothing can be chosen: no strategy fits the budget of {_budgets(rule)}. The closest is {escape(closest)}, "
        f"test accuracy {_accuracy(row)}, with {joined(shown)}."
    )


def _budgets(rule: Rule) -> str:
    given = {
        schema.TRAINABLE_PARAMS: rule.max_trainable_params,
        schema.TRAIN_SECONDS: rule.max_train_seconds,
        schema.PEAK_MEMORY_MB: rule.max_memory_mb,
    }
    return joined([_amount(column, budget) for column, budget in given.items() if budget is not None])


def _amount(column: str, value: float) -> str:
    if column == schema.TRAINABLE_PARAMS:
        return f"{count(value)} trainable parameters" if pd.notna(value) else "an unrecorded number of parameters"
    if column == schema.TRAIN_SECONDS:
        return f"{duration(value)} of training" if pd.notna(value) else "an unrecorded time of training"
    return f"{size(value * 1e6)} of memory" if pd.notna(value) else "an unrecorded peak of memory"


def _unequal(labels: list[str]) -> str:
    if not labels:
        return ""
    were = "was" if len(labels) == 1 else "were"
    return (
        f"The budgets are unequal: {_named([escape(x) for x in labels])} {were} tuned with fewer trials or cut short."
    )


def _times(rows: Mapping[str, pd.Series], label: str, reference: str) -> str:
    """`` at 3 times the parameters``, or with their number where there is no ratio."""
    mine, other = rows[label]["trainable_params"], rows[reference]["trainable_params"]
    if pd.isna(mine):
        return ""
    if pd.isna(other) or other == 0 or mine < other:
        return f" with {count(mine)} parameters"
    ratio = mine / other
    return " with as many parameters" if ratio < 1.05 else f" at {_ratio(ratio)} times the parameters"


def _ratio(ratio: float) -> str:
    return f"{ratio:.2g}" if ratio < 9.95 else f"{_rounded(ratio):,}"


def _rounded(value: float) -> int:
    """To two significant digits."""
    return int(float(f"{value:.2g}"))


def _points(fraction: float) -> str:
    return f"{100 * fraction:.1f} points" if round(100 * fraction, 1) != 1 else "1 point"


def _accuracy(row: pd.Series) -> str:
    return score_interval(row["test_accuracy"], row["test_accuracy_low"], row["test_accuracy_high"])


def _named(names: list[str]) -> str:
    """All names, or the first few and the number of the others."""
    rest = len(names) - _MOST_NAMES
    return joined(names) if rest < 2 else f"{', '.join(names[:_MOST_NAMES])} and {rest} others"
