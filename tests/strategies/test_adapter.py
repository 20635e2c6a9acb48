"""Adapters: their size, where they lie, what learns, and impossible values. The contract covers the rest."""

from __future__ import annotations

from pathlib import Path

import pytest

from strategies import Adapter, NotApplicable, boundary, count_parameters
from sweeper.models.pretrained import Pretrained, load_model
from tests.strategies import strategy_contract as contract

BLOCKS, WIDTH = 4, 32


LABELS = ["rotten", "fresh"]


@pytest.fixture(scope="module")
def linear(tiny_checkpoint: Path) -> Pretrained:
    return load_model(tiny_checkpoint, modality="text", head="linear", pooling="mean", label_names=LABELS)


@pytest.mark.parametrize(
    ("reduction", "num_blocks", "bottleneck"), [(8, None, 4), (16, 1, 2), (5, 3, 6), (32, None, 1), (64, None, 1)]
)
def test_counts_match_the_closed_form(
    linear: Pretrained, reduction: int, num_blocks: int | None, bottleneck: int
) -> None:
    model = contract.prepared(Adapter(reduction=reduction, num_blocks=num_blocks), linear)
    counts = count_parameters(model, linear.layout)
    assert counts["backbone"] == (num_blocks or BLOCKS) * (2 * WIDTH * bottleneck + bottleneck + WIDTH)
    assert counts["head"] == 2 * WIDTH + 2


@pytest.mark.parametrize(("num_blocks", "below"), [(1, 3), (3, 1), (4, 0), (None, 0)])
def test_adapters_lie_in_the_last_blocks(linear: Pretrained, num_blocks: int | None, below: int) -> None:
    model = contract.prepared(Adapter(num_blocks=num_blocks), linear)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {"head.weight", "head.bias"} | {
        f"backbone.encoder.layer.{index}.adapter.{layer}.{kind}"
        for index in range(below, BLOCKS)
        for layer in ("down", "up")
        for kind in ("weight", "bias")
    }
    assert boundary(model, linear.layout) == below


def test_rates_decay_with_the_depth_of_the_block(linear: Pretrained) -> None:
    strategy = Adapter(layer_decay=0.5, head_lr_multiplier=3.0)
    model = contract.prepared(strategy, linear)
    rates = {
        id(parameter): group["lr"]
        for group in strategy.param_groups(model, linear.layout, 1.0, 0.0)
        for parameter in group["params"]
    }
    found = [rates[id(model.get_parameter(f"{block}.adapter.up.weight"))] for block in linear.layout.blocks]
    assert found == [0.0625, 0.125, 0.25, 0.5]
    assert rates[id(model.get_parameter("head.weight"))] == 3.0


def test_gradients_reach_the_adapters_and_the_head_alone(linear: Pretrained) -> None:
    model = contract.prepared(Adapter(num_blocks=2), linear)
    model(**contract.inputs(linear)).loss.backward()
    reached = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert reached == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    up = [model.get_parameter(f"{block}.adapter.up.weight") for block in linear.layout.blocks[2:]]
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in up)


def test_too_many_blocks_says_how_many_there_are(linear: Pretrained) -> None:
    with pytest.raises(ValueError, match="num_blocks=5: the model has 4 blocks") as caught:
        contract.prepared(Adapter(num_blocks=5), linear)
    assert not isinstance(caught.value, NotApplicable)


def test_a_native_head_cannot_carry_them(tiny_checkpoint: Path) -> None:
    native = load_model(
        tiny_checkpoint, modality="text", head="native", pooling="native", label_names=["rotten", "fresh"]
    )
    with pytest.raises(NotApplicable, match=r"BertForSequenceClassification.*model\.head=linear or mlp"):
        contract.prepared(Adapter(), native)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"reduction": 0}, "reduction=0: must be at least 1"),
        ({"num_blocks": 0}, "num_blocks=0: must be at least 1"),
        ({"layer_decay": 0.0, "reduction": -1}, "layer_decay=0.0: .*; reduction=-1: "),
    ],
)
def test_impossible_values_name_the_field(values: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Adapter(**values)  # type: ignore[arg-type]
