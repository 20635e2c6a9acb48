"""How often a report errs on runs of known truth: ties of equal strategies, and a difference that is there.

    python -m benchmarks.simulation --repetitions 1000

The numbers in ``docs/statistics.md``. The scores are drawn, everything else is what reports use.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from reports.power import power
from reports.stats import SeedScores, difference_components, paired_difference, pool

__all__ = ["CASES", "Case", "Rates", "bootstrap_limits", "draw", "measure"]


@dataclass(frozen=True)
class Case:
    """A comparison whose truth is known.

    An item is right where its easiness, what the strategy makes of it, the luck of the seed and noise add up to more
    than 0. All but the luck are shared, by strategies or by seeds, as they are in real runs.

    Attributes:
        items: of the test split.
        seeds: finals of each strategy.
        strategies: how many.
        luck: of a seed, standard deviation per strategy on the latent scale; 0.1 are about 2 points of accuracy.
        group: items that share some of their easiness, as lines about one film.
        better: how much better the first strategy is, on the latent scale; 0.1 are about 2 points.
        first_luck: of a seed of the first strategy, where it differs from that of the others.
    """

    items: int
    seeds: int
    strategies: int = 2
    luck: float = 0.05
    group: int = 1
    better: float = 0.0
    first_luck: float | None = None

    def spread(self, strategy: int) -> float:
        """Luck of a seed of one strategy, by its number."""
        return self.first_luck if strategy == 0 and self.first_luck is not None else self.luck


CASES = (
    Case(500, 3),
    Case(2000, 3),
    Case(2000, 3, luck=0.2),
    Case(2000, 5, luck=0.2),
    Case(2000, 3, luck=0.1, group=20),
    Case(500, 3, strategies=4),
    Case(2000, 3, strategies=4, luck=0.1),
    Case(2000, 3, strategies=4, luck=0.2, group=20),
    Case(2000, 5, strategies=8, luck=0.1),
    Case(2000, 2, luck=0.1),
    Case(2000, 2, strategies=4, luck=0.1),
    Case(2000, 3, strategies=8, first_luck=0.25),
    Case(2000, 2, strategies=8, first_luck=0.25),
)


@dataclass(frozen=True)
class Rates:
    """Shares of the repetitions of one case.

    Attributes:
        ties: in which no strategy was called different from the best of all.
        found: in which the first strategy was called better than the second.
        claimed: mean of the power that :func:`reports.power.power` computes, from each repetition's own variances.
        covered: in which the interval of the first two strategies' difference contains the true one.
        covered_bootstrap: likewise of percentile limits of the bootstrap over seeds and items.
        margin: the true difference of the first two, as a fraction.
    """

    ties: float
    found: float
    claimed: float
    covered: float
    covered_bootstrap: float
    margin: float


def draw(case: Case, rng: np.random.Generator) -> dict[str, SeedScores]:
    """Scores of all strategies of a case, with the predictions they come from."""

    def shared(spread: float, of_group: float) -> np.ndarray:
        groups = rng.normal(0, of_group, math.ceil(case.items / case.group)) if case.group > 1 else np.zeros(case.items)
        return rng.normal(0, spread, case.items) + np.repeat(groups, case.group)[: case.items]

    easy = 1 + shared(1.5, 1.0)
    names = [f"i{item}" for item in range(case.items)]
    groups = pd.Series([f"g{item // case.group}" for item in range(case.items)], names) if case.group > 1 else None
    found = {}
    for number in range(case.strategies):
        quirk = shared(0.5, 0.25) + (case.better if number == 0 else 0.0)
        luck = rng.normal(0, case.spread(number), case.seeds)
        noise = rng.normal(0, 0.7, (case.items, case.seeds))
        correct = pd.DataFrame((easy + quirk)[:, None] + luck + noise > 0, index=names).astype(float)
        found[f"s{number}"] = SeedScores(correct.mean(), correct, groups, case.items)
    return found


def _margin(case: Case) -> float:
    """The true difference between the first strategy and any other: of two normal distribution functions."""
    variance = 1.5**2 + 0.5**2 + 0.7**2 + (1.0 + 0.25**2 if case.group > 1 else 0.0)
    first, other = (
        0.5 * math.erfc(-mean / math.sqrt(2 * (variance + case.spread(number) ** 2)))
        for number, mean in enumerate((1 + case.better, 1.0))
    )
    return first - other


def bootstrap_limits(scores: dict[str, SeedScores], rng: np.random.Generator, resamples: int) -> tuple[float, float]:
    """95 % percentile limits of the first two strategies' difference, seeds and items (or groups) resampled.

    Resampled seeds vary too little by (n - 1) / n: their deviations are scaled.
    """
    first, second = scores["s0"], scores["s1"]
    if first.correct is None or second.correct is None:
        raise ValueError("scores without predictions")
    values = (first.correct - second.correct).to_numpy()
    if first.groups is not None:  # of equal sizes
        values = pd.DataFrame(values).groupby(first.groups.to_numpy()).mean().to_numpy()
    n_items, n_seeds = values.shape
    means = rng.multinomial(n_items, np.full(n_items, 1 / n_items), resamples) @ values / n_items
    share = rng.multinomial(n_seeds, np.full(n_seeds, 1 / n_seeds), resamples) / n_seeds
    centre = means.mean(axis=1)
    deviation = (share * means).sum(axis=1) - centre
    low, high = np.quantile(centre + math.sqrt(n_seeds / (n_seeds - 1)) * deviation, (0.025, 0.975))
    return float(low), float(high)


def measure(case: Case, repetitions: int, *, seed: int = 0, resamples: int = 0) -> Rates:
    """Draw a case again and again and count what a report would say of it, at 95 % confidence."""
    rng = np.random.default_rng(seed)
    margin = _margin(case)
    counts = np.zeros(5)
    for _ in range(repetitions):
        scores = draw(case, rng)
        shared = pool(scores)
        best = max(scores, key=lambda label: scores[label].accuracies.mean())
        others = [paired_difference(scores[label], scores[best], pool=shared) for label in scores if label != best]
        pair = paired_difference(scores["s0"], scores["s1"], pool=shared)
        components = difference_components(scores["s0"], scores["s1"], shared)
        counts[0] += all(gap.tie for gap in others)
        counts[1] += pair.tie is False and pair.mean > 0
        counts[2] += 0.0 if components is None else power(components, margin, compared=case.strategies)
        counts[3] += pair.low <= margin <= pair.high
        if resamples:
            low, high = bootstrap_limits(scores, rng, resamples)
            counts[4] += low <= margin <= high
    ties, found, claimed, covered, bootstrapped = counts / repetitions
    return Rates(ties, found, claimed, covered, bootstrapped if resamples else math.nan, margin)


def _luck(case: Case) -> str:
    return f"{case.luck}" if case.first_luck is None else f"{case.luck}, first {case.first_luck}"


def main() -> None:
    """Print the tables of ``docs/statistics.md``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=1000, help="of each case (default: 1000)")
    given = parser.parse_args()
    print("| strategies | seeds | items | group | luck | ties | covered | bootstrap covers |")
    print("|---:|---:|---:|---:|---:|---:|---:|---:|")
    for case in CASES:
        rates = measure(case, given.repetitions, resamples=200)
        shown = f"| {case.strategies} | {case.seeds} | {case.items} | {case.group} | {_luck(case)} "
        print(f"{shown}| {rates.ties:.3f} | {rates.covered:.3f} | {rates.covered_bootstrap:.3f} |", flush=True)
    print("\n| strategies | seeds | items | group | luck | margin | found | claimed |")
    print("|---:|---:|---:|---:|---:|---:|---:|---:|")
    for case in CASES:
        rates = measure(replace(case, better=0.2), given.repetitions)
        shown = f"| {case.strategies} | {case.seeds} | {case.items} | {case.group} | {_luck(case)} "
        print(f"{shown}| {rates.margin:.3f} | {rates.found:.3f} | {rates.claimed:.3f} |", flush=True)


if __name__ == "__main__":
    main()
