"""A saved model gives the same answers in each of its forms: merged, as an adapter, packed for MLflow."""

from __future__ import annotations

import base64
import io
import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from PIL import Image
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from strategies import STRATEGIES
from sweeper.data import load_dataset
from sweeper.errors import ConfigError
from sweeper.models.predictor import Manifest, Predictor
from sweeper.models.saved import ADAPTER, load_adapters
from sweeper.objective import Task
from sweeper.registry import pack
from sweeper.search_space import StrategySpec
from tests.tasks import SETTINGS, load_task

TEXTS = ["a triumph", "dull beyond words", "neither good nor bad, but long " * 20, "fine", ""]


def save(task: Task, strategy: str, folder: Path, **fixed: Any) -> np.ndarray:
    """Train and save; the logits of the test split before."""
    spec = StrategySpec(STRATEGIES[strategy], {"learning_rate": 1e-2, **fixed}, {})
    run = task.run(spec, {}, seed=0)
    before = task.predict(run, task.test)
    task.save(run, folder)
    return before


@pytest.fixture(scope="module")
def native(tiny_checkpoint: Path) -> Task:
    return load_task(tiny_checkpoint, (48, 32, 24), max_length=40, head="native", pooling="native")


@pytest.fixture(scope="module")
def linear(tiny_checkpoint: Path) -> Task:
    return load_task(tiny_checkpoint, (48, 32, 24), max_length=40)


def test_a_predictor_gives_the_logits_of_the_trained_model(linear: Task, tmp_path: Path) -> None:
    before = save(linear, "full", tmp_path)
    predictor = Predictor.load(tmp_path)
    texts = linear.dataset.test.inputs
    np.testing.assert_allclose(predictor.logits(texts, batch_size=7), before, atol=1e-5)
    assert predictor.labels == ("rotten", "fresh")
    predicted = predictor.predict(texts)
    assert predicted["label"].tolist() == [predictor.labels[row] for row in before.argmax(-1)]
    expected = torch.softmax(torch.tensor(before) / predictor.manifest.temperature, -1).max(-1).values
    np.testing.assert_allclose(predicted["score"], expected, atol=1e-5)


def test_the_manifest_says_how_the_model_came_about(linear: Task, tmp_path: Path) -> None:
    save(linear, "lora", tmp_path, rank=4)
    manifest = Manifest.read(tmp_path)
    assert manifest is not None
    assert manifest.strategy["name"] == "lora" and manifest.strategy["rank"] == 4
    assert manifest.max_length == 40 and manifest.temperature > 0 and manifest.adapter == ADAPTER
    assert manifest.calibration["items"] == 32
    assert manifest.base["head"] == "linear" and manifest.training["learning_rate"] == 1e-2
    stored = json.loads((tmp_path / "thawline.json").read_text())
    (tmp_path / "thawline.json").write_text(json.dumps({**stored, "format": 99}))
    with pytest.raises(ValueError, match="format 99, this version reads up to 1"):
        Predictor.load(tmp_path)


def test_nothing_but_safetensors_is_saved_and_no_code_of_a_folder_is_run(linear: Task, tmp_path: Path) -> None:
    save(linear, "full", tmp_path)
    assert not [*tmp_path.rglob("*.bin"), *tmp_path.rglob("*.pt*"), *tmp_path.rglob("*.pkl")]
    (tmp_path / "classifier.py").write_text("raise SystemExit('code of the folder ran')")
    assert Predictor.load(tmp_path).predict(["fine"])["label"][0] in ("rotten", "fresh")


@pytest.mark.parametrize("strategy", ["lora", "dora", "rslora", "pissa", "ia3", "vera"])
def test_an_adapter_with_a_native_head_loads_in_peft_alone(
    native: Task, tiny_checkpoint: Path, strategy: str, tmp_path: Path
) -> None:
    before = save(native, strategy, tmp_path, **({"rank": 2} if strategy == "pissa" else {}))
    base = AutoModelForSequenceClassification.from_pretrained(tiny_checkpoint, num_labels=2)
    model = PeftModel.from_pretrained(base, str(tmp_path / ADAPTER)).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint)
    batch = tokenizer(native.dataset.test.inputs, truncation=True, max_length=40, padding=True, return_tensors="pt")
    with torch.no_grad():
        np.testing.assert_allclose(model(**batch).logits.numpy(), before, atol=1e-5)
    weights = {path: path.stat().st_size for path in tmp_path.rglob("*.safetensors")}
    assert weights[tmp_path / ADAPTER / "adapter_model.safetensors"] < weights[tmp_path / "model.safetensors"] / 10


