"""An exported model computes what the saved one does, runs by itself, and is not kept where it does not."""

from __future__ import annotations

import contextlib
import io
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from strategies import STRATEGIES
from sweeper.data import load_dataset
from sweeper.errors import ConfigError, ExportError
from sweeper.models import export as exporting
from sweeper.models.export import export
from sweeper.models.export_folder import prepare, steps_of
from sweeper.models.predictor import Manifest, Predictor
from sweeper.models.pretrained import load_model
from sweeper.objective import Task
from sweeper.search_space import StrategySpec
from tests.tasks import SETTINGS, load_task

TEXTS = ["a triumph", "dull beyond words", "neither good nor bad, but long " * 20, "fine"]


@pytest.fixture(autouse=True)
def briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    """How long it takes is measured elsewhere."""
    monkeypatch.setattr(exporting, "SECONDS", 0.0)
    monkeypatch.setattr(exporting, "RUNS", (1, 1))


def trained(task: Task, strategy: str, folder: Path, **fixed: Any) -> Predictor:
    run = task.run(StrategySpec(STRATEGIES[strategy], {"learning_rate": 1e-2, **fixed}, {}), {}, seed=0)
    task.save(run, folder)
    return Predictor.load(folder, device="cpu")


def readme_code(folder: Path) -> str:
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), flags=re.DOTALL)
    return str(code)


def says(code: str, folder: Path) -> list[tuple[str, float]]:
    """Labels and scores that the README's lines print in their folder."""
    printed = io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(printed):
        exec(code, {})
    return [(line.rpartition(" ")[0], float(line.rpartition(" ")[2])) for line in printed.getvalue().splitlines()]


def onnx_logits(folder: Path, batch: dict[str, torch.Tensor]) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / "model.onnx")
    found: np.ndarray = session.run(["logits"], {name: tensor.numpy() for name, tensor in batch.items()})[0]
    return found


def test_a_text_model_in_onnx_takes_texts_of_any_number_and_length(tiny_checkpoint: Path, tmp_path: Path) -> None:
    predictor = trained(load_task(tiny_checkpoint, (48, 32, 24), max_length=40), "lora", tmp_path / "model")
    folder = tmp_path / "model" / "onnx"
    found = export(predictor, folder, "onnx", TEXTS)
    assert found.inputs > 50 and 0 < found.difference <= found.allowed == 1e-4
    assert [(timing.batch, timing.tokens) for timing in found.timings] == [(1, 32), (32, 32)]  # texts have 40 at most
    for number in (1, 2, 4):
        batch = predictor.encode(TEXTS[:number])
        with torch.no_grad():
            expected = predictor.model(**batch).logits.numpy()
        np.testing.assert_allclose(onnx_logits(folder, batch), expected, atol=1e-5)
    import onnx

    inputs = onnx.load(folder / "model.onnx").graph.input
    assert [part.name for part in inputs] == list(predictor.encode(["fine"]))
    assert [axis.dim_param for axis in inputs[0].type.tensor_type.shape.dim] == ["batch", "tokens"]
    code = readme_code(folder).replace('["A first text.", "Another."]', repr(TEXTS))
    expected = predictor.predict(TEXTS)
    said = says(code, folder)
    assert [label for label, _ in said] == expected["label"].tolist()
    np.testing.assert_allclose([score for _, score in said], expected["score"], atol=1e-3)
    manifest = Manifest.read(folder)
    assert manifest is not None and manifest.temperature == predictor.manifest.temperature


def test_an_image_model_in_onnx_reads_files_by_its_readme(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    dataset = load_dataset("digits", modality="image", train_size=40, validation_size=30, test_size=30)
    task = Task.load(
        dataset, checkpoint("efficientnet"), head="linear", pooling="mean", revision=None, settings=SETTINGS
    )
    predictor = trained(task, "adapter", tmp_path / "model")
    found = export(predictor, tmp_path / "onnx", "onnx")
    assert [timing.batch for timing in found.timings] == [1, 32]
    images = [image.open() for image in dataset.test.inputs[:3]]
    for number, image in enumerate(images):
        image.save(tmp_path / "onnx" / f"{number}.png")
    code = readme_code(tmp_path / "onnx").replace('["image.png"]', '["0.png", "1.png", "2.png"]')
    expected = predictor.predict(images)
    said = says(code, tmp_path / "onnx")
    assert [label for label, _ in said] == expected["label"].tolist()
    np.testing.assert_allclose([score for _, score in said], expected["score"], atol=1e-3)


def test_what_computes_something_else_is_not_kept(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = trained(load_task(tiny_checkpoint, (48, 32, 24), max_length=40), "frozen", tmp_path / "model")
    folder = tmp_path / "model" / "torch_export"
    export(predictor, folder, "torch_export")
    before = (folder / "model.pt2").stat().st_mtime_ns
    right = exporting._torch_run

    def slightly_wrong(file: Path) -> Any:
        run = right(file)
        return lambda batch: run(batch) + 1e-3 * (next(iter(batch.values())).shape[1] > 100)

    monkeypatch.setattr(exporting, "_torch_run", slightly_wrong)
    monkeypatch.setattr(exporting, "SHAPES", ((1, 1),))
    export(predictor, folder, "torch_export")  # no input is that long: texts have 40 tokens at most
    monkeypatch.setattr(exporting, "_torch_run", lambda file: lambda batch: right(file)(batch) + 1e-3)
    with pytest.raises(ExportError, match=r"logits differ by 0.001, allowed is 0.0001"):
        export(predictor, tmp_path / "other", "torch_export")
    assert not (tmp_path / "other").exists() and not list(tmp_path.glob(".other*"))
    kept = (folder / "model.pt2").stat().st_mtime_ns
    assert kept != before
    with pytest.raises(ExportError):
        export(predictor, folder, "torch_export")
    assert (folder / "model.pt2").stat().st_mtime_ns == kept
