"""The rules of thumb of transfer learning on trial: what tutorials claim, beside what was measured here.

A claim speaks of a size of the train split and of strategies. Where both were measured, the best of the strategies that
it speaks for is compared with each other one, by the intervals of the whole comparison; what the noise does not
separate cannot be told.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pandas as pd

from reports.formats import count, escape, markdown_table, score_interval, setting
from reports.load import Comparison
from reports.stats import Interval, Pool, SeedScores, accuracy_interval, paired_difference, pool
from reports.tables import strategy_scores, uneven_finals
from sweeper import schema

__all__ = ["CANNOT_TELL", "FAILED", "HELD", "NOT_MEASURED", "TIMES_VARY", "Finding", "rules_markdown", "try_rules"]

HELD = "held"
FAILED = "did not hold"
CANNOT_TELL = "cannot be told"
TIMES_VARY = "not judged: times vary"
NOT_MEASURED = "not measured"

_FROZEN = ("frozen",)
_LORA = ("lora", "rslora", "dora", "pissa", "qlora")
_FULL = ("full",)
#: What fine-tunes pretrained weights, wrappers and variants under labels of their own aside.
_ALL = (
    *(*_FROZEN, *_LORA, *_FULL, "prompt", "prefix", "ia3", "vera", "bitfit", "adapter", "partial", "gradual"),
    *("lp_ft", "discriminative"),
)
_CLEARLY_CHEAPER = 0.9  # times and memory of the same run vary by a few percent


@dataclass(frozen=True)
class Finding:
    """One claim, tried on one comparison.

    Attributes:
        claim: in words.
        here: what it is tried on (train size and the like), as markdown.
        measured: with intervals, as markdown; of a claim that was not tried, what would be needed.
        verdict: ``HELD``, ``FAILED``, ``CANNOT_TELL``, ``TIMES_VARY`` or ``NOT_MEASURED``.
    """

    claim: str
    here: str
    measured: str
    verdict: str


@dataclass(frozen=True)
class _Trial:
    """A comparison as the rules see it: its size, the strategies that go by their plain names, the pool of all."""

    size: float
    classes: float
    scores: dict[str, SeedScores]
    rows: dict[str, pd.Series]
    ranks: dict[str, float]
    pool: Pool
    confidence: float
    delta: float
    times_vary: frozenset[str]

    def here(self) -> str:
        return f"{count(self.size)} examples"

    def difference(self, first: str, second: str) -> Interval:
        """Accuracy of one strategy less that of another, as the verdict has it."""
        return paired_difference(self.scores[first], self.scores[second], confidence=self.confidence, pool=self.pool)


def try_rules(
    comparisons: Sequence[tuple[Comparison, pd.DataFrame]], confidence: float = 0.95, delta: float = 0.01
) -> list[Finding]:
    """Try every claim on every comparison: one, or the points of a curve over train sizes.

    A claim that says something about one of them is left out of those where it says nothing; one that says nothing
    anywhere comes once, as not measured.

    Args:
        comparisons: each with its ``tables.comparison_table``.
        confidence: of the intervals.
        delta: the accuracy that is not worth more cost, as in ``verdict.Rule``.
    """
    trials = [_as_trial(comparison, table, confidence, delta) for comparison, table in comparisons]
    found = []
    for rule in _RULES:
        tried = [rule(trial) for trial in trials]
        telling = [finding for finding in tried if finding.verdict != NOT_MEASURED]
        found += telling or tried[:1]
    return found


def rules_markdown(findings: Sequence[Finding]) -> tuple[str, str]:
    """A table of the claims that could be tried, and a line about the others."""
    rows = [
        [finding.claim, finding.here, finding.measured, f"**{finding.verdict}**"]
        for finding in findings
        if finding.verdict != NOT_MEASURED
    ]
    others = [f"{finding.claim} ({finding.measured})" for finding in findings if finding.verdict == NOT_MEASURED]
    return markdown_table(["claim", "tried on", "measured here", "verdict"], rows, left=4), "; ".join(others)


def _as_trial(comparison: Comparison, table: pd.DataFrame, confidence: float, delta: float) -> _Trial:
    scores = strategy_scores(comparison)
    rows = {str(row["strategy"]): row for _, row in table[table["kind"] == "strategy"].iterrows()}
    labels = {
        str(study["strategy"]): str(study["label"])
        for _, study in comparison.studies.iterrows()
        if not scores[study["label"]].accuracies.empty
    }
    ranks = {
        str(study["strategy"]): float(pd.to_numeric(finals["rank"], errors="coerce").iloc[-1])
        for _, study in comparison.studies.iterrows()
        if len(finals := comparison.finals(study["study"])) and "rank" in finals
    }
    names = comparison.data_summary.get("label_names")
    known = {name: label for name, label in labels.items() if name in (*_ALL, "scratch")}
    uneven = uneven_finals(comparison)
    return _Trial(
        size=comparison.train_size,
        classes=float(len(names)) if isinstance(names, list) and names else math.nan,
        scores={name: scores[label] for name, label in known.items()},
        rows={name: rows[label] for name, label in known.items()},
        ranks=ranks,
        pool=pool(scores),
        confidence=confidence,
        delta=delta,
        times_vary=frozenset(name for name, label in known.items() if label in uneven),
    )


# --- claims that name the best strategy for a size -----------------------------------------------------------------


def _best_for_size(
    claim: str, low: float, high: float, chosen: Sequence[str], aside: Sequence[str] = ()
) -> Callable[[_Trial], Finding]:
    """A rule of the form: with ``low`` to ``high`` examples, one of ``chosen`` is the best; ``aside`` has no say."""

    def rule(trial: _Trial) -> Finding:
        if not low <= trial.size < high:
            return Finding(claim, trial.here(), f"here: {trial.here()}", NOT_MEASURED)
        return _against_others(trial, claim, chosen, [name for name in _ALL if name not in (*chosen, *aside)])

    return rule


def _against_others(trial: _Trial, claim: str, chosen: Sequence[str], others: Sequence[str]) -> Finding:
    """Hold the best of ``chosen`` against each of ``others``."""
    ours = [name for name in chosen if name in trial.scores]
    theirs = [name for name in others if name in trial.scores]
    if not ours or not theirs:
        needed = " or ".join(chosen[:3]) if not ours else "another strategy beside it"
        return Finding(claim, trial.here(), f"needs {needed}", NOT_MEASURED)
    best = max(ours, key=lambda name: float(trial.scores[name].accuracies.mean()))
    gaps = {name: trial.difference(best, name) for name in theirs}
    rival = min(gaps, key=lambda name: gaps[name].mean)
    verdict = CANNOT_TELL
    if all(gap.low > 0 for gap in gaps.values()):
        verdict = HELD
    elif any(gap.high < 0 for gap in gaps.values()):
        verdict = FAILED
    what = "the best other" if len(theirs) > 1 else "the only other"
    measured = f"{escape(best)} minus {escape(rival)}, {what}: {_difference(gaps[rival])}"
    return Finding(claim, trial.here(), measured, verdict)


# --- the others ----------------------------------------------------------------------------------------------------


def _limited_compute(trial: _Trial) -> Finding:
    claim = "Where compute is limited: LoRA or adapters (clearly less time and memory to train, no loss shown)"
    cheap = [name for name in (*_LORA, "adapter") if name in trial.scores]
    if not cheap or "full" not in trial.scores:
        return Finding(claim, trial.here(), "needs lora or adapter, and full", NOT_MEASURED)
    best = max(cheap, key=lambda name: float(trial.scores[name].accuracies.mean()))
    ratios = {
        what: float(trial.rows[best][column] / trial.rows["full"][column])
        for what, column in (("the time", schema.TRAIN_SECONDS), ("the memory", schema.PEAK_MEMORY_MB))
    }
    known = {what: ratio for what, ratio in ratios.items() if math.isfinite(ratio)}
    if not known:
        return Finding(claim, trial.here(), "needs times or memory of the finals", NOT_MEASURED)
    gap = trial.difference(best, "full")
    verdict = CANNOT_TELL
    if gap.high < -trial.delta:
        verdict = FAILED  # shown to cost more accuracy than any saving may
    elif trial.times_vary & {best, "full"} and "the time" in known:
        verdict = TIMES_VARY  # the machine was busy with something else, as the notes on costs say
    elif all(ratio >= 1 for ratio in known.values()):
        verdict = FAILED
    elif all(ratio < _CLEARLY_CHEAPER for ratio in known.values()):
        verdict = HELD
    costs = " and ".join(f"{ratio:.2f} of {what}" for what, ratio in known.items())
    tuning = float(trial.rows[best]["tuning_seconds"] / (trial.rows["full"]["tuning_seconds"] or math.nan))
    also = f"; tuning took {tuning:.2f} of the time" if math.isfinite(tuning) else ""
    measured = f"a final of {escape(best)} takes {costs} of one of full{also}; accuracy {_difference(gap)} against it"
    return Finding(claim, trial.here(), measured, verdict)


def _pretraining_beats_scratch(trial: _Trial) -> Finding:
    claim = "Above 50,000 examples: starting from pretrained weights still beats training from scratch"
    if not trial.size > 50_000:
        return Finding(claim, trial.here(), f"here: {trial.here()}", NOT_MEASURED)
    return _against_others(trial, claim, _ALL, ["scratch"])


def _rank_16_to_64(trial: _Trial) -> Finding:
    claim = "LoRA of rank 16 to 64 reaches 95 to 99 % of full fine-tuning (at least 95 %)"
    names = [name for name in _LORA if name in trial.scores]
    if not names or "full" not in trial.scores:
        return Finding(claim, trial.here(), "needs lora and full", NOT_MEASURED)
    fitting = [name for name in names if 16 <= trial.ranks.get(name, math.nan) <= 64]
    if not fitting:
        ranks = ", ".join(f"{name} {setting(trial.ranks.get(name, math.nan))}" for name in names)
        return Finding(claim, trial.here(), f"the ranks that won: {ranks}", NOT_MEASURED)
    name = max(fitting, key=lambda name: float(trial.scores[name].accuracies.mean()))
    full = float(trial.scores["full"].accuracies.mean()) or math.nan
    gap = trial.difference(name, "full")
    low, mean, high = (100 * (1 + value / full) for value in (gap.low, gap.mean, gap.high))
    verdict = HELD if low >= 95 else FAILED if high < 95 else CANNOT_TELL
    shown = f"{mean:.1f} %" if math.isnan(low) else f"{mean:.1f} % [{low:.1f}, {high:.1f}]"
    measured = f"{escape(name)} of rank {setting(trial.ranks[name])}: {shown} of full's accuracy"
    return Finding(claim, trial.here(), measured, verdict)


def _examples_per_class(trial: _Trial) -> Finding:
    claim = "50 to 100 examples a class give a frozen backbone 85 to 95 % accuracy"
    each = trial.size / trial.classes
    here = f"{count(each)} examples a class"
    if math.isnan(each) or not 50 <= each <= 100:
        return Finding(claim, here, f"here: {here}", NOT_MEASURED)
    if "frozen" not in trial.scores:
        return Finding(claim, here, "needs frozen", NOT_MEASURED)
    found = accuracy_interval(trial.scores["frozen"], confidence=trial.confidence)
    verdict = HELD if found.low >= 0.85 else FAILED if found.high < 0.85 else CANNOT_TELL
    return Finding(claim, here, f"frozen: {score_interval(found.mean, found.low, found.high)}", verdict)


def _domain(trial: _Trial) -> Finding:
    claim = "A similar domain asks for lower learning rates, a different one for more aggressive fine-tuning"
    return Finding(claim, trial.here(), "needs datasets of several domains", NOT_MEASURED)


def _difference(gap: Interval) -> str:
    return score_interval(gap.mean, gap.low, gap.high, difference=True)


_RULES: tuple[Callable[[_Trial], Finding], ...] = (
    _best_for_size("Below 1,000 examples: feature extraction", 0, 1_000, _FROZEN),
    _best_for_size("1,000 to 10,000 examples: gradual unfreezing", 1_000, 10_000, ("gradual",)),
    _best_for_size(
        "10,000 to 100,000 examples: full fine-tuning with discriminative rates", 10_000, 100_001, ("discriminative",)
    ),
    _best_for_size("50 to 500 examples: a frozen backbone or LoRA", 50, 500, (*_FROZEN, *_LORA)),
    # These two are full fine-tuning as well, and speak neither for the claim nor against it.
    _best_for_size("500 to 5,000 examples: full fine-tuning", 500, 5_001, _FULL, aside=("discriminative", "lp_ft")),
    _pretraining_beats_scratch,
    _limited_compute,
    _rank_16_to_64,
    _examples_per_class,
    _domain,
)
