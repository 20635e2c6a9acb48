"""The classes of a comparison as tables of markdown: how many rows they have, and how well they are found."""

from __future__ import annotations

from typing import Any

from reports import formats
from reports.checks import class_name
from reports.load import Comparison
from reports.tables import per_class_table

__all__ = ["MOST_LABELS", "class_counts_markdown", "class_order", "per_class_markdown"]

MOST_LABELS = 12
_EXTREME_LABELS = 5


def per_class_markdown(loaded: Comparison, label: str) -> str:
    """Precision, recall, F1 and support of each class by one strategy; of many classes the best and the worst."""
    rows = []
    found = per_class_table(loaded, label)
    if len(found) <= MOST_LABELS:  # in the order of the figure and of the splits
        order = class_order(loaded)
        found = found.sort_values("label", key=lambda labels: labels.map(lambda v: order.get(str(v), len(order))))
    for _, row in found.iterrows():
        shares = [formats.score(row[of]) for of in ("precision", "recall", "f1")]
        rows.append([class_name(loaded, row["label"]), *shares, f"{row['support']:.0f}"])
    if len(rows) > MOST_LABELS:
        left_out = len(rows) - 2 * _EXTREME_LABELS
        gap = [f"*{left_out} classes in between*", *[formats.MISSING] * 4]
        rows = [*rows[:_EXTREME_LABELS], gap, *rows[-_EXTREME_LABELS:]]
    return formats.markdown_table(["class", "precision", "recall", "F1", "test items"], rows)


def class_order(loaded: Comparison) -> dict[str, int]:
    """Place of each class, by its number and by its name, in the order of the dataset."""
    names = loaded.data_summary.get("label_names")
    names = names if isinstance(names, list) else []
    return {str(key): place for place, name in enumerate(names) for key in (place, name)}


def class_counts_markdown(summary: dict[str, Any], order: dict[str, int]) -> str:
    """Rows of each class by split; ``class_counts`` of the data summary is split -> {label: count}."""
    splits = summary.get("class_counts")
    if not isinstance(splits, dict) or not all(isinstance(counts, dict) for counts in splits.values()):
        return ""
    try:
        numbers = {str(split): {str(k): int(v) for k, v in counts.items()} for split, counts in splits.items()}
    except (TypeError, ValueError):
        return ""
    names = list(dict.fromkeys(name for counts in numbers.values() for name in counts))
    if len(names) <= MOST_LABELS and order:
        names.sort(key=lambda name: order.get(name, len(order)))
    else:
        names.sort(key=lambda name: -sum(counts.get(name, 0) for counts in numbers.values()))

    def cell(split: str, chosen: list[str]) -> str:
        number, total = sum(numbers[split].get(n, 0) for n in chosen), sum(numbers[split].values())
        return f"{number} ({formats.percent(100 * number / total)})" if total and number else str(number)

    rows = [[formats.escape(name), *(cell(split, [name]) for split in numbers)] for name in names[:MOST_LABELS]]
    rest = names[MOST_LABELS:]
    if rest:
        rows.append([f"*{len(rest)} other classes*", *(cell(split, rest) for split in numbers)])
    return formats.markdown_table(["class", *(formats.escape(split) for split in numbers)], rows)