def test_weights_may_be_read_by_whom_the_umask_lets(linear: Task, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        save(linear, "lora", tmp_path / "model")
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "model").rglob("*") if path.is_file()}
    assert {"model.safetensors", "adapter_model.safetensors"} <= set(modes)
    assert set(modes.values()) == {0o640}, modes


def test_adapters_of_one_base_are_loaded_together_and_switched(linear: Task, native: Task, tmp_path: Path) -> None:
    expected = {
        "small": save(linear, "lora", tmp_path / "small", rank=2),
        "large": save(linear, "lora", tmp_path / "large", rank=8),
        "scaled": save(linear, "ia3", tmp_path / "scaled"),
    }
    model = load_adapters({name: tmp_path / name for name in ("small", "large")})
    batch = Predictor.load(tmp_path / "small").encode(linear.dataset.test.inputs)
    for name in ("large", "small", "large"):
        model.set_adapter(name)
        with torch.no_grad():
            np.testing.assert_allclose(model(**batch).logits.numpy(), expected[name], atol=1e-5)
    save(native, "lora", tmp_path / "native")
    with pytest.raises(ConfigError, match="they differ in what they adapt"):
        load_adapters({"small": tmp_path / "small", "native": tmp_path / "native"})
    save(linear, "full", tmp_path / "full")
    with pytest.raises(ConfigError, match=r"full: .* holds no model with an adapter of its own"):
        load_adapters({"full": tmp_path / "full"})


@pytest.mark.parametrize(("kind", "head"), [("gpt2", "native"), ("resnet", "native"), ("clip", "linear")])
def test_an_adapter_is_put_on_any_kind_of_model(
    checkpoint: Callable[[str], Path], kind: str, head: str, tmp_path: Path
) -> None:
    pooling = "native" if head == "native" else "mean"
    if kind == "gpt2":
        task = load_task(checkpoint(kind), (16, 12, 12), max_length=20, head=head, pooling=pooling)
        inputs = list(task.dataset.test.inputs)
    else:
        dataset = load_dataset("digits", modality="image", train_size=40, validation_size=30, test_size=30)
        task = Task.load(dataset, checkpoint(kind), head=head, pooling=pooling, revision=None, settings=SETTINGS)
        inputs = [image.open() for image in task.dataset.test.inputs]
    before = save(task, "lora", tmp_path, rank=2)
    model = load_adapters({"one": tmp_path})
    with torch.no_grad():
        found = model(**Predictor.load(tmp_path).encode(inputs)).logits
    np.testing.assert_allclose(found.numpy(), before, atol=1e-4)
    assert list(model.get_base_model().config.id2label.values()) == list(task.dataset.label_names)


def test_a_native_head_works_in_a_pipeline_of_transformers(native: Task, tmp_path: Path) -> None:
    before = save(native, "lora", tmp_path)
    classify = pipeline("text-classification", model=str(tmp_path))
    found = classify(list(native.dataset.test.inputs), truncation=True, max_length=40)
    assert [row["label"] for row in found] == [native.dataset.label_names[row] for row in before.argmax(-1)]


