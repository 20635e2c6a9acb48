"""The figure of a summary: accuracy against trainable parameters, a panel for each dataset, a mark for each model."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from reports.formats import count, floor_name
from reports.plots.canvas import GRID, INK, MUTED, PAPER, SERIES, Drawing, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["summary_figure"]

_MARKS = "osD^vPX<"
_PANEL = (5.0, 3.5)  # inches


def summary_figure(points: pd.DataFrame, *, alt: str, confidence: float = 0.95) -> Drawing | None:
    """Test accuracy against trainable parameters for all models and datasets.

    Each dataset has a panel with an accuracy axis of its own, because scores on different data are not comparable; the
    logarithmic parameter axis is the same in all of them. What trains nothing stands at its left end under ``0``; the
    strongest floor of a panel is dashed. Rows without an accuracy or a count are left out; ``None`` if no row is left.

    Args:
        points: rows of ``tables.comparison_table`` with the columns ``dataset`` and ``model``.
        alt: what the figure shows, plain text.
        confidence: named in the axis label.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    points = points[points["test_accuracy"].notna()]
    drawn = points[(points["kind"] == "strategy") & points["trainable_params"].notna()]
    if drawn.empty:
        return None
    datasets, models = list(dict.fromkeys(drawn["dataset"])), list(dict.fromkeys(drawn["model"]))
    columns = 1 if len(datasets) == 1 else 2 if len(datasets) <= 4 else 3
    rows = math.ceil(len(datasets) / columns)
    figure = Figure(
        figsize=(_PANEL[0] * columns, _PANEL[1] * rows + 0.4), dpi=200, facecolor=PAPER, layout="constrained"
    )
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid[len(datasets) :]:
        axes.set_axis_off()
    labels = []
    for axes, dataset in zip(grid, datasets, strict=False):
        _style(axes, dataset, confidence)
        zero = _scale(axes, drawn["trainable_params"].to_numpy(float))
        own = drawn[drawn["dataset"] == dataset]
        for i, model in enumerate(models):
            line = own[own["model"] == model].sort_values("trainable_params")
            x = line["trainable_params"].clip(lower=zero).to_numpy(float)
            y = line["test_accuracy"].to_numpy(float)
            low, high = (line[f"test_accuracy_{end}"].fillna(line["test_accuracy"]) for end in ("low", "high"))
            color = SERIES[i % len(SERIES)]
            axes.vlines(x, low, high, color=color, lw=1.5, alpha=0.5, zorder=3)
            axes.plot(x, y, _MARKS[i % len(_MARKS)], color=color, ms=6.5, mec=PAPER, mew=0.9, zorder=4)
            labels += [(axes, px, py, str(name), color) for px, py, name in zip(x, y, line["strategy"], strict=True)]
        floors = points[(points["dataset"] == dataset) & (points["kind"] == "floor")]
        if len(floors):
            _draw_floor(axes, floors.loc[floors["test_accuracy"].idxmax()])
        axes.margins(y=0.1)
    if len(models) > 1:
        handles = [
            Line2D([], [], color=SERIES[i % len(SERIES)], marker=_MARKS[i % len(_MARKS)], lw=0, mec=PAPER, ms=7.5)
            for i in range(len(models))
        ]
        names = [_plain(short(str(model), 40)) for model in models]
        figure.legend(
            handles, names, loc="outside upper left", ncols=min(4, len(models)), frameon=False, fontsize=9,
            labelcolor=INK,
        )  # fmt: skip
    figure.canvas.draw()  # constrained layout moves the axes: labels are placed afterwards
    _place(figure, labels)
    return Drawing("all_models", figure, alt)


