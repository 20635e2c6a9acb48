"""How many seeds, or test items, would tell two strategies apart: power from the variances that were seen."""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass, replace

from reports.stats import Components, critical_value, rounded_degrees

__all__ = ["MOST_ITEMS", "MOST_SEEDS", "POWER", "Requirement", "power", "required"]

POWER = 0.8  # the usual one (Cohen 1988)
MOST_SEEDS = 50
MOST_ITEMS = 1_000_000


@dataclass(frozen=True)
class Requirement:
    """What would tell two strategies apart.

    Attributes:
        difference: of accuracy that would be found, with the power ``POWER``.
        seeds: finals of each strategy; ``None`` when neither ``MOST_SEEDS`` nor ``MOST_ITEMS`` are enough.
        items: test items.
        more_items: whether more items are needed, because no number of seeds would do.
    """

    difference: float
    seeds: int | None
    items: int | None
    more_items: bool


def power(
    components: Components,
    difference: float,
    *,
    n_seeds: int | None = None,
    n_items: int | None = None,
    confidence: float = 0.95,
    compared: int = 2,
) -> float:
    """Probability that a true difference is found, and with its sign, with these or other numbers of seeds and items.

    From the noncentral t distribution, with the variance components taken for known: Hillis, Obuchowski & Berbaum
    (2011), Academic Radiology 18:129, who size studies with crossed readers and cases. The variance between a few seeds
    is more often estimated too small than too large: it is scaled to be as often the one as the other, by the median of
    its chi-squared distribution. It stays uncertain, and so does the power.

    Args:
        components: of the paired difference (:func:`reports.stats.difference_components`).
        difference: of accuracy, as a fraction.
        n_seeds: as seen by default.
        n_items: as seen by default.
        confidence: of the intervals.
        compared: number of strategies.
    """
    from scipy.stats import chi2, nct

    spread = components.seed_degrees
    if spread:
        components = replace(components, seeds=components.seeds * spread / float(chi2.median(spread)))
    variance, degrees = components.variance(n_seeds, n_items)
    degrees = rounded_degrees(degrees)
    quantile = critical_value(confidence, compared, degrees)
    away = abs(difference) / math.sqrt(variance)
    return float(nct.sf(quantile, degrees, away))  # the other side is as good as never, and often NaN


def required(
    components: Components, difference: float, *, confidence: float = 0.95, compared: int = 2
) -> Requirement | None:
    """More seeds that would find a difference with power ``POWER``; where none would, more test items.

    ``None`` when one seed alone was seen: how much seeds differ is then unknown.
    """
    seen = components.n_seeds
    if seen < 2:
        return None

    def enough(n_seeds: int, n_items: int) -> bool:
        found = power(
            components, difference, n_seeds=n_seeds, n_items=n_items, confidence=confidence, compared=compared
        )
        return found >= POWER

    counts = list(range(seen + 1, MOST_SEEDS + 1))
    place = bisect_left(counts, True, key=lambda n_seeds: enough(n_seeds, components.n_items))
    if place < len(counts):
        return Requirement(difference, counts[place], components.n_items, False)
    sizes = [components.n_items]
    while sizes[-1] < MOST_ITEMS:
        sizes.append(math.ceil(1.1 * sizes[-1]))
    designs = []
    for seeds in (seen, 2 * seen, 4 * seen, MOST_SEEDS):
        place = bisect_left(sizes, True, key=lambda n_items, seeds=seeds: enough(seeds, n_items))  # type: ignore[misc]
        if place < len(sizes):
            designs.append(Requirement(difference, seeds, sizes[place], True))
    return min(designs, key=_predictions, default=Requirement(difference, None, None, True))


def _predictions(design: Requirement) -> int:
    """Of each strategy; a few seeds more may save most of the items."""
    return (design.seeds or 0) * (design.items or 0)
