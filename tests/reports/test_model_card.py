"""Model cards: the hub accepts them, they tell the truth of their strategy, and nothing of the machine."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

import reports
from reports.model_card import PUBLISHED, without_paths
from sweeper import schema
from sweeper.assets import ASSETS
from tests.reports.conftest import FAILURES, HOSTILE, KNOWN, SINGLE, Recorder

CONFIG = """
model: {name: user/bert, source: hub, modality: text, head: native}
dataset: {name: reviews, source: csv, path: /home/me/my rows/reviews.csv, max_length: 64, label_descriptions: null}
strategy: {name: lora, label: null, dropout: 0.1, search_space: {learning_rate: {low: 1.0e-5}}}
study: {storage: "postgresql://me@db.home/optuna"}
tracking: {uri: "http://mlflow.home:5000"}
output_dir: /home/me/out
"""
COMMAND = (
    "python -m sweeper sweep strategy=lora 'dataset.path=/home/me/my rows/reviews.csv' "
    "tracking.uri=http://mlflow.home:5000 output_dir=/home/me/out hub.push=me/x "
    "study.storage=postgresql://me@db.home/optuna trainer.epochs=2"
)


@pytest.fixture(scope="module")
def cards(uri: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """Comparison -> strategy -> card."""
    found = {}
    for name in (KNOWN, SINGLE, FAILURES, HOSTILE):
        report = reports.build_report(uri, reports_dir=tmp_path_factory.mktemp("r"), comparison=name, repository="me/x")
        found[name] = {study.split("-")[2]: card for study, card in report.cards.items()}
    return found


def test_the_hub_reads_what_a_card_is_filed_by(cards: dict[str, dict[str, str]]) -> None:
    data = ModelCard(cards[KNOWN]["lora"]).data
    assert data.library_name == "transformers" and data.pipeline_tag == "text-classification"
    assert data.tags == ["thawline", "lora"] and data.license is None
    values = {result.metric_type: result.metric_value for result in data.eval_results}
    assert values["accuracy"] == pytest.approx((0.8115 + 0.8085 + 0.811) / 3, abs=1e-4)
    assert values["f1"] == pytest.approx(values["accuracy"] - 0.01, abs=1e-4)


def test_a_card_says_whether_its_strategy_was_chosen(cards: dict[str, dict[str, str]]) -> None:
    chosen, left = cards[KNOWN]["lora"], cards[KNOWN]["frozen"]
    assert "It was chosen among 3 strategies." in chosen and "me/x --local-dir" in chosen
    assert (
        "**Another strategy was chosen: lora.** This one differs from the best, full, by \N{MINUS SIGN}0.059 [" in left
    )
    assert "Test accuracy 0.810 [0.7" in chosen and "Test accuracy 0.75" in left
    assert "USER/NAME --local-dir" in left, "what is not chosen is not on the hub"
    for card in (chosen, left):
        assert "| **lora** |" in card and "TF-IDF + logistic regression 0.720 [" in card
    assert not cards[FAILURES], "no card without a test score"
    assert "No other strategy was compared with it." in cards[SINGLE]["lora"]


def test_labels_and_names_of_anybody_are_text_in_a_card(cards: dict[str, dict[str, str]]) -> None:
    (card,) = cards[HOSTILE].values()
    content = ModelCard(card)
    assert content.data.tags[1] == "a|b <img src=x> $x$ `c`"
    assert "<img" not in content.text.partition("## Reproduce")[0].replace("`", "") and "a\\|b &lt;img" in content.text
    assert not re.search(r"\b(nan|NaN|None)\b", content.text)


def test_a_card_names_nothing_of_the_machine(recorder: Recorder, tmp_path: Path) -> None:
    study = recorder.study(
        "c-own",
        "lora",
        tags={schema.TAG_COMMAND: COMMAND},
        summary={"warnings": ["Images that cannot be read, left out: 1, such as /srv/pictures/7/a.png."]},
        artifacts={schema.ARTIFACT_CONFIG: CONFIG},
    )
    recorder.trial("c-own", study, 1)
    recorder.final("c-own", study, 1000, 0.8, size=10)
    report = reports.build_report(recorder.uri, reports_dir=tmp_path, comparison="c-own")
    card = report.cards[study]
    for word in ("/home/me", "/srv", "my rows/", "mlflow.home", "db.home", "hub.push", "output_dir"):
        assert word not in card, word
    assert "dataset.path=reviews.csv" in card and "left out: 1, such as a.png." in card
    assert "base_model: user/bert" in card and "datasets:" not in card.split("---")[1]
    assert "Plain transformers reads it" in card and "trust_remote_code" not in card and "max_length=64" in card
    assert "| found by the search | `learning_rate` 0.000625, `rank` 8 |" in card and "`dropout` 0.1" in card


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("see /home/me/rows.csv.", "see rows.csv."),
        ("in ~/data/rows.csv", "in rows.csv"),
        ("fresh/rotten and https://host/a/b stay, 1/2/3 too", "fresh/rotten and https://host/a/b stay, 1/2/3 too"),
        ("x=../../home/me/secret/x.csv", "x=x.csv"),
        ("file:///home/me/x.csv, sqlite:////home/me/x.db", "x.csv, x.db"),
        ("see:/home/me/x.csv", "see:x.csv"),
        ("//server/share/me/x.csv", "x.csv"),
        (r"C:\Users\me\x.csv or \\server\me\x.csv", "x.csv or x.csv"),
        ("https://host/data/x, /data/x/7.png, /data/x", "https://host/data/x, 7.png, x"),
        ("in my own/rows/x.csv", "in x.csv"),
        ("/m/0123/x, /m/0123 and a / b /c/ d", "x, /m/0123 and a / b /c/ d"),
    ],
)
def test_paths_are_cut_to_their_last_part(text: str, expected: str) -> None:
    assert without_paths(text, known=["/data/x", "my own/rows/x.csv"], kept=["/m/0123", "a / b /c/ d"]) == expected


def test_a_card_keeps_labels_and_shows_pairs_where_the_model_reads_pairs(recorder: Recorder, tmp_path: Path) -> None:
    config = CONFIG.replace("max_length: 64", "max_length: 64, second_text_column: answer")
    config = config.replace("/home/me/my rows/reviews.csv", "../my rows/secret/reviews.csv")
    study = recorder.study(
        "c-pairs",
        "lora",
        tags={schema.TAG_COMMAND: COMMAND.replace("/home/me/my rows/", "../my rows/secret/")},
        summary={
            "label_names": ["/m/01234", "a / b /c/ d"],
            "class_counts": {"train": {"/m/01234": 3, "a / b /c/ d": 4}},
            "warnings": ["Of /m/01234 there are few in ../my rows/secret/reviews.csv."],
        },
        artifacts={schema.ARTIFACT_CONFIG: config},
    )
    recorder.trial("c-pairs", study, 1)
    recorder.final("c-pairs", study, 1000, 0.8, size=10)
    card = reports.build_report(recorder.uri, reports_dir=tmp_path, comparison="c-pairs").cards[study]
    assert "the 2 classes of review_lines apart: /m/01234, a / b /c/ d." in card
    assert "| /m/01234 |" in card and "Of /m/01234 there are few in reviews.csv." in card
    assert "dataset.path=reviews.csv" in card and "secret" not in card and "my rows" not in card
    assert 'thawline predict --model FOLDER "a text" "its pair"\n' in card
    assert 'classify({"text": "a text", "text_pair": "its pair"}, truncation=True, max_length=64)' in card


def test_embedded_models_are_named_as_the_hub_names_them() -> None:
    assert {name: asset.published for name, asset in ASSETS.items() if asset.published} == PUBLISHED


def test_what_an_installed_package_made_names_its_version_and_no_make(recorder: Recorder, tmp_path: Path) -> None:
    study = recorder.study("c-installed", "lora", tags={schema.TAG_GIT: "thawline 0.1.0"})
    recorder.trial("c-installed", study, 0)
    recorder.final("c-installed", study, 1000, 0.8, size=10)
    report = reports.build_report(recorder.uri, reports_dir=tmp_path, comparison="c-installed")
    text = report.path.read_text("utf-8")
    assert "`thawline report report.comparison=c-installed`" in text and "make report" not in text
    assert "- Version (`pip install` it): `thawline==0.1.0`" in text and "Git revision" not in text
    (card,) = report.cards.values()
    assert "- Comparison `c-installed`, version `thawline 0.1.0`" in card