def test_pictures_are_read_as_they_were_in_training(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    import timm

    dataset = load_dataset("digits", modality="image", train_size=40, validation_size=30, test_size=30)
    task = Task.load(dataset, checkpoint("resnet"), head="native", pooling="native", revision=None, settings=SETTINGS)
    before = save(task, "partial", tmp_path)
    predictor = Predictor.load(tmp_path)
    images = [image.open() for image in dataset.test.inputs]
    np.testing.assert_allclose(predictor.logits(images), before, atol=1e-4)
    files = []
    for number, image in enumerate(images[:3]):
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        path = tmp_path / f"{number}.png"
        path.write_bytes(buffer.getvalue())
        files.append(path)
    np.testing.assert_allclose(predictor.logits(files), before[:3], atol=1e-4)
    plain: Any = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    with torch.no_grad():
        found = plain(predictor.encode(images)["pixel_values"])
    np.testing.assert_allclose(found.numpy(), before, atol=1e-4)
    names = predictor.model.config.id2label
    assert list(names.values()) == list(dataset.label_names)


@pytest.mark.slow
def test_a_packed_model_loads_where_the_project_is_not_installed(linear: Task, tmp_path: Path) -> None:
    before = save(linear, "prompt", tmp_path / "model")
    texts = list(linear.dataset.test.inputs)
    pack(tmp_path / "model", tmp_path / "packed")
    code = (
        "import json, sys, mlflow, pandas as pd\n"
        "sys.modules['sweeper'] = None\n"
        f"found = mlflow.pyfunc.load_model({str(tmp_path / 'packed')!r}).predict(pd.DataFrame({{'text': {texts!r}}}))\n"
        "print(json.dumps(found.to_dict('list')))"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=120
    )
    found = json.loads(process.stdout.strip().splitlines()[-1])
    assert found["label"] == [linear.dataset.label_names[row] for row in before.argmax(-1)]
    expected = Predictor.load(tmp_path / "model").predict(texts)["score"]
    np.testing.assert_allclose(found["score"], expected, atol=1e-6)


def test_a_cell_that_is_no_text_is_refused_by_row_and_column(linear: Task, tmp_path: Path) -> None:
    """What the scoring server answers, which hands on this one kind of error without its stack."""
    import mlflow
    from mlflow.exceptions import MlflowException
    from mlflow.pyfunc.scoring_server import invocations

    save(linear, "frozen", tmp_path / "model")
    pack(tmp_path / "model", tmp_path / "packed")
    model = mlflow.pyfunc.load_model(str(tmp_path / "packed"))
    for wrong, said in ((None, "null"), (float("nan"), "null"), (3, "3 (int)"), (["a"], "['a'] (list)")):
        body = json.dumps({"dataframe_records": [{"text": "fine"}, {"text": wrong}]})
        with pytest.raises(MlflowException) as raised:
            invocations(body, "application/json", model, model.metadata.get_input_schema())
        answer = json.loads(raised.value.serialize_as_json())
        assert f"row 1 (the first is 0), column text: {said} is no text. Texts are allowed" in answer["message"]
        assert raised.value.get_http_status_code() == 400 and "stack_trace" not in answer
    body = json.dumps({"dataframe_records": [{"text": "fine"}, {"text": ""}]})
    answer = invocations(body, "application/json", model, model.metadata.get_input_schema())
    assert len(json.loads(answer.response)["predictions"]) == 2


def test_a_packed_model_of_pictures_reads_base64(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    import mlflow

    dataset = load_dataset("digits", modality="image", train_size=20, validation_size=20, test_size=20)
    task = Task.load(dataset, checkpoint("resnet"), head="linear", pooling="mean", revision=None, settings=SETTINGS)
    before = save(task, "frozen", tmp_path / "model")
    pack(tmp_path / "model", tmp_path / "packed")
    rows = []
    for image in dataset.test.inputs:
        buffer = io.BytesIO()
        image.open().save(buffer, "PNG")
        rows.append({"image": base64.b64encode(buffer.getvalue()).decode()})
    assert Image.open(io.BytesIO(base64.b64decode(rows[0]["image"]))).size
    found = mlflow.pyfunc.load_model(str(tmp_path / "packed")).predict(rows)
    assert found["label"].tolist() == [dataset.label_names[row] for row in before.argmax(-1)]
    broken = [*rows, {"image": base64.b64encode(b"no image").decode()}]
    with pytest.raises(mlflow.MlflowException, match=r"row 20 \(the first is 0\), column image: this is no image"):
        mlflow.pyfunc.load_model(str(tmp_path / "packed")).predict(broken)
