"""Every entry of ``conf/model/``: a small checkpoint of its architecture is loaded, trained, saved and read again."""

from __future__ import annotations

import dataclasses
import functools
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from timm.layers import resample_abs_pos_embed
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
)

from strategies import Lora
from sweeper.config import config_dir
from sweeper.data import load_dataset
from sweeper.errors import ConfigError
from sweeper.models.preprocessing import preprocessing_of, with_image_size
from sweeper.models.pretrained import Pretrained, load_model, timm_repository
from sweeper.objective import Task
from sweeper.search_space import StrategySpec
from tests.checkpoints import poisoned
from tests.strategies.strategy_contract import inputs, logits
from tests.tasks import SETTINGS

Checkpoint = Callable[[str], Path]
#: Entry -> the small checkpoint of its architecture in ``tests/checkpoints.py``, and what adapters find in attention.
ENTRIES: dict[str, tuple[str, set[str]]] = {
    "minilm": ("bert", {"query", "value"}),
    "bert": ("bert", {"query", "value"}),
    "bert_multilingual": ("bert", {"query", "value"}),
    "biobert": ("bert", {"query", "value"}),
    "distilbert": ("distilbert", {"q_lin", "v_lin"}),
    "roberta": ("roberta", {"query", "value"}),
    "codebert": ("roberta", {"query", "value"}),
    "deberta_v3": ("deberta-v3", {"query_proj", "value_proj"}),
    "electra": ("electra", {"query", "value"}),
    "gpt2": ("gpt2", {"c_attn"}),
    "llama": ("llama", {"q_proj", "v_proj"}),
    "mistral": ("mistral", {"q_proj", "v_proj"}),
    "efficientnet_lite0": ("efficientnet", set()),
    "efficientnet_b0": ("efficientnet", set()),
    "resnet50": ("resnet-published", set()),
    "convnext_tiny": ("convnext", set()),
    "swin_tiny": ("swin", {"qkv"}),
    "vit_timm": ("vit-timm", {"qkv"}),
    "vit": ("vit", {"q_proj", "v_proj"}),
    "clip": ("clip", {"q_proj", "v_proj"}),
    "siglip": ("siglip", {"q_proj", "v_proj"}),
}
#: Those that take their name from the user.
OPEN = {"hub_text", "hub_image", "timm", "local"}
#: One entry for each architecture.
DISTINCT = {kind: name for name, (kind, _) in reversed(ENTRIES.items())}.values()
PROCESSORS = ("resnet", "resnet-published", "efficientnet", "vit", "clip", "siglip", "convnext-transformers")


def entry(name: str) -> dict[str, Any]:
    return yaml.safe_load((config_dir() / "model" / f"{name}.yaml").read_text())


@functools.cache
def data(modality: str) -> Any:
    name = "review_lines" if modality == "text" else "digits"
    return load_dataset(name, modality=modality, train_size=16, validation_size=12, test_size=12)


def load(folder: Path, modality: str, **asked: Any) -> Pretrained:
    return load_model(
        folder, modality=modality, **{"head": "linear", "pooling": "mean", "label_names": ["a", "b"], **asked}
    )


def test_every_entry_is_tried() -> None:
    assert {path.stem for path in config_dir().glob("model/*.yaml")} == {*ENTRIES, *OPEN}


@pytest.mark.parametrize("name", ENTRIES)
def test_the_timm_names_of_entries_exist(name: str) -> None:
    repository = entry(name)["name"]
    if repository.startswith("timm/"):
        assert timm_repository(repository.removeprefix("timm/")) == repository


