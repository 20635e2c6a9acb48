"""The contract that every strategy fulfils, and the few helpers they share.

A strategy says which parameters train, how they are grouped, and when. It knows a model only through its
:class:`Layout`, so that one file serves a text encoder and an image CNN alike.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

__all__ = ["Layout", "Strategy", "boundary", "count_parameters", "prefix_modules", "set_trainable"]


@dataclass(frozen=True)
class Layout:
    """Where a model keeps its parts, as dotted module names.

    Attributes:
        head: the newly initialised classifier's modules.
        stem: what comes before the first block (embeddings, patch embedding, convolutional stem).
        blocks: the units of depth of the backbone, in order from the input.
        top: what comes after the last block and is pretrained (a final norm, a pooler).
        adapter_targets: preset -> full names of the layers that an adapter may wrap, e.g.
            ``{"attention": ("backbone.encoder.layer.0.attention.self.query", ...), "all-linear": (...)}``.
    """

    head: tuple[str, ...]
    stem: tuple[str, ...]
    blocks: tuple[str, ...]
    top: tuple[str, ...] = ()
    adapter_targets: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)

    def is_head(self, parameter_name: str) -> bool:
        """Whether a parameter, by its dotted name, belongs to the head."""
        return _inside(parameter_name, self.head)


@dataclass(frozen=True)
class Strategy(ABC):
    """A rule for which parameters train, how they are grouped, and when.

    A subclass is a frozen dataclass: its fields are the strategy's hyperparameters, the ones that
    ``strategy.<field>`` fixes and ``strategy.search_space.<field>`` searches. Impossible values raise
    ``ValueError`` in ``__post_init__``, with the field's name, what was given and what is allowed.
    """

    name: ClassVar[str]

    @abstractmethod
    def prepare(self, model: nn.Module, layout: Layout) -> nn.Module:
        """Freeze or wrap ``model`` in place, so that ``requires_grad`` says what trains; the head always does.

        Raises:
            ValueError: the model has no such blocks or layers; the message lists those that it has.
        """

    def param_groups(
        self, model: nn.Module, layout: Layout, learning_rate: float, weight_decay: float
    ) -> list[dict[str, Any]]:
        """Optimiser groups that hold each trainable parameter exactly once.

        The head's rate is ``learning_rate`` times the strategy's ``head_lr_multiplier`` where it has one. Biases
        and norms (parameters of one dimension) are not decayed, as in BERT's and ``transformers.Trainer``'s recipe.
        """
        multiplier = float(getattr(self, "head_lr_multiplier", 1.0))
        groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                groups.setdefault((layout.is_head(name), parameter.ndim > 1), []).append(parameter)
        return [
            {
                "params": parameters,
                "lr": learning_rate * (multiplier if in_head else 1.0),
                "weight_decay": weight_decay if decayed else 0.0,
            }
            for (in_head, decayed), parameters in groups.items()
        ]

    def merge(self, model: nn.Module) -> nn.Module:
        """Fold what the strategy added into the backbone's own weights, in place, where that is possible."""
        return model


def set_trainable(model: nn.Module, module_names: Sequence[str]) -> None:
    """Make the parameters under ``module_names`` the only ones that train.

    Raises:
        ValueError: a name matches no parameter; the message lists the model's top-level modules.
    """
    used: set[str] = set()
    for name, parameter in model.named_parameters():
        owners = [module for module in module_names if _inside(name, (module,))]
        parameter.requires_grad_(bool(owners))
        used.update(owners)
    if unmatched := sorted(set(module_names) - used):
        has = ", ".join(name for name, _ in model.named_children())
        raise ValueError(f"no parameter below {', '.join(unmatched)}; the model has {has}")


def prefix_modules(model: nn.Module, layout: Layout) -> list[nn.Module]:
    """The modules below the boundary, from the input up: nothing in them, nor below them, trains."""
    prefix: list[nn.Module] = []
    for module in _in_order(model, layout):
        if any(parameter.requires_grad for parameter in module.parameters()):
            break
        prefix.append(module)
    return prefix


def boundary(model: nn.Module, layout: Layout) -> int:
    """The depth below which nothing trains: the number of leading blocks that the backward pass never reaches."""
    return max(0, min(len(prefix_modules(model, layout)) - len(layout.stem), len(layout.blocks)))


def count_parameters(model: nn.Module, layout: Layout) -> dict[str, int]:
    """Count parameters: ``total``, ``trainable``, and of the trainable ones ``head`` and ``backbone``.

    ``stored_bytes`` is the size of the trained tensors on disk.
    """
    counts = {"total": 0, "trainable": 0, "head": 0, "backbone": 0, "stored_bytes": 0}
    for name, parameter in model.named_parameters():
        counts["total"] += parameter.numel()
        if parameter.requires_grad:
            counts["trainable"] += parameter.numel()
            counts["head" if layout.is_head(name) else "backbone"] += parameter.numel()
            counts["stored_bytes"] += parameter.numel() * parameter.element_size()
    return counts


def _in_order(model: nn.Module, layout: Layout) -> Iterator[nn.Module]:
    for name in (*layout.stem, *layout.blocks, *layout.top):
        yield model.get_submodule(name)


def _inside(name: str, modules: Sequence[str]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)
