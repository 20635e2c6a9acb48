"""Adapters on layers of every kind: closed forms, starts, targets, merging, impossible values."""

from __future__ import annotations

import builtins
import copy
import itertools
import math
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import timm
import torch
from torch import nn
from transformers import BertConfig, BertModel, GPT2Config, GPT2Model
from transformers.pytorch_utils import Conv1D

from strategies import (
    Dora,
    Ia3,
    Layout,
    Lora,
    NotApplicable,
    Pissa,
    QLora,
    RsLora,
    Strategy,
    Vera,
    boundary,
    count_parameters,
)
from strategies.injection import find_targets, is_adaptable
from sweeper.models.layout import find_layout

BLOCKS, WIDTH, INNER = 12, 768, 3072


class Classifier(nn.Module):
    """A backbone and a linear head over its mean output."""

    def __init__(self, backbone: Any, width: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(width, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: Any = self.backbone(x)
        return self.head(out if isinstance(out, torch.Tensor) else out.last_hidden_state.mean(1))


@pytest.fixture(autouse=True)
def _no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        yield


def small_bert() -> tuple[Classifier, Layout, torch.Tensor]:
    torch.manual_seed(0)
    config = BertConfig(vocab_size=50, hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64)
    model = Classifier(BertModel(config, add_pooling_layer=False), 32).eval()
    ids = torch.arange(12).reshape(2, 6)
    return model, find_layout(model, "backbone", ("head",), {"x": ids}), ids


def small_gpt2() -> tuple[Classifier, Layout, torch.Tensor]:
    torch.manual_seed(0)
    model = Classifier(GPT2Model(GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=2, n_positions=16)), 32).eval()
    blocks = ("backbone.h.0", "backbone.h.1")
    names = [f"{block}.{name}" for block in blocks for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")]
    layout = Layout(
        head=("head",),
        stem=("backbone.wte", "backbone.wpe"),
        blocks=blocks,
        top=("backbone.ln_f",),
        adapter_targets={"attention": (names[0], names[4]), "all-linear": tuple(names)},
    )
    return model, layout, torch.arange(12).reshape(2, 6)


def cnn(architecture: str) -> tuple[Classifier, Layout, torch.Tensor]:
    torch.manual_seed(0)
    backbone: Any = timm.create_model(architecture, pretrained=False, num_classes=0)
    model = Classifier(backbone, backbone.num_features).eval()
    stages = ["layer1", "layer2", "layer3", "layer4"] if "resnet" in architecture else None
    stages = stages or [f"blocks.{index}" for index in range(len(backbone.blocks))]
    blocks = tuple(
        f"backbone.{stage}.{index}" for stage in stages for index in range(len(backbone.get_submodule(stage)))
    )
    convolutions = tuple(
        f"{block}.{name}"
        for block in blocks
        for name, module in model.get_submodule(block).named_modules()
        if isinstance(module, nn.Conv2d) and is_adaptable(module)
    )
    rest = tuple(name for name, _ in model.named_parameters() if not name.startswith((*blocks, "head")))
    layout = Layout(head=("head",), stem=rest, blocks=blocks, adapter_targets={"all-linear": convolutions})
    return model, layout, torch.randn(2, 3, 64, 64)


def trained(strategy: Strategy, model: nn.Module, layout: Layout) -> dict[str, nn.Parameter]:
    """The trainable parameters outside of the head, after preparing."""
    strategy.prepare(model, layout)
    return {name: p for name, p in model.named_parameters() if p.requires_grad and not layout.is_head(name)}


def plain(model: nn.Module) -> bool:
    return not any(type(module).__module__.startswith(("peft", "strategies")) for module in model.modules())


# --- closed forms ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        (Lora(rank=8), BLOCKS * 2 * 2 * WIDTH * 8),
        (Lora(rank=16, targets="query,key,value"), BLOCKS * 3 * 2 * WIDTH * 16),
        (RsLora(rank=8, num_blocks=3), 3 * 2 * 2 * WIDTH * 8),
        (Lora(rank=4, targets="all-linear"), BLOCKS * 4 * (4 * 2 * WIDTH + 2 * (WIDTH + INNER))),
        (Dora(rank=8), BLOCKS * 2 * (2 * WIDTH * 8 + WIDTH)),
        (Vera(rank=256), BLOCKS * 2 * (256 + WIDTH)),
        (Ia3(), BLOCKS * (2 * WIDTH + INNER)),
        (Ia3(num_blocks=2), 2 * (2 * WIDTH + INNER)),
    ],
    ids=lambda value: value.name if isinstance(value, Strategy) else str(value),
)
def test_counts_in_an_encoder_of_the_size_of_bert_base(strategy: Strategy, expected: int) -> None:
    with torch.device("meta"):
        model = Classifier(BertModel(BertConfig(), add_pooling_layer=False), WIDTH)
    layout = find_layout(model, "backbone", ("head",), {"x": torch.zeros(1, 4, dtype=torch.long, device="meta")})
    before = sum(parameter.numel() for parameter in model.parameters())
    assert strategy.closed_form_params(model, layout) == expected
    strategy.prepare(model, layout)
    counts = count_parameters(model, layout)
    assert counts["backbone"] == expected
    assert counts["head"] == 2 * WIDTH + 2
    assert counts["total"] == before + expected


