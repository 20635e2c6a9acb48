"""Pooling, heads, and the custom model on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoImageProcessor, AutoModelForImageClassification, AutoModelForSequenceClassification

from sweeper.models.classifier import build_head, pool
from sweeper.models.pretrained import load_model
from tests.strategies.strategy_contract import inputs, logits

TOKENS = torch.tensor([[[1.0, -5.0], [3.0, -1.0], [100.0, 100.0]], [[2.0, 0.0], [4.0, 4.0], [6.0, -4.0]]])
MASK = torch.tensor([[1, 1, 0], [1, 1, 1]])
MAP = torch.arange(24.0).reshape(1, 2, 3, 4)  # (batch, channels, height, width)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("mean", [[2.0, -3.0], [4.0, 0.0]]),
        ("max", [[3.0, -1.0], [6.0, 4.0]]),
        ("first", [[1.0, -5.0], [2.0, 0.0]]),
    ],
)
def test_padding_takes_no_part(kind: str, expected: list[list[float]]) -> None:
    assert pool(kind, TOKENS, attention_mask=MASK).tolist() == expected


def test_without_a_mask_all_tokens_count() -> None:
    assert pool("max", TOKENS).tolist() == [[100.0, 100.0], [6.0, 4.0]]


def test_a_decoders_own_pooling_is_its_last_token_on_either_side_of_the_padding() -> None:
    right = pool("native", TOKENS, attention_mask=MASK, decoder=True)
    left = pool("native", TOKENS.roll(1, 1), attention_mask=torch.tensor([[0, 1, 1], [1, 1, 1]]), decoder=True)
    assert right.tolist() == [[3.0, -1.0], [6.0, -4.0]]
    assert left[0].tolist() == [3.0, -1.0]


@pytest.mark.parametrize(("kind", "expected"), [("mean", [5.5, 17.5]), ("max", [11.0, 23.0])])
def test_maps_are_pooled_over_positions(kind: str, expected: list[float]) -> None:
    assert pool(kind, MAP).tolist() == [expected]
    assert pool(kind, MAP.permute(0, 2, 3, 1), channels_last=True).tolist() == [expected]


def test_the_backbones_own_pooling_is_flat() -> None:
    assert pool("native", MAP, native=torch.ones(1, 2, 1, 1)).shape == (1, 2)


@pytest.mark.parametrize(
    ("kind", "states", "words"),
    [
        ("first", MAP, "puts out a map, without a first token; allowed are mean, max"),
        ("native", MAP, "puts out a map, without a pooler; allowed are mean, max"),
        ("native", TOKENS, "has no pooler; allowed are mean, first, max"),
        ("last", TOKENS, "pooling='last': allowed are mean, first, max, native"),
    ],
)
def test_a_pooling_that_does_not_fit_says_which_do(kind: str, states: torch.Tensor, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        pool(kind, states)


def test_an_unknown_head_says_which_there_are() -> None:
    with pytest.raises(ValueError, match="head='deep': allowed are linear, mlp"):
        build_head("deep", 4, 2)


def test_the_loss_is_the_cross_entropy(checkpoint: Callable[[str], Path]) -> None:
    pretrained = load_model(
        checkpoint("resnet"), modality="image", head="linear", pooling="max", label_names=["rotten", "fresh"]
    )
    batch = inputs(pretrained)
    output = pretrained.model(**batch)
    assert output.loss == torch.nn.functional.cross_entropy(output.logits, batch["labels"])


@pytest.mark.parametrize(
    ("kind", "head", "pooling"),
    [
        ("distilbert", "linear", "first"),
        ("deberta", "mlp", "mean"),
        ("bert", "linear", "native"),
        ("llama", "linear", "native"),
        ("gpt2", "native", "native"),
        ("swin", "linear", "mean"),
        ("convnext", "mlp", "max"),
        ("resnet", "native", "native"),
        ("vit", "linear", "first"),
        ("clip", "linear", "native"),
        ("clip", "native", "native"),
    ],
)
def test_a_saved_model_loads_with_transformers_alone(
    checkpoint: Callable[[str], Path], tmp_path: Path, kind: str, head: str, pooling: str
) -> None:
    image = kind in ("swin", "convnext", "resnet", "vit", "clip")
    pretrained = load_model(
        checkpoint(kind),
        modality="image" if image else "text",
        head=head,
        pooling=pooling,
        label_names=["rotten", "fresh"],
    )
    batch = inputs(pretrained)
    expected = logits(pretrained.model, batch)
    pretrained.save(pretrained.model, tmp_path)
    auto: Any = AutoModelForImageClassification if image else AutoModelForSequenceClassification
    reloaded = auto.from_pretrained(tmp_path, trust_remote_code=head != "native")
    torch.testing.assert_close(logits(reloaded, batch), expected)
    assert (tmp_path / "classifier.py").exists() == (head != "native")
    if image:
        processor = AutoImageProcessor.from_pretrained(tmp_path)
        white = [torch.full((3, 40, 40), 255, dtype=torch.uint8).numpy()]
        assert torch.equal(
            processor(white, return_tensors="pt")["pixel_values"],
            pretrained.processor(white, return_tensors="pt")["pixel_values"],
        )
