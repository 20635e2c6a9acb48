"""The whole way from a hub to a report, and what is said where there is none."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tests.checkpoints import poisoned
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


def write_dataset(
    folder: Path, column: str, dtype: str, values: Callable[[int], object], *, test_label: int | None = None
) -> Path:
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
    for name in ("script", "converted"):
        (folder / name).mkdir()
        (folder / name / f"{name}.py").write_text("raise SystemExit('this must not run')")
    texts = write_dataset(
        folder / "reviews", "text", "string", lambda row: f"a {'bright' if row % 2 else 'dull'} film, {row}"
    )
    hidden = write_dataset(folder / "hidden", "text", "string", lambda row: f"film {row}", test_label=-1)
    images = write_dataset(folder / "pictures", "image", "image", lambda row: {"bytes": png(row), "path": None})
    with serve() as hub:
        hub.add("user/bert", checkpoint("bert"))
        hub.add("user/resnet", checkpoint("resnet-published"))
        hub.add("user/closed", checkpoint("bert"), gated=True)
        for name, path in (("reviews", texts), ("hidden", hidden), ("pictures", images), ("script", folder / "script")):
            hub.add(f"user/{name}", path, kind="datasets")
        hub.add("user/converted", folder / "converted", kind="datasets")
        hub.add("user/converted", texts, kind="datasets", revision="refs/convert/parquet")
        hub.add("user/closed", texts, kind="datasets", gated=True)
        yield hub


@pytest.fixture(scope="module")
def client(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with Client(hub, tmp_path_factory.mktemp("home")) as client:
        yield client


def planned(printed: str) -> str:
    """The comparison that a dry run names."""
    return next(line for line in printed.splitlines() if ": nothing is started" in line).partition(":")[0]


@pytest.mark.slow
def test_a_model_and_a_dataset_of_the_hub_end_in_a_report(
    hub: Hub, client: Client, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    client.run(*TEXT, f"output_dir={tmp_path}")
    report = next(tmp_path.glob("reports/user_bert-user_reviews-*/report.md"))
    assert "majority class" in report.read_text()
    assert len(runs(tmp_path, kind="final")) == 1

    hub.silent = True  # what was fetched once is found without a connection, and in the same study
    asked = len(hub.requests)
    assert planned(client.run(*TEXT, "dry_run=true")) == report.parent.name
    assert len(hub.requests) - asked <= 3, "every client asks again and again where none has said that nobody answers"
    hub.silent = False

    old = hub.commit("user/bert")
    hub.add("user/bert", checkpoint("electra"))
    assert hub.commit("user/bert") != old
    assert planned(client.run(*TEXT, "dry_run=true")) != report.parent.name, "other weights are another comparison"
    hub.add("user/bert", checkpoint("bert"))


@pytest.mark.slow
def test_images_of_the_hub_meet_a_model_of_timm(client: Client, tmp_path: Path) -> None:
    printed = client.run(
        *("model=hub_image", "model.name=user/resnet", "dataset=hub", "dataset.name=user/pictures"),
        *("dataset.modality=image", "dataset.image_size=32", *SMALL, f"output_dir={tmp_path}"),
    )
    assert "user_resnet-user_pictures-" in printed
    predictions = next(tmp_path.rglob("predictions.csv")).read_text()
    assert len(predictions.splitlines()) == 21


@pytest.mark.slow
def test_a_test_split_without_labels_is_not_used(client: Client) -> None:
    printed = client.run(*TEXT, "dataset.name=user/hidden", "dataset.test_size=null", "dry_run=true")
    assert "In user/hidden, the split test has no labels: test is carved from train instead" in printed


@pytest.mark.slow
def test_the_hubs_own_copy_of_a_script_dataset_is_read(client: Client) -> None:
    asked = (*TEXT, "dataset.name=user/converted", "dry_run=true")
    client.run(*asked, "dataset.revision=refs/convert/parquet")
    # The script itself is not that copy, though the hub's library would take it from its cache.
    assert "falls back on another version in its cache" in client.run(*asked, status=2)


REFUSALS = [
    ("model.name=user/none", "model 'user/none' does not exist on http://127.0.0.1"),
    ("dataset.name=user/none", "dataset 'user/none' does not exist on http://127.0.0.1"),
    ("model.name=user/closed", "model 'user/closed' is gated"),
    ("dataset.text_column=texts", "dataset.text_column=texts: did you mean 'text'? allowed: label, text"),
]
MORE_REFUSALS = [  # a process each
    ("dataset.name=user/closed", "dataset 'user/closed' is gated"),
    ("model.revision=v9", "model 'user/bert' has no revision 'v9'"),
    ("dataset.revision=v9", "dataset 'user/reviews' has no revision 'v9'"),
    ("model.name=no/such/name", "model 'no/such/name': no name of a repository on the hub"),
    ("dataset.name=user/script", "is a script that would have to run"),
    ("dataset.subset=other", "dataset 'user/reviews' cannot be read: BuilderConfig 'other' not found"),
]


@pytest.mark.parametrize(
    ("override", "words"), [*REFUSALS, *(pytest.param(*case, marks=pytest.mark.slow) for case in MORE_REFUSALS)]
)
def test_what_the_hub_does_not_give_is_said_in_two_lines(client: Client, override: str, words: str) -> None:
    printed = client.run(*TEXT, override, "dry_run=true", status=2)
    assert words in printed
    assert "Traceback" not in printed
    advice = [line for line in printed.splitlines() if line.startswith("  ")]
    assert advice or "allowed:" in printed


def test_pickled_weights_of_the_hub_run_no_code(
    hub: Hub, client: Client, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    folder, ran = tmp_path / "pickled", tmp_path / "ran"
    weights = poisoned(checkpoint("bert"), folder, ran)
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(weights))
    hub.add("user/pickled", folder)
    printed = client.run(*TEXT, "model.name=user/pickled", status=2)
    assert "pickled weights hold more than tensors" in printed and "Traceback" not in printed
    assert not ran.exists()


def test_without_a_connection_or_a_cache_it_says_so_at_once(hub: Hub, client: Client) -> None:
    hub.silent = True
    asked = len(hub.requests)
    try:
        printed = client.run(*TEXT, "dataset.name=user/unseen", "dry_run=true", status=2)
    finally:
        hub.silent = False
    assert "dataset 'user/unseen' cannot be fetched: http://127.0.0.1" in printed
    assert "does not answer" in printed
    assert "Connect and start again" in printed
    assert len(hub.requests) - asked <= 2
