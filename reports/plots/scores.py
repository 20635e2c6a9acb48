"""Figures of test scores: against trainable parameters, against tuning time, against the size of the train split."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from reports.formats import count, duration, floor_name, score
from reports.plots.canvas import (
    CHOSEN,
    GRID,
    INK,
    MUTED,
    PAPER,
    POINT,
    Drawing,
    listed,
    looks,
    new_figure,
    short,
    style_axes,
)
from reports.plots.labels import dodge, label_ends, label_floors, label_points

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["accuracy_figure", "limit_accuracy", "log_axis", "pareto_front", "size_figure", "tuning_figure"]

_DURATIONS = (0.01, 0.1, 1, 3, 10, 30, 60, 180, 600, 1800, 3600, 10_800, 36_000, 86_400, 259_200, 864_000)  # seconds


def accuracy_figure(
    table: pd.DataFrame, *, title: str, chosen: str | None = None, confidence: float = 0.95
) -> Drawing | None:
    """Test accuracy against trainable parameters: a point and its interval per strategy, floors as dashed lines.

    The parameter axis is logarithmic, and marks at the same place stand a hair apart; a strategy that
    trains nothing stands at its left edge under the tick ``0``. A line joins the Pareto front.
    A floor so low that it would flatten the strategies is named at the bottom edge instead. Strategies without a
    test accuracy or a parameter count are left out.

    Args:
        table: of ``tables.comparison_table``.
        title: of the figure; never read as mathematics.
        chosen: the strategy to highlight.
        confidence: named in the axis label.

    Returns:
        ``None`` where no strategy has both.
    """
    return _trade_off(
        "accuracy_vs_parameters", table, "trainable_params", count, "trainable parameters", title, chosen, confidence
    )


def tuning_figure(
    table: pd.DataFrame, *, title: str, chosen: str | None = None, confidence: float = 0.95
) -> Drawing | None:
    """Test accuracy against the time that all trials of a strategy took; otherwise as ``accuracy_figure``.

    Returns:
        ``None`` where fewer than two strategies have both: one alone has nothing to be weighed against.
    """
    known = table[(table["kind"] == "strategy") & table["test_accuracy"].notna() & (table["tuning_seconds"] > 0)]
    if len(known) < 2:
        return None
    table = table[(table["kind"] == "floor") | (table["tuning_seconds"] > 0)]
    return _trade_off(
        "accuracy_vs_tuning_time", table, "tuning_seconds", duration, "tuning time", title, chosen, confidence
    )


def pareto_front(cost: np.ndarray, value: np.ndarray) -> list[int]:
    """Positions of the points that no other one beats at a cost as low or lower, cheapest first."""
    front: list[int] = []
    for i in np.lexsort((-value, cost)):
        if not front or value[i] > value[front[-1]]:
            front.append(int(i))
    return front


def _trade_off(
    name: str,
    table: pd.DataFrame,
    column: str,
    shown: Callable[[float], str],
    what: str,
    title: str,
    chosen: str | None,
    confidence: float,
) -> Drawing | None:
    table = table[table["test_accuracy"].notna()]
    strategies = table[(table["kind"] == "strategy") & table[column].notna()]
    floors = table[table["kind"] == "floor"]
    if strategies.empty:
        return None
    drawing = Drawing(name, new_figure(7.6, 4.6 if len(strategies) <= 10 else 6.2))
    width = 0.695 if len(floors) else 0.875  # floors are named in the right margin
    axes = drawing.figure.add_axes((0.095, 0.125, width, 0.785), facecolor=PAPER)
    costs, y = strategies[column].to_numpy(float), strategies["test_accuracy"].to_numpy(float)
    x = dodge(axes, log_axis(axes, costs, shown))
    low = strategies["test_accuracy_low"].fillna(strategies["test_accuracy"]).to_numpy(float)
    high = strategies["test_accuracy_high"].fillna(strategies["test_accuracy"]).to_numpy(float)
    names = [str(strategy) for strategy in strategies["strategy"]]
    front = pareto_front(costs, y)
    if len(front) > 1:
        axes.plot(x[front], y[front], drawstyle="steps-post", color=MUTED, lw=1.0, zorder=2)
    values = [f"{s}: {_interval(a, b, c)}, {what} {shown(n)}" for s, a, b, c, n in zip(names, y, low, high, costs,
                                                                                      strict=True)]  # fmt: skip
    for i, strategy in enumerate(names):
        won = strategy == chosen
        color = CHOSEN if won else POINT
        bar = axes.plot([x[i], x[i]], [low[i], high[i]], color=color, lw=2.2, solid_capstyle="round", zorder=3)
        (point,) = axes.plot(
            x[i],
            y[i],
            "D" if won else "o",
            color=color,
            ms=9 if won else 8,
            mec=PAPER,
            mew=1.2,
            zorder=4.5 if won else 4,
        )
        for artist in (*bar, point):
            drawing.mark(artist, strategy, values[i])

    drawn, below = limit_accuracy(axes, low, high, floors)
    for _, floor in floors[floors["test_accuracy_low"].notna()].iterrows():
        axes.axhspan(floor["test_accuracy_low"], floor["test_accuracy_high"], color=GRID, alpha=0.45, lw=0, zorder=0)
    style_axes(axes, title)
    axes.set_xlabel(f"{what} (log scale)", fontsize=9.5, color=INK)
    axes.set_ylabel(f"test accuracy, {100 * confidence:g} % interval", fontsize=9.5, color=INK)
    axes.locator_params(axis="y", nbins=7)
    key = [*(["\N{BLACK DIAMOND} the choice"] if chosen in names else []), *(["line: Pareto front"] * (len(front) > 1))]
    key += ["band: interval of a floor"] * bool(floors["test_accuracy_low"].notna().any())
    drawing.figure.text(0.985, 0.028, "   ".join(key), fontsize=8, color=MUTED, ha="right", va="center")
    drawing.figure.canvas.draw()
    label_floors(axes, drawn, below)
    for strategy, text in zip(names, label_points(axes, x, y, low, high, names, chosen), strict=True):
        drawing.mark(text, strategy)

    order = [*front, *(i for i in np.argsort(costs, kind="stable") if i not in front)]
    said = [f"{names[i]} {score(y[i])} at {shown(costs[i])}" for i in order]
    drawing.alt = f"Test accuracy against {what}."
    if chosen in names:
        drawing.alt += f" The choice: {said[order.index(names.index(str(chosen)))]}."
    drawing.alt += f" Pareto front: {listed(said[: len(front)])}."
    if len(order) > len(front):
        drawing.alt += f" Off the front of the means (differences may be noise): {listed(said[len(front) :])}."
    return drawing


def _interval(value: float, low: float, high: float) -> str:
    return score(value) if low == high else f"{score(value)} [{score(low)}, {score(high)}]"


def size_figure(table: pd.DataFrame, *, title: str, confidence: float = 0.95) -> Drawing | None:
    """Test accuracy against train size: a line with intervals for each strategy, the floors dashed.

    The size axis is logarithmic; intervals at the same size stand a hair apart. Rows without a test accuracy or a size
    are left out.

    Args:
        table: of ``tables.size_table``.
        title: of the figure; never read as mathematics.
        confidence: named in the axis label.

    Returns:
        ``None`` where no strategy has both.
    """
    table = table[table["test_accuracy"].notna() & table["train_size"].notna()].sort_values("train_size", kind="stable")
    strategies, floors = (table[table["kind"] == kind] for kind in ("strategy", "floor"))
    if strategies.empty:
        return None
    drawing = Drawing("accuracy_vs_train_size", new_figure(7.6, 4.6))
    axes = drawing.figure.add_axes((0.095, 0.125, 0.685, 0.785), facecolor=PAPER)
    sizes = sorted(set(table["train_size"]))
    axes.set_xscale("log")
    span = max(math.log10(sizes[-1] / sizes[0]), 0.3)
    axes.set_xlim(sizes[0] / 10 ** (0.06 * span), sizes[-1] * 10 ** (0.06 * span))
    axes.set_xticks(sizes, [f"{size:,.0f}" for size in sizes])
    axes.set_xticks([], minor=True)

    look = looks([str(name) for name in strategies["strategy"]])
    ends: list[tuple[str, float, str]] = []
    said: list[str] = []
    for i, (name, given) in enumerate(look.items()):
        color = given.color
        rows = strategies[strategies["strategy"] == name]
        x = rows["train_size"].to_numpy(float) * 10 ** (0.012 * span * (i - (len(look) - 1) / 2))
        y = rows["test_accuracy"].to_numpy(float)
        low, high = (
            rows[f"test_accuracy_{end}"].fillna(rows["test_accuracy"]).to_numpy(float) for end in ("low", "high")
        )
        points = [f"{score(value)} at {size:,.0f}" for value, size in zip(y, rows["train_size"], strict=True)]
        said.append(f"{name} {', '.join(points)}")
        drawing.mark(axes.plot(x, y, color=color, lw=1.8, zorder=3)[0], name, said[-1])
        drawing.mark(axes.vlines(x, low, high, color=color, lw=1.6, alpha=0.55, zorder=3), name)
        for j, size in enumerate(rows["train_size"]):
            (point,) = axes.plot(x[j], y[j], given.marker, color=color, ms=6.5, mec=PAPER, mew=1.0, zorder=4)
            drawing.mark(point, name, f"{name}: {_interval(y[j], low[j], high[j])}, {size:,.0f} training examples")
        ends.append((short(name, 24), float(y[-1]), color))
    for name, rows in floors.groupby("strategy", sort=False):
        axes.plot(rows["train_size"], rows["test_accuracy"], color=MUTED, lw=1.1, ls=(0, (5, 4)), zorder=1)
        if len(rows) == 1:
            axes.plot(rows["train_size"], rows["test_accuracy"], "_", color=MUTED, ms=12, zorder=1)
        ends.append((short(floor_name(str(name), short=True), 24), float(rows["test_accuracy"].iloc[-1]), MUTED))
    style_axes(axes, title)
    axes.set_xlabel("training examples (log scale)", fontsize=9.5, color=INK)
    axes.set_ylabel(f"test accuracy, {100 * confidence:g} % interval", fontsize=9.5, color=INK)
    axes.locator_params(axis="y", nbins=7)
    label_ends(axes, ends)
    drawing.alt = f"Test accuracy against train size: {'; '.join(said)}."
    return drawing


def log_axis(axes: Axes, values: np.ndarray, shown: Callable[[float], str]) -> np.ndarray:
    """Set up the x axis; returns the positions, where a zero lies a decade left of the smallest value."""
    positive = values[values > 0]
    least, most = (positive.min(), positive.max()) if positive.size else (1.0, 10.0)
    zero = 10.0 ** (math.floor(math.log10(least)) - 1)
    x = np.where(values > 0, values, zero)
    left = zero if (values <= 0).any() else least
    span = max(math.log10(most / left), 1.0)
    axes.set_xscale("log")
    low, high = left / 10 ** (0.09 * span), most * 10 ** (0.14 * span)
    axes.set_xlim(low, high)
    first, last = math.ceil(math.log10(low)), math.floor(math.log10(high))
    step = max(1, math.ceil((last - first + 1) / 8))
    ticks = [10.0**power for power in range(first, last + 1, step)]
    if shown is duration:
        ticks = [tick for tick in _DURATIONS if low <= tick <= high]
        ticks = ticks[:: max(1, math.ceil(len(ticks) / 7))]
    if len(ticks) < 2 and positive.size:
        ticks = sorted({least, most}) if most > 1.3 * least else [least]
    labels = [shown(tick) for tick in ticks]
    if (values <= 0).any():
        ticks, labels = [zero, *(t for t in ticks if t > zero)], ["0", *(shown(t) for t in ticks if t > zero)]
    axes.set_xticks(ticks, labels)
    axes.set_xticks([], minor=True)
    return x


def limit_accuracy(
    axes: Axes, low: np.ndarray, high: np.ndarray, floors: pd.DataFrame
) -> tuple[list[tuple[str, float]], list[tuple[str, float]]]:
    """Set up the y axis; returns the floors drawn as lines and those named below the edge."""
    named = [
        (short(floor_name(str(name), short=True), 18), float(value))
        for name, value in zip(floors["strategy"], floors["test_accuracy"], strict=True)
    ]
    if not low.size:
        low = high = np.array([value for _, value in named] or [0.5])
    bottom, top = float(low.min()), float(high.max())
    spread = max(top - bottom, 0.02)
    drawn = [(name, value) for name, value in named if bottom - spread <= value <= top + spread]
    away = [pair for pair in named if pair not in drawn]
    values = [bottom, top, *(value for _, value in drawn)]
    margin = 0.12 * max(max(values) - min(values), 0.02)
    axes.set_ylim(max(-0.02, min(values) - margin), min(1.02, max(values) + 1.3 * margin))
    return drawn, away
