"""Where names and marks stand so that none hides another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from reports.plots.canvas import CHOSEN, INK, MUTED, PAPER, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Text

__all__ = ["dodge", "label_ends", "label_floors", "label_points"]

_Side = Literal["left", "center", "right"]


def label_ends(axes: Axes, ends: Sequence[tuple[str, float, str]]) -> None:
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


def label_floors(axes: Axes, drawn: Sequence[tuple[str, float]], away: Sequence[tuple[str, float]]) -> None:
    """Dashed lines with their names in the right margin, pushed apart where they would touch."""
    bottom, top = axes.get_ylim()
    gap = 0.075 * (top - bottom)
    at = -math.inf
    for name, value in sorted(drawn, key=lambda pair: pair[1]):
        axes.axhline(value, color=MUTED, lw=1.1, ls=(0, (5, 4)), zorder=1)
        at = max(value, at + gap)
        label = f"{name} {value:.3f}"
        axes.annotate(
            label, (1.015, at), xycoords=("axes fraction", "data"), va="center", fontsize=8.5, color=MUTED,
            annotation_clip=False, parse_math=False,
        )  # fmt: skip
    for i, (name, value) in enumerate(away):
        arrow = "↓" if value < bottom else "↑"
        height = 0.03 + 0.05 * i if value < bottom else 0.985 - 0.05 * i
        axes.annotate(
            f"{arrow} {name} {value:.3f}", (0.995, height), xycoords="axes fraction", ha="right", va="center",
            fontsize=8.5, color=MUTED, parse_math=False,
        )  # fmt: skip


def label_points(
    axes: Axes,
    x: np.ndarray,
    y: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    names: Sequence[str],
    chosen: str | None,
    colors: Sequence[str] | None = None,
) -> list[Text]:
    """Write each strategy's name beside its point, at the first place that is free of marks and other labels.

    Args:
        axes: with its final limits and size.
        x: of the points, in data coordinates, as are the next three.
        y: of the points.
        low: lower ends of their bars.
        high: upper ends of their bars.
        names: of the points; may repeat.
        chosen: the name to highlight.
        colors: of the names; by default all but the chosen one are in ink.

    Returns:
        The texts, in the order of ``names``.
    """
    from matplotlib.transforms import Bbox

    figure: Any = axes.figure
    renderer = figure.canvas.get_renderer()
    unit = figure.dpi / 72  # pixels per point
    taken = []
    written: dict[int, Text] = {}
    for xi, yi, lo, hi in zip(x, y, low, high, strict=True):
        (px, bottom), (_, top), (_, middle) = axes.transData.transform([(xi, lo), (xi, hi), (xi, yi)])
        taken.append(Bbox.from_extents(px - 2 * unit, bottom, px + 2 * unit, top))
        taken.append(Bbox.from_extents(px - 5 * unit, middle - 5 * unit, px + 5 * unit, middle + 5 * unit))
    taken += [text.get_window_extent(renderer) for text in axes.texts]
    frame = axes.get_window_extent(renderer)
    frame = Bbox.from_extents(frame.x0, frame.y0 + 2 * unit, frame.x1 + 30 * unit, frame.y1 + 4 * unit)
    for i in np.argsort(-y, kind="stable"):
        text = axes.annotate(
            short(names[i], 32), (x[i], y[i]), xytext=(9, 0), textcoords="offset points", fontsize=9.5,
            color=CHOSEN if names[i] == chosen else colors[i] if colors else INK,
            fontweight="bold" if names[i] == chosen else "normal",
            va="center", bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 0.6},  # over the line of the front
            parse_math=False, zorder=5,
        )  # fmt: skip
        (px, bottom), (_, top), (_, middle) = axes.transData.transform([(x[i], low[i]), (x[i], high[i]), (x[i], y[i])])
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
            if abs(dy) > 10 and (dx or abs(dy) > max(up, down) + 10):  # far away: a thin line says whose name it is
                box = text.get_window_extent(renderer)
                end = (min(max(px, box.x0), box.x1), box.y0 if dy > 0 else box.y1)
                (x0, y0), (x1, y1) = axes.transData.inverted().transform([(px, middle), end])
                axes.plot([x0, x1], [y0, y1], color=MUTED, lw=0.6, zorder=2, clip_on=False)
        written[int(i)] = text
        taken.append(text.get_window_extent(renderer).padded(1.5 * unit))
    return [written[i] for i in range(len(names))]


def _places(up: float, down: float) -> list[tuple[float, float, _Side]]:
    """Offsets in points from the marker, the most readable first: beside it, over and under its bar, then farther."""
    sides: tuple[tuple[float, _Side], ...] = ((9.0, "left"), (-9.0, "right"))
    ends: list[tuple[float, float, _Side]] = [(0.0, up + 9, "center"), (0.0, -down - 9, "center")]
    level: list[tuple[float, float, _Side]] = [(dx, 0.0, side) for dx, side in sides]
    return [*level, *ends, *((dx, float(dy), side) for dy in (9, -9, 20, -20, 32, -32, 44, -44) for dx, side in sides)]


def _overlap(a: Any, b: Any) -> float:
    width = min(a.x1, b.x1) - max(a.x0, b.x0)
    height = min(a.y1, b.y1) - max(a.y0, b.y0)
    return float(max(0.0, width) * max(0.0, height))


def dodge(axes: Axes, x: np.ndarray) -> np.ndarray:
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
