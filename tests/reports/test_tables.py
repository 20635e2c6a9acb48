"""Per-class results, shifted scores with their intervals, and drift: as tables and in the report."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

import reports
from reports.tables import drift_table, per_class_table, shifted_table
from sweeper import schema
from tests.reports.conftest import SINGLE, Recorder, predictions

NAME = "c-tables"


@pytest.fixture(scope="module")
def comparison(recorder: Recorder) -> reports.Comparison:
    """Two finals of known confusion: 6 of 8 of class 0 and 1 of 2 of class 1 are right."""
    rows = pd.DataFrame({"item": range(10), "group": "", "label": [0] * 8 + [1] * 2, "probability": 0.9})
    rows["prediction"] = [0] * 6 + [1, 1] + [0, 1]
    study = recorder.study(
        NAME,
        "lora",
        summary={
            "label_names": ["bad|ly", "<good>"],
            "modality": "text",
            "source": {"columns": {"text": "re`view", "label": "y"}},
        },
        artifacts={
            schema.ARTIFACT_CONFIG: "dataset: {max_length: 64, image_size: 224}\ntrainer: {class_weights: balanced}"
        },
    )
    for seed in (1000, 1001):
        recorder.final(
            NAME,
            study,
            seed,
            0.7,
            size=100,
            tags={schema.TAG_SHIFTED: "other.csv f00d"},
            metrics={
                schema.SHIFTED_ACCURACY: 0.6,
                schema.SHIFTED_MACRO_F1: 0.5,
                schema.TEST_SAMPLES_PER_SECOND: 500.0,
                schema.DRIFT_CKA: 0.8 + 0.1 * (seed - 1000),
                schema.DRIFT_COSINE: 0.9,
                schema.DRIFT_ITEMS: 500.0,
            },
            artifacts={
                schema.ARTIFACT_PREDICTIONS: rows.to_csv(index=False),
                schema.ARTIFACT_SHIFTED_PREDICTIONS: predictions(0.6, seed, 500).to_csv(index=False),
            },
        )
    return reports.load_comparison(recorder.uri, NAME)


def test_each_class_has_its_precision_recall_and_support(comparison: reports.Comparison) -> None:
    table = per_class_table(comparison, "lora").set_index("label")
    assert list(table.index) == ["0", "1"]  # the best one first
    assert table.loc["0"].tolist() == pytest.approx([6 / 7, 6 / 8, 0.8, 8])
    assert table.loc["1"].tolist() == pytest.approx([1 / 3, 1 / 2, 0.4, 2])


def test_shifted_scores_have_intervals_over_their_own_items(comparison: reports.Comparison) -> None:
    row = shifted_table(comparison).iloc[0]
    assert row["shifted_accuracy"] == pytest.approx(0.6) and row["difference"] == pytest.approx(-0.1)
    assert 0.03 < row["shifted_accuracy_high"] - row["shifted_accuracy_low"] < 0.3
    assert shifted_table(comparison, 0.5)["shifted_accuracy_low"].iloc[0] > row["shifted_accuracy_low"]


def test_drift_is_a_mean_over_finals_and_absent_where_nobody_asked(comparison: reports.Comparison, uri: str) -> None:
    assert drift_table(comparison).iloc[0].tolist() == ["lora", pytest.approx(0.85), 0.9, 500, 2]
    assert drift_table(reports.load_comparison(uri, SINGLE)).empty


def test_the_report_shows_them(comparison: reports.Comparison, uri: str, tmp_path: Path) -> None:
    text = reports.build_report(uri, reports_dir=tmp_path, comparison=NAME).path.read_text("utf-8")
    for piece in (
        "| bad\\|ly | 0.857 | 0.750 | 0.800 | 8 |",
        "| &lt;good&gt; | 0.333 | 0.500 | 0.400 | 2 |",
        "| **lora** | 0.850 | 0.900 | 500 | 2 |",
        "| **lora** | 0.600 [0.",
        "500 items/s",
        "The test split was scored 2 times in this comparison: 2 by finals.",
        "Texts are cut at 64 tokens.",
        "Class weights in the loss: balanced.",
        "Columns: text `re'view`, label `y`.",
    ):
        assert piece in text, piece
    assert "Image size" not in text  # of a text model
