"""What is special about the strategies that differ in when, and how fast, parameters train."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from strategies import (
    BitFit,
    Discriminative,
    Full,
    Gradual,
    Lora,
    LpFt,
    NotApplicable,
    Partial,
    Scratch,
    Stage,
    Strategy,
    boundary,
    enter_stage,
)
from sweeper.models.pretrained import Pretrained, load_model
from tests.strategies import strategy_contract as contract

RATE = 1e-3


@pytest.fixture(scope="module")
def pretrained(tiny_checkpoint: Path) -> Pretrained:
    return load_model(tiny_checkpoint, modality="text", head="linear", pooling="mean", label_names=["rotten", "fresh"])


def rates(strategy: Strategy, pretrained: Pretrained) -> dict[str, float]:
    """Parameter -> the rate that a real optimiser holds for it."""
    model = contract.prepared(strategy, pretrained)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    optimizer = torch.optim.AdamW(strategy.param_groups(model, pretrained.layout, RATE, 0.01), lr=123.0)
    return {names[id(parameter)]: group["lr"] for group in optimizer.param_groups for parameter in group["params"]}


def block(index: int) -> str:
    return f"backbone.encoder.layer.{index}.output.dense.weight"


STEM = "backbone.embeddings.word_embeddings.weight"


@pytest.mark.parametrize("cls", [Discriminative, Full])
def test_rates_decay_with_depth_and_are_larger_for_the_head(cls: type[Strategy], pretrained: Pretrained) -> None:
    found = rates(cls(layer_decay=0.5, head_lr_multiplier=10.0), pretrained)  # type: ignore[call-arg]
    assert found["head.weight"] == pytest.approx(10 * RATE)
    for index in range(4):
        assert found[block(index)] == pytest.approx(RATE * 0.5 ** (4 - index))
    assert found[STEM] == pytest.approx(RATE * 0.5**5)


def test_a_decay_of_one_is_uniform(pretrained: Pretrained) -> None:
    assert set(rates(Discriminative(layer_decay=1.0), pretrained).values()) == {RATE}


@pytest.mark.parametrize(
    "strategy", [Partial(num_blocks=2, layer_decay=0.5), Lora(layer_decay=0.5), BitFit(layer_decay=0.5)]
)
def test_layer_decay_combines(strategy: Strategy, pretrained: Pretrained) -> None:
    found = {name: rate for name, rate in rates(strategy, pretrained).items() if "layer." in name}
    for name, rate in found.items():
        assert rate == pytest.approx(RATE * 0.5 ** (4 - int(name.split(".")[3])))


def test_layer_groups_cut_stem_and_blocks_into_equal_parts(pretrained: Pretrained) -> None:
    found = rates(Discriminative(1.0, group_factors="0.01,1", head_lr_multiplier=10.0), pretrained)
    expected = {STEM: 0.01, block(0): 0.01, block(1): 0.01, block(2): 1, block(3): 1, "head.weight": 10}
    for name, factor in expected.items():
        assert found[name] == pytest.approx(RATE * factor)


def test_bitfit_trains_biases_and_norms_where_asked(pretrained: Pretrained) -> None:
    def names(strategy: Strategy) -> set[str]:
        model = contract.prepared(strategy, pretrained)
        return {name for name, parameter in model.named_parameters() if parameter.requires_grad}

    plain, norms = names(BitFit()), names(BitFit(norms=True))
    assert all(name.endswith("bias") for name in plain - {"head.weight"})
    assert {name for name, _ in pretrained.model.named_parameters() if name.endswith("bias")} <= plain
    assert norms - plain == {
        name for name, _ in pretrained.model.named_parameters() if name.endswith("LayerNorm.weight")
    }


def test_bitfit_without_biases_is_an_error(pretrained: Pretrained) -> None:
    model = pretrained.fresh(0)
    for module in model.backbone.modules():
        if getattr(module, "bias", None) is not None:
            module.bias = None
    with pytest.raises(NotApplicable, match="no biases; norms=true"):
        BitFit().prepare(model, pretrained.layout)


def test_stages_of_gradual_unfreeze_from_the_top(pretrained: Pretrained) -> None:
    strategy = Gradual(num_blocks="0,1,3,all", epoch_shares="1,1,1,1", learning_rate_factors="1,1,1,1")
    model = contract.prepared(strategy, pretrained)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    depths = []
    for stage in strategy.stages(pretrained.layout):
        enter_stage(model, stage, trained)
        depths.append(boundary(model, pretrained.layout))
    assert depths == [4, 3, 1, 0]
    assert all(parameter.requires_grad for parameter in model.parameters())
    enter_stage(model, Stage(parts=pretrained.layout.head), {"head.bias"})
    assert [name for name, parameter in model.named_parameters() if parameter.requires_grad] == ["head.bias"]


def test_gradual_may_end_below_everything(pretrained: Pretrained) -> None:
    strategy = Gradual("0,2", "1,1", "1,0.1")
    model = contract.prepared(strategy, pretrained)
    assert boundary(model, pretrained.layout) == 2
    with pytest.raises(ValueError, match="num_blocks=9: the model has 4 blocks"):
        contract.prepared(Gradual("0,9", "1,1", "1,1"), pretrained)


def test_the_probe_of_lp_ft_has_a_rate_of_its_own(pretrained: Pretrained) -> None:
    probe, tuning = LpFt(probe_lr_multiplier=50.0, head_lr_multiplier=5.0, probe_share=0.25).stages(pretrained.layout)
    assert probe.parts == pretrained.layout.head
    assert tuning.parts is None
    assert probe.learning_rate_factor * 5.0 == pytest.approx(50.0)
    assert tuning.learning_rate_factor == 1.0
    assert probe.share / (probe.share + tuning.share) == pytest.approx(0.25)


def test_scratch_keeps_nothing_of_the_pretrained_weights(pretrained: Pretrained) -> None:
    def weights(seed: int) -> dict[str, torch.Tensor]:
        return dict(contract.prepared(Scratch(), pretrained, seed).named_parameters())

    before = dict(pretrained.model.named_parameters())
    first, again, other = weights(1), weights(1), weights(2)
    matrices = [name for name, parameter in before.items() if parameter.ndim > 1 and not name.startswith("head.")]
    for name in matrices:
        assert not torch.allclose(first[name], before[name])
        assert torch.equal(first[name], again[name])
        assert not torch.equal(first[name], other[name])
        assert first[name].std().item() == pytest.approx(0.02, rel=0.3), name  # BERT's initializer_range


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Gradual(num_blocks="2,0"), "num_blocks=2,0: must be increasing"),
        (lambda: Gradual(num_blocks="0,two,all"), "num_blocks=0,two,all: must be increasing whole numbers"),
        (lambda: Gradual(num_blocks="all,1,2"), "num_blocks=all,1,2: must be increasing"),
        (lambda: Gradual(epoch_shares="1,1"), "epoch_shares=1,1: must be 3 numbers above 0"),
        (lambda: Gradual(learning_rate_factors="1,x,2"), "learning_rate_factors=1,x,2: must be 3 numbers above 0"),
        (lambda: Gradual(learning_rate_factors="1,0,2"), "learning_rate_factors=1,0,2: must be 3 numbers above 0"),
        (lambda: LpFt(probe_share=1.0), "probe_share=1.0: must be above 0 and below 1"),
        (lambda: LpFt(probe_lr_multiplier=0.0), "probe_lr_multiplier=0.0: must be above 0"),
        (lambda: Discriminative(layer_decay=1.5), "layer_decay=1.5: must be above 0 and at most 1"),
        (lambda: Discriminative(layer_decay=0.5, group_factors="1,2"), "exclude each other"),
        (lambda: Discriminative(layer_decay=1.0, group_factors="1,-2"), "group_factors=1,-2: must be numbers above 0"),
    ],
)
def test_impossible_values_name_the_field(make: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()  # type: ignore[operator]
