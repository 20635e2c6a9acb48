"""``docs/mlflow_ui.md``: every filter finds what it says it finds, and its pictures are small."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sweeper import schema
from tests.reports.conftest import Recorder

GUIDE = Path(__file__).parents[2] / "docs" / "mlflow_ui.md"
ROWS = re.findall(r"^\| ([^|]+) \| `` (.+?) `` \|$", GUIDE.read_text(encoding="utf-8"), flags=re.MULTILINE)
COMPARISON = "minilm-review_lines-c33d805a"
#: What the table's rows find, as (kind, strategy) of the store below.
FOUND = {
    "all trials of one comparison": [("trial", "full"), ("trial", "lora"), ("trial", "lora")],
    "its finals only": [("final", "lora")],
    "its floors and references": [("floor", None)],
    "one strategy's trials": [("trial", "lora"), ("trial", "lora"), ("trial", "lora")],
    "trials that were scored well": [("trial", "full")],
    "what failed or diverged, and why (column `thawline.reason`)": [("final", "lora"), ("trial", "lora")],
    "one row for each strategy and comparison": [("study", "full"), ("study", "lora"), ("study", "lora")],
    "everything on one dataset": None,
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Recorder:
    folder = tmp_path_factory.mktemp("ui")
    recorder = Recorder(f"sqlite:///{folder / 'mlflow.db'}", folder)
    lora = recorder.study(COMPARISON, "lora")
    recorder.trial(COMPARISON, lora, 0, score=0.6)
    recorder.trial(COMPARISON, lora, 1, state=schema.STATE_DIVERGED, tags={schema.TAG_REASON: "loss is nan"})
    recorder.final(COMPARISON, lora, 0, 0.8, size=10, logged=False)
    recorder.final(COMPARISON, lora, 1, 0.8, size=10, logged=False, state=schema.STATE_FAILED)
    full = recorder.study(COMPARISON, "full")
    recorder.trial(COMPARISON, full, 0, score=0.75)
    recorder.floor(COMPARISON, "majority", 0.5)
    other = recorder.study("another", "lora", tags={schema.TAG_DATASET: "r8"})
    recorder.trial("another", other, 0, score=0.6, tags={schema.TAG_DATASET: "r8"})
    return recorder


def test_every_row_is_tried():
    assert [what for what, _ in ROWS] == list(FOUND)
    assert len(ROWS) == GUIDE.read_text(encoding="utf-8").count("| ``")


@pytest.mark.parametrize(("what", "condition"), ROWS)
def test_filter_finds_what_it_says(store, what, condition):
    runs = store.client.search_runs([store.experiment], condition)
    found = sorted((run.data.tags[schema.TAG_KIND], run.data.tags.get(schema.TAG_STRATEGY)) for run in runs)
    if FOUND[what] is None:
        assert len(found) == 8 and {run.data.tags[schema.TAG_DATASET] for run in runs} == {"review_lines"}
    else:
        assert found == FOUND[what]


def test_keys_that_charts_are_made_of_are_in_the_schema():
    named = set(re.findall(r"`([a-z_]+)`", GUIDE.read_text(encoding="utf-8"))) - {"thawline", "learning_rate"}
    known = {value for key, value in vars(schema).items() if key.isupper() and isinstance(value, str)}
    assert named <= known, named - known


def test_pictures_are_small():
    pictures = re.findall(r"\]\((mlflow_ui/\w+\.png)\)", GUIDE.read_text(encoding="utf-8"))
    assert len(pictures) == 4
    assert all((GUIDE.parent / picture).stat().st_size < 150_000 for picture in pictures)