@pytest.mark.parametrize("bits", [4, 8])
def test_quantised_weights_count_as_parameters_not_as_bytes(bits: int) -> None:
    model, layout, _ = small_bert()
    plainly = copy.deepcopy(model)
    Lora(rank=4).prepare(plainly, layout)
    QLora(rank=4, bits=bits).prepare(model, layout)
    assert count_parameters(model, layout) == count_parameters(plainly, layout)
    query = model.get_submodule(layout.adapter_targets["attention"][0]).base_layer.weight
    assert query.numel() * query.element_size() == 32 * 32 * bits // 8


def test_counts_beside_convolutions() -> None:
    model, layout, _ = cnn("test_resnet")
    rank = 3
    layers: list[Any] = [model.get_submodule(name) for name in layout.adapter_targets["all-linear"]]
    expected = sum(rank * (math.prod(c.kernel_size) * c.in_channels + c.out_channels) for c in layers)
    lora = sum(p.numel() for p in trained(Lora(rank=rank), copy.deepcopy(model), layout).values())
    dora = sum(p.numel() for p in trained(Dora(rank=rank), model, layout).values())
    assert lora == expected
    assert dora == expected + sum(c.out_channels for c in layers)


# --- starts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("strategy", "scale"),
    [
        (RsLora(rank=16), 2.0),
        (RsLora(rank=64), 1.0),
        (RsLora(rank=4, alpha=6.0), 3.0),
        (RsLora(rank=4, alpha_ratio=2.0), 4.0),
        (Lora(rank=4), 2.0),
        (Pissa(rank=4), 1.0),
        (Pissa(rank=4, alpha=8.0), 2.0),
    ],
)
def test_scale_of_the_update(strategy: Lora, scale: float) -> None:
    model, layout, _ = small_bert()
    strategy.prepare(model, layout)
    assert model.get_submodule(layout.adapter_targets["attention"][0]).scaling["default"] == pytest.approx(scale)


@pytest.mark.parametrize("strategy", [Pissa(rank=4), Pissa(rank=32, alpha_ratio=4.0)])
def test_pissa_starts_as_the_identity_from_the_principal_components(strategy: Pissa) -> None:
    model, layout, x = small_bert()
    name = layout.adapter_targets["attention"][0]
    weight = model.get_parameter(f"{name}.weight").detach().clone()
    before = model(x)
    matrices = trained(strategy, model, layout)
    torch.testing.assert_close(model(x), before)
    assert all(p.count_nonzero() == p.numel() for p in matrices.values())
    layer: Any = model.get_submodule(name)
    u, s, v = torch.linalg.svd(weight, full_matrices=False)
    principal = u[:, : strategy.rank] @ torch.diag(s[: strategy.rank]) @ v[: strategy.rank]
    torch.testing.assert_close(layer.get_delta_weight("default"), principal, atol=1e-5, rtol=1e-4)