def _style(axes: Axes, title: str, confidence: float) -> None:
    axes.set_title(short(str(title), 60), loc="left", fontsize=10, color=INK, fontweight="bold", parse_math=False)
    axes.set_xlabel("trainable parameters (log scale)", fontsize=8.5, color=INK)
    axes.set_ylabel(f"test accuracy, {100 * confidence:g} % interval", fontsize=8.5, color=INK)
    axes.tick_params(labelsize=8.5, colors=INK, length=0, pad=5)
    axes.grid(axis="y", color=GRID, lw=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(MUTED)


def _scale(axes: Axes, params: np.ndarray) -> float:
    """Set up the parameter axis; returns where a count of zero stands, a decade left of the others."""
    positive = params[params > 0]
    least, most = (positive.min(), positive.max()) if positive.size else (1.0, 10.0)
    zero = float(10.0 ** (math.floor(math.log10(least)) - 1))
    left = zero if (params <= 0).any() else least
    span = max(math.log10(most / left), 1.0)
    axes.set_xscale("log")
    axes.set_xlim(left / 10 ** (0.1 * span), most * 10 ** (0.16 * span))
    first, last = (math.log10(limit) for limit in axes.get_xlim())
    powers = range(math.ceil(first), math.floor(last) + 1, max(1, math.ceil((last - first) / 7)))
    ticks = {10.0**power: count(10.0**power) for power in powers if left > zero or 10.0**power > zero}
    if left == zero:
        ticks = {zero: "0", **ticks}
    axes.set_xticks(list(ticks), list(ticks.values()))
    axes.set_xticks([], minor=True)
    return zero


def _draw_floor(axes: Axes, floor: pd.Series) -> None:
    value = float(floor["test_accuracy"])
    axes.axhline(value, color=MUTED, lw=1.0, ls=(0, (5, 4)), zorder=1)
    axes.annotate(
        f"{short(floor_name(str(floor['strategy']), short=True), 28)} {value:.3f}", (0.995, value),
        xycoords=("axes fraction", "data"), xytext=(0, 2), textcoords="offset points", ha="right", va="bottom",
        fontsize=7.5, color=MUTED, parse_math=False,
    )  # fmt: skip


def _place(figure: Figure, labels: list[tuple[Axes, float, float, str, str]]) -> None:
    """Write each strategy's name at the first place around its mark that no mark or other name takes."""
    from matplotlib.transforms import Bbox

    renderer: Any = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    size = 4.5 * figure.dpi / 72
    centres = [axes.transData.transform((x, y)) for axes, x, y, _, _ in labels]
    taken = [Bbox.from_extents(px - size, py - size, px + size, py + size) for px, py in centres]
    taken += [text.get_window_extent(renderer) for axes in figure.axes for text in axes.texts]
    around = [
        (dx, dy)
        for distance in (0, 10, 20, 30)
        for dy in ((distance, -distance) if distance else (0,))
        for dx in (8, -8)
    ]
    for axes, x, y, name, color in labels:
        text = axes.annotate(
            short(name, 26), (x, y), xytext=(8, 0), textcoords="offset points", fontsize=8, color=color, va="center",
            parse_math=False, zorder=5,
        )  # fmt: skip
        frame = axes.get_window_extent(renderer).padded(12)
        costs = []
        for dx, dy in around:
            text.set_position((dx, dy))
            text.set_horizontalalignment("left" if dx > 0 else "right")
            box = text.get_window_extent(renderer)
            outside = box.width * box.height - _shared(box, frame)
            costs.append(sum(_shared(box, other) for other in taken) + outside)
        dx, dy = around[int(np.argmin(costs))]
        text.set_position((dx, dy))
        text.set_horizontalalignment("left" if dx > 0 else "right")
        taken.append(text.get_window_extent(renderer))


def _shared(a: Any, b: Any) -> float:
    """The area that two boxes share."""
    return float(max(0.0, min(a.x1, b.x1) - max(a.x0, b.x0)) * max(0.0, min(a.y1, b.y1) - max(a.y0, b.y0)))


def _plain(text: str) -> str:
    """A legend reads mathematics between dollar signs and hides what begins with an underscore."""
    return text.replace("$", r"\$").lstrip("_")
