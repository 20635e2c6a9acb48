"""``prompt`` and ``prefix``: sizes, depth, initial values, limits. The contract covers the rest."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from strategies import Layout, NotApplicable, Prefix, Prompt, Strategy, boundary, count_parameters
from sweeper.models.pretrained import Pretrained, load_model
from tests.strategies import strategy_contract as contract

BLOCKS, WIDTH, POSITIONS = 4, 32, 128
INPUT = "backbone.embeddings.word_embeddings.virtual_tokens"


LABELS = ["rotten", "fresh"]


@pytest.fixture(scope="module")
def linear(tiny_checkpoint: Path) -> Pretrained:
    return load_model(tiny_checkpoint, modality="text", head="linear", pooling="mean", label_names=LABELS)


@pytest.mark.parametrize("number", [1, 5, 50])
def test_counts_match_the_closed_form(linear: Pretrained, number: int) -> None:
    for strategy, matrices in ((Prompt(num_tokens=number), 1), (Prefix(num_tokens=number), BLOCKS)):
        counts = count_parameters(contract.prepared(strategy, linear), linear.layout)
        assert counts["backbone"] == matrices * number * WIDTH
        assert counts["head"] == 2 * WIDTH + 2


def test_they_lie_in_the_stem_or_in_every_block(linear: Pretrained) -> None:
    for strategy, names in ((Prompt(), {INPUT}), (Prefix(), {f"{b}.virtual_tokens" for b in linear.layout.blocks})):
        model = contract.prepared(strategy, linear)
        trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        assert trained == names | {"head.weight", "head.bias"}
        assert boundary(model, linear.layout) == 0
        depths = sorted(linear.layout.depth(name) for name in names)
        assert depths == ([0] if names == {INPUT} else [1, 2, 3, 4])


@pytest.mark.parametrize("strategy", [Prompt(num_tokens=3), Prefix(num_tokens=3)], ids=lambda s: s.name)
def test_gradients_reach_the_virtual_tokens_and_the_head_alone(linear: Pretrained, strategy: Strategy) -> None:
    model = contract.prepared(strategy, linear)
    model(**contract.inputs(linear)).loss.backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        if name.endswith("virtual_tokens"):
            assert (parameter.grad.abs().sum(-1) > 0).all(), f"{name}: every position learns"  # type: ignore[union-attr]


def test_a_prompt_starts_as_embeddings_of_random_tokens(linear: Pretrained) -> None:
    def start(seed: int, **values: str) -> torch.Tensor:
        return contract.prepared(Prompt(num_tokens=4, **values), linear, seed).get_parameter(INPUT)

    vocabulary = linear.model.get_input_embeddings().weight
    first = start(1)
    assert all((vocabulary == vector).all(-1).any() for vector in first)
    assert torch.equal(first, start(1))
    assert not torch.equal(first, start(2))
    normal = start(1, init="normal")
    assert not any((vocabulary == vector).all(-1).any() for vector in normal)
    assert 0.01 < normal.std() < 0.04  # BERT's initializer_range is 0.02


@pytest.mark.parametrize("kind", [Prompt, Prefix])
def test_the_positions_limit_the_number(linear: Pretrained, kind: type[Prompt] | type[Prefix]) -> None:
    contract.prepared(kind(num_tokens=POSITIONS - 2), linear)
    with pytest.raises(ValueError, match=r"num_tokens=127: the model has 128 positions.*at most 126") as caught:
        contract.prepared(kind(num_tokens=POSITIONS - 1), linear)
    assert not isinstance(caught.value, NotApplicable)


@pytest.mark.parametrize("strategy", [Prompt(), Prefix()], ids=lambda s: s.name)
def test_models_they_do_not_fit(tiny_checkpoint: Path, strategy: Strategy) -> None:
    native = load_model(
        tiny_checkpoint, modality="text", head="native", pooling="native", label_names=["rotten", "fresh"]
    )
    with pytest.raises(NotApplicable, match=r"model\.head=linear or mlp"):
        contract.prepared(strategy, native)

    class ImageModel(nn.Module):
        main_input_name = "pixel_values"

    image = nn.ModuleDict({"backbone": ImageModel(), "head": nn.Linear(2, 2)})
    with pytest.raises(NotApplicable, match=r"text only.*reads pixel_values"):
        strategy.prepare(image, Layout(head=("head",), stem=(), blocks=()))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Prompt(num_tokens=0), "num_tokens=0: must be at least 1"),
        (lambda: Prefix(num_tokens=-1), "num_tokens=-1: must be at least 1"),
        (lambda: Prompt(init="zeros"), "init=zeros: allowed are vocabulary, normal"),
        (lambda: Prefix(head_lr_multiplier=0.0), r"head_lr_multiplier=0\.0"),
    ],
)
def test_impossible_values_name_the_field(make: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()  # type: ignore[operator]
