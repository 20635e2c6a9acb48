"""A user's own file or folder, from the command line to the report."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tests.cli import run, runs

BUDGET = ["trainer.epochs=2", "trainer.precision=fp32", "study.pruner=none", "study.n_trials=1", "final.seeds=1"]


def write_reviews(path: Path, rows: int, seed: int) -> Path:
    """Reviews of a shop, with stars that say the sentiment too."""
    words = random.Random(seed)
    verdicts = {"good": ["lovely", "sturdy", "perfect"], "bad": ["broken", "useless", "flimsy"]}
    table = []
    for place in range(rows):
        label = ("good", "bad")[place % 2]
        filler = " ".join(words.choices(["the", "kettle", "arrived", "on", "monday", "and", "is", "blue"], k=8))
        table.append({"review": f"{filler} {words.choice(verdicts[label])}", "sentiment": label, "order": place})
    pd.DataFrame(table).to_csv(path, index=False)
    return path


def page_of(output: Path, text: str) -> str:
    return Path(re.search(r"Report: +(\S+)", text).group(1)).read_text()  # type: ignore[union-attr]


def test_a_csv_of_reviews_from_file_to_report(tmp_path: Path, tiny_checkpoint: Path) -> None:
    path = write_reviews(tmp_path / "reviews.csv", 200, seed=1)
    path.write_text(path.read_text() + "one field too many,good,7,x\n,bad,8\n")
    arguments = ["strategy=frozen", "model=local", f"model.path={tiny_checkpoint}", "dataset=csv", *BUDGET]
    arguments.append(f"dataset.path={path}")
    output = tmp_path / "outputs"
    text = run(output, "sweep", *arguments)
    assert "Rows of reviews.csv that cannot be read, left out: 1 of 202" in text
    assert "Rows without a text, left out: 1." in text
    page = page_of(output, text)
    assert page.startswith(f"# {tiny_checkpoint.name} on reviews")
    assert "- Rows without a text, left out: 1." in page
    assert "### Shifted data" not in page
    (first,) = runs(output, kind="final").to_dict("records")

    # Given later, shifted data join the same study, but only the finals that are still to run.
    other = write_reviews(tmp_path / "other.csv", 60, seed=2)
    text = run(output, "sweep", *arguments, f"dataset.shifted={other}", "final.seeds=2")
    assert "1 finals of frozen ended without this dataset.shifted" in text
    finals = runs(output, kind="final")
    assert set(finals["tags.thawline.study"]) == {first["tags.thawline.study"]}
    assert finals["metrics.shifted_accuracy"].notna().tolist() == [False, True]
    assert finals["tags.thawline.shifted"][1].startswith(f"{other} ")
    predictions = pd.read_csv(
        mlflow.artifacts.download_artifacts(run_id=finals["run_id"][1], artifact_path="shifted_predictions.csv")
    )
    right = (predictions["label"] == predictions["prediction"]).mean()
    assert len(predictions) == 60
    assert right == pytest.approx(finals["metrics.shifted_accuracy"][1])
    section = page_of(output, text).split("### Shifted data")[1].split("###")[0]
    difference = finals["metrics.shifted_accuracy"][1] - finals["metrics.test_accuracy"][1]
    assert f"| {right:.3f} [" in section and f"] | {finals['metrics.test_accuracy'][1]:.3f} |" in section
    assert f"{abs(difference):.3f}" in section and "1 of 2" in section


@pytest.mark.slow
def test_a_folder_of_images_from_folder_to_report(tmp_path: Path, checkpoint: Callable[[str], Path]) -> None:
    noise = np.random.default_rng(0)
    for place in range(60):
        label = ("ripe", "green")[place % 2]
        path = tmp_path / "fruit" / label / f"{place}.{('jpg', 'PNG')[place % 3 == 0]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        shades = noise.integers(0, 90, (20, 24, 3), dtype=np.uint8)
        shades[..., place % 2] += 150
        Image.fromarray(shades).save(path)
    (tmp_path / "fruit" / "ripe" / "broken.jpg").write_bytes(b"no image")
    model = ["model=local", "model.modality=image", f"model.path={checkpoint('efficientnet')}"]
    output = tmp_path / "outputs"
    text = run(
        output, "sweep", "strategy=full", *model, "dataset=image_folder", f"dataset.path={tmp_path / 'fruit'}", *BUDGET
    )
    page = page_of(output, text)
    assert page.startswith("# efficientnet on fruit")
    assert "Images that cannot be read, left out: 1, such as ripe/broken.jpg" in page
    (final,) = runs(output, kind="final").to_dict("records")
    assert final["metrics.test_accuracy"] >= 0


def test_a_missing_file_is_an_error_before_the_model_is_loaded(tmp_path: Path) -> None:
    text = run(tmp_path, "sweep", "dataset=csv", f"dataset.path={tmp_path / 'reviews.csv'}", status=2)
    assert f"dataset.path={tmp_path / 'reviews.csv'}: does not exist" in text
    assert "Traceback" not in text
    assert not (tmp_path / "mlflow.db").exists()
