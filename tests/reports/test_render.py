"""The report: it says the right thing, shows every piece, and is safe to publish."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import reports
from reports.tables import accounting_table, comparison_table, hyperparameters_table
from sweeper import schema
from sweeper.errors import ConfigError, ThawlineError
from tests.reports.conftest import EQUAL, FAILURES, HOSTILE, KNOWN, SINGLE

ALL = (KNOWN, EQUAL, SINGLE, FAILURES, HOSTILE)


@pytest.fixture(scope="module")
def built(uri, tmp_path_factory) -> dict[str, reports.Report]:
    folder = tmp_path_factory.mktemp("reports")
    return {name: reports.build_report(uri, reports_dir=folder, comparison=name) for name in ALL}


def prose(report: reports.Report) -> str:
    return report.path.read_text(encoding="utf-8")


def test_cheapest_strategy_that_ties_with_the_best_is_chosen(built):
    report = built[KNOWN]
    assert report.summary.startswith("Train **lora**: test accuracy 0.810 [0.7")
    assert "over 3 seeds, with 148 k trainable parameters (0.65 % of 22.7 M)." in report.summary
    assert "The highest score is that of full, 0.811 [" in report.summary
    assert "at 150 times the parameters" in report.summary and "frozen costs 5.9 points [" in report.summary
    assert "above the TF-IDF + logistic regression floor, 0.720 [" in report.summary
    assert prose(report).splitlines()[2] == report.summary  # the answer comes right after the title


def test_known_difference_is_shown_and_not_called_a_tie(built):
    frozen = next(line for line in prose(built[KNOWN]).splitlines() if line.startswith("| frozen"))
    assert "tie" not in frozen and "| \N{MINUS SIGN}0.059 [\N{MINUS SIGN}0.0" in frozen
    assert "**lora**" in prose(built[KNOWN]) and "tie, " in prose(built[KNOWN])


def test_strategies_of_equal_accuracy_are_ties_and_unequal_budgets_are_said(built):
    report = built[EQUAL]
    assert report.summary.startswith("Train **zero**: test accuracy 0.80")
    assert "with 0 trainable parameters (0 % of 22.7 M)" in report.summary
    assert "The highest score is that of prompt, 0.804" in report.summary
    assert "bitfit was tuned with fewer trials" in report.summary
    assert "**cut short by timeout**" in prose(report)


def test_single_strategy_is_held_against_the_floor(built):
    report = built[SINGLE]
    assert report.summary.startswith("Train **lora**: test accuracy 0.805 [")
    assert "The choice is above the TF-IDF" in report.summary
    assert "against the best" not in prose(report)
    assert "Student's t over seeds" in prose(report)


def test_looks_at_the_test_split_are_counted(built):
    assert "lora: 4 earlier finals were scored on the test split too" in prose(built[SINGLE])
    assert "1 final ended without a test score: out of memory" in prose(built[SINGLE])
    assert "2 of 3" in prose(built[SINGLE])  # seeds
    assert "earlier final" not in prose(built[KNOWN])


def test_study_of_failures_only_is_still_a_report(built):
    report = built[FAILURES]
    assert report.summary.startswith("Nothing can be chosen yet")
    assert report.summary.endswith("The trial accounting below says why.")  # a new run may try nothing more
    assert not [path for path in report.files if path.suffix == ".svg"] and "![" not in prose(report)
    assert "failed: out of memory (2 times)" in prose(report)
    assert "## Best hyperparameters" not in prose(report) and "## Floors" not in prose(report)


@pytest.mark.parametrize("name", ALL)
def test_nothing_missing_is_printed_as_a_number_and_no_section_is_empty(built, name):
    text = (
        prose(built[name]).replace("</script&gt; nan", "").replace("&lt;/script&gt; nan", "")
    )  # nan of a logged reason
    assert not re.search(r"\b(nan|NaN|NaT|None|inf)\b", text)
    assert "\n\n\n" not in text
    assert not re.search(r"^#+ [^\n]*\n+(#|\Z)", text, flags=re.MULTILINE)


@pytest.mark.parametrize("name", ALL)
def test_every_relative_link_leads_to_a_file_of_the_report(built, name):
    report = built[name]
    targets = re.findall(r"\]\(([^)]+)\)", prose(report))
    figures = [path.name for path in report.files if path.suffix == ".svg"]
    assert targets == figures
    assert all((report.path.parent / target).stat().st_size > 10_000 for target in targets)
    assert {path.name for path in report.path.parent.iterdir()} == {path.name for path in report.files}  # no leftovers


@pytest.mark.parametrize("name", ALL)
def test_logged_text_cannot_break_tables_or_inject_markup(built, name):
    text = prose(built[name])
    assert not re.search(r"<(?!/?(details|summary)>)[a-z/]", text.split("## Reproduce")[0])
    for block in re.findall(r"(?:^\|[^\n]*\n)+", text, flags=re.MULTILINE):
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(widths) == 1, block


def test_report_folder_never_leaves_reports_dir(built, uri, tmp_path):
    report = built[HOSTILE]
    assert re.fullmatch(r"[A-Za-z0-9-]+", report.path.parent.name)
    assert report.path.parent.parent == built[KNOWN].path.parent.parent
    assert report.comparison == HOSTILE
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports" / KNOWN).symlink_to(outside)
    with pytest.raises(ThawlineError, match="leads out"):
        reports.build_report(uri, reports_dir=tmp_path / "reports", comparison=KNOWN)
    assert not list(outside.iterdir())


def test_same_records_give_the_same_bytes(built, uri, tmp_path):
    again = reports.build_report(uri, reports_dir=tmp_path / "new" / "folder", comparison=KNOWN)
    assert again.path == tmp_path / "new" / "folder" / KNOWN / "report.md"
    assert again.path.read_bytes() == built[KNOWN].path.read_bytes()


def test_failed_writing_leaves_the_old_report_whole(uri, tmp_path, monkeypatch):
    report = reports.build_report(uri, reports_dir=tmp_path, comparison=KNOWN)
    before = {path: path.read_bytes() for path in report.files}

    def full_disk(self: Path, *args: object, **kwargs: object) -> int:
        self.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full_disk)
    with pytest.raises(ThawlineError, match="No space left on device"):
        reports.build_report(uri, reports_dir=tmp_path, comparison=KNOWN)
    assert {path: path.read_bytes() for path in report.path.parent.iterdir()} == before


def test_confidence_reaches_the_report(uri, tmp_path):
    wide = reports.build_report(uri, reports_dir=tmp_path, comparison=KNOWN, confidence=0.999)
    assert "test accuracy [99.9 %]" in prose(wide)
    with pytest.raises(ConfigError, match="between 0 and 1"):
        reports.build_report(uri, reports_dir=tmp_path, comparison=KNOWN, confidence=95)


def test_report_holds_what_a_reader_needs_to_check_and_repeat_it(built):
    text = prose(built[KNOWN])
    order = ["# minilm on review_lines: 3 strategies", "## Comparison", "![Test accuracy", "## Best hyperparameters"]
    order += ["## Trial accounting", "## How it was measured", "## Data and records", "## Reproduce"]
    places = [text.index(heading) for heading in order]
    assert places == sorted(places)
    assert text.count("*majority class*") == 1 and "## Floors" not in text  # only prompted models need explaining
    for piece in (
        "`learning_rate` = 0.000625, `rank` = 8",
        "Splits: 1,000 train, 500 validation, 2,000 test items.",
        "chosen by `validation_accuracy`",
        "Seeds of the finals: 1000, 1001, 1002, the same for every strategy.",
        "what other seeds and other test items would give (Wilson's, with the variance over both)",
        "They hold for all pairs of strategies at once",
        "Chosen is the strategy with the fewest trainable parameters within 1 point of the best (`report.delta`)",
        "No interval covers other training rows, or what another search would have found.",
        "Epoch ceiling: 4.",
        "Pruner: median.",
        "Device: cpu.",
        "`sha256:feed`",
        "12 duplicate texts",
        "Groups of items (those that share a source) that stay in one split: 300 train, 100 test.",
        "Texts cut at the maximal length: 7 train.",
        "| fresh | 620 (62.0 %) | 1000 (50.0 %) |",
        "make sweep STRATEGY=lora TRIALS=4",
        "`make report COMPARISON=c-known`",
        "`0a1b2c3`",
        "python 3.11.7, torch 2.15.0",
        "1 min 12 s",
        "593 kB",
    ):
        assert piece in text, piece


def test_tables_hold_plain_values(uri):
    comparison = reports.load_comparison(uri, KNOWN)
    table = comparison_table(comparison)
    assert list(table["strategy"]) == ["frozen", "lora", "full", "majority", "tfidf_logreg"]
    assert list(table["kind"]) == ["strategy"] * 3 + ["floor"] * 2
    lora = table.iloc[1]
    assert lora["trainable_params"] == 148_226 and lora["trainable_params_head"] == 770
    assert lora["test_accuracy_low"] < lora["test_accuracy"] < lora["test_accuracy_high"]
    assert (lora["seeds"], lora["trials"], lora["tuning_seconds"]) == (3, 4, 72.0)

    best = hyperparameters_table(comparison).set_index("strategy").loc["lora"]
    assert best["trial"] == 1 and best["best_validation_accuracy"] == pytest.approx(0.72)

    accounts = accounting_table(comparison).set_index("strategy").loc["lora"]
    assert (accounts["complete"], accounts["pruned"], accounts["diverged"]) == (2, 1, 1)
    assert not accounting_table(comparison)["unequal"].any()


def test_fewer_finished_trials_are_unequal(uri):
    accounts = accounting_table(reports.load_comparison(uri, EQUAL)).set_index("strategy")
    assert list(accounts["unequal"][["zero", "prompt", "bitfit"]]) == [False, False, True]


def test_batches_that_did_not_fit_are_said(recorder, tmp_path):
    study = recorder.study("c-memory", "lora")
    for seed, at_once in enumerate((4.0, 16.0, 4.0)):
        sizes = {"params": {schema.PARAM_BATCH_SIZE: 16}, "metrics": {schema.MICRO_BATCH_SIZE: at_once}}
        recorder.final("c-memory", study, seed, 0.7, size=591_000, **sizes)
    text = reports.build_report(recorder.uri, reports_dir=tmp_path, comparison="c-memory").path.read_text()
    assert "lora: memory ran out in 2 runs, which took 4 examples of a batch of 16 at once" in text