def test_dora_starts_with_the_norms_as_magnitudes() -> None:
    model, layout, _ = small_bert()
    name = layout.adapter_targets["attention"][0]
    weight = model.get_parameter(f"{name}.weight").detach().clone()
    magnitudes = {n: p for n, p in trained(Dora(), model, layout).items() if "magnitude" in n}
    assert len(magnitudes) == len(layout.adapter_targets["attention"])
    torch.testing.assert_close(next(iter(magnitudes.values())), weight.norm(dim=1))


def test_dora_keeps_its_norms_on_the_direction() -> None:
    model, layout, _ = small_bert()
    parameters = trained(Dora(rank=4), model, layout)
    generator = torch.Generator().manual_seed(0)
    for parameter in parameters.values():
        parameter.data = torch.rand(parameter.shape, generator=generator)
    name = layout.adapter_targets["attention"][0]
    magnitude = next(p for n, p in parameters.items() if n.startswith(name) and "magnitude" in n).detach().clone()
    merged = Dora(rank=4).merge(model).get_parameter(f"{name}.weight")
    torch.testing.assert_close(merged.norm(dim=1), magnitude)


def test_vera_follows_from_torchs_seed() -> None:
    def after(seed: int) -> torch.Tensor:
        model, layout, x = small_bert()
        torch.manual_seed(seed)
        vectors = trained(Vera(rank=8), model, layout)
        for name, vector in vectors.items():
            if "lambda_b" in name:
                vector.data.fill_(1.0)
        return model(x)

    torch.testing.assert_close(after(1), after(1))
    assert not torch.allclose(after(1), after(2))


def test_vera_shares_its_matrices() -> None:
    model, layout, _ = small_bert()
    Vera(rank=8, targets="all-linear").prepare(model, layout)
    layers: list[Any] = [model.get_submodule(name) for name in layout.adapter_targets["all-linear"]]
    assert len({layer.vera_A["default"].data_ptr() for layer in layers}) == 1


def test_ia3_scales_keys_values_and_the_last_linear_layer_of_a_block() -> None:
    model, layout, _ = small_bert()
    vectors = trained(Ia3(), model, layout)
    block = layout.blocks[0]
    assert {name: tuple(p.shape) for name, p in vectors.items() if name.startswith(f"{block}.")} == {
        f"{block}.attention.self.key.ia3_l.default": (32, 1),
        f"{block}.attention.self.value.ia3_l.default": (32, 1),
        f"{block}.output.dense.ia3_l.default": (1, 64),
    }
    assert all(p.eq(1).all() for p in vectors.values())
    by_name = trained(Ia3(targets="query", feedforward="intermediate.dense"), small_bert()[0], layout)
    assert {name.split(".ia3_l")[0].split(".", 4)[-1] for name in by_name} == {
        "attention.self.query",
        "intermediate.dense",
    }


def test_scales_and_magnitudes_are_not_decayed() -> None:
    for strategy, part in ((Ia3(), "ia3_l"), (Vera(), "vera_lambda"), (Dora(rank=2), "magnitude")):
        model, layout, _ = small_bert()
        strategy.prepare(model, layout)
        names = {id(p): name for name, p in model.named_parameters()}
        for group in strategy.param_groups(model, layout, 1e-3, 0.1):
            found = [names[id(p)] for p in group["params"] if part in names[id(p)]]
            assert not found or group["weight_decay"] == 0.0
    model, layout, _ = cnn("test_resnet")
    decayed = {id(p) for p in trained(Dora(rank=2), model, layout).values()}
    for group in Dora(rank=2).param_groups(model, layout, 1e-3, 0.1):
        if group["weight_decay"]:
            magnitudes = [n for n, p in model.named_parameters() if "magnitude" in n and id(p) in decayed]
            grouped = {id(p) for p in group["params"]}
            assert magnitudes
            assert not any(id(model.get_parameter(name)) in grouped for name in magnitudes)


# --- which layers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", [Lora(num_blocks=2), Vera(num_blocks=2), Ia3(num_blocks=2), QLora(num_blocks=2)])
def test_num_blocks_limits_the_targets_and_moves_the_boundary(strategy: Strategy) -> None:
    model, layout, _ = small_bert()
    names = trained(strategy, model, layout)
    assert {layout.depth(name) for name in names} == {2, 3}
    assert boundary(model, layout) == 1


