"""``thawline init`` on data as people have them: what it finds, what it writes, and that the next command works."""

from __future__ import annotations

import csv
import json
import random
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from sweeper.config import config_dir, register
from sweeper.errors import ThawlineError
from sweeper.overrides import check_overrides
from sweeper.tools import main
from tests.cli import run, runs


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The empty folder of a new user, who is in it."""
    monkeypatch.chdir(tmp_path)
    register()
    return tmp_path


def reviews(
    path: str, rows: int, labels: Sequence[object] = ("good", "bad"), names: Sequence[str] = ("review", "stars")
) -> str:
    """Texts that say their labels, as a CSV file."""
    words = random.Random(0)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\r\n")
        table.writerow(names)
        for row in range(rows):
            label = labels[row % len(labels)]
            table.writerow([f"{' '.join(words.choices(['the', 'blue', 'kettle', 'is'], k=9))} {label} {row}", label])
    return path


def written(name: str) -> dict[str, dict[str, object]]:
    return yaml.safe_load(Path("conf", "experiment", f"{name}.yaml").read_text(encoding="utf-8"))


def last_line(printed: pytest.CaptureFixture[str]) -> str:
    return printed.readouterr().out.splitlines()[-1].strip()


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("reviews.csv", "reviews"),
        ("data/Größe & 'Ruhm' 2.CSV", "grosse_ruhm_2"),
        ('7 "quoted" ${home} #.csv', "my_7_quoted_home"),
        ("r8.csv", "my_r8"),
        ("日本.csv", "my_data"),
    ],
)
def test_what_it_writes_composes_whatever_the_path(
    path: str, name: str, capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    reviews(path, 60, names=("Re: ${x}", "label: yes"))
    main(["init", path, "--label-column", "label: yes"])
    assert last_line(capsys) == f"thawline compare experiment={name}"
    assert check_overrides([f"experiment={name}"], config_dir(), "conf") == []
    columns = written(name)["dataset"]
    assert str(columns["path"]).replace("\\${", "${") == path
    assert columns["label_column"] == "label: yes"


def test_small_data_are_used_whole_and_large_ones_in_part(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    main(["init", reviews("small.csv", 200), "--label-column", "stars"])
    sizes = ("train_size", "validation_size", "test_size")
    assert [written("small")["dataset"][size] for size in sizes] == [None, None, None]
    main(["init", str(folder / reviews("large.csv", 6150, [*["good"] * 5, "bad"])), "--label-column", "stars"])
    large = written("large")
    assert [large["dataset"][size] for size in sizes] == [1000, 500, 1000]
    assert large["study"]["metric"] == "validation_macro_f1", "bad is rare"
    assert written("small")["study"]["metric"] == "validation_accuracy"
    said = capsys.readouterr().out
    assert "good (5,125), bad (1,025)" in said and "1,000 of 4,420 for train" in said
    assert max(map(len, said.splitlines())) <= 80 + len(str(folder))


def test_a_long_path_is_said_in_one_piece(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    path = f"{'a-long-name-' * 8}/reviews.csv"
    main(["init", reviews(path, 60), "--label-column", "stars"])
    assert f"{path}:" in capsys.readouterr().out


def test_numbers_as_labels_and_rows_that_cannot_be_used_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    path = Path(reviews("stars.csv", 90, [1, 2, 5], names=("text", "label")))
    path.write_text(path.read_text() + "a,b,c\r\n,5\r\n")
    main(["init", str(path)])
    said = capsys.readouterr().out
    assert "1 (30), 2 (30), 5 (30)" in said
    assert "cannot be read, left out: 1 of 92" in said and "Rows without a text, left out: 1" in said


@pytest.mark.parametrize("kind", ["folder", "table"])
def test_images_are_recognised(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    for place in range(60):
        path = Path("My Photos", ("ripe", "grün")[place % 2], f"{place}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), place, dtype=np.uint8)).save(path)
    Path("My Photos", "ripe", "notes.txt").touch()
    if kind == "folder":
        main(["init", "My Photos"])
        name, source = "my_photos", "image_folder"
        assert "1 other files" in capsys.readouterr().out
    else:
        rows = [{"picture": str(path), "kind": path.parent.name} for path in Path("My Photos").rglob("*.png")]
        Path("list.jsonl").write_text("\n".join(map(json.dumps, rows)))
        main(["init", "list.jsonl", "--label-column", "kind"])
        name, source = "list", "image_csv"
        assert written("list")["dataset"]["image_column"] == "picture"
    assert {"override /dataset": source} in written(name)["defaults"]
    assert {"override /model": "efficientnet_lite0"} in written(name)["defaults"]
    assert check_overrides([f"experiment={name}"], config_dir(), "conf") == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["reviws.csv"], "reviws.csv: does not exist; did you mean reviews.csv"),
        (["reviews.csv"], "Name it, such as --label-column stars"),
        (["reviews.csv", "--label-column", "star"], "did you mean 'stars'"),
        (["reviews.csv", "--label-column", "stars", "--model", "minilmm"], "did you mean 'minilm'"),
        (["reviews.csv", "--label-column", "stars", "--model", "vit"], "takes image"),
        (["reviews.csv", "--label-column", "stars", "--model", "local"], "model.path"),
        (["reviews.csv", "--label-column", "stars", "--name", "../x"], "letters, digits and _"),
        (["reviews.csv", "--label-column", "stars", "--name", "smoke"], "Thawline's own"),
        (["reviews.csv", "--label-column", "review"], "that is no classification"),
        (["reviews.csv", "--label-column", "stars", "--name", "taken"], "--force"),
        (["pages"], "no images in folders of labels"),
        (["pages", "--label-column", "stars"], "is a folder"),
    ],
)
def test_mistakes_are_explained_and_leave_nothing(arguments: list[str], said: str, folder: Path) -> None:
    reviews("reviews.csv", 40)
    Path("pages").mkdir()
    taken = Path("conf/experiment/taken.yaml")
    taken.parent.mkdir(parents=True)
    taken.write_text("study: {n_trials: 3}\n")
    with pytest.raises(ThawlineError) as caught:
        main(["init", *arguments])
    assert said in str(caught.value) and "dataset." not in caught.value.hint
    assert [path.name for path in taken.parent.iterdir()] == ["taken.yaml"]
    assert taken.read_text() == "study: {n_trials: 3}\n"


def test_force_replaces_and_parquet_is_read(capsys: pytest.CaptureFixture[str]) -> None:
    pd.read_csv(reviews("old.csv", 60)).to_parquet("new.parquet")
    main(["init", "new.parquet", "--label-column", "stars", "--name", "mine"])
    main(["init", "new.parquet", "--label-column", "stars", "--name", "mine", "--force", "--model", "distilbert"])
    assert {"override /model": "distilbert"} in written("mine")["defaults"]


def test_a_name_of_ours_in_the_users_folder_is_refused_not_ignored() -> None:
    path = Path("conf/strategy/lora.yaml")
    path.parent.mkdir(parents=True)
    path.write_text("name: full\n")
    (problem,) = check_overrides(["strategy=lora"], config_dir(), "conf")
    assert "conf/strategy/lora.yaml" in problem and "rename" in problem
    assert check_overrides(["strategy=full"], config_dir(), "conf") == []


@pytest.mark.slow
def test_the_command_that_it_names_works(
    folder: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["init", reviews("my reviews.csv", 120), "--label-column", "stars"])
    command = last_line(capsys).split()
    assert command[0] == "thawline"
    tiny = ["strategy=frozen,full", "model=local", f"model.path={tiny_checkpoint}", "study.n_trials=1"]
    tiny += ["trainer.epochs=1", "final.seeds=1"]
    text = run(folder / "outputs", *command[1:], *tiny, cwd=folder)
    assert re.search(r"Report: ", text)
    finals = runs(folder / "outputs", kind="final")
    assert set(finals["tags.thawline.strategy"]) == {"frozen", "full"}
