"""The figures: ``scores`` (what a strategy costs and reaches), ``search``, ``curves`` and ``matrix``, on a ``canvas``.

Each function takes tables and returns a ``Drawing``, or ``None`` where there is nothing to show.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from reports.load import Comparison
from reports.plots.canvas import Drawing, looks
from reports.plots.curves import loss_figure, score_figure
from reports.plots.matrix import confusion_figure
from reports.plots.scores import accuracy_figure, pareto_front, size_figure, tuning_figure
from reports.plots.search import importance_figure, learning_rate_figure, structure_figure

__all__ = [
    "Drawing",
    "accuracy_figure",
    "confusion_figure",
    "importance_figure",
    "learning_rate_figure",
    "loss_figure",
    "pareto_front",
    "report_figures",
    "score_figure",
    "size_figure",
    "structure_figure",
    "tuning_figure",
]


def report_figures(
    comparison: Comparison, table: pd.DataFrame, *, chosen: str | None, confidence: float = 0.95
) -> list[Drawing]:
    """Every figure of a report that has something to show.

    Args:
        comparison: of ``load_comparison``.
        table: of ``tables.comparison_table``; strategies appear in its order.
        chosen: the strategy to highlight, whose confusions are shown.
        confidence: of the intervals.
    """
    order = [str(label) for label in table.loc[table["kind"] == "strategy", "strategy"]]
    subject = comparison.title
    drawings = [
        accuracy_figure(
            table, title=f"{subject}: what each trainable parameter buys", chosen=chosen, confidence=confidence
        ),
        tuning_figure(table, title=f"{subject}: what tuning time buys", chosen=chosen, confidence=confidence),
        learning_rate_figure(comparison, order),
        structure_figure(comparison, order, looks(order)),
        importance_figure(comparison, order),
        score_figure(comparison, order),
        loss_figure(comparison, order),
        _confusion(comparison, chosen),
    ]
    return [drawing for drawing in drawings if drawing is not None]


def _confusion(comparison: Comparison, chosen: str | None) -> Drawing | None:
    study = comparison.studies.loc[comparison.studies["label"] == chosen, "study"]
    if study.empty:
        return None
    runs = comparison.finals(str(study.iloc[0]))["run_id"]
    predictions = [comparison.predictions[run] for run in runs if run in comparison.predictions]
    return confusion_figure(predictions, _class_names(comparison.data_summary), strategy=str(chosen))


def _class_names(summary: dict[str, Any]) -> Sequence[str]:
    names = summary.get("label_names")
    return [str(name) for name in names] if isinstance(names, list) else []
