"""``thawline predict``: whatever holds texts or images goes in, a table comes out, and mistakes are said."""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from strategies import STRATEGIES
from sweeper.data import load_dataset
from sweeper.errors import ConfigError, DataError, StudyError
from sweeper.models.predictor import Predictor
from sweeper.objective import Task
from sweeper.search_space import StrategySpec
from sweeper.tools import main
from sweeper.tools.predict import usable_inputs
from sweeper.winners import note_chosen
from tests.tasks import SETTINGS, load_task


def save(task: Task, folder: Path) -> Path:
    spec = StrategySpec(STRATEGIES["frozen"], {"learning_rate": 1e-2}, {})
    task.save(task.run(spec, {}, seed=0), folder)
    return folder


@pytest.fixture(scope="module")
def texts(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output folder whose chosen model reads texts."""
    output = tmp_path_factory.mktemp("outputs")
    save(load_task(tiny_checkpoint, (32, 24, 24), max_length=30), output / "models" / "a-study")
    note_chosen(output, "a-comparison", "a-study")
    return output


@pytest.fixture(scope="module")
def images(checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    dataset = load_dataset("digits", modality="image", train_size=20, validation_size=20, test_size=20)
    task = Task.load(dataset, checkpoint("resnet"), head="linear", pooling="mean", revision=None, settings=SETTINGS)
    return save(task, tmp_path_factory.mktemp("images") / "model")


def test_texts_of_the_command_line_are_labelled_by_the_chosen_model(
    texts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["predict", 'a "triumph", $5 & ümlaut', "dull", "--output-dir", str(texts)])
    printed = capsys.readouterr()
    rows = list(csv.DictReader(printed.out.splitlines()))
    assert [row["text"] for row in rows] == ['a "triumph", $5 & ümlaut', "dull"]
    expected = Predictor.load(texts / "models" / "a-study").predict([row["text"] for row in rows])
    assert [row["prediction"] for row in rows] == expected["label"].tolist()
    assert [float(row["score"]) for row in rows] == pytest.approx(expected["score"].tolist(), abs=1e-4)
    assert "a-study" in printed.err


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_a_table_keeps_its_columns_and_rows_without_a_text_are_counted(
    texts: Path, tmp_path: Path, ending: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = tmp_path / "reviews.csv", tmp_path / f"out.{ending}"
    source.write_text("id;Kritik;label\n1;Großartig, wirklich;fresh\n2;;rotten\n" + "3;dull;rotten\n" * 300)
    main(["predict", "--input", str(source), "--output", str(target), "--all-scores", "--output-dir", str(texts)])
    assert "1 of 302 rows" in capsys.readouterr().err
    content = target.read_text()
    rows = (
        list(csv.DictReader(content.splitlines())) if ending == "csv" else list(map(json.loads, content.splitlines()))
    )
    assert len(rows) == 302 and [row["id"] for row in rows[:3]] == ["1", "2", "3"]
    assert not rows[1]["prediction"] and rows[0]["prediction"] in ("fresh", "rotten")
    assert float(rows[0]["score_fresh"]) + float(rows[0]["score_rotten"]) == pytest.approx(1, abs=1e-3)


def test_a_file_that_exists_is_replaced_only_when_that_is_asked_for(
    texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "labelled.csv"
    target.write_text("mine\n")
    arguments = ["predict", "dull", "--output", str(target), "--output-dir", str(texts)]
    with pytest.raises(ConfigError, match=r"labelled\.csv exists already\n.*--force, or name another file"):
        main(arguments)
    assert target.read_text() == "mine\n" and "model:" not in capsys.readouterr().err, "said before a model is loaded"
    main([*arguments, "--force"])
    assert target.read_text().startswith("text,prediction,score\ndull,")


def test_a_folder_of_images_is_labelled_and_what_is_no_image_is_left_out(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = load_dataset("digits", modality="image", train_size=20, validation_size=20, test_size=20)
    (tmp_path / "deep").mkdir()
    for number, image in enumerate(dataset.test.inputs[:3]):
        image.open().save(tmp_path / "deep" / f"{number}.PNG")
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    (tmp_path / "notes.md").write_text("no image either")
    main(["predict", "--input", str(tmp_path), "--model", str(images)])
    printed = capsys.readouterr()
    rows = {Path(row["image"]).name: row["prediction"] for row in csv.DictReader(printed.out.splitlines())}
    assert set(rows) == {"0.PNG", "1.PNG", "2.PNG", "broken.jpg"}
    assert not rows["broken.jpg"] and "1 of 4 rows" in printed.err
    predictor = Predictor.load(images)
    expected = predictor.predict([image.open() for image in dataset.test.inputs[:3]])["label"].tolist()
    assert [rows[f"{number}.PNG"] for number in range(3)] == expected
    usable = list(usable_inputs(predictor, argparse.Namespace(input=tmp_path)))
    assert predictor.predict(usable)["label"].tolist() == expected, "what an export is compared on"


def test_mistakes_are_said_before_anything_is_predicted(texts: Path, images: Path, tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text("first,second\nsome words here,other words there\n")
    given = ["--output-dir", str(texts)]
    for arguments, error, message in (
        (given, ConfigError, "no input"),
        (["x", "--input", str(table), *given], ConfigError, "both inputs"),
        (["x", "--output", "out.xlsx", *given], ConfigError, r"must end in \.csv or \.jsonl"),
        (["--input", str(tmp_path / "none.csv"), *given], ConfigError, "no such file"),
        (["--input", str(table), *given], ConfigError, r"which column holds the text\?"),
        (["--input", str(table), "--text-column", "frist", *given], ConfigError, "did you mean 'first'"),
        (["x", "--model", str(tmp_path)], ConfigError, "no saved model there"),
        (["x", "--output-dir", str(tmp_path)], StudyError, "has chosen a model yet"),
        (["--input", str(tmp_path), "--model", str(images)], DataError, "holds no images"),
        (["--input", str(tmp_path), *given], ConfigError, "this model reads texts"),
    ):
        with pytest.raises(error, match=message):
            main(["predict", *arguments])
