"""The answer of a report: which strategy to choose, and how sure that is."""

from __future__ import annotations

from dataclasses import dataclass, field

import pandas as pd

from reports.formats import count, escape, floor_name, percent, score_interval, signed
from reports.load import Comparison
from reports.stats import METHOD_NONE, Interval, SeedScores, paired_difference
from reports.tables import accounting_table, floor_scores, strategy_scores

__all__ = ["Verdict", "judge", "judge_comparison"]


@dataclass(frozen=True)
class Verdict:
    """Who wins.

    Attributes:
        chosen: the strategy with the fewest trainable parameters among the best and those that tie with it; ``None``
            when nothing has a test score.
        best: the strategy with the highest mean test accuracy, or ``None``.
        differences: strategy -> its accuracy minus that of ``best``, for every other strategy with a score.
        floor: the strongest floor's name, or ``None``.
        floor_difference: ``chosen`` minus that floor, or ``None``.
        summary: the answer in one to three sentences of markdown.
    """

    chosen: str | None
    best: str | None
    differences: dict[str, Interval] = field(default_factory=dict)
    floor: str | None = None
    floor_difference: Interval | None = None
    summary: str = ""


def judge_comparison(comparison: Comparison, table: pd.DataFrame, confidence: float = 0.95) -> Verdict:
    """Choose a strategy of a comparison; ``table`` is its ``tables.comparison_table``.

    Raises:
        ConfigError: ``confidence`` is not between 0 and 1.
    """
    accounting = accounting_table(comparison)
    unequal = tuple(str(label) for label in accounting.loc[accounting["unequal"], "strategy"])
    return judge(table, strategy_scores(comparison), floor_scores(comparison), confidence, unequal)


def judge(
    table: pd.DataFrame,
    scores: dict[str, SeedScores],
    floors: dict[str, SeedScores],
    confidence: float = 0.95,
    unequal: tuple[str, ...] = (),
) -> Verdict:
    """Choose a strategy from the comparison table.

    Args:
        table: of ``tables.comparison_table``.
        scores: strategy label -> test scores.
        floors: floor name -> test score.
        confidence: of the intervals.
        unequal: strategies whose budget differs, named as a caution.

    Raises:
        ConfigError: ``confidence`` is not between 0 and 1.
    """
    strategies = table[(table["kind"] == "strategy") & table["test_accuracy"].notna()]
    if strategies.empty:
        return Verdict(
            None,
            None,
            summary="Nothing can be chosen yet: no strategy of this comparison has a test score. "
            "The trial accounting below says why; running the same command again tries what is missing.",
        )
    # Of equal scores the cheaper one is the best, and the table has the cheaper one first.
    best = str(strategies.loc[strategies["test_accuracy"].idxmax(), "strategy"])
    others = [str(label) for label in strategies["strategy"] if label != best]
    differences = {label: paired_difference(scores[label], scores[best], confidence=confidence) for label in others}
    chosen = next(str(s) for s in strategies["strategy"] if s == best or differences[str(s)].tie)
    strongest = table[table["kind"] == "floor"].sort_values("test_accuracy")
    floor = str(strongest["strategy"].iloc[-1]) if len(strongest) else None
    versus = None if floor is None else paired_difference(scores[chosen], floors[floor], confidence=confidence)
    rows = {str(row["strategy"]): row for _, row in strategies.iterrows()}
    sentences = [_choice(rows, chosen, best, differences), _against_floor(floor, versus, table)]
    cautious = [escape(label) for label in unequal if label in rows]
    if cautious and others:
        were = "was" if len(cautious) == 1 else "were"
        sentences.append(f"The budgets are unequal: {_join(cautious)} {were} tuned with fewer trials or cut short.")
    return Verdict(chosen, best, differences, floor, versus, " ".join(s for s in sentences if s))


def _choice(rows: dict[str, pd.Series], chosen: str, best: str, differences: dict[str, Interval]) -> str:
    row = rows[chosen]
    name = f"**{escape(chosen)}**"
    trains = ""
    if pd.notna(row["trainable_params"]):
        trains = f"trains {count(row['trainable_params'])} parameters"
        if pd.notna(row["total_params"]) and pd.notna(row["trainable_pct"]):
            trains = f"trains {count(row['trainable_params'])} of {count(row['total_params'])} parameters"
            trains += f" ({percent(row['trainable_pct'])})"
        trains += " and "
    seeds = int(row["seeds"])
    reaches = f"{trains}reaches a test accuracy of {_accuracy(row)} over {seeds} seed{'s' if seeds > 1 else ''}"
    if not differences:
        return f"{name} {reaches}."
    if chosen != best:
        gap = differences[chosen]
        return (
            f"Choose {name}: it {reaches}, a tie with the best, {escape(best)} ({_accuracy(rows[best])}; "
            f"difference {score_interval(gap.mean, gap.low, gap.high, difference=True)})."
        )
    ties = [label for label, gap in differences.items() if gap.tie]
    unknown = [escape(label) for label, gap in differences.items() if gap.tie is None]
    answer = f"Choose {name}: it {reaches}, the highest of the strategies"
    if ties:
        answer += f"; {_join([escape(t) for t in ties])} {'is a tie' if len(ties) == 1 else 'are ties'} with it"
        answer += " but train no fewer parameters" if len(ties) > 1 else " but trains no fewer parameters"
    elif not unknown:
        second = max(differences, key=lambda label: differences[label].mean)
        gap = differences[second]
        answer += f"; the next, {escape(second)}, is behind by {_gap(gap)}"
    if unknown:
        answer += (
            f"; whether {_join(unknown)} {'is' if len(unknown) == 1 else 'are'} worse cannot be told from one score"
        )
    return answer + "."


def _against_floor(floor: str | None, versus: Interval | None, table: pd.DataFrame) -> str:
    if floor is None or versus is None:
        return ""
    row = table[(table["kind"] == "floor") & (table["strategy"] == floor)].iloc[0]
    shown = f"the {escape(floor_name(floor))} floor, {_accuracy(row)}"
    if versus.tie is None:
        return f"For scale: {shown}."
    gap = score_interval(versus.mean, versus.low, versus.high, difference=True)
    if versus.tie:
        return f"That is a tie with {shown} (difference {gap}): whether training pays off here is not shown."
    verb = "above" if versus.mean > 0 else "**below**"
    return f"That is {verb} {shown} (difference {gap})."


def _accuracy(row: pd.Series) -> str:
    return score_interval(row["test_accuracy"], row["test_accuracy_low"], row["test_accuracy_high"])


def _gap(gap: Interval) -> str:
    """The size of a deficit: the sign turned around."""
    if gap.method == METHOD_NONE:
        return signed(-gap.mean).lstrip("+")
    return score_interval(-gap.mean, -gap.high, -gap.low)


def _join(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
