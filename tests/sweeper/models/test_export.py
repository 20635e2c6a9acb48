"""An exported model computes what the saved one does, runs by itself, and is not kept where it does not."""

from __future__ import annotations

import contextlib
import io
import json
import re
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
from sweeper.tools import main as run_tool
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


def test_a_text_model_in_onnx_takes_texts_of_any_number_and_length(
    checkpoint: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    predictor = trained(load_task(checkpoint("distilbert"), (48, 32, 24), max_length=40), "lora", tmp_path / "model")
    folder = tmp_path / "model" / "onnx"
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    run_tool(["export", "--model", str(tmp_path / "model"), "--input", str(tmp_path / "texts.txt")])
    first, *said, _, header, one, many = capsys.readouterr().out.splitlines()
    assert re.fullmatch(rf"exported: {folder / 'model.onnx'} \([\d.]+ MB\)", first)
    assert re.fullmatch(r"verified: 58 inputs have .* at most +\d.\de-\d\d \(allowed: 1.0e-04\)", " ".join(said))
    assert [header.split()[:2], one.split()[:2], many.split()[:2]] == [["batch", "tokens"], ["1", "32"], ["32", "32"]]
    assert max(map(len, [*said, header, one])) <= 80
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


@pytest.mark.slow
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
    checkpoint: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = load_task(checkpoint("distilbert"), (48, 32, 24), max_length=16)
    predictor = trained(task, "frozen", tmp_path / "model")
    folder = tmp_path / "model" / "torch_export"
    export(predictor, folder, "torch_export")
    kept = (folder / "model.pt2").read_bytes()
    loaded = exporting._torch_run
    # What is wrong shows in long texts alone.
    monkeypatch.setattr(
        exporting,
        "_torch_run",
        lambda file: lambda batch: loaded(file)(batch) + 1e-3 * (batch["input_ids"].shape[1] == 16),
    )
    with pytest.raises(ExportError, match=r"shape \(1, 16\) logits differ by 0.001, allowed is 0.0001") as raised:
        export(predictor, folder, "torch_export")
    assert "not kept" in raised.value.hint
    assert (folder / "model.pt2").read_bytes() == kept
    assert {path.name for path in (tmp_path / "model").glob("*torch_export*")} == {"torch_export"}


def test_nothing_is_replaced_but_an_earlier_export(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ConfigError, match="holds something else than an export"):
        export(Predictor(None, None, Manifest(modality="text"), ()), tmp_path, "torch_export")  # type: ignore[arg-type]
    assert (tmp_path / "notes.txt").exists()


def test_a_missing_package_is_said_with_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting, "find_spec", lambda name: None if name == "onnxscript" else name)
    with pytest.raises(ConfigError, match=r"not installed: onnxscript\n.*pip install 'thawline\[onnx\]'"):
        exporting.check_installed("onnx")
    exporting.check_installed("torch_export")


