"""Figures made of cells: the winner's confusion matrix, and any other matrix of shares."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import pandas as pd

from reports.formats import class_name
from reports.plots.canvas import INK, LEVELS, PAPER, SHARE_INK, Drawing, listed, new_figure, short

__all__ = ["confusion_figure", "draw_matrix"]

_MOST_CLASSES = 14


def confusion_figure(
    predictions: Sequence[pd.DataFrame], names: Sequence[str], *, strategy: str, order: Sequence[str] = ()
) -> Drawing | None:
    """What a strategy takes for what: rows are the true classes, with counts over all finals and shares of the row.

    Of more than 14 classes, those with the most errors are shown, and all others together.

    Args:
        predictions: of each final, with the columns ``label`` and ``prediction``.
        names: of the classes, where the columns hold their numbers; may be empty.
        strategy: whose predictions they are.
        order: class names in the order to show; those that are missing in it follow.

    Returns:
        ``None`` where there are no predictions.
    """
    pairs: Counter[tuple[str, str]] = Counter()
    for table in predictions:
        pairs.update(
            zip(
                (class_name(v, list(names)) for v in table["label"]),
                (class_name(v, list(names)) for v in table["prediction"]),
                strict=True,
            )
        )
    if not pairs:
        return None
    known = list(dict.fromkeys([*names, *order, *sorted({name for pair in pairs for name in pair})]))
    classes = [name for name in known if any(name in pair for pair in pairs)]
    finals = f"{len(predictions)} final{'s' if len(predictions) > 1 else ''}"
    items: Counter[str] = Counter()
    for (true, _), number in pairs.items():
        items[true] += number
    wrong = [(pair, number) for pair, number in pairs.most_common() if pair[0] != pair[1]]
    if len(classes) > _MOST_CLASSES:
        errors: Counter[str] = Counter()
        for (true, _), number in wrong:
            errors[true] += number
        kept = sorted(classes, key=lambda name: (-errors[name], classes.index(name)))[:_MOST_CLASSES]
        rest = f"{len(classes) - len(kept)} others"
        classes = [name for name in classes if name in kept] + [rest]
        merged: Counter[tuple[str, str]] = Counter()
        for (true, taken), number in pairs.items():
            merged[true if true in kept else rest, taken if taken in kept else rest] += number
        pairs = merged
    totals = {true: sum(pairs[true, taken] for taken in classes) for true in classes}
    cells = [[pairs[t, p] / totals[t] if totals[t] else math.nan for p in classes] for t in classes]
    crowded = len(classes) > 8
    texts = [
        [
            "" if not pairs[t, p] else f"{pairs[t, p]}" if crowded else f"{100 * share:.0f} %\n{pairs[t, p]}"
            for p, share in zip(classes, row, strict=True)
        ]
        for t, row in zip(classes, cells, strict=True)
    ]
    tips = [
        [
            f"{t} taken for {p}: {pairs[t, p]} of {totals[t]}" + (f" ({100 * share:.1f} %)" if totals[t] else "")
            for p, share in zip(classes, row, strict=True)
        ]
        for t, row in zip(classes, cells, strict=True)
    ]
    what = "counts" if crowded else "share of the true class, and counts"
    drawing = draw_matrix(
        "confusion", cells, texts, classes, classes,
        title=f"What {short(strategy, 30)} takes for what: {what}, {finals}",
        down="true class", across="predicted class", tips=tips,
    )  # fmt: skip
    drawing.alt = f"Confusion matrix of {strategy} on the test split, {finals} together."
    if wrong:
        said = [f"{true} taken for {taken} {number} of {items[true]} times" for (true, taken), number in wrong[:3]]
        drawing.alt += f" Most frequent errors: {listed(said)}."
    else:
        drawing.alt += " No errors."
    return drawing


def draw_matrix(
    name: str,
    cells: Sequence[Sequence[float]],
    texts: Sequence[Sequence[str]],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    title: str,
    down: str,
    across: str,
    tips: Sequence[Sequence[str]] | None = None,
    series: Sequence[str] = (),
) -> Drawing:
    """Shares from 0 to 1 as shaded cells with a text in each.

    Args:
        name: of the figure.
        cells: rows of shares; NaN leaves a cell blank.
        texts: what stands in them.
        rows: names at the left.
        columns: names below.
        title: of the figure; never read as mathematics.
        down: what the rows are.
        across: what the columns are.
        tips: what a cell says under the pointer; its row, column and text by default.
        series: the strategy of each row, if it belongs to one.
    """
    from matplotlib.patches import Rectangle

    longest = max(len(short(row, 22)) for row in rows)
    left = 0.35 + 0.072 * longest + (0.2 if down else 0)  # inches
    slanted = len(columns) * max(len(short(column, 22)) for column in columns) > 70
    below = (0.3 if across else 0.1) + (0.055 * max(len(short(c, 22)) for c in columns) + 0.2 if slanted else 0.25)
    tall = min(0.62, max(0.3, 3.4 / len(rows)))
    wide = min(1.25 if len(columns) < 5 else 0.95, (7.45 - left) / len(columns))
    height = 0.5 + tall * len(rows) + below
    drawing = Drawing(name, new_figure(7.6, height))
    axes = drawing.figure.add_axes(
        (left / 7.6, below / height, wide * len(columns) / 7.6, tall * len(rows) / height), facecolor=PAPER
    )
    drawing.figure.text(0.02, 1 - 0.22 / height, short(title, 88), fontsize=10.5, color=INK, fontweight="bold",
                        va="center", parse_math=False)  # fmt: skip
    size = 9 if len(columns) <= 8 else 7.5
    for i, row in enumerate(cells):
        for j, share in enumerate(row):
            if math.isnan(share):
                continue
            level = min(len(LEVELS) - 1, int(share * len(LEVELS)))
            cell = Rectangle((j, i), 1, 1, facecolor=LEVELS[level], edgecolor=PAPER, lw=1.2)
            axes.add_patch(cell)
            owner = series[i] if series else ""
            drawing.mark(cell, owner, tips[i][j] if tips else f"{rows[i]}, {columns[j]}: {texts[i][j]}")
            if texts[i][j]:
                axes.text(j + 0.5, i + 0.5, texts[i][j], ha="center", va="center", fontsize=size,
                          color=SHARE_INK[level], linespacing=1.15)  # fmt: skip
    axes.set_xlim(0, len(columns))
    axes.set_ylim(len(rows), 0)
    axes.set_xticks([j + 0.5 for j in range(len(columns))], [short(c, 22) for c in columns], parse_math=False,
                    rotation=35 if slanted else 0, ha="right" if slanted else "center",
                    rotation_mode="anchor")  # fmt: skip
    axes.set_yticks([i + 0.5 for i in range(len(rows))], [short(r, 22) for r in rows], parse_math=False)
    axes.tick_params(length=0, labelsize=8.5, colors=INK)
    axes.spines[:].set_visible(False)
    axes.set_xlabel(across, fontsize=9, color=INK)
    axes.set_ylabel(down, fontsize=9, color=INK)
    return drawing
