"""Figures of the reports. Solid white background: a transparent one is unreadable on a dark page or a light one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from reports.formats import count, floor_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["accuracy_figure", "save_png", "size_figure"]

_Side = Literal["left", "center", "right"]
_INK, _MUTED, _GRID = "#1f2328", "#6e7781", "#e4e8ec"
_POINT, _CHOSEN = "#4c6f91", "#c2410c"
#: Of lines; told apart by colour-blind readers too (Okabe & Ito 2008), and each with a mark of its own.
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#a8327d", "#7a6000", "#3f3f9f", "#56a0d3", "#8c4a2f")
_MARKS = "osD^vPX<"


def accuracy_figure(table: pd.DataFrame, *, title: str, chosen: str | None = None, confidence: float = 0.95) -> Figure:
    """Test accuracy against trainable parameters: a point and its interval per strategy, floors as dashed lines.

    The parameter axis is logarithmic, and marks at the same place stand a hair apart; a strategy that
    trains nothing stands at its left edge under the tick ``0``.
    A floor so low that it would flatten the strategies is named at the bottom edge instead. Strategies without a
    test accuracy or a parameter count are left out.

    Args:
        table: of ``tables.comparison_table``.
        title: of the figure; never read as mathematics.
        chosen: the strategy to highlight.
        confidence: named in the axis label.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    table = table[table["test_accuracy"].notna()]
    strategies = table[(table["kind"] == "strategy") & table["trainable_params"].notna()]
    floors = table[table["kind"] == "floor"]
    figure = Figure(figsize=(7.6, 4.6), dpi=200, facecolor="white")
    FigureCanvasAgg(figure)
    width = 0.73 if len(floors) else 0.875  # floors are named in the right margin
    axes = figure.add_axes((0.095, 0.125, width, 0.785), facecolor="white")
    x = _place_on_log_axis(axes, strategies["trainable_params"].to_numpy(float))
    y = strategies["test_accuracy"].to_numpy(float)
    low = strategies["test_accuracy_low"].fillna(strategies["test_accuracy"]).to_numpy(float)
    high = strategies["test_accuracy_high"].fillna(strategies["test_accuracy"]).to_numpy(float)
    colors = [_CHOSEN if name == chosen else _POINT for name in strategies["strategy"]]
    for i, color in enumerate(colors):
        axes.plot([x[i], x[i]], [low[i], high[i]], color=color, lw=2.2, solid_capstyle="round", zorder=3, alpha=0.85)
        axes.plot(x[i], y[i], "o", color=color, ms=8, mec="white", mew=1.2, zorder=4)

    drawn, below = _limit_accuracy(axes, low, high, floors)
    _style(axes, title, confidence)
    figure.canvas.draw()
    _label_floors(axes, drawn, below)
    _label_points(axes, x, y, low, high, list(strategies["strategy"]), colors)
    return figure


