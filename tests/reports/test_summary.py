"""Several comparisons as one page: who wins is carried from one to the next, accuracies never are."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import reports
from reports.stats import SeedScores
from reports.summary import _summary, outcomes, rank_test, shared_ranks
from sweeper import schema
from sweeper.errors import ConfigError, ThawlineError
from tests.reports.conftest import Recorder

SIZES = {"frozen": 770, "lora": 74_498, "full": 22_700_000, "a|b <script>": 10_000}
#: comparison -> dataset, model, strategy -> accuracies; full wins one, loses one, and ties with lora in the third.
TRUTH = {
    "s-one": ("films", "small", {"frozen": (0.70, 0.702), "lora": (0.80, 0.802), "full": (0.85, 0.852)}),
    "s-two": ("news", "small", {"frozen": (0.90, 0.902), "lora": (0.95, 0.952), "full": (0.85, 0.852)}),
    "s-three": ("films", "large", {"frozen": (0.75, 0.752), "lora": (0.90, 0.904), "full": (0.902, 0.904)}),
    "s-part": ("web", "small", {"lora": (0.5, 0.502), "a|b <script>": (0.6, 0.602)}),
    "s-empty": ("web", "small", {"lora": ()}),
}


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("summary")
    recorder = Recorder(f"sqlite:///{folder / 'mlflow.db'}", folder)
    for name, (dataset, model, strategies) in TRUTH.items():
        tags = {schema.TAG_DATASET: dataset, schema.TAG_MODEL: model, schema.TAG_FINGERPRINT: f"sha256:{name}"}
        for strategy, accuracies in strategies.items():
            study = recorder.study(name, strategy, name=f"{model}-{dataset}-{strategy}-{name}", tags=tags)
            for seed, accuracy in enumerate(accuracies):
                recorder.final(name, study, seed, accuracy, size=SIZES[strategy])
        recorder.floor(name, "majority", 0.45)
    return recorder.uri


@pytest.fixture(scope="module")
def three(uri: str, tmp_path_factory: pytest.TempPathFactory) -> reports.Report:
    folder = tmp_path_factory.mktemp("three")
    return reports.build_summary(uri, reports_dir=folder, comparisons=["s-one", "s-two", "s-three"])


def text(report: reports.Report) -> str:
    return report.path.read_text(encoding="utf-8")


def row(report: reports.Report, start: str) -> list[str]:
    """The cells of the first table row that begins so."""
    line = next(line for line in text(report).splitlines() if line.startswith(f"| {start}"))
    return [cell.strip() for cell in line.strip("|").split(" | ")]


def test_ranks_and_pairs_say_who_wins(three):
    report = three
    table = report.table.set_index("strategy")
    # lora: second, first, and half of the first two places; full: first, last, and the other half.
    assert dict(table["mean_rank"].round(3)) == {"lora": 1.5, "full": 1.833, "frozen": 2.667}
    assert list(table.loc["lora", ["wins", "ties", "losses"]]) == [4, 1, 1]
    assert list(table.loc["full", ["wins", "ties", "losses"]]) == [3, 1, 2]
    assert list(table.loc["frozen", ["wins", "ties", "losses"]]) == [1, 0, 5]
    assert dict(table["chosen"]) == {"lora": 2, "full": 1, "frozen": 0}
    assert report.summary.startswith("**lora** has the best mean rank, 1.50 of 3, over 3 comparisons.")
    assert "choose lora in 2 and full in 1" in report.summary and "No significance is claimed" in report.summary
    pairs = text(report).split("## By pair")[1]
    assert "| lora |  | 1 / 1 / 1 | 3 / 0 / 0 |" in pairs and "| frozen | 0 / 0 / 3 | 1 / 0 / 2 |  |" in pairs


def test_rows_show_each_comparison_and_average_none(three):
    report = three
    assert text(report).startswith("# 3 comparisons: 2 models, 2 datasets\n")
    assert row(report, "small on films")[1].startswith("0.801 [")
    assert row(report, "small on films")[2].startswith("**0.851 [") and "0.450" in row(report, "small on films")[4]
    assert row(report, "large on films")[1].startswith("**0.902 [")
    means = {f"{np.mean(values):.3f}" for values in ((0.801, 0.951, 0.902), (0.851, 0.851, 0.903))}
    assert not any(mean in text(report) for mean in means)
    assert "`make report COMPARISON=s-one,s-three,s-two`" in text(report)
    assert "Comparisons on films ran on different data (another split or train size, perhaps other data" in text(report)
    # Not the name of a report's figure: both are logged to one folder of MLflow.
    figure = report.path.with_name("all_models.svg")
    assert figure in report.files and figure.stat().st_size > 10_000
    assert f"]({figure.name})" in text(report)


def test_what_is_missing_somewhere_has_no_rank_and_is_named(uri, tmp_path):
    report = reports.build_summary(uri, reports_dir=tmp_path, comparisons=["all"])
    assert report.path.parent.name == "summary-all" and "`make report COMPARISON=all`" in text(report)
    assert report.summary.startswith("No ranks: fewer than two strategies")
    assert report.table.set_index("strategy").loc["full", "comparisons"] == 3
    assert "left out: s-empty" in text(report)
    assert "a\\|b &lt;script&gt;" in text(report) and "<script" not in text(report)
    assert not re.search(r"\b(nan|NaN|None)\b", text(report))
    for block in re.findall(r"(?:^\|[^\n]*\n)+", text(report), flags=re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1, block


def test_same_comparisons_in_any_order_are_one_page(uri, three):
    folder = three.path.parent
    reports.build_summary(uri, reports_dir=folder.parent, comparisons=["s-three", "s-one", "s-two", "s-one"])
    assert list(folder.parent.iterdir()) == [folder]


@pytest.mark.slow
def test_names_reach_it_from_the_command_line(uri, tmp_path):
    command = [sys.executable, "-m", "sweeper", "report", f"tracking.uri={uri}", f"output_dir={tmp_path}"]
    done = subprocess.run([*command, "report.comparison=s-one,s-two"], check=True, capture_output=True, text=True)
    assert "ranks on the test splits" in done.stdout and len(list(tmp_path.glob("reports/summary-*/summary.md"))) == 1
    refused = subprocess.run([*command, "report.comparison=[]"], capture_output=True, text=True)
    assert refused.returncode == 2 and "report.comparison=[]: must be a name" in refused.stderr


def test_too_few_or_unknown_comparisons_are_errors(uri, tmp_path):
    with pytest.raises(ConfigError, match="1 of 2 have them: s-one"):
        reports.build_summary(uri, reports_dir=tmp_path, comparisons=["s-one", "s-empty"])
    with pytest.raises(ThawlineError, match="unknown comparison 's-thre': did you mean 's-three'"):
        reports.build_summary(uri, reports_dir=tmp_path, comparisons=["s-one", "s-thre"])
    with pytest.raises(ConfigError, match="between 0 and 1"):
        reports.build_summary(uri, reports_dir=tmp_path, comparisons=["s-one", "s-two"], confidence=95)


def test_a_tie_is_what_the_interval_calls_one():
    scores = {
        name: SeedScores(pd.Series(values, index=range(len(values))))
        for name, values in {"a": [0.80, 0.81, 0.82], "b": [0.79, 0.82, 0.81], "c": [0.60, 0.62, 0.61], "d": []}.items()
    }
    found = outcomes(scores)
    assert list(found.columns) == ["a", "b", "c"]
    assert found.loc["a", "b"] == found.loc["b", "a"] == 0
    assert found.loc["a", "c"] == 1 and found.loc["c", "a"] == -1
    assert list(shared_ranks([found]).iloc[0]) == [1.5, 1.5, 3]


def test_a_tie_is_worth_half_a_win():
    """The first beats the third, and the second ties with both: it ranks between them."""
    signs = [[np.nan, 0, 1], [0, np.nan, 0], [-1, 0, np.nan]]
    assert list(shared_ranks([pd.DataFrame(signs, index=list("abc"), columns=list("abc"))]).iloc[0]) == [1, 2, 3]


def test_ranks_of_every_comparison_have_one_sum():
    """Whatever the outcomes, even where ties are not transitive."""
    labels = list("abcd")
    for signs in itertools.islice(itertools.product((-1, 0, 1), repeat=6), 0, 729, 5):
        table = pd.DataFrame(np.nan, index=labels, columns=labels)
        for (a, b), sign in zip(itertools.combinations(labels, 2), signs, strict=True):
            table.loc[a, b], table.loc[b, a] = sign, -sign
        assert shared_ranks([table]).sum(axis=1).iloc[0] == 10


def test_significance_needs_ten_datasets_and_three_strategies():
    ranks = pd.DataFrame([[1.0, 2.0, 3.0]] * 10, columns=list("abc"))
    assert rank_test(ranks.head(9)) is None and rank_test(ranks[["a", "b"]]) is None
    test = rank_test(ranks)
    assert test is not None and test.p_value < 0.001 and ("a", "c") in test.differing
    # Demsar (2006), table 5: q = 2.343 for three strategies at the level 0.05.
    assert test.critical_difference == pytest.approx(2.343 * (3 * 4 / 60) ** 0.5, abs=1e-3)
    assert rank_test(pd.DataFrame([[2.0, 2.0, 2.0]] * 10, columns=list("abc"))).differing == ()


def test_a_test_that_rejects_without_a_pair_says_both():
    rows = ["2143", "3421", "2341", "3214", "3142", "4231", "2143", "4231", "3241", "4132"]
    test = rank_test(pd.DataFrame([[float(rank) for rank in row] for row in rows], columns=list("abcd")))
    assert test is not None and test.p_value < 0.05 and test.differing == ()
    table = pd.DataFrame({"strategy": list("abcd"), "mean_rank": [2.9, 1.9, 3.0, 2.2], "chosen": 0})
    said = _summary(table, 10, 10, test, 0.95)
    assert "p = 0.033: the strategies do not all rank alike, but Nemenyi's test cannot say which differ" in said
    assert "no two mean ranks are more than 1.48 apart" in said and "beyond chance" not in said
    assert "no strategy ranks above another beyond chance at 99 %" in _summary(table, 10, 10, test, 0.99)


def test_equal_strategies_are_rarely_called_different():
    rng = np.random.default_rng(0)
    rejected = 0
    for _ in range(200):
        ranks = pd.DataFrame(stats.rankdata(rng.random((12, 4)), axis=1), columns=list("abcd"))
        rejected += bool(rank_test(ranks).differing)
    assert rejected <= 17  # at a true rate of 5 % more than 17 of 200 have a chance of 1.5 %


@pytest.mark.slow
def test_comparisons_that_share_a_dataset_claim_no_significance(uri, tmp_path, monkeypatch):
    monkeypatch.setattr("reports.summary.LEAST_DATASETS", 2)
    shared = reports.build_summary(uri, reports_dir=tmp_path, comparisons=["s-one", "s-two", "s-three"])
    assert "share a dataset and are not independent" in shared.summary and "Friedman's test over" not in shared.summary
    own = reports.build_summary(uri, reports_dir=tmp_path, comparisons=["s-one", "s-two"])
    assert "Friedman's test over 2 datasets: p = " in own.summary
