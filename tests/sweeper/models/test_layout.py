"""Layouts of real architectures: what is stem, block and top, in which order, and what an adapter may wrap."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutput

from strategies import Layout
from strategies.base import inside
from sweeper.errors import ConfigError
from sweeper.models.layout import find_layout
from sweeper.models.pretrained import Pretrained, load_model

IMAGES = ("resnet", "efficientnet", "convnext", "swin", "vit-timm", "vit", "clip")
#: Kind of checkpoint -> stem, blocks, top, with the backbone's own names.
EXPECTED: dict[str, tuple[list[str], list[str], list[str]]] = {
    "bert": (["embeddings"], [f"encoder.layer.{i}" for i in range(4)], []),
    "distilbert": (["embeddings"], [f"transformer.layer.{i}" for i in range(3)], []),
    "deberta": (
        ["embeddings", "encoder.rel_embeddings", "encoder.LayerNorm"],  # the last two are registered after the blocks
        [f"encoder.layer.{i}" for i in range(3)],
        [],
    ),
    "electra": (["embeddings", "embeddings_project"], [f"encoder.layer.{i}" for i in range(3)], []),
    "gpt2": (["wte", "wpe"], [f"h.{i}" for i in range(3)], ["ln_f"]),
    "llama": (["embed_tokens"], [f"layers.{i}" for i in range(3)], ["norm"]),
    "resnet": (["timm_model.conv1", "timm_model.bn1"], [f"timm_model.layer{i}.0" for i in range(1, 5)], []),
    "efficientnet": (
        ["timm_model.conv_stem", "timm_model.bn1"],
        [f"timm_model.blocks.{i}.0" for i in range(5)],
        ["timm_model.conv_head", "timm_model.bn2"],
    ),
    "convnext": (
        ["timm_model.stem"],
        [
            f"timm_model.stages.{path}"
            for path in (
                ["0.blocks.0", "1.downsample", "1.blocks.0", "1.blocks.1", "2.downsample"]
                + [f"2.blocks.{i}" for i in range(4)]
                + ["3.downsample", "3.blocks.0", "3.blocks.1"]
            )
        ],
        ["timm_model.head"],
    ),
    "swin": (
        ["timm_model.patch_embed"],
        [f"timm_model.layers.{path}" for path in ("0.blocks.0", "1.downsample", "1.blocks.0", "1.blocks.1")],
        ["timm_model.norm"],
    ),
    "vit-timm": (
        ["timm_model.patch_embed", "timm_model.cls_token", "timm_model.pos_embed"],
        [f"timm_model.blocks.{i}" for i in range(6)],
        ["timm_model.norm"],
    ),
    "vit": (["embeddings"], [f"layers.{i}" for i in range(3)], ["layernorm", "pooler"]),
    "clip": (["embeddings", "pre_layrnorm"], [f"encoder.layers.{i}" for i in range(3)], ["post_layernorm"]),
}


Load = Callable[..., Pretrained]


@pytest.fixture(scope="module")
def load(checkpoint: Callable[[str], Path]) -> Load:
    @functools.cache
    def load(kind: str, head: str = "linear") -> Pretrained:
        modality, pooling = ("image", "native") if kind in IMAGES else ("text", "mean")
        return load_model(checkpoint(kind), modality=modality, head=head, pooling=pooling, label_names=["a", "b", "c"])

    return load


@pytest.mark.parametrize("kind", EXPECTED)
def test_stem_blocks_and_top_in_order(load: Load, kind: str) -> None:
    layout, model = load(kind).layout, load(kind).model
    stem, blocks, top = ([f"backbone.{name}" for name in names] for names in EXPECTED[kind])
    weighted = [name for name in layout.stem if any(inside(p, (name,)) for p, _ in model.named_parameters())]
    assert weighted == stem
    assert list(layout.blocks) == blocks
    assert list(layout.top) == top
    assert (layout.backbone, layout.head) == ("backbone", ("head",))


def test_a_dropout_before_the_first_block_is_stem(load: Load) -> None:
    assert "backbone.drop" in load("gpt2").layout.stem
    native = load("bert", "native")
    assert isinstance(native.model.dropout, nn.Dropout)
    assert "dropout" not in native.layout.stem, "what comes before the classifier is above every block"


@pytest.mark.parametrize("head", ["linear", "native"])
@pytest.mark.parametrize("kind", EXPECTED)
def test_every_parameter_has_one_depth(load: Load, kind: str, head: str) -> None:
    pretrained = load(kind, head)
    layout = pretrained.layout
    parts = (*layout.stem, *layout.blocks, *layout.top, *layout.head)
    for name, _ in pretrained.model.named_parameters():
        assert 0 <= layout.depth(name) <= len(layout.blocks) + 1
        assert sum(name == part or name.startswith(f"{part}.") for part in parts) == 1, name


@pytest.mark.parametrize(
    ("kind", "head", "backbone"),
    [
        ("bert", ("classifier",), "bert"),
        ("distilbert", ("pre_classifier", "classifier"), "distilbert"),
        ("gpt2", ("score",), "transformer"),
        ("vit", ("classifier",), "vit"),
        ("clip", ("classifier",), "vision_model"),
        ("resnet", ("timm_model.fc",), ""),
        ("convnext", ("timm_model.head.fc",), ""),  # the norm before it is pretrained
    ],
)
def test_native_heads(load: Load, kind: str, head: tuple[str, ...], backbone: str) -> None:
    layout = load(kind, "native").layout
    assert (layout.head, layout.backbone) == (head, backbone)
    names = [block.removeprefix(f"{backbone}.") for block in layout.blocks]
    assert names == EXPECTED[kind][1]


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("bert", {"query", "value"}),
        ("distilbert", {"q_lin", "v_lin"}),
        ("deberta", {"query_proj", "value_proj"}),
        ("gpt2", {"c_attn"}),
        ("llama", {"q_proj", "v_proj"}),
        ("vit-timm", {"qkv"}),
        ("swin", {"qkv"}),
        ("clip", {"q_proj", "v_proj"}),
    ],
)
def test_attention_targets(load: Load, kind: str, names: set[str]) -> None:
    layout = load(kind).layout
    targets = layout.adapter_targets["attention"]
    assert {target.rpartition(".")[2] for target in targets} == names
    attending = [block for block in layout.blocks if not block.endswith("downsample")]
    assert len(targets) == len(attending) * len(names)


@pytest.mark.parametrize(
    ("kind", "types"),
    [("bert", {"Linear"}), ("gpt2", {"Conv1D"}), ("efficientnet", {"Conv2d"}), ("convnext", {"Linear", "Conv2d"})],
)
def test_all_linear_targets(load: Load, kind: str, types: set[str]) -> None:
    pretrained = load(kind)
    model, layout = pretrained.model, pretrained.layout
    targets = layout.adapter_targets["all-linear"]
    assert {type(model.get_submodule(name)).__name__ for name in targets} == types
    inside = [
        name
        for name, module in model.named_modules()
        if type(module).__name__ in types
        and getattr(module, "groups", 1) == 1
        and any(name.startswith(f"{block}.") for block in layout.blocks)
    ]
    assert sorted(targets) == sorted(inside)


def test_depthwise_convolutions_are_no_targets(load: Load) -> None:
    pretrained = load("efficientnet")
    depthwise = [n for n, m in pretrained.model.named_modules() if isinstance(m, nn.Conv2d) and m.groups > 1]
    assert depthwise
    assert not set(depthwise) & set(pretrained.layout.adapter_targets["all-linear"])
    assert "attention" not in pretrained.layout.adapter_targets


def test_parameters_shared_over_depth_are_refused(load: Load) -> None:
    with pytest.raises(ConfigError, match=r"albert_layer_groups\.0 .* used more than once in a pass"):
        load("albert")


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.linear(x)


class Body(nn.Module):
    """Registered in an order that says nothing: what is used last comes first."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4)
        self.late = nn.ModuleList([Block(), Block()])
        self.between = nn.Linear(4, 4)
        self.early = nn.ModuleList([Block(), Block()])
        self.unused = nn.Linear(4, 4)
        self.position = nn.Parameter(torch.zeros(4))
        self.embed = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x) + self.position
        for block in self.early:
            x = block(x)
        x = self.between(x)
        for block in self.late:
            x = block(x)
        return self.norm(x)


