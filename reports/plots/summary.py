"""The figure of a summary: accuracy against trainable parameters, a panel for each dataset, a mark for each model."""

from __future__ import annotations

import math

import pandas as pd

from reports.formats import count, score_interval
from reports.plots.canvas import INK, PAPER, Drawing, legend_handle, looks, new_figure, short, style_axes
from reports.plots.labels import dodge, label_floors, label_points
from reports.plots.scores import limit_accuracy, log_axis

__all__ = ["summary_figure"]

_PANEL = (5.6, 3.5)  # inches


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
    points = points[points["test_accuracy"].notna()]
    drawn = points[(points["kind"] == "strategy") & points["trainable_params"].notna()]
    if drawn.empty:
        return None
    datasets, look = list(dict.fromkeys(drawn["dataset"])), looks([str(model) for model in drawn["model"]])
    columns = min(2, len(datasets))
    rows = math.ceil(len(datasets) / columns)
    legend = math.ceil(len(look) / (2 * columns)) if len(look) > 1 else 0  # lines at the top
    wide, tall = _PANEL[0] * columns, _PANEL[1] * rows + 0.22 * legend + 0.1
    drawing = Drawing("all_models", new_figure(wide, tall), alt)
    for i, dataset in enumerate(datasets):
        left, bottom = _PANEL[0] * (i % columns) + 0.7, _PANEL[1] * (rows - 1 - i // columns) + 0.6
        box = (left / wide, bottom / tall, (_PANEL[0] - 2.2) / wide, (_PANEL[1] - 1.0) / tall)  # a margin for the floor
        axes = drawing.figure.add_axes(box, facecolor=PAPER)
        own = drawn[drawn["dataset"] == dataset]
        places = pd.Series(log_axis(axes, drawn["trainable_params"].to_numpy(float), count), index=drawn.index)
        x, y = dodge(axes, places[own.index].to_numpy(float)), own["test_accuracy"].to_numpy(float)
        low, high = (
            own[f"test_accuracy_{end}"].fillna(own["test_accuracy"]).to_numpy(float) for end in ("low", "high")
        )
        colors = [look[str(model)].color for model in own["model"]]
        for j, row in enumerate(own.to_dict("records")):
            reached = score_interval(y[j], row["test_accuracy_low"], row["test_accuracy_high"])
            values = f"{row['strategy']}, {row['model']} on {dataset}: {reached}, trainable parameters "
            values += count(row["trainable_params"])
            bar = axes.plot([x[j], x[j]], [low[j], high[j]], color=colors[j], lw=1.8, alpha=0.5, zorder=3)
            marker = look[str(row["model"])].marker
            (point,) = axes.plot(x[j], y[j], marker, color=colors[j], ms=7, mec=PAPER, mew=0.9, zorder=4)
            for artist in (*bar, point):
                drawing.mark(artist, str(row["strategy"]), values)
        floors = points[(points["dataset"] == dataset) & (points["kind"] == "floor")]
        lines, away = limit_accuracy(axes, low, high, floors.nlargest(1, "test_accuracy"))
        style_axes(axes, short(str(dataset), 50))
        axes.set_xlabel("trainable parameters (log scale)", fontsize=9.5, color=INK)
        axes.set_ylabel(f"test accuracy, {100 * confidence:g} % interval", fontsize=9.5, color=INK)
        axes.locator_params(axis="y", nbins=7)
        axes.tick_params(labelsize=8)
        drawing.figure.canvas.draw()
        label_floors(axes, lines, away)
        names = [str(strategy) for strategy in own["strategy"]]
        for name, text in zip(names, label_points(axes, x, y, low, high, names, None, colors), strict=True):
            drawing.mark(text, name)
    if legend:
        drawing.figure.legend(
            handles=[legend_handle(given, model) for model, given in look.items()], loc="upper left",
            ncols=2 * columns, frameon=False, fontsize=9, labelcolor=INK,
        )  # fmt: skip
    return drawing