def test_rates_decay_with_the_depth_of_the_matrices() -> None:
    model, layout, _ = small_bert()
    strategy = Lora(layer_decay=0.5, head_lr_multiplier=3.0)
    strategy.prepare(model, layout)
    rates = {id(p): group["lr"] for group in strategy.param_groups(model, layout, 1.0, 0.0) for p in group["params"]}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            expected = 3.0 if layout.is_head(name) else 0.5 ** (4 - layout.depth(name))
            assert rates[id(parameter)] == pytest.approx(expected), name


def test_auto_is_attention_or_else_everything() -> None:
    _, layout, _ = small_bert()
    assert find_targets(layout, "auto") == layout.adapter_targets["attention"]
    _, layout, _ = cnn("test_resnet")
    assert find_targets(layout, "auto") == layout.adapter_targets["all-linear"]


def test_grouped_and_standardised_convolutions_are_passed_over() -> None:
    model, _, images = cnn("test_efficientnet")
    layout = find_layout(model, "backbone", ("head",), {"x": images})
    chosen: list[Any] = [model.get_submodule(name) for name in find_targets(layout, "auto")]
    assert {layer.groups for layer in chosen} == {1}
    assert not is_adaptable(timm.layers.StdConv2d(8, 8, 3))  # type: ignore[attr-defined]


@pytest.mark.parametrize("strategy", [Pissa(), Vera(), Ia3()], ids=lambda strategy: strategy.name)
def test_convolutions_are_refused_by_name(strategy: Strategy) -> None:
    model, layout, _ = cnn("test_resnet")
    with pytest.raises(NotApplicable, match=rf"{strategy.name} adapts linear layers only; .*layer1.0.conv1.*more"):
        strategy.prepare(model, layout)


def test_qlora_refuses_a_model_without_linear_layers() -> None:
    model, layout, _ = cnn("test_resnet")
    with pytest.raises(NotApplicable, match="qlora quantises linear layers; the blocks of this model have none"):
        QLora().prepare(model, layout)


def test_ia3_asks_for_names_it_does_not_know() -> None:
    model, layout, _ = small_bert()
    dense = tuple(name for name in layout.adapter_targets["all-linear"] if name.endswith("dense"))
    unknown = Layout(layout.head, layout.stem, layout.blocks, adapter_targets={"all-linear": dense})
    with pytest.raises(NotApplicable, match=r"targets=auto: no layer goes by a usual name of keys or values.*dense"):
        Ia3().prepare(model, unknown)
    with pytest.raises(ValueError, match=r"feedforward='fc2': allowed are"):
        Ia3(feedforward="fc2").prepare(model, layout)
    with pytest.raises(ValueError, match=r"share .*query"):
        Ia3(targets="query", feedforward="query").prepare(model, layout)


# --- merging -----------------------------------------------------------------------------------------------------

EVERYWHERE = [Lora(rank=4, dropout=0.1), Dora(rank=4, dropout=0.1), RsLora(rank=4, targets="all-linear")]
LINEAR = [Pissa(rank=4), Vera(rank=8), Ia3(), QLora(rank=4), QLora(rank=4, bits=8)]
MODELS = {"bert": small_bert, "gpt2": small_gpt2, "resnet": lambda: cnn("test_resnet")}
MODELS["same-padding"] = lambda: cnn("tf_efficientnet_lite0")
CASES = [
    *itertools.product(["bert", "gpt2"], [*EVERYWHERE, *LINEAR]),
    *itertools.product(["resnet"], EVERYWHERE),
    ("same-padding", EVERYWHERE[1]),
]


@pytest.mark.parametrize(("kind", "strategy"), CASES, ids=lambda value: getattr(value, "name", value))
def test_merged_equals_unmerged(kind: str, strategy: Strategy) -> None:
    model, layout, x = MODELS[kind]()
    pretrained = copy.deepcopy(model)
    parameters = trained(strategy, model, layout)
    optimizer = torch.optim.SGD([*parameters.values(), *model.head.parameters()], 0.1)
    for step in range(2):
        model.train()
        for part in model.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.eval()  # statistics of two images
        model(x)[:, step % 2].sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    with torch.no_grad():
        before = model(x)
        merged = strategy.merge(model)
        torch.testing.assert_close(merged(x), before, atol=1e-5, rtol=1e-4)
        assert not torch.allclose(before, pretrained.eval()(x), atol=1e-4)
    assert plain(merged)
    assert not hasattr(merged, "peft_config")
    assert [type(module) for module in merged.modules()] == [type(module) for module in pretrained.modules()]
    assert {name: p.shape for name, p in merged.named_parameters()} == {
        name: p.shape for name, p in pretrained.named_parameters()
    }


