"""The whole way from a hub to a report, and what is said where there is none."""

from __future__ import annotations

import io
import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tests.cli import runs
from tests.hub import Client, Hub, serve

FEATURES = """---
dataset_info:
  features:
  - name: {input}
    dtype: {dtype}
  - name: label
    dtype:
      class_label:
        names:
          '0': dull
          '1': bright
---
"""
SMALL = (
    *("strategy=frozen", "study.n_trials=1", "trainer.epochs=1", "final.seeds=1"),
    *("dataset.train_size=20", "dataset.validation_size=10", "dataset.test_size=20"),
)
TEXT = ("model=hub_text", "model.name=user/bert", "dataset=hub", "dataset.name=user/reviews", *SMALL)


def png(row: int) -> bytes:
    rng = np.random.default_rng(row)
    file = io.BytesIO()
    Image.fromarray(rng.integers(0, 120, (24, 20, 3), dtype=np.uint8) + np.uint8(120 * (row % 2))).save(file, "PNG")
    return file.getvalue()


def write_dataset(folder: Path, column: str, dtype: str, values: Callable[[int], object], test_label: int | None) -> Path:
    """Parquet files of 60 train and 40 test rows, and a card that says what their columns are."""
    (folder / "data").mkdir(parents=True)
    (folder / "README.md").write_text(FEATURES.format(input=column, dtype=dtype))
    for first, rows, split in ((0, 60, "train"), (60, 40, "test")):
        table = pd.DataFrame(
            {
                column: [values(row) for row in range(first, first + rows)],
                "label": [row % 2 if test_label is None or split == "train" else test_label for row in range(rows)],
            }
        )
        table.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    return folder


@pytest.fixture(scope="module")
def hub(checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    folder = tmp_path_factory.mktemp("hub")
    (folder / "script").mkdir()
    (folder / "script" / "script.py").write_text("raise SystemExit('this must not run')")
    texts = write_dataset(
        folder / "reviews", "text", "string", lambda row: f"a {'bright' if row % 2 else 'dull'} film, {row}", None
    )
    hidden = write_dataset(folder / "hidden", "text", "string", lambda row: f"film {row}", -1)
    images = write_dataset(folder / "pictures", "image", "image", lambda row: {"bytes": png(row), "path": None}, None)
    with serve() as hub:
        hub.add("user/bert", checkpoint("bert"))
        hub.add("user/resnet", checkpoint("resnet"))
        hub.add("user/closed", checkpoint("bert"), gated=True)
        for name, path in (("reviews", texts), ("hidden", hidden), ("pictures", images), ("script", folder / "script")):
            hub.add(f"user/{name}", path, kind="datasets")
        hub.add("user/closed", texts, kind="datasets", gated=True)
        yield hub


@pytest.fixture(scope="module")
def client(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with Client(hub, tmp_path_factory.mktemp("home")) as client:
        yield client


def test_a_model_and_a_dataset_of_the_hub_end_in_a_report(hub: Hub, client: Client, tmp_path: Path) -> None:
    printed = client.run(*TEXT, f"output_dir={tmp_path}")
    assert "user_bert-user_reviews-" in printed
    report = next(tmp_path.glob("reports/*/report.md")).read_text()
    assert "majority class" in report
    studies = runs(tmp_path, kind="study")
    assert len(studies) == 1
    print(printed, hub.commit("user/bert"))
