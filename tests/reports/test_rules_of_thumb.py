"""The rules of thumb: each verdict follows from known scores, and what was not measured claims nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

import reports
from reports.rules_of_thumb import CANNOT_TELL, FAILED, HELD, NOT_MEASURED, TIMES_VARY, Finding, try_rules
from reports.tables import comparison_table
from sweeper import schema
from tests.reports.conftest import Recorder


def tried(
    recorder: Recorder,
    name: str,
    size: int,
    scores: dict[str, float],
    classes: int = 2,
    rank: int = 16,
    slower: float = 1.0,
) -> dict[str, Finding]:
    """The findings by the first words of their claims, of strategies with these accuracies.

    The second of the two equal finals of each takes ``slower`` times the time of the first.
    """
    for place, (strategy, accuracy) in enumerate(scores.items(), start=1):
        study = recorder.study(
            name,
            strategy,
            params={schema.PARAM_TRAIN_SIZE: size},
            tags={schema.TAG_CURVE: name.rpartition("-")[0]},
            summary={"label_names": [f"c{number}" for number in range(classes)]},
        )
        for seed, factor in ((1000, 1.0), (1001, slower)):
            cost = {schema.TRAIN_SECONDS: 10.0 * place * factor, schema.PEAK_MEMORY_MB: 100.0 * place}
            recorder.final(name, study, seed, accuracy, size=place, params={"rank": rank}, metrics=cost)
    loaded = reports.load_comparison(recorder.uri, name)
    found = try_rules([(loaded, comparison_table(loaded))])
    return {" ".join(finding.claim.split()[:3]): finding for finding in found}


def test_verdicts_follow_from_known_differences(recorder: Recorder) -> None:
    found = tried(recorder, "c-rules", 2000, {"frozen": 0.70, "lora": 0.80, "full": 0.81, "gradual": 0.90})
    assert found["1,000 to 10,000"].verdict == HELD
    assert found["1,000 to 10,000"].measured.startswith("gradual minus full, the best other: +0.090 [+0.0")
    assert found["500 to 5,000"].verdict == FAILED
    assert "full minus gradual, the best other: \N{MINUS SIGN}0.090" in found["500 to 5,000"].measured
    assert found["LoRA of rank"].verdict == HELD
    assert found["LoRA of rank"].measured.startswith("lora of rank 16: 98.8 % [")
    compute = found["Where compute is"]
    assert (
        compute.verdict == HELD
        and "a final of lora takes 0.67 of the time and 0.67 of the memory of one of full" in compute.measured
    )
    assert found["Below 1,000 examples:"].verdict == NOT_MEASURED  # 2,000 examples
    assert found["10,000 to 100,000"].verdict == NOT_MEASURED
    assert found["Above 50,000 examples:"].verdict == NOT_MEASURED


@pytest.mark.parametrize(
    ("slower", "lora", "verdict"), [(1.1, 0.80, HELD), (2.0, 0.80, TIMES_VARY), (2.0, 0.60, FAILED)]
)
def test_times_are_not_judged_where_equal_finals_differ_in_time(
    recorder: Recorder, slower: float, lora: float, verdict: str
) -> None:
    """On a busy machine; a loss of accuracy speaks against a claim all the same."""
    scores = {"frozen": 0.70, "lora": lora, "full": 0.81}
    found = tried(recorder, f"c-busy-{slower}-{lora}", 2000, scores, slower=slower)
    assert found["Where compute is"].verdict == verdict


def test_a_claim_has_the_intervals_of_the_whole_comparison(recorder: Recorder) -> None:
    """A strategy under a label that no claim speaks of counts among those compared."""
    widths = []
    for name, more in (("c-two", {}), ("c-three", {"other": 0.79})):
        found = tried(recorder, name, 2000, {"frozen": 0.70, "full": 0.81, **more})
        widths.append(found["500 to 5,000"].measured)
    assert widths[0] != widths[1]


@pytest.mark.parametrize(
    ("name", "lora", "seconds", "verdict"),
    [
        ("cheap", 0.80, 8.0, HELD),
        ("no-cheaper", 0.80, 9.9, CANNOT_TELL),
        ("dearer", 0.80, 12.0, FAILED),
        ("worse", 0.50, 5.0, FAILED),
    ],
)
def test_limited_compute_asks_for_a_clear_saving_without_a_shown_loss(
    recorder: Recorder, name: str, lora: float, seconds: float, verdict: str
) -> None:
    for strategy, accuracy, cost in (("lora", lora, seconds), ("full", 0.80, 10.0)):
        study = recorder.study(f"c-{name}", strategy)
        for seed in (1000, 1001):
            metrics = {schema.TRAIN_SECONDS: cost, schema.PEAK_MEMORY_MB: 10 * cost}
            recorder.final(f"c-{name}", study, seed, accuracy, size=10, metrics=metrics)
    loaded = reports.load_comparison(recorder.uri, f"c-{name}")
    found = try_rules([(loaded, comparison_table(loaded))])
    assert next(finding for finding in found if "compute" in finding.claim).verdict == verdict


def test_variants_of_full_fine_tuning_do_not_speak_against_it(recorder: Recorder) -> None:
    found = tried(recorder, "c-variants", 2000, {"frozen": 0.70, "full": 0.81, "discriminative": 0.9, "lp_ft": 0.9})
    assert found["500 to 5,000"].verdict == HELD
    assert found["500 to 5,000"].measured.startswith("full minus frozen, the only other")


def test_a_tie_cannot_be_told_and_small_data_is_tried_by_its_own_rules(recorder: Recorder) -> None:
    found = tried(recorder, "c-few", 150, {"frozen": 0.801, "full": 0.80})
    assert found["Below 1,000 examples:"].verdict == CANNOT_TELL
    assert found["50 to 500"].verdict == CANNOT_TELL
    assert found["50 to 100"].verdict == FAILED  # 75 a class, and 0.80 is clearly below 85 %
    assert found["LoRA of rank"].verdict == NOT_MEASURED and found["LoRA of rank"].measured == "needs lora and full"
    assert tried(recorder, "c-many", 1000, {"frozen": 0.90}, classes=10)["50 to 100"].verdict == HELD


@pytest.mark.parametrize(("rank", "lora", "verdict"), [(8, 0.80, NOT_MEASURED), (64, 0.60, FAILED)])
def test_the_rank_that_won_decides_whether_the_claim_applies(
    recorder: Recorder, rank: int, lora: float, verdict: str
) -> None:
    found = tried(recorder, f"c-rank-{rank}", 1000, {"lora": lora, "full": 0.80}, rank=rank)
    assert found["LoRA of rank"].verdict == verdict


def test_a_report_shows_what_was_tried_and_names_the_rest_in_one_line(recorder: Recorder, tmp_path: Path) -> None:
    tried(recorder, "c-shown", 2000, {"lora": 0.80, "full": 0.81})
    text = reports.build_report(recorder.uri, reports_dir=tmp_path, comparison="c-shown").path.read_text("utf-8")
    section = text.split("## Rules of thumb on trial")[1].split("\n## ")[0]
    assert "| LoRA of rank 16 to 64 reaches 95 to 99 % of full fine-tuning (at least 95 %) | 2 k examples |" in section
    untried = next(line for line in section.splitlines() if line.startswith("Not measured here: "))
    assert "Below 1,000 examples: feature extraction (here: 2 k examples)" in untried
    assert "(needs gradual)" in untried


def test_the_report_of_a_curve_tries_each_size_where_a_claim_speaks_of_it(recorder: Recorder, tmp_path: Path) -> None:
    for size in (200, 2000):
        tried(recorder, f"c-curve-{size}", size, {"frozen": 0.70, "full": 0.81})
    report = reports.build_size_report(recorder.uri, reports_dir=tmp_path, curve="c-curve")
    section = report.path.read_text("utf-8").split("## Rules of thumb on trial")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith(("| Below 1,000", "| 500 to"))]
    assert ["| 200 examples |" in rows[0], FAILED in rows[0]] == [True, True]
    assert ["| 2 k examples |" in rows[1], HELD in rows[1], len(rows)] == [True, True, 2]
