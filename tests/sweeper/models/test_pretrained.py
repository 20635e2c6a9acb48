"""Loading: what comes from the checkpoint, what is new, what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoModelForSequenceClassification

from sweeper.errors import ConfigError
from sweeper.models.pretrained import Pretrained, load_model
from tests.strategies.strategy_contract import inputs, logits

Checkpoint = Callable[[str], Path]
IMAGES = ("resnet", "vit-timm", "swin", "clip")


def load(folder: Path, head: str = "linear", pooling: str = "mean", modality: str = "text") -> Pretrained:
    return load_model(folder, modality=modality, head=head, pooling=pooling, label_names=["rotten", "fresh"])


@pytest.mark.parametrize("kind", ["bert", "gpt2", "resnet", "swin"])
def test_the_backbone_carries_the_checkpoints_weights(checkpoint: Checkpoint, kind: str) -> None:
    pretrained = load(checkpoint(kind), modality="image" if kind in IMAGES else "text")
    expected = AutoModel.from_pretrained(checkpoint(kind)).state_dict()
    for name, tensor in pretrained.fresh(3).backbone.state_dict().items():  # type: ignore[union-attr]
        torch.testing.assert_close(tensor, expected[name], msg=name)


@pytest.mark.parametrize(
    ("kind", "head"),
    [("bert", "linear"), ("bert", "mlp"), ("bert", "native"), ("gpt2", "native"), ("resnet", "native")],
)
def test_the_seed_decides_the_head_alone(checkpoint: Checkpoint, kind: str, head: str) -> None:
    pretrained = load(checkpoint(kind), head, "mean", "image" if kind in IMAGES else "text")
    one, same, other = (dict(pretrained.fresh(seed).named_parameters()) for seed in (1, 1, 2))
    drawn = {name for name in one if not torch.equal(one[name], other[name])}
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert all(pretrained.layout.is_head(name) for name in drawn)
    assert {name for name in one if pretrained.layout.is_head(name) and one[name].ndim > 1} <= drawn


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_decoder_reads_its_last_token(checkpoint: Checkpoint, kind: str, side: str) -> None:
    """Padded or alone, the short text's logits come from its own last token; both heads see it."""
    for head in ("linear", "native"):
        pretrained = load(checkpoint(kind), head, "native")
        tokenizer = pretrained.processor
        assert tokenizer.pad_token_id == tokenizer.eos_token_id == pretrained.model.config.pad_token_id
        tokenizer.padding_side = side
        batch = dict(tokenizer(["a triumph from the first frame", "dull"], padding=True, return_tensors="pt"))
        length = int(batch["attention_mask"][1].sum())
        first = batch["input_ids"].shape[1] - length if side == "left" else 0
        assert first > 0 or side == "right"
        swapped = {name: tensor.clone() for name, tensor in batch.items()}
        swapped["input_ids"][1, first + length - 1] = tokenizer("x")["input_ids"][0]
        before, after = logits(pretrained.model, batch), logits(pretrained.model, swapped)
        assert torch.equal(before[0], after[0])
        assert not torch.allclose(before[1], after[1], atol=1e-6)
        if side == "right":  # absolute positions start behind padding on the left
            alone = {name: tensor[1:, :length] for name, tensor in batch.items()}
            torch.testing.assert_close(before[1:], logits(pretrained.model, alone))


@pytest.mark.parametrize(
    ("kind", "pooling", "features"),
    [("efficientnet", "native", 256), ("efficientnet", "mean", 256), ("swin", "max", 32), ("vit-timm", "first", 64)],
)
def test_the_head_is_as_wide_as_what_is_pooled(checkpoint: Checkpoint, kind: str, pooling: str, features: int) -> None:
    model = load(checkpoint(kind), "linear", pooling, "image").model
    assert model.get_submodule("head").in_features == features


def test_maps_with_channels_last_are_pooled_over_positions(checkpoint: Checkpoint) -> None:
    pretrained = load(checkpoint("swin"), "linear", "mean", "image")
    own = load(checkpoint("swin"), "linear", "native", "image")  # timm's average over positions
    batch = inputs(pretrained)
    torch.testing.assert_close(logits(pretrained.fresh(0), batch), logits(own.fresh(0), batch))


def test_no_keys_and_values_are_kept(checkpoint: Checkpoint) -> None:
    pretrained = load(checkpoint("gpt2"), "native")
    assert pretrained.model(**inputs(pretrained)).past_key_values is None


@pytest.mark.parametrize(
    ("kind", "modality", "pooling", "words"),
    [
        ("resnet", "image", "first", "pooling='first': this backbone puts out a map"),
        ("distilbert", "text", "native", "pooling='native': this backbone has no pooler"),
        ("bert", "image", "mean", "cannot be loaded"),
        ("resnet", "text", "mean", "cannot be loaded"),
    ],
)
def test_what_does_not_fit_is_refused(
    checkpoint: Checkpoint, kind: str, modality: str, pooling: str, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        load(checkpoint(kind), "linear", pooling, modality)


def test_a_checkpoint_without_the_backbones_weights_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = tmp_path / "deeper"
    shutil.copytree(checkpoint("bert"), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 5}))
    with pytest.raises(ConfigError, match=r"lacks 16 of the backbone's weights, such as backbone\.encoder\.layer\.4"):
        load(folder)


def test_a_model_that_was_trained_here_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    pretrained = load(checkpoint("bert"))
    pretrained.save(pretrained.model, tmp_path)
    with pytest.raises(ConfigError, match="name the model it was trained from"):
        load(tmp_path)


def test_a_native_head_saves_a_plain_checkpoint(checkpoint: Checkpoint, tmp_path: Path) -> None:
    pretrained = load(checkpoint("gpt2"), "native")
    pretrained.save(pretrained.model, tmp_path)
    reloaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert reloaded.config.id2label == {0: "rotten", 1: "fresh"}
    assert reloaded.config.pad_token_id == pretrained.processor.pad_token_id


def test_the_fingerprint_is_that_of_the_weights(checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(checkpoint("bert"), folder)
    assert load(folder).fingerprint == load(checkpoint("bert")).fingerprint
    AutoModel.from_config(AutoModel.from_pretrained(folder).config).save_pretrained(folder)
    assert load(folder).fingerprint != load(checkpoint("bert")).fingerprint
