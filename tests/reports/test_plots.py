"""The figure stays readable whatever is put into it."""

from __future__ import annotations

from itertools import combinations

import pandas as pd
import pytest

from reports.plots import accuracy_figure


def table(points: list[tuple[str, float, float]], floors: dict[str, float] | None = None) -> pd.DataFrame:
    rows = [
        {"strategy": name, "kind": "strategy", "trainable_params": size, "test_accuracy": score}
        | {"test_accuracy_low": score - 0.02, "test_accuracy_high": score + 0.02}
        for name, size, score in points
    ]
    rows += [{"strategy": name, "kind": "floor", "test_accuracy": score} for name, score in (floors or {}).items()]
    return pd.DataFrame(rows)


CROWD = [("frozen", 770, 0.752), ("bitfit", 4e4, 0.78), ("prompt", 5e3, 0.775), ("lora", 148_000, 0.801)]
CROWD += [("adapter", 151_000, 0.803), ("partial", 1.8e6, 0.8), ("gradual", 22.7e6, 0.812), ("full", 22.7e6, 0.809)]


@pytest.mark.parametrize(
    "given",
    [
        table(CROWD, {"majority": 0.749, "tfidf_logreg": 0.751}),
        table(CROWD, {"majority": 0.5}),
        table([("zero", 0, 0.8), ("lora", 148_000, 0.81)]),
        table([("$x_{", 770, 0.999)], {"tfidf_logreg": 0.99}),
    ],
)
def test_labels_do_not_overlap_and_stay_on_the_page(given):
    figure = accuracy_figure(given, title="a $title_{", chosen="lora")
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    boxes = [text.get_window_extent(renderer) for text in figure.axes[0].texts]
    assert len(boxes) == len(given)
    for first, second in combinations(boxes, 2):
        assert not first.overlaps(second)
    for box in boxes:
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1


def test_nothing_trained_stands_at_the_left_edge_under_a_zero():
    axes = accuracy_figure(table([("zero", 0, 0.8), ("lora", 148_000, 0.81)]), title="t").axes[0]
    labels = [tick.get_text() for tick in axes.get_xticklabels()]
    assert labels[0] == "0" and axes.get_xticks()[0] == axes.lines[1].get_xdata()[0]


def test_far_floor_does_not_flatten_the_strategies():
    axes = accuracy_figure(table(CROWD, {"majority": 0.1}), title="t").axes[0]
    assert axes.get_ylim()[0] > 0.65
    assert any("majority class 0.100" in text.get_text() for text in axes.texts)