class Whole(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> BaseModelOutput:
        return BaseModelOutput(self.head(self.body(x)))


def layout_of(body: nn.Module) -> Layout:
    return find_layout(Whole(body).eval(), "body", ("head",), {"x": torch.zeros(1, 4)})


def test_the_order_is_that_of_use() -> None:
    layout = layout_of(Body())
    assert layout.blocks == ("body.early.0", "body.early.1", "body.between", "body.late.0", "body.late.1")
    assert layout.top == ("body.norm",)
    assert set(layout.stem) == {"body.embed", "body.position", "body.unused"}
    assert layout.adapter_targets["all-linear"][2] == "body.between"


def test_blocks_that_share_parameters_are_refused() -> None:
    body = Body()
    body.late[1].linear = body.early[0].linear
    with pytest.raises(ConfigError, match=r"body\.early\.0 and body\.late\.1 of Whole share parameters"):
        layout_of(body)


def test_a_model_without_blocks_says_what_it_has() -> None:
    body = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    with pytest.raises(ConfigError, match=r"no list of blocks found in Sequential, which has 0 \(Linear\), 1 \(ReLU\)"):
        layout_of(body)


class Reading(Block):
    def forward(self, x: torch.Tensor, table: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return super().forward(x + table)


class Relative(nn.Module):
    """Every block reads one table of positions, which nothing has touched before the first block does."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Reading(), Reading()])
        self.table = nn.Embedding(1, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x, self.table.weight)
        return x


def test_what_the_first_block_reads_from_outside_is_stem() -> None:
    assert layout_of(Relative()).stem == ("body.table",)