def test_gpt2_layers_are_stored_transposed() -> None:
    model, layout, _ = small_gpt2()
    assert all(isinstance(model.get_submodule(name), Conv1D) for name in layout.adapter_targets["all-linear"])
    parameters = trained(Lora(rank=2), model, layout)
    assert {tuple(p.shape) for p in parameters.values()} == {(2, 32), (96, 2)}


def test_injected_layers_take_on_the_models_mode() -> None:
    for mode in (True, False):
        model, layout, _ = small_bert()
        Lora(dropout=0.5).prepare(model.train(mode), layout)
        assert {module.training for module in model.modules()} == {mode}


def test_dora_trains_beside_convolutions_that_pad_in_their_own_way() -> None:
    backbone = nn.Sequential(timm.layers.Conv2dSame(3, 4, 3, stride=2), nn.Flatten())
    model = Classifier(backbone, 64)
    layout = Layout(("head",), (), ("backbone.0",), adapter_targets={"all-linear": ("backbone.0",)})
    x = torch.randn(2, 3, 8, 8)
    before = model.train()(x)
    Dora(rank=2, dropout=0.1).prepare(model, layout)
    torch.testing.assert_close(model(x), before)


def test_dilated_convolutions_keep_their_size() -> None:
    model = Classifier(nn.Sequential(nn.Conv2d(3, 4, 3, padding=2, dilation=2), nn.Flatten(), nn.LazyLinear(8)), 8)
    x = torch.randn(2, 3, 8, 8)
    model(x)
    layout = Layout(("head",), (), ("backbone.0",), ("backbone.2",), {"all-linear": ("backbone.0",)})
    parameters = trained(Lora(rank=2), model.eval(), layout)
    for parameter in parameters.values():
        nn.init.ones_(parameter)
    before = model(x)
    torch.testing.assert_close(Lora(rank=2).merge(model)(x), before)


# --- quantised ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("bits", "error"), [(4, 0.12), (8, 0.01)])
def test_quantised_weights_are_near_and_frozen(bits: int, error: float) -> None:
    model, layout, x = small_bert()
    pretrained = copy.deepcopy(model)
    parameters = trained(QLora(rank=4, bits=bits), model, layout)
    assert all("lora_" in name for name in parameters)
    for name in layout.adapter_targets["all-linear"]:
        weight = pretrained.get_parameter(f"{name}.weight")
        layer: Any = model.get_submodule(name)
        stored = getattr(layer, "base_layer", layer)
        distance = (stored.dequantised() - weight).norm() / weight.norm()
        assert 0 < distance < error, name
    packed = {name for name, p in model.named_parameters() if not p.is_floating_point()}
    assert len(packed) == len(layout.adapter_targets["all-linear"])
    with torch.no_grad():
        assert not torch.equal(model(x), pretrained(x))
        torch.testing.assert_close(model(x), pretrained(x), atol=error, rtol=error)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(32, 32), (48, 96), (7, 9), (3, 128)])
@pytest.mark.parametrize(("bits", "error"), [(4, 0.12), (8, 0.01)])
def test_weights_of_any_shape_survive_quantising(shape: tuple[int, int], bits: int, error: float) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(*shape)
    layer.weight.data *= 1 + 9 * torch.rand(shape[1], 1)  # blocks of different scales
    model = Classifier(nn.Sequential(nn.Sequential(copy.deepcopy(layer))), shape[1])
    layout = Layout(("head",), (), ("backbone.0",), adapter_targets={"all-linear": ("backbone.0.0",)})
    strategy = QLora(rank=1, bits=bits)
    merged = strategy.merge(strategy.prepare(model, layout)).get_parameter("backbone.0.0.weight")
    assert (merged - layer.weight).norm() < error * layer.weight.norm()