def size_figure(table: pd.DataFrame, *, title: str, confidence: float = 0.95) -> Figure:
    """Test accuracy against train size: a line with intervals for each strategy, the floors dashed.

    The size axis is logarithmic; intervals at the same size stand a hair apart. Rows without a test accuracy or a size
    are left out.

    Args:
        table: of ``tables.size_table``.
        title: of the figure; never read as mathematics.
        confidence: named in the axis label.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    table = table[table["test_accuracy"].notna() & table["train_size"].notna()].sort_values("train_size", kind="stable")
    strategies, floors = (table[table["kind"] == kind] for kind in ("strategy", "floor"))
    figure = Figure(figsize=(7.6, 4.6), dpi=200, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.095, 0.125, 0.685, 0.785), facecolor="white")
    sizes = sorted(set(table["train_size"]))
    axes.set_xscale("log")
    span = max(math.log10(sizes[-1] / sizes[0]), 0.3)
    axes.set_xlim(sizes[0] / 10 ** (0.06 * span), sizes[-1] * 10 ** (0.06 * span))
    axes.set_xticks(sizes, [f"{size:,.0f}" for size in sizes])
    axes.set_xticks([], minor=True)

    names = list(dict.fromkeys(table.loc[table["kind"] == "strategy", "strategy"]))
    ends: list[tuple[str, float, str]] = []
    for i, name in enumerate(names):
        rows = strategies[strategies["strategy"] == name]
        color = _COLORS[i % len(_COLORS)]
        x = rows["train_size"].to_numpy(float) * 10 ** (0.012 * span * (i - (len(names) - 1) / 2))
        y = rows["test_accuracy"].to_numpy(float)
        axes.plot(x, y, color=color, lw=1.8, marker=_MARKS[i % len(_MARKS)], ms=6.5, mec="white", mew=1.0, zorder=4)
        low, high = rows["test_accuracy_low"].fillna(rows["test_accuracy"]), rows["test_accuracy_high"]
        axes.vlines(x, low, high.fillna(rows["test_accuracy"]), color=color, lw=1.6, alpha=0.55, zorder=3)
        ends.append((_short(str(name), 24), float(y[-1]), color))
    for name, rows in floors.groupby("strategy", sort=False):
        axes.plot(rows["train_size"], rows["test_accuracy"], color=_MUTED, lw=1.1, ls=(0, (5, 4)), zorder=1)
        if len(rows) == 1:
            axes.plot(rows["train_size"], rows["test_accuracy"], "_", color=_MUTED, ms=12, zorder=1)
        ends.append((_short(floor_name(str(name), short=True), 24), float(rows["test_accuracy"].iloc[-1]), _MUTED))
    _style(axes, title, confidence)
    axes.set_xlabel("training examples (log scale)", fontsize=9.5, color=_INK)
    _label_ends(axes, ends)
    return figure


def _label_ends(axes: Axes, ends: Sequence[tuple[str, float, str]]) -> None:
    """Names of lines with their last value in the right margin, pushed apart where they would touch."""
    bottom, top = axes.get_ylim()
    gap = 0.055 * (top - bottom)
    order = sorted(ends, key=lambda end: end[1])
    at: list[float] = []
    for _, value, _ in order:
        at.append(max(value, at[-1] + gap) if at else value)
    # What was pushed over the top moves back down, and what lies in its way with it.
    for i in reversed(range(len(at))):
        at[i] = min(at[i], top if i == len(at) - 1 else at[i + 1] - gap)
    for (name, value, color), height in zip(order, at, strict=True):
        axes.annotate(
            f"{name} {value:.3f}", (1.015, height), xycoords=("axes fraction", "data"), va="center", fontsize=8.5,
            color=color, annotation_clip=False, parse_math=False,
        )  # fmt: skip


def save_png(figure: Figure, path: Path) -> None:
    """Write a figure as PNG without the date or software version, so that equal figures are equal files."""
    figure.savefig(path, format="png", dpi=200, facecolor="white", metadata={"Software": None})


def _place_on_log_axis(axes: Axes, params: np.ndarray) -> np.ndarray:
    """Set up the x axis; returns the positions, where a zero lies a decade left of the smallest count."""
    positive = params[params > 0]
    least, most = (positive.min(), positive.max()) if positive.size else (1.0, 10.0)
    zero = 10.0 ** (math.floor(math.log10(least)) - 1)
    x = np.where(params > 0, params, zero)
    left = zero if (params <= 0).any() else least
    span = max(math.log10(most / left), 1.0)
    axes.set_xscale("log")
    axes.set_xlim(left / 10 ** (0.09 * span), most * 10 ** (0.14 * span))
    first = math.ceil(math.log10(axes.get_xlim()[0]))
    last = math.floor(math.log10(axes.get_xlim()[1]))
    step = max(1, math.ceil((last - first + 1) / 8))
    ticks = [10.0**power for power in range(first, last + 1, step)]
    if len(ticks) < 2 and positive.size:
        ticks = sorted({least, most})
    labels = [count(tick) for tick in ticks]
    if (params <= 0).any():
        ticks, labels = [zero, *(t for t in ticks if t > zero)], ["0", *(count(t) for t in ticks if t > zero)]
    axes.set_xticks(ticks, labels)
    axes.set_xticks([], minor=True)
    return _dodge(axes, x)


def _dodge(axes: Axes, x: np.ndarray) -> np.ndarray:
    """Move equal or nearly equal positions apart, just far enough that their interval bars do not hide each other."""
    low, high = np.log10(axes.get_xlim())
    places = (np.log10(x) - low) / (high - low)
    least = 0.016  # of the axis: the width of a marker
    moved = places.copy()
    order = np.argsort(places, kind="stable")
    start = 0
    for stop in range(1, len(order) + 1):
        if stop < len(order) and places[order[stop]] - places[order[stop - 1]] < least:
            continue
        cluster = order[start:stop]
        if len(cluster) > 1:
            moved[cluster] = places[cluster].mean() + least * (np.arange(len(cluster)) - (len(cluster) - 1) / 2)
        start = stop
    return np.asarray(10 ** (low + moved * (high - low)))


def _limit_accuracy(
    axes: Axes, low: np.ndarray, high: np.ndarray, floors: pd.DataFrame
) -> tuple[list[tuple[str, float]], list[tuple[str, float]]]:
    """Set up the y axis; returns the floors drawn as lines and those named below the edge."""
    named = [
        (_short(floor_name(str(name), short=True), 18), float(value))
        for name, value in zip(floors["strategy"], floors["test_accuracy"], strict=True)
    ]
    if not low.size:
        low = high = np.array([value for _, value in named] or [0.5])
    bottom, top = float(low.min()), float(high.max())
    spread = max(top - bottom, 0.02)
    drawn = [(name, value) for name, value in named if bottom - value <= 1.6 * spread and value - top <= 1.6 * spread]
    away = [pair for pair in named if pair not in drawn]
    values = [bottom, top, *(value for _, value in drawn)]
    margin = 0.12 * max(max(values) - min(values), 0.02)
    axes.set_ylim(max(-0.02, min(values) - margin), min(1.02, max(values) + 1.3 * margin))
    return drawn, away


def _style(axes: Axes, title: str, confidence: float) -> None:
    axes.set_title(
        _short(title, 80), loc="left", fontsize=10.5, color=_INK, fontweight="bold", pad=10, parse_math=False
    )
    axes.set_xlabel("trainable parameters (log scale)", fontsize=9.5, color=_INK)
    axes.set_ylabel(f"test accuracy, {100 * confidence:g} % interval", fontsize=9.5, color=_INK)
    axes.tick_params(labelsize=9, colors=_INK, length=0, pad=6)
    axes.locator_params(axis="y", nbins=7)
    axes.grid(axis="y", color=_GRID, lw=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_MUTED)


def _label_floors(axes: Axes, drawn: Sequence[tuple[str, float]], away: Sequence[tuple[str, float]]) -> None:
    """Dashed lines with their names in the right margin, pushed apart where they would touch."""
    bottom, top = axes.get_ylim()
    gap = 0.075 * (top - bottom)
    at = -math.inf
    for name, value in sorted(drawn, key=lambda pair: pair[1]):
        axes.axhline(value, color=_MUTED, lw=1.1, ls=(0, (5, 4)), zorder=1)
        at = max(value, at + gap)
        label = f"{name} {value:.3f}"
        axes.annotate(
            label, (1.015, at), xycoords=("axes fraction", "data"), va="center", fontsize=8.5, color=_MUTED,
            annotation_clip=False, parse_math=False,
        )  # fmt: skip
    for i, (name, value) in enumerate(away):
        arrow = "↓" if value < bottom else "↑"
        height = 0.03 + 0.05 * i if value < bottom else 0.985 - 0.05 * i
        axes.annotate(
            f"{arrow} {name} {value:.3f}", (0.995, height), xycoords="axes fraction", ha="right", va="center",
            fontsize=8.5, color=_MUTED, parse_math=False,
        )  # fmt: skip


def _label_points(
    axes: Axes,
    x: np.ndarray,
    y: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    names: Sequence[str],
    colors: Sequence[str],
) -> None:
    """Write each strategy's name beside its point, at the first place that is free of marks and other labels."""
    from matplotlib.transforms import Bbox

    figure: Any = axes.figure
    renderer = figure.canvas.get_renderer()
    unit = figure.dpi / 72  # pixels per point
    taken = []
    for xi, yi, lo, hi in zip(x, y, low, high, strict=True):
        (px, bottom), (_, top), (_, middle) = axes.transData.transform([(xi, lo), (xi, hi), (xi, yi)])
        taken.append(Bbox.from_extents(px - 2 * unit, bottom, px + 2 * unit, top))
        taken.append(Bbox.from_extents(px - 5 * unit, middle - 5 * unit, px + 5 * unit, middle + 5 * unit))
    taken += [text.get_window_extent(renderer) for text in axes.texts]
    frame = axes.get_window_extent(renderer)
    frame = Bbox.from_extents(frame.x0, frame.y0 + 2 * unit, frame.x1 + 30 * unit, frame.y1 + 4 * unit)
    for i in np.argsort(-y, kind="stable"):
        text = axes.annotate(
            _short(names[i], 32), (x[i], y[i]), xytext=(9, 0), textcoords="offset points", fontsize=9.5,
            color=colors[i], fontweight="bold" if colors[i] == _CHOSEN else "normal", va="center",
            parse_math=False, zorder=5,
        )  # fmt: skip
        (_, bottom), (_, top), (_, middle) = axes.transData.transform([(x[i], low[i]), (x[i], high[i]), (x[i], y[i])])
        up, down = (top - middle) / unit, (middle - bottom) / unit
        best: tuple[float, tuple[float, float, _Side]] | None = None
        for dx, dy, align in _places(up, down):
            text.set_position((dx, dy))
            text.set_horizontalalignment(align)
            box = text.get_window_extent(renderer).padded(1.5 * unit)
            cost = sum(_overlap(box, other) for other in taken)
            cost += box.width * box.height - _overlap(box, frame)  # what hangs out of the axes
            if best is None or cost < best[0] - 1:
                best = (cost, (dx, dy, align))
            if cost < 1:
                break
        if best is not None:
            dx, dy, align = best[1]
            text.set_position((dx, dy))
            text.set_horizontalalignment(align)
        taken.append(text.get_window_extent(renderer).padded(1.5 * unit))


def _places(up: float, down: float) -> list[tuple[float, float, _Side]]:
    """Offsets in points from the marker, the most readable first: beside it, over and under its bar, then farther."""
    sides: tuple[tuple[float, _Side], ...] = ((9.0, "left"), (-9.0, "right"))
    ends: list[tuple[float, float, _Side]] = [(0.0, up + 9, "center"), (0.0, -down - 9, "center")]
    level: list[tuple[float, float, _Side]] = [(dx, 0.0, side) for dx, side in sides]
    return [*level, *ends, *((dx, float(dy), side) for dy in (9, -9, 20, -20, 32, -32, 44, -44) for dx, side in sides)]


def _short(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _overlap(a: Any, b: Any) -> float:
    width = min(a.x1, b.x1) - max(a.x0, b.x0)
    height = min(a.y1, b.y1) - max(a.y0, b.y0)
    return float(max(0.0, width) * max(0.0, height))
