"""Every strategy, over every kind of model and head, by the same contract."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from strategies import (
    STRATEGIES,
    Adapter,
    BitFit,
    Discriminative,
    Dora,
    Frozen,
    Full,
    Gradual,
    Ia3,
    Layout,
    Lora,
    LpFt,
    NotApplicable,
    Partial,
    Pissa,
    Prefix,
    Prompt,
    QLora,
    RsLora,
    Scratch,
    Strategy,
    Vera,
    boundary,
    count_parameters,
)
from sweeper.models.pretrained import Pretrained, load_model
from tests.strategies import strategy_contract as contract

#: Kinds of models, as (checkpoint, modality, head, pooling).
MODELS = {
    "encoder-linear-mean": ("bert", "text", "linear", "mean"),
    "encoder-mlp-first": ("bert", "text", "mlp", "first"),
    "encoder-native": ("bert", "text", "native", "native"),
    "decoder-linear-native": ("gpt2", "text", "linear", "native"),
    "cnn-linear-native": ("resnet", "image", "linear", "native"),
    "vit-linear-native": ("vit-timm", "image", "linear", "native"),
}
#: Which strategies say so of which models.
DO_NOT_APPLY = {
    "encoder-native": {"prompt", "prefix", "adapter"},  # a plain checkpoint cannot hold what they add
    "cnn-linear-native": {"prompt", "prefix", "pissa", "qlora", "vera", "ia3"},  # no texts, no linear layers
    "vit-linear-native": {"prompt", "prefix"},
}
LABELS = ["rotten", "fresh"]
EXAMPLES: dict[str, Strategy] = {
    "frozen": Frozen(),
    "prompt": Prompt(num_tokens=3),
    "prompt-normal": Prompt(num_tokens=2, init="normal", layer_decay=0.9),
    "prefix": Prefix(num_tokens=3, head_lr_multiplier=2.0),
    "adapter": Adapter(reduction=8),
    "adapter-last": Adapter(reduction=4, num_blocks=2, layer_decay=0.8),
    "lora": Lora(rank=4, dropout=0.1),
    "lora-all-linear": Lora(rank=2, targets="all-linear", num_blocks=2),
    "dora": Dora(rank=4, dropout=0.1),
    "rslora": RsLora(rank=4),
    "pissa": Pissa(rank=4),
    "qlora": QLora(rank=4),
    "qlora-8": QLora(rank=4, bits=8, targets="all-linear"),
    "vera": Vera(rank=8),
    "ia3": Ia3(),
    "partial": Partial(num_blocks=2, head_lr_multiplier=3.0),
    "full": Full(head_lr_multiplier=10.0, layer_decay=0.7),
    "bitfit": BitFit(),
    "bitfit-norms": BitFit(norms=True),
    "gradual": Gradual(num_blocks="0,1,all"),
    "lp_ft": LpFt(),
    "discriminative": Discriminative(layer_decay=0.5, head_lr_multiplier=10.0),
    "discriminative-groups": Discriminative(layer_decay=1.0, group_factors="0.01,0.1,1"),
    "scratch": Scratch(),
}


@pytest.fixture(scope="module", params=MODELS)
def pretrained(request: pytest.FixtureRequest, checkpoint: Callable[[str], Path]) -> Pretrained:
    kind, modality, head, pooling = MODELS[request.param]
    return load_model(checkpoint(kind), modality=modality, head=head, pooling=pooling, label_names=LABELS)


@pytest.fixture(params=EXAMPLES)
def strategy(request: pytest.FixtureRequest, pretrained: Pretrained) -> Strategy:
    model = request.node.callspec.params["pretrained"]
    if request.param.partition("-")[0] in DO_NOT_APPLY.get(model, ()):
        with pytest.raises(NotApplicable):
            contract.prepared(EXAMPLES[request.param], pretrained)
        pytest.skip(f"{request.param} says that it does not apply to {model}")
    return EXAMPLES[request.param]


def test_every_strategy_is_here() -> None:
    assert {type(example) for example in EXAMPLES.values()} == {cls for cls in STRATEGIES.values() if cls.trains}
    assert all(name == cls.name for name, cls in STRATEGIES.items())


@pytest.mark.parametrize(
    "check",
    contract.CHECKS,
    ids=lambda check: check.__name__,
)
def test_contract(check: object, strategy: Strategy, pretrained: Pretrained) -> None:
    check(strategy, pretrained)  # type: ignore[operator]


def test_save_and_reload_agree(strategy: Strategy, pretrained: Pretrained, tmp_path: Path) -> None:
    contract.check_save_and_reload_agree(strategy, pretrained, tmp_path)


@pytest.fixture(scope="module")
def linear(tiny_checkpoint: Path) -> Pretrained:
    return load_model(tiny_checkpoint, modality="text", head="linear", pooling="mean", label_names=LABELS)


def trainable(strategy: Strategy, pretrained: Pretrained) -> set[str]:
    model = contract.prepared(strategy, pretrained)
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_frozen_trains_the_head_alone(linear: Pretrained) -> None:
    assert trainable(Frozen(), linear) == {"head.weight", "head.bias"}


@pytest.mark.parametrize("number", [1, 3, 4])
def test_partial_trains_the_last_blocks(linear: Pretrained, number: int) -> None:
    model = contract.prepared(Partial(num_blocks=number), linear)
    trained = {name.split(".")[3] for name, p in model.named_parameters() if p.requires_grad and "layer." in name}
    assert trained == {str(index) for index in range(4 - number, 4)}
    assert not any(p.requires_grad for p in model.get_submodule("backbone.embeddings").parameters())
    assert boundary(model, linear.layout) == 4 - number


def test_full_trains_everything(linear: Pretrained) -> None:
    model = contract.prepared(Full(), linear)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert boundary(model, linear.layout) == 0


@pytest.mark.parametrize("rank", [1, 4, 16])
def test_lora_counts_match_the_closed_form(linear: Pretrained, rank: int) -> None:
    counts = count_parameters(contract.prepared(Lora(rank=rank), linear), linear.layout)
    blocks, width = 4, 32
    assert counts["backbone"] == blocks * 2 * 2 * width * rank  # query and value; A and B of width x rank each
    assert counts["head"] == 2 * width + 2
    assert counts["stored_bytes"] == 4 * counts["trainable"]


def test_lora_alpha_scales_the_update(linear: Pretrained) -> None:
    def scaling(strategy: Lora) -> float:
        model = contract.prepared(strategy, linear)
        return float(model.get_submodule(linear.layout.adapter_targets["attention"][0]).scaling["default"])

    assert scaling(Lora(rank=8)) == 2.0
    assert scaling(Lora(rank=8, alpha_ratio=4.0)) == 4.0
    assert scaling(Lora(rank=8, alpha=4.0)) == 0.5


def test_lora_targets_by_name(linear: Pretrained) -> None:
    names = trainable(Lora(targets="query, key"), linear)
    assert any("key.lora_A" in name for name in names)
    assert not any("value.lora_A" in name for name in names)
    with pytest.raises(ValueError, match=r"targets='qery'.*attention, all-linear.*query, key, value"):
        contract.prepared(Lora(targets="qery"), linear)


def test_lora_on_a_cnn_names_what_there_is(checkpoint: Callable[[str], Path]) -> None:
    cnn = load_model(checkpoint("resnet"), modality="image", head="linear", pooling="mean", label_names=LABELS)
    with pytest.raises(
        ValueError, match=r"targets='attention': allowed are the presets auto, all-linear, or .*conv1, conv2"
    ):
        contract.prepared(Lora(targets="attention"), cnn)


def test_head_multiplier_reaches_the_heads_group_only(linear: Pretrained) -> None:
    model = contract.prepared(Full(head_lr_multiplier=10.0), linear)
    head = {id(parameter) for name, parameter in model.named_parameters() if name.startswith("head.")}
    for group in Full(head_lr_multiplier=10.0).param_groups(model, linear.layout, 1e-4, 0.01):
        in_head = {id(parameter) in head for parameter in group["params"]}
        assert in_head in ({True}, {False})
        assert group["lr"] == pytest.approx(1e-3 if in_head == {True} else 1e-4)


def test_seed_decides_the_head_and_the_adapters(linear: Pretrained) -> None:
    def state(seed: int) -> dict[str, torch.Tensor]:
        return dict(contract.prepared(Lora(), linear, seed).named_parameters())

    first, again, other = state(1), state(1), state(2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])
    assert any(not torch.equal(first[name], other[name]) for name in first if "lora_A" in name)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Partial(num_blocks=0), "num_blocks=0"),
        (lambda: Lora(rank=0), "rank=0"),
        (lambda: Lora(dropout=1.0), "dropout=1.0"),
        (lambda: Lora(alpha=8.0, alpha_ratio=2.0), "exclude each other"),
        (lambda: Full(head_lr_multiplier=0.0), "head_lr_multiplier=0.0"),
    ],
)
def test_impossible_values_name_the_field(make: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()  # type: ignore[operator]


def test_too_many_blocks_says_how_many_there_are(linear: Pretrained) -> None:
    with pytest.raises(ValueError, match=r"num_blocks=5: the model has 4 blocks"):
        contract.prepared(Partial(num_blocks=5), linear)


def test_a_pattern_that_matches_nothing_is_an_error(linear: Pretrained) -> None:
    wrong = Layout(head=("classifier",), stem=(), blocks=())
    with pytest.raises(ValueError, match=r"no parameter below classifier; the model has backbone, head"):
        Frozen().prepare(linear.fresh(0), wrong)


def test_fields_have_defaults_or_are_searched() -> None:
    for cls in STRATEGIES.values():
        assert all(field.name != "learning_rate" for field in fields(cls)), "the learning rate is not a field"
