"""Find the stem, the blocks and the layers that an adapter may wrap in a model whose class we do not know."""

from __future__ import annotations

from torch import nn

from strategies.base import Layout
from sweeper.errors import ConfigError

__all__ = ["find_layout"]

#: Names that attention's query and value projections go by; fused projections count as one.
_QUERY_AND_VALUE = frozenset(
    [
        "query",
        "value",
        "q_lin",
        "v_lin",
        "q_proj",
        "v_proj",
        "query_proj",
        "value_proj",
        "qkv",
        "c_attn",
        "query_key_value",
        "Wqkv",
        "in_proj",
    ]
)


def find_layout(model: nn.Module, backbone: str, head: tuple[str, ...]) -> Layout:
    """The :class:`~strategies.base.Layout` of a model.

    Blocks are the longest list of modules of one class in the backbone, in order; what comes before it is the stem,
    what comes after it the top.

    Args:
        model: the whole classifier.
        backbone: dotted name of the pretrained part.
        head: dotted names of the newly initialised modules.

    Raises:
        ConfigError: no such list, so that the depth of the model is unknown.
    """
    body = model.get_submodule(backbone)
    lists = [
        (name, module)
        for name, module in body.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) > 1 and len({type(child) for child in module}) == 1
    ]
    if not lists:
        children = ", ".join(name for name, _ in body.named_children())
        raise ConfigError(f"no list of blocks found in {type(body).__name__}, which has {children}")
    path, blocks = max(lists, key=lambda item: len(item[1]))
    block_names = tuple(f"{backbone}.{path}.{index}" for index in range(len(blocks)))
    stem, top = _around(body, path, backbone)
    return Layout(
        head=head,
        stem=stem,
        blocks=block_names,
        top=top,
        adapter_targets=_adapter_targets(model, block_names),
        backbone=backbone,
    )


def _around(body: nn.Module, path: str, backbone: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The parts with parameters before and after the blocks, whatever depth of nesting the blocks have."""
    stem: list[str] = []
    top: list[str] = []
    parent = body
    prefix = backbone
    inner_top: list[list[str]] = []
    for part in path.split("."):
        before = True
        after: list[str] = []
        for name, child in parent.named_children():
            if name == part:
                before = False
            elif any(True for _ in child.parameters()):
                (stem if before else after).append(f"{prefix}.{name}")
        inner_top.append(after)
        parent = parent.get_submodule(part)
        prefix = f"{prefix}.{part}"
    for after in reversed(inner_top):
        top.extend(after)
    return tuple(stem), tuple(top)


def _adapter_targets(model: nn.Module, blocks: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    linear = tuple(
        f"{block}.{name}"
        for block in blocks
        for name, module in model.get_submodule(block).named_modules()
        if isinstance(module, nn.Linear)
    )
    attention = tuple(name for name in linear if name.rpartition(".")[2] in _QUERY_AND_VALUE)
    targets = {"attention": attention, "all-linear": linear}
    return {preset: names for preset, names in targets.items() if names}
