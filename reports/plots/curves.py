"""Learning curves: what each epoch of the winners' finals came to."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from reports.formats import is_missing, score
from reports.load import Comparison
from reports.plots.canvas import CHOSEN, INK, MUTED, POINT, Drawing, listed, panels, style_axes
from sweeper import schema

__all__ = ["loss_figure", "score_figure"]


def score_figure(comparison: Comparison, order: Sequence[str]) -> Drawing | None:
    """Validation accuracy of the counted finals by epoch, a panel for each strategy and a line for each seed.

    A diamond is the epoch whose weights were kept.

    Args:
        comparison: of ``load_comparison``.
        order: strategy labels, in the order of the report's tables.

    Returns:
        ``None`` where no final has two epochs on record.
    """
    return _epochs(comparison, order, "learning_curves", "Learning curves: validation accuracy",
                   {schema.VALIDATION_ACCURACY: (POINT, "-", "validation accuracy")})  # fmt: skip


def loss_figure(comparison: Comparison, order: Sequence[str]) -> Drawing | None:
    """Training (dashed) and validation loss of the counted finals by epoch; otherwise as ``score_figure``."""
    return _epochs(
        comparison, order, "losses", "Losses: validation (solid), training (dashed)",
        {schema.TRAIN_LOSS: (MUTED, "--", "training loss"), schema.VALIDATION_LOSS: (POINT, "-", "validation loss")},
    )  # fmt: skip


def _epochs(
    comparison: Comparison, order: Sequence[str], name: str, title: str, metrics: dict[str, tuple[str, str, str]]
) -> Drawing | None:
    labels = dict(zip(comparison.studies["label"], comparison.studies["study"], strict=True))
    shown: list[tuple[str, list[tuple[pd.Series, pd.DataFrame]]]] = []
    for label in order:
        finals = comparison.finals(labels[label]) if label in labels else comparison.runs.iloc[:0]
        runs = [(run, comparison.histories.get(run["run_id"], pd.DataFrame())) for _, run in finals.iterrows()]
        kept = [(run, table) for run, table in runs if any(m in table and table[m].notna().sum() > 1 for m in metrics)]
        if kept:
            shown.append((label, kept))
    if not shown:
        return None
    figure, axes = panels(len(shown), title)
    drawing = Drawing(name, figure)
    said = []
    ceiling = 1
    for axis, (label, runs) in zip(axes, shown, strict=True):
        ends = []
        for run, table in runs:
            ceiling = max(ceiling, int(table["epoch"].max()))
            for metric, (color, dash, what) in metrics.items():
                points = table[table[metric].notna()] if metric in table else table.iloc[:0]
                if points.empty:
                    continue
                path = ", ".join(f"{value:.3f}" for value in points[metric][:30])
                (line,) = axis.plot(points["epoch"], points[metric], ls=dash, color=color, lw=1.3, alpha=0.85)
                seed = "" if is_missing(run[schema.PARAM_SEED]) else f", seed {run[schema.PARAM_SEED]:.0f}"
                drawing.mark(line, label, f"{label}{seed}, {what} by epoch: {path}")
                best = points[points["epoch"] == run[schema.BEST_EPOCH]]
                if color == POINT and len(best):
                    (mark,) = axis.plot(best["epoch"], best[metric], "D", color=CHOSEN, ms=4, zorder=4)
                    drawing.mark(mark, label)
                    ends.append((int(run[schema.BEST_EPOCH]), float(best[metric].iloc[0])))
        style_axes(axis, label, small=True)
        if ends:
            epochs = sorted({epoch for epoch, _ in ends})
            span = f"epoch {epochs[0]}" if len(epochs) == 1 else f"epochs {epochs[0]} to {epochs[-1]}"
            said.append(f"{label} {score(sum(value for _, value in ends) / len(ends))} ({span})")
    step = max(1, round(ceiling / 5))
    axes[0].set_xticks(range(step, ceiling + 1, step))
    figure.supxlabel("epoch", fontsize=9, color=INK, y=0.16 / figure.get_figheight())
    figure.text(0.985, 0.16 / figure.get_figheight(), "\N{BLACK DIAMOND} the epoch kept", fontsize=8, color=MUTED,
                ha="right", va="center")  # fmt: skip
    drawing.alt = f"{title}, of the finals by epoch."
    if said:
        drawing.alt += f" Mean at the epochs kept: {listed(said, 18)}."
    return drawing
