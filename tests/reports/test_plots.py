"""Figures stay readable whatever is put into them, say what they show, and are left out where there is nothing."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pandas as pd
import pytest

import reports
from reports.plots import (
    accuracy_figure,
    confusion_figure,
    learning_rate_figure,
    loss_figure,
    pareto_front,
    score_figure,
    structure_figure,
    tuning_figure,
)
from reports.plots.canvas import looks
from reports.plots.summary import summary_figure
from sweeper import schema
from tests.reports.conftest import FAILURES, Recorder


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
    figure = accuracy_figure(given, title="a $title_{", chosen="lora").figure
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    boxes = [text.get_window_extent(renderer) for text in figure.axes[0].texts]
    assert len(boxes) == len(given)
    for first, second in combinations(boxes, 2):
        assert not first.overlaps(second)
    for box in boxes:
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1


def test_nothing_trained_stands_at_the_left_edge_under_a_zero():
    axes = accuracy_figure(table([("zero", 0, 0.8), ("lora", 148_000, 0.81)]), title="t").figure.axes[0]
    labels = [tick.get_text() for tick in axes.get_xticklabels()]
    assert labels[0] == "0" and axes.get_xticks()[0] in [
        line.get_xdata()[0] for line in axes.lines if len(line.get_xdata()) == 1
    ]


def test_far_floor_does_not_flatten_the_strategies():
    axes = accuracy_figure(table(CROWD, {"majority": 0.1}), title="t").figure.axes[0]
    assert axes.get_ylim()[0] > 0.65
    assert any("majority class 0.100" in text.get_text() for text in axes.texts)


def test_front_holds_what_no_cheaper_or_equally_cheap_strategy_beats():
    cost, value = np.array([5.0, 1.0, 5.0, 9.0, 7.0]), np.array([0.8, 0.7, 0.75, 0.9, 0.8])
    assert pareto_front(cost, value) == [1, 0, 3]


def test_alternative_text_names_the_choice_the_front_and_the_others():
    given = table([("frozen", 770, 0.75), ("lora", 148_000, 0.81), ("full", 22.7e6, 0.8)])
    alt = accuracy_figure(given, title="t", chosen="lora").alt
    assert (
        "The choice: lora 0.810 at 148 k." in alt and "Pareto front: frozen 0.750 at 770, lora 0.810 at 148 k." in alt
    )
    assert alt.endswith("Off the front of the means (differences may be noise): full 0.800 at 22.7 M.")


def test_figures_with_nothing_to_show_are_left_out(uri):
    floors_only = table([], {"majority": 0.5})
    assert accuracy_figure(floors_only.assign(trainable_params=1.0, tuning_seconds=1.0), title="t") is None
    assert tuning_figure(table([("lora", 1, 0.8)]).assign(tuning_seconds=60.0), title="t") is None
    assert confusion_figure([], [], strategy="lora") is None
    failures = reports.load_comparison(uri, FAILURES)
    for draw in (learning_rate_figure, score_figure, loss_figure):
        assert draw(failures, ["full"]) is None


def test_svg_is_the_same_each_time_and_holds_logged_text_as_text_only():
    evil = '"><script>alert(1)</script>'
    given = table([(evil, 770, 0.75), ("lora", 148_000, 0.81)])
    svg, again = (accuracy_figure(given, title=evil, chosen=evil).svg() for _ in range(2))
    assert svg == again
    assert "<script" not in svg and "&lt;script&gt;" in svg
    assert "<title>lora: 0.810 [0.790, 0.830], trainable parameters 148 k</title>" in svg
    assert "prefers-color-scheme:dark" in svg and "http://" not in svg.replace("http://www.w3.org/", "")


def test_a_summary_has_a_panel_for_each_dataset_and_marks_that_know_their_values():
    models = [f"$x_{{ {i}" for i in range(10)]
    crowd = pd.concat([table(CROWD[:2], {"majority": 0.7, "tfidf_logreg": 0.74}).assign(model=m) for m in models])
    given = pd.concat([crowd.assign(dataset=d) for d in ("films", "news", "$web_{")], ignore_index=True)
    drawing = summary_figure(given, alt="all")
    assert drawing.name == "all_models"
    assert [axes.get_title(loc="left") for axes in drawing.figure.axes] == ["films", "news", "$web_{"]
    assert len({tuple(axes.get_xlim()) for axes in drawing.figure.axes}) == 1
    assert all(any("TF-IDF + logistic 0.740" in text.get_text() for text in axes.texts) for axes in drawing.figure.axes)
    handles = drawing.figure.legends[0].legend_handles
    assert len({(handle.get_color(), handle.get_marker()) for handle in handles}) == 10
    values = [values for strategy, values in drawing.marks.values() if strategy == "frozen" and values]
    assert len(values) == 2 * 10 * 3  # bars and points
    assert "frozen, $x_{ 9 on news: 0.752 [0.732, 0.772], trainable parameters 770" in values
    assert drawing.svg().count('data-strategy="frozen"') == 3 * 10 * 3  # with their names
    assert summary_figure(given.assign(trainable_params=np.nan), alt="all") is None


def test_series_look_different_from_each_other():
    assert len({(look.color, look.marker) for look in looks([str(i) for i in range(32)]).values()}) == 32


def test_confusions_of_many_classes_show_the_worst_and_lose_no_item():
    names = [f"class {i}" for i in range(60)]
    label = np.repeat(np.arange(60), 10)
    wrong = np.where(label == 59, 58, np.where((label < 20) & (np.arange(600) % 10 == 0), label + 1, label))
    given = pd.DataFrame({"label": label.astype(str), "prediction": wrong.astype(str)})
    drawing = confusion_figure([given, given], names, strategy="lora")
    axes = drawing.figure.axes[0]
    rows = [tick.get_text() for tick in axes.get_yticklabels()]
    assert len(rows) == 15 and "class 59" in rows and rows[-1] == "46 others"
    assert sum(int(text.get_text()) for text in axes.texts) == 1200
    assert drawing.alt.startswith("Confusion matrix of lora on the test split, 2 finals together.")
    assert "Most frequent errors: class 59 taken for class 58 20 of 20 times" in drawing.alt


def test_two_classes_show_shares_of_the_true_class_and_counts():
    given = pd.DataFrame({"label": ["a"] * 4 + ["b"] * 6, "prediction": ["a"] * 3 + ["b"] * 7})
    drawing = confusion_figure([given], [], strategy="lora")
    assert [text.get_text() for text in drawing.figure.axes[0].texts] == ["75 %\n3", "25 %\n1", "100 %\n6"]


@pytest.fixture(scope="module")
def searched(tmp_path_factory) -> reports.Comparison:
    """Two strategies, one with ranks; trials of every state; finals with epochs."""
    folder = tmp_path_factory.mktemp("searched")
    recorder = Recorder(f"sqlite:///{folder / 'mlflow.db'}", folder)
    for strategy, fields in (("lora", "learning_rate,rank"), ("full", "learning_rate")):
        study = recorder.study("c", strategy, params={schema.PARAM_SEARCHED: fields})
        for number, state in enumerate(("complete", "complete", "pruned", "diverged")):
            recorder.trial("c", study, number, score=0.7 + 0.1 * number, state=state, params={"rank": 4 * 2**number})
        final = recorder.final("c", study, 1000, 0.8, size=1000)
        recorder.epochs(
            final, validation_accuracy=[0.6, 0.8, 0.7], validation_loss=[0.6, 0.4, 0.5], train_loss=[0.6, 0.3, 0.1]
        )
    return reports.load_comparison(recorder.uri, "c")


def test_searches_show_every_trial_and_name_the_winner(searched):
    rates = learning_rate_figure(searched, ["lora", "full"])
    panels = {axes.get_title(loc="left"): axes for axes in rates.figure.axes}
    assert set(panels) == {"lora", "full"} and all(len(axes.lines) == 4 for axes in panels.values())
    assert [line.get_marker() for line in panels["lora"].lines] == ["o", "D", "x", "x"]  # pruned before its first score
    assert "lora 0.800 at 6.2e-04" in rates.alt
    structure = structure_figure(searched, ["lora", "full"], looks(["lora", "full"]))
    assert [axes.get_title(loc="left") for axes in structure.figure.axes] == ["rank"]
    assert structure.alt.endswith("Best: lora 0.800 at rank 8.")


def test_learning_curves_show_scores_and_losses_by_epoch(searched):
    scores, losses = score_figure(searched, ["lora", "full"]), loss_figure(searched, ["lora", "full"])
    assert [list(line.get_ydata()) for line in scores.figure.axes[0].lines] == [[0.6, 0.8, 0.7]]
    assert [list(line.get_ydata()) for line in losses.figure.axes[1].lines] == [[0.6, 0.3, 0.1], [0.6, 0.4, 0.5]]
    assert [line.get_linestyle() for line in losses.figure.axes[1].lines] == ["--", "-"]