def reloads(folder: Path, modality: str, head: str, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The logits of a saved model, as someone without the project loads it."""
    auto: Any = AutoModelForSequenceClassification if modality == "text" else AutoModelForImageClassification
    return logits(auto.from_pretrained(folder, trust_remote_code=head != "native"), batch)


@pytest.mark.parametrize("name", DISTINCT)
def test_an_entry_trains_and_its_saved_model_agrees(checkpoint: Checkpoint, tmp_path: Path, name: str) -> None:
    kind, attention = ENTRIES[name]
    settings = entry(name)
    task = Task.load(
        data(settings["modality"]),
        checkpoint(kind),
        head=settings["head"],
        pooling=settings["pooling"],
        revision=None,
        max_length=16,
        settings=dataclasses.replace(SETTINGS, batch_size=8),  # the rate of the very first step is 0
    )
    layout = task.pretrained.layout
    assert len(layout.blocks) > 1
    found = layout.adapter_targets.get("attention", ())
    assert {target.rpartition(".")[2] for target in found} == attention
    run = task.run(StrategySpec(Lora, {"learning_rate": 1e-2, "rank": 2, "alpha": 4}, {}), {}, seed=0)
    assert np.isfinite(run.fit.best.validation_loss)
    batch = inputs(task.pretrained)
    trained = logits(run.model, batch)
    assert not torch.allclose(trained, logits(task.pretrained.fresh(0), batch)), "nothing was trained"
    task.save(run, tmp_path)
    torch.testing.assert_close(
        reloads(tmp_path, settings["modality"], settings["head"], batch), trained, atol=1e-4, rtol=1e-4
    )


@pytest.mark.slow
@pytest.mark.parametrize("head", ["mlp", "native"])
@pytest.mark.parametrize("name", DISTINCT)
def test_other_heads_of_an_entry_are_saved_too(checkpoint: Checkpoint, tmp_path: Path, name: str, head: str) -> None:
    settings = entry(name)
    pooling = "native" if head == "native" else settings["pooling"]
    pretrained = load(checkpoint(ENTRIES[name][0]), settings["modality"], head=head, pooling=pooling)
    assert len(pretrained.layout.blocks) > 1
    model, batch = pretrained.fresh(0), inputs(pretrained)
    pretrained.save(model, tmp_path)
    torch.testing.assert_close(reloads(tmp_path, settings["modality"], head, batch), logits(model, batch))


# --- images ------------------------------------------------------------------------------------------------------


def noise() -> list[Image.Image]:
    """A wide and a high image."""
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (*shape, 3), dtype=np.uint8)) for shape in ((60, 90), (70, 40))]


@pytest.mark.parametrize("size", [None, 48])
@pytest.mark.parametrize("kind", PROCESSORS)
def test_an_image_is_prepared_as_the_models_own_processor_does(
    checkpoint: Checkpoint, kind: str, size: int | None
) -> None:
    processor = AutoImageProcessor.from_pretrained(checkpoint(kind))
    if size is not None:
        processor = with_image_size(processor, size)
    ours = preprocessing_of(processor)
    pixels = torch.stack([ours.geometry(image) for image in noise()])
    assert pixels.shape[-2:] == ours.size
    assert size is None or ours.size == (size, size)
    expected = torch.cat([processor(image, return_tensors="pt")["pixel_values"] for image in noise()])
    # The processor may round once less: by half a step of 8 bits.
    step = 0.51 * ours.scale / min(ours.std)
    torch.testing.assert_close(ours.normalise(pixels), expected, atol=max(step, 1e-5), rtol=0)


@pytest.mark.parametrize("head", ["linear", "native"])
@pytest.mark.parametrize(
    "kind", ["resnet", "efficientnet", "convnext-transformers", "vit-timm", "swin", "vit", "clip", "siglip"]
)
def test_another_image_size_is_read_and_saved(checkpoint: Checkpoint, tmp_path: Path, kind: str, head: str) -> None:
    pretrained = load(checkpoint(kind), "image", head=head, pooling="native", image_size=64)
    batch = inputs(pretrained)
    assert batch["pixel_values"].shape[-2:] == (64, 64)
    model = pretrained.fresh(0)
    pretrained.save(model, tmp_path)
    torch.testing.assert_close(reloads(tmp_path, "image", head, batch), logits(model, batch))
    assert preprocessing_of(AutoImageProcessor.from_pretrained(tmp_path)).size == (64, 64)


@pytest.mark.parametrize("kind", ["vit", "clip", "siglip"])
def test_places_of_a_larger_grid_are_interpolated(checkpoint: Checkpoint, kind: str) -> None:
    pretrained = load(checkpoint(kind), "image", pooling="native", image_size=64)
    whole = AutoModel.from_pretrained(checkpoint(kind)).eval()
    pixels = inputs(pretrained)["pixel_values"]
    with torch.no_grad():
        expected = getattr(whole, "vision_model", whole)(pixels, interpolate_pos_encoding=True).last_hidden_state
        found = pretrained.model.backbone(pixels).last_hidden_state  # type: ignore[operator, union-attr]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_places_of_timm_are_interpolated(checkpoint: Checkpoint) -> None:
    large = load(checkpoint("vit-timm"), "image", image_size=64).model.get_parameter("backbone.timm_model.pos_embed")
    own = load(checkpoint("vit-timm"), "image").model.get_parameter("backbone.timm_model.pos_embed")
    grid = int((own.shape[1] - 1) ** 0.5)
    assert grid != 4
    torch.testing.assert_close(large, resample_abs_pos_embed(own, [4, 4], [grid, grid], num_prefix_tokens=1))


@pytest.mark.parametrize("kind", ["vit", "clip", "siglip", "vit-timm"])
def test_a_size_of_no_whole_patches_says_which_are(checkpoint: Checkpoint, kind: str) -> None:
    with pytest.raises(ConfigError, match=r"image_size=40 .* multiples of 16, such as 32 or 48"):
        load(checkpoint(kind), "image", image_size=40)


# --- what is refused ---------------------------------------------------------------------------------------------


def test_pickled_weights_run_no_code(checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder, ran = tmp_path / "pickled", tmp_path / "ran"
    weights = poisoned(checkpoint("bert"), folder, ran)
    for save in (torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))):
        save(weights, folder / "pytorch_model.bin")
        with pytest.raises(ConfigError, match="pickled weights hold more than tensors"):
            load(folder, "text")
        assert not ran.exists()


def test_code_beside_a_checkpoint_is_not_run(checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder, ran = tmp_path / "foreign", tmp_path / "ran"
    shutil.copytree(checkpoint("bert"), folder)
    config = json.loads((folder / "config.json").read_text())
    auto = {"AutoConfig": "foreign.Config", "AutoModel": "foreign.Model"}
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "foreign", "auto_map": auto}))
    (folder / "foreign.py").write_text(f"open({str(ran)!r}, 'w')\n")
    with pytest.raises(ConfigError, match="brings Python code of its own, which is never run"):
        load(folder, "text")
    assert not ran.exists()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("resnet50.tv2_in2k", r"no weights of that name; did you mean .*resnet50\.tv2_in1k"),
        ("resnett50", "no weights of that name"),
    ],
)
def test_a_name_that_timm_has_not_names_near_ones(name: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        timm_repository(name)


def test_timm_names_need_no_tag() -> None:
    assert timm_repository("resnet50") == "timm/resnet50.a1_in1k"