@pytest.mark.parametrize("bits", [4, 8])
def test_gradients_pass_through_quantised_layers(bits: int) -> None:
    model, layout, x = small_bert()
    strategy = QLora(rank=4, bits=bits, dropout=0.0)
    parameters = trained(strategy, model, layout)
    for name, parameter in parameters.items():
        if "lora_B" in name:
            nn.init.constant_(parameter, 0.1)
    reference = copy.deepcopy(model)
    for name, module in list(reference.named_modules()):
        if hasattr(module, "dequantised"):
            reference.set_submodule(name, module.plain())
    for each in (model, reference):
        each(x).square().sum().backward()
    for name, parameter in parameters.items():
        torch.testing.assert_close(parameter.grad, reference.get_parameter(name).grad)


def test_autocast_reaches_quantised_layers() -> None:
    model, layout, x = small_bert()
    parameters = trained(QLora(rank=4), model, layout)
    with torch.autocast("cpu", torch.bfloat16):
        model.train()(x).float().sum().backward()
    assert all(p.dtype == torch.float32 and p.grad is not None and p.grad.isfinite().all() for p in parameters.values())


def test_missing_bitsandbytes_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("bitsandbytes"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    model, layout, _ = small_bert()
    monkeypatch.delitem(sys.modules, "bitsandbytes", raising=False)
    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(
        ValueError, match=r"bits=4 needs bitsandbytes .*: pip install 'thawline\[quantized\]'; or .*bits=8"
    ):
        QLora().prepare(model, layout)


# --- impossible values -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Lora(num_blocks=0), "num_blocks=0: must be at least 1"),
        (lambda: Vera(num_blocks=0), "num_blocks=0: must be at least 1"),
        (lambda: Ia3(num_blocks=0), "num_blocks=0: must be at least 1"),
        (lambda: QLora(bits=2), "bits=2: must be 4 or 8"),
        (lambda: QLora(rank=0, bits=3), "rank=0.*bits=3"),
        (lambda: Dora(dropout=1.0), "dropout=1.0"),
        (lambda: RsLora(alpha=-1.0), "alpha=-1.0: must be above 0"),
        (lambda: Vera(rank=0), "rank=0: must be at least 1"),
        (lambda: Vera(d_initial=0.0), "d_initial=0.0: must not be 0"),
        (lambda: Vera(dropout=-0.1), "dropout=-0.1"),
        (lambda: Ia3(layer_decay=0.0), "layer_decay=0.0"),
    ],
)
def test_impossible_values_name_the_field(make: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


def test_what_the_model_does_not_have_is_named() -> None:
    model, layout, _ = small_bert()
    with pytest.raises(ValueError, match="num_blocks=4: the model has 3 blocks"):
        Lora(num_blocks=4).prepare(model, layout)
    with pytest.raises(ValueError, match="rank=33: must be at most 32"):
        Pissa(rank=33).prepare(model, layout)
    with pytest.raises(ValueError, match=r"targets='qery': allowed are the presets auto, attention, all-linear, or"):
        Lora(targets="qery").prepare(model, layout)
    first = (f"{layout.blocks[0]}.output.dense",)
    elsewhere = Layout(layout.head, layout.stem, layout.blocks, adapter_targets={"all-linear": first})
    with pytest.raises(ValueError, match="num_blocks=1: targets='dense' lie in none of the last 1 blocks"):
        Lora(targets="dense", num_blocks=1).prepare(model, elsewhere)


@pytest.mark.gpu
@pytest.mark.parametrize("bits", [4, 8])
def test_quantised_layers_train_and_merge_on_a_gpu(bits: int) -> None:
    model, layout, ids = small_bert()
    strategy = QLora(rank=4, bits=bits)
    model = strategy.prepare(model, layout).to("cuda")
    ids = ids.to("cuda")
    optimizer = torch.optim.AdamW(strategy.param_groups(model, layout, 1e-2, 0.0))
    model(ids).square().sum().backward()
    optimizer.step()
    with torch.no_grad():
        trained = model.eval()(ids)
        torch.testing.assert_close(strategy.merge(model)(ids), trained, atol=1e-4, rtol=1e-3)
    assert plain(model)