KINDS = [
    *[("bert", head, pooling, None) for head, pooling in (("linear", "first"), ("mlp", "max"), ("native", "native"))],
    *[("bert", "linear", "native", strategy) for strategy in ("adapter", "prompt", "prefix")],
    *[
        (kind, "native", "native", None)
        for kind in ("distilbert", "deberta", "deberta-v3", "roberta", "electra", "gpt2", "llama", "mistral")
    ],
    *[(kind, "linear", "mean", "prompt") for kind in ("roberta", "gpt2")],
    *[(kind, "linear", "mean", "prefix") for kind in ("gpt2", "llama")],
    *[(kind, "native", "native", None) for kind in ("resnet", "vit-timm", "swin", "vit", "siglip", "convnext")],
    *[(kind, "linear", "mean", None) for kind in ("resnet-published", "clip", "convnext-transformers")],
    ("efficientnet", "linear", "max", "adapter"),
]
TEXT_KINDS = {"bert", "distilbert", "deberta", "deberta-v3", "roberta", "electra", "gpt2", "llama", "mistral"}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["onnx", "torch_export"])
@pytest.mark.parametrize(("architecture", "head", "pooling", "strategy"), KINDS)
def test_every_architecture_is_exported(
    checkpoint: Callable[[str], Path],
    architecture: str,
    head: str,
    pooling: str,
    strategy: str | None,
    kind: str,
    tmp_path: Path,
) -> None:
    loaded = load_model(
        checkpoint(architecture),
        modality="text" if architecture in TEXT_KINDS else "image",
        head=head,
        pooling=pooling,
        label_names=["a", "b", "c"],
    )
    model: Any = loaded.fresh(0)
    if strategy is not None:
        model = STRATEGIES[strategy]().prepare(model, loaded.layout)
    torch.manual_seed(0)
    with torch.no_grad():  # as after training: parts that begin as zero, and logits that differ
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    loaded.save(model, tmp_path / "model")
    predictor = Predictor.load(tmp_path / "model", device="cpu")
    found = export(predictor, tmp_path / kind, kind)
    said = says(readme_code(tmp_path / kind), tmp_path / kind) if architecture in TEXT_KINDS else None
    if said is not None:
        expected = predictor.predict(["A first text.", "Another."])
        assert [label for label, _ in said] == expected["label"].tolist()
    print(f"{architecture} {head} {pooling} {strategy} {kind}: {found.difference:.1e} of {found.allowed:.1e}")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["efficientnet", "resnet-published", "vit", "siglip", "clip", "convnext-transformers"])
def test_images_are_prepared_without_torch(checkpoint: Callable[[str], Path], kind: str, tmp_path: Path) -> None:
    from transformers import AutoImageProcessor

    steps = steps_of(AutoImageProcessor.from_pretrained(checkpoint(kind)))
    assert steps is not None
    Image.new("L", (50, 31), 128).save(tmp_path / "grey.png")
    assert prepare(str(tmp_path / "grey.png"), json.loads(json.dumps(steps))).shape == (3, *steps["crop"])


@pytest.mark.slow
def test_all_forms_of_a_real_winner_agree(tmp_path: Path) -> None:
    """MiniLM, LoRA, 200 lines of the test split."""
    import mlflow
    import pandas as pd

    from sweeper.assets import fetch
    from sweeper.models.saved import load_adapters
    from sweeper.registry import pack

    base = fetch("minilm", progress=False)
    task = load_task(base, (400, 100, 200), max_length=128)
    folder = tmp_path / "model"
    run = task.run(StrategySpec(STRATEGIES["lora"], {"learning_rate": 1e-3}, {}), {}, seed=0)
    before = task.predict(run, task.test)
    task.save(run, folder)
    predictor, texts = Predictor.load(folder, device="cpu"), list(task.dataset.test.inputs)
    assert len(texts) == 200
    forms = {"saved, merged": predictor.logits(texts)}
    with torch.no_grad():
        adapted: Any = load_adapters({"lora": folder}, source=base)
        forms["adapter on its base"] = adapted(**predictor.encode(texts)).logits.numpy()
        export(predictor, tmp_path / "onnx", "onnx", texts)
        forms["onnx"] = onnx_logits(tmp_path / "onnx", predictor.encode(texts))
        export(predictor, tmp_path / "torch_export", "torch_export", texts)
        program: Any = torch.export.load(tmp_path / "torch_export" / "model.pt2").module()
        forms["torch_export"] = program(**predictor.encode(texts)).numpy()
    for name, logits in forms.items():
        labels = int((logits.argmax(-1) == before.argmax(-1)).sum())
        print(f"{name}: {labels} of 200 labels, logits differ by at most {np.abs(logits - before).max():.1e}")
        assert labels == 200
        np.testing.assert_allclose(logits, before, atol=1e-4)
    pack(folder, tmp_path / "packed")
    table = mlflow.pyfunc.load_model(str(tmp_path / "packed")).predict(pd.DataFrame({"text": texts}))
    assert table["label"].tolist() == [predictor.labels[place] for place in before.argmax(-1)]
    expected = torch.softmax(torch.tensor(before) / predictor.manifest.temperature, -1).max(-1).values.numpy()
    difference = np.abs(table["score"].to_numpy() - expected).max()
    print(f"packed (mlflow.pyfunc): 200 of 200 labels, scores differ by at most {difference:.1e}")
    assert difference < 1e-4
