"""Find the stem, the blocks and the layers that an adapter may wrap in a model whose class we do not know."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from strategies.base import Layout, inside
from strategies.injection import is_adaptable
from sweeper.errors import ConfigError

__all__ = ["find_layout"]

#: Names that attention's query and value projections go by; fused projections count as one.
_QUERY_AND_VALUE = (
    *("query", "value", "q", "v", "q_lin", "v_lin", "q_proj", "v_proj", "query_proj", "value_proj"),
    *("qkv", "qkv_proj", "c_attn", "query_key_value", "Wqkv", "in_proj"),
)


def find_layout(model: nn.Module, backbone: str, head: tuple[str, ...], inputs: Mapping[str, torch.Tensor]) -> Layout:
    """The :class:`~strategies.base.Layout` of a model; it covers every parameter.

    Which modules are blocks, timm's own grouping of a model says, or else the longest list of modules of one class
    (with all other lists of that class: stages). Everything else follows from one forward pass, in which each
    parameter's first use is noted: before or in the first block = stem, after the last one = top. Modules without
    parameters that run before the first block (a dropout of the embeddings) belong to the stem too. A module that is
    first used between two blocks, such as the downsampling between stages, is a block of its own, at its place in the
    order. What no forward pass uses, and single parameters between blocks, count as stem.

    Args:
        model: the whole classifier, in eval mode.
        backbone: dotted name of the pretrained part; empty where the head lies inside it.
        head: dotted names of the newly initialised modules.
        inputs: a small batch for the forward pass.

    Raises:
        ConfigError: there are no blocks, so that the depth of the model is unknown, or depths share parameters.
    """
    body = model.get_submodule(backbone)
    candidates = tuple(
        name for path in _timm_blocks(body) or _listed_blocks(body) if not inside(name := _join(backbone, path), head)
    )
    parameters = {
        name: parameter
        for name, parameter in model.named_parameters()
        if (not backbone or inside(name, (backbone,))) and not inside(name, head)
    }
    entered, first_use, before = _trace(model, backbone, candidates, parameters, inputs)
    if not entered:
        children = ", ".join(f"{name} ({type(child).__name__})" for name, child in body.named_children())
        raise ConfigError(f"no list of blocks found in {type(body).__name__}, which has {children}")
    _check_shared(model, entered)
    stem, between, top = _around(model, backbone, (*entered, *head), parameters, first_use, len(entered))
    blocks = [part for slot, block in enumerate(entered) for part in (*between.get(slot, ()), block)]
    return Layout(
        head=head,
        stem=(*stem, *(name for name in before if not inside(name, (*stem, *head)))),
        blocks=tuple(blocks),
        top=top,
        adapter_targets=_adapter_targets(model, blocks),
        backbone=backbone,
    )


def _timm_blocks(body: nn.Module) -> list[str]:
    """The modules that timm's ``group_matcher`` numbers, whose pattern takes the numbers from a parameter's name."""
    network: Any = getattr(body, "timm_model", None)
    matcher = network.group_matcher(coarse=False) if hasattr(network, "group_matcher") else None
    if not isinstance(matcher, dict):  # a few architectures have a function instead, or nothing
        return []
    patterns = [
        (group, re.compile(pattern))
        for group, specification in matcher.items()
        if specification is not None
        for pattern, _ in ([(specification, None)] if isinstance(specification, str) else specification)
    ]
    modules = {name for name, _ in network.named_modules()}
    found: dict[str, None] = {}
    for name, _ in network.named_parameters():
        hits = ((group, match) for group, pattern in patterns if (match := pattern.match(name)))
        group, match = next(hits, ("", None))
        if match is None or group == "stem" or not match.groups():
            continue
        path = name[: match.end()] + name[match.end() :].partition(".")[0]
        if path in modules:
            found[f"timm_model.{path}"] = None
    return list(found)


def _listed_blocks(body: nn.Module) -> list[str]:
    """The members of the longest list of modules of one class, and of all other lists of that class."""
    lists = [
        (name, module)
        for name, module in body.named_modules()
        if isinstance(module, nn.ModuleList | nn.Sequential)
        and len({type(child) for child in module}) == 1
        and any(True for _ in module[0].children())  # a list of plain layers is none of blocks
    ]
    if not lists:
        return []
    block = type(max((module for _, module in lists), key=len)[0])
    paths: list[str] = []
    for name, module in lists:
        if type(module[0]) is block and not inside(name, paths):
            paths += [_join(name, index) for index, _ in module.named_children()]
    return paths


class _FirstUse(TorchDispatchMode):
    """Notes how many blocks had been entered when an operation first read each parameter."""

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        super().__init__()
        # By memory, so that a view or a detached parameter is recognised.
        self._names = {
            parameter.untyped_storage().data_ptr(): name for name, parameter in parameters.items() if parameter.numel()
        }
        self.entered: list[str] = []
        self.inside = False
        self.slots: dict[str, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, torch.Tensor) and (name := self._names.get(leaf.untyped_storage().data_ptr())):
                # What a block reads from outside belongs before it.
                self.slots.setdefault(name, len(self.entered) - self.inside)
        return func(*args, **(kwargs or {}))


def _trace(
    model: nn.Module,
    backbone: str,
    candidates: Sequence[str],
    parameters: Mapping[str, nn.Parameter],
    inputs: Mapping[str, torch.Tensor],
) -> tuple[list[str], dict[str, int], list[str]]:
    """One forward pass.

    Returns:
        Blocks in the order of their calls, before which of them each parameter is used first, in order of use, and the
        modules without parameters that run before the first block only.
    """
    uses = _FirstUse(parameters)
    before: dict[str, bool] = {}

    def note(name: str) -> None:
        before[name] = before.get(name, True) and not uses.entered

    def enter(name: str) -> None:
        if name in uses.entered:
            raise ConfigError(
                f"{name} of {type(model).__name__} is used more than once in a pass: blocks that share their "
                "parameters over the depth have no depth to freeze or thaw"
            )
        uses.entered.append(name)
        uses.inside = True

    def leave() -> None:
        uses.inside = False

    hooks = []
    for name in candidates:
        block = model.get_submodule(name)
        hooks.append(block.register_forward_pre_hook(lambda *_, name=name: enter(name)))
        hooks.append(block.register_forward_hook(lambda *_: leave()))
    for name, module in model.get_submodule(backbone).named_modules(prefix=backbone):
        if not any(True for _ in module.parameters()) and not any(True for _ in module.children()):
            hooks.append(module.register_forward_pre_hook(lambda *_, name=name: note(name)))
    try:
        with torch.no_grad(), uses:
            model(**inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return uses.entered, uses.slots, [name for name, early in before.items() if early]


def _check_shared(model: nn.Module, blocks: Sequence[str]) -> None:
    owner: dict[int, str] = {}
    for block in blocks:
        for parameter in model.get_submodule(block).parameters():
            if (other := owner.setdefault(id(parameter), block)) != block:
                raise ConfigError(f"{other} and {block} of {type(model).__name__} share parameters")


def _around(
    model: nn.Module,
    backbone: str,
    known: tuple[str, ...],
    parameters: Mapping[str, nn.Parameter],
    first_use: Mapping[str, int],
    number: int,
) -> tuple[tuple[str, ...], dict[int, list[str]], tuple[str, ...]]:
    """Stem, what comes before the i-th block by i, and top: the largest modules that fit, each in order of use."""
    order = {name: position for position, name in enumerate(first_use)}

    def parts(path: str) -> Iterator[tuple[int, int, str]]:
        """Position in the order, slot and name of each part in the module ``path``."""
        below = [name for name in parameters if not path or inside(name, (path,))]
        slots = {first_use.get(name, 0) for name in below}
        if path and len(slots) == 1 and not any(inside(name, (path,)) for name in known):
            yield min(order.get(name, -1) for name in below), slots.pop(), path
            return
        module = model.get_submodule(path)
        for name, _ in module.named_parameters(recurse=False):
            if (full := _join(path, name)) in parameters:
                slot = first_use.get(full, 0)
                yield order.get(full, -1), slot if slot == number else 0, full
        for name, _ in module.named_children():
            if not inside(child := _join(path, name), known):
                yield from parts(child)

    placed: dict[int, list[str]] = {}
    for _, slot, name in sorted(parts(backbone)):
        placed.setdefault(slot, []).append(name)
    return tuple(placed.pop(0, ())), placed, tuple(placed.pop(number, ()))


def _adapter_targets(model: nn.Module, blocks: Sequence[str]) -> dict[str, tuple[str, ...]]:
    linear = tuple(
        _join(block, name)
        for block in blocks
        for name, module in model.get_submodule(block).named_modules()
        if is_adaptable(module)
    )
    attention = tuple(name for name in linear if name.rpartition(".")[2] in _QUERY_AND_VALUE)
    targets = {"attention": attention, "all-linear": linear}
    return {preset: names for preset, names in targets.items() if names}


def _join(*parts: str) -> str:
    return ".".join(part for part in parts if part)
