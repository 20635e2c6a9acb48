"""The files for programs: complete, exact, and harmless in a spreadsheet."""

from __future__ import annotations

import csv
import json
import math

import numpy as np
import pandas as pd
import pytest

import reports
from reports.exports import defused, plain, write_exports
from reports.tables import comparison_table
from tests.reports.conftest import EQUAL, FAILURES, HOSTILE, KNOWN, SINGLE


@pytest.fixture(scope="module")
def folder(uri, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exports")
    for name in (KNOWN, EQUAL, SINGLE, FAILURES, HOSTILE):
        reports.build_report(uri, reports_dir=folder, comparison=name)
    return folder


def test_results_hold_the_verdict_and_the_tables_with_full_precision(folder, uri):
    results = json.loads((folder / KNOWN / "results.json").read_text())
    assert results["schema"] == "1" and results["comparison"] == KNOWN
    assert results["verdict"]["chosen"] == "lora" and results["verdict"]["best"] == "full"
    assert results["verdict"]["differences"]["frozen"]["high"] < 0
    assert "lora" in results["verdict"]["above_floor"] and results["verdict"]["summary"].startswith("Train **lora**")
    exact = comparison_table(reports.load_comparison(uri, KNOWN)).set_index("strategy")
    rows = {row["strategy"]: row for row in results["tables"]["comparison"]}
    assert rows["lora"]["test_accuracy_low"] == exact.loc["lora", "test_accuracy_low"]
    assert rows["majority"]["trainable_params"] is None  # not NaN, which is no JSON
    finals = [row for row in results["tables"]["finals"] if row["strategy"] == "lora"]
    assert [(row["seed"], row["test_accuracy"]) for row in finals] == [(1000, 0.8115), (1001, 0.8085), (1002, 0.811)]
    assert results["versions"]["torch"] == "2.15.0" and results["studies"][0]["configuration"] == "c1"
    assert set(results["figures"]) == {path.name for path in (folder / KNOWN).glob("*.svg")}


def test_every_comparison_gives_valid_files(folder):
    for path in folder.glob("*/results.json"):
        json.loads(path.read_text(), parse_constant=pytest.fail)  # NaN and Infinity
        assert pd.read_csv(path.with_name("comparison.csv")).shape[0] and path.with_name("trials.csv").stat().st_size


def test_all_trials_are_in_the_csv_with_what_was_sampled(folder):
    trials = pd.read_csv(folder / KNOWN / "trials.csv")
    assert len(trials) == 12 and sorted(trials["state"].unique()) == ["complete", "diverged", "pruned"]
    assert trials.loc[0, "learning_rate"] == 3.123e-4 and trials.loc[0, "trial"] == 0


def test_no_text_cell_begins_a_formula_and_numbers_stay_numbers(uri, tmp_path):
    loaded = reports.load_comparison(uri, KNOWN)
    evil = ["=cmd()", "+1", "-1", "@x", "\t=1", "\r=1", " =1", "a;=cmd()", "a,b", "plain"]
    table = pd.DataFrame({"strategy": evil, "=head": -0.5, "value": [-1.5, np.nan] * 5})
    write_exports(tmp_path, loaded, verdict=None, rule=None, tables={"comparison": table}, confidence=0.95)
    text = (tmp_path / "comparison.csv").read_bytes().decode()
    rows = list(csv.reader(text.splitlines(keepends=True)))
    assert rows[0] == ["strategy", "'=head", "value"]
    assert [row[0] for row in rows[1:]] == [f"'{cell}" for cell in evil[:7]] + evil[7:]
    assert rows[1][1:] == ["-0.5", "-1.5"] and '"a;=cmd()",-0.5' in text  # quoted where semicolons part columns


@pytest.mark.parametrize("value", [-1, -0.5, None, True, "lora", "a=b", ""])
def test_harmless_values_are_not_touched(value):
    assert defused(value) is value


def test_values_become_what_json_knows():
    given = {"a": np.float64(0.1), "b": math.nan, "c": (np.int64(3), pd.NaT), 4: {"y", "x"}, "d": np.bool_(True)}
    assert plain(given) == {"a": 0.1, "b": None, "c": [3, None], "4": ["x", "y"], "d": True}
    assert plain(pd.Timestamp("2026-01-02", tz="UTC")) == "2026-01-02T00:00:00+00:00"


def test_same_records_give_the_same_files(folder, uri, tmp_path):
    again = reports.build_report(uri, reports_dir=tmp_path, comparison=KNOWN)
    assert len(again.files) > 6
    for path in again.files:
        assert path.read_bytes() == (folder / KNOWN / path.name).read_bytes(), path.name
