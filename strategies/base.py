"""The contract that every strategy fulfils, and the few helpers they share.

A strategy says which parameters train, how they are grouped, and when. It knows a model only through its
:class:`Layout`, so that one file serves a text encoder and an image CNN alike.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

__all__ = [
    "BackboneStrategy",
    "Layout",
    "NotApplicable",
    "Stage",
    "Strategy",
    "addition",
    "boundary",
    "count_parameters",
    "enter_stage",
    "inside",
    "parse_numbers",
    "prefix_modules",
    "prefix_names",
    "set_trainable",
    "split_list",
    "trainable_names",
]


class NotApplicable(ValueError):
    """The strategy, as it is configured, has nothing to work on in this model, or not enough epochs.

    Where all strategies are asked for, it is left out; where it is named, it is an error.
    """


@dataclass(frozen=True)
class Layout:
    """Where a model keeps its parts, as dotted names of modules, or of parameters that belong to none of them.

    Attributes:
        head: the newly initialised classifier's modules.
        stem: what comes before the first block (embeddings, patch embedding, convolutional stem).
        blocks: the units of depth of the backbone, in order from the input.
        top: what comes after the last block and is pretrained (a final norm, a pooler).
        adapter_targets: preset -> full names of the layers that an adapter may wrap, e.g.
            ``{"attention": ("backbone.encoder.layer.0.attention.self.query", ...), "all-linear": (...)}``.
        backbone: the pretrained part, which holds stem, blocks and top.
    """

    head: tuple[str, ...]
    stem: tuple[str, ...]
    blocks: tuple[str, ...]
    top: tuple[str, ...] = ()
    adapter_targets: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    backbone: str = "backbone"

    def last_blocks(self, number: int | None) -> tuple[str, ...]:
        """The ``number`` blocks nearest to the head; None = all of them.

        Raises:
            ValueError: the model has fewer blocks.
        """
        if number is None:
            return self.blocks
        if number > len(self.blocks):
            raise ValueError(f"num_blocks={number}: the model has {len(self.blocks)} blocks")
        return self.blocks[len(self.blocks) - number :]

    def depth(self, parameter_name: str) -> int:
        """How deep a parameter lies: 0 in the stem, i in the i-th block (from 1), one more in the top and the head.

        Raises:
            ValueError: the layout does not cover the parameter.
        """
        for depth, block in enumerate(self.blocks, start=1):
            if inside(parameter_name, (block,)):
                return depth
        if inside(parameter_name, (*self.top, *self.head)):
            return len(self.blocks) + 1
        if inside(parameter_name, self.stem):
            return 0
        raise ValueError(
            f"parameter {parameter_name} is in no part of the model that is known (stem, block, top, head)"
        )

    def is_head(self, parameter_name: str) -> bool:
        """Whether a parameter, by its dotted name, belongs to the head."""
        return inside(parameter_name, self.head)


@dataclass(frozen=True)
class Stage:
    """A part of one training run with its own trainable set, its own optimiser and its own schedule.

    Attributes:
        share: of the run's epochs, in proportion to the shares of the other stages.
        learning_rate_factor: times the run's learning rate.
        parts: the modules that train, as names of the layout; None = all that ``prepare`` left trainable.
    """

    share: float = 1.0
    learning_rate_factor: float = 1.0
    parts: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Strategy(ABC):
    """A rule for which parameters train, how they are grouped, and when.

    A subclass is a frozen dataclass: its fields are the strategy's hyperparameters, the ones that
    ``strategy.<field>`` fixes and ``strategy.search_space.<field>`` searches. Impossible values raise
    ``ValueError`` in ``__post_init__``, with the field's name, what was given and what is allowed.
    """

    name: ClassVar[str]
    trains: ClassVar[bool] = True  # False for a reference, which is scored as the model is
    pretrained: ClassVar[bool] = True  # False where the backbone's weights are thrown away

    @abstractmethod
    def prepare(self, model: nn.Module, layout: Layout) -> nn.Module:
        """Freeze or wrap ``model`` in place, so that ``requires_grad`` says what trains; the head always does.

        Raises:
            ValueError: the model has no such blocks or layers; the message lists those that it has.
        """

    def stages(self, layout: Layout) -> list[Stage]:
        """The parts of a run, in order: one by default, in which everything that ``prepare`` left trainable trains."""
        return [Stage()]

    def learning_rate_factor(self, parameter_name: str, layout: Layout) -> float:
        """What the run's learning rate is multiplied by for a parameter."""
        return 1.0

    def param_groups(
        self, model: nn.Module, layout: Layout, learning_rate: float, weight_decay: float
    ) -> list[dict[str, Any]]:
        """Optimiser groups that hold each trainable parameter exactly once.

        Biases and norms (parameters of one dimension) are not decayed, as in BERT's and ``transformers.Trainer``'s
        recipe.
        """
        groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                factor = self.learning_rate_factor(name, layout)
                groups.setdefault((factor, self._is_decayed(name, parameter)), []).append(parameter)
        return [
            {
                "params": parameters,
                "lr": learning_rate * factor,
                "weight_decay": weight_decay if decayed else 0.0,
            }
            for (factor, decayed), parameters in groups.items()
        ]

    def closed_form_params(self, model: nn.Module, layout: Layout) -> int | None:
        """What it trains outside of the head, by its paper's formula; None where that is just a count.

        It is held against what was counted, so that a layer that was missed, or wrapped twice, is noticed.

        Args:
            model: one that :meth:`prepare` works on, not prepared yet.
            layout: of the model.
        """
        return None

    def adapter(self, model: nn.Module, layout: Layout) -> tuple[Any, dict[str, Tensor]] | None:
        """What peft needs to put the same adapter and head on the pretrained model; ``None`` without such an adapter.

        Args:
            model: trained, and not merged yet.
            layout: of the model.

        Returns:
            Peft's configuration, and the tensors by the names that ``PeftModel`` stores them under.
        """
        return None

    def merge(self, model: nn.Module) -> nn.Module:
        """Fold what the strategy added into the backbone's own weights, in place, where that is possible."""
        return model

    def _is_decayed(self, name: str, parameter: nn.Parameter) -> bool:
        """Whether weight decay applies to a parameter."""
        return parameter.ndim > 1


@dataclass(frozen=True, kw_only=True)
class BackboneStrategy(Strategy):
    """A strategy that trains something in the backbone, at rates that may depend on the depth.

    With L blocks, what lies at depth d (0 = stem, L + 1 = top and head) learns at ``layer_decay ** (L + 1 - d)`` of
    the run's rate, as in ELECTRA and BEiT (Clark et al. 2020, appendix A, arXiv:2003.10555).

    Attributes:
        layer_decay: in (0, 1]; 1 gives all depths the same rate.
        head_lr_multiplier: the head's learning rate over that of the backbone's top; the head starts from noise, the
            backbone does not.
    """

    layer_decay: float = 1.0
    head_lr_multiplier: float = 1.0

    def __post_init__(self) -> None:
        if problems := self._problems():
            raise ValueError("; ".join(problems))

    def learning_rate_factor(self, parameter_name: str, layout: Layout) -> float:
        """The decay over depth, and the multiplier on the head."""
        if layout.is_head(parameter_name):
            return float(self.head_lr_multiplier)
        if self.layer_decay == 1:
            return 1.0
        return float(self.layer_decay ** (len(layout.blocks) + 1 - layout.depth(parameter_name)))

    def _problems(self) -> list[str]:
        """Every impossible value of the fields, each as one line; a subclass adds its own."""
        problems = []
        if not 0 < self.layer_decay <= 1:
            problems.append(f"layer_decay={self.layer_decay}: must be above 0 and at most 1")
        if self.head_lr_multiplier <= 0:
            problems.append(f"head_lr_multiplier={self.head_lr_multiplier}: must be above 0")
        num_blocks = getattr(self, "num_blocks", None)  # of the strategies that have it
        if isinstance(num_blocks, int) and num_blocks < 1:
            problems.append(f"num_blocks={num_blocks}: must be at least 1 (frozen trains the head alone)")
        return problems


def split_list(value: str) -> list[str]:
    """The parts of a field such as ``query,value``."""
    return [part.strip() for part in str(value).split(",") if part.strip()]


def parse_numbers(value: str) -> list[float]:
    """The numbers of a field such as ``1,0.1``; none where one is not a number above 0."""
    try:
        numbers = [float(part) for part in split_list(value)]
    except ValueError:
        return []
    return numbers if all(0 < number < math.inf for number in numbers) else []


def set_trainable(model: nn.Module, module_names: Sequence[str]) -> None:
    """Make the parameters under ``module_names`` the only ones that train.

    Raises:
        ValueError: a name matches no parameter; the message lists the model's top-level modules.
    """
    used: set[str] = set()
    for name, parameter in model.named_parameters():
        owners = [module for module in module_names if inside(name, (module,))]
        parameter.requires_grad_(bool(owners))
        used.update(owners)
    if unmatched := sorted(set(module_names) - used):
        has = ", ".join(name for name, _ in model.named_children())
        raise ValueError(f"no parameter below {', '.join(unmatched)}; the model has {has}")


def addition(model: nn.Module, name: str) -> Callable[..., None]:
    """The model's own method ``name``, which adds parameters and writes them into the model's config.

    What cannot be merged into pretrained weights must be carried by the model, so that it can be saved and loaded.

    Raises:
        NotApplicable: the model has no such method.
    """
    method = getattr(model, name, None)
    if method is None:
        raise NotApplicable(
            f"it adds modules to the model, and a plain checkpoint ({type(model).__name__}) cannot hold them: "
            "model.head=linear or mlp"
        )
    return method


def enter_stage(model: nn.Module, stage: Stage, trained: Collection[str]) -> None:
    """Make what a stage trains the only thing that does.

    Args:
        model: prepared.
        stage: one of the strategy's.
        trained: names of the parameters that ``prepare`` left trainable.
    """
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trained and (stage.parts is None or inside(name, stage.parts)))


def prefix_modules(model: nn.Module, layout: Layout) -> list[nn.Module]:
    """The modules below the boundary, from the input up: nothing in them, nor below them, trains."""
    return [module for name in prefix_names(model, layout) if (module := _module(model, name)) is not None]


def boundary(model: nn.Module, layout: Layout) -> int:
    """The depth below which nothing trains: the number of leading blocks that the backward pass never reaches."""
    return sum(name in layout.blocks for name in prefix_names(model, layout))


def count_parameters(model: nn.Module, layout: Layout) -> dict[str, int]:
    """Count parameters: ``total``, ``trainable``, and of the trainable ones ``head`` and ``backbone``.

    ``stored_bytes`` is the size of the trained tensors on disk.
    """
    counts = {"total": 0, "trainable": 0, "head": 0, "backbone": 0, "stored_bytes": 0}
    for name, parameter in model.named_parameters():
        # Packed weights of few bits hold several parameters in an element; bitsandbytes keeps the shape beside them.
        packed = getattr(parameter, "quant_state", None)
        counts["total"] += parameter.numel() if packed is None else math.prod(packed.shape)
        if parameter.requires_grad:
            counts["trainable"] += parameter.numel()
            counts["head" if layout.is_head(name) else "backbone"] += parameter.numel()
            counts["stored_bytes"] += parameter.numel() * parameter.element_size()
    return counts


def trainable_names(model: nn.Module) -> list[str]:
    """The names of the parameters that require gradients."""
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def prefix_names(model: nn.Module, layout: Layout) -> list[str]:
    """The names of the parts below the boundary, from the input up: nothing in them, nor below them, trains."""
    trainable = trainable_names(model)
    if any(inside(name, layout.stem) for name in trainable):
        return []
    frozen = itertools.takewhile(
        lambda part: not any(inside(name, (part,)) for name in trainable), (*layout.blocks, *layout.top)
    )
    return [*layout.stem, *frozen]


def _module(model: nn.Module, name: str) -> nn.Module | None:
    """The module of that name; None where the name is a parameter's."""
    try:
        return model.get_submodule(name)
    except AttributeError:
        return None


def inside(name: str, modules: Sequence[str]) -> bool:
    """Whether a dotted name is that of one of the modules, or of something in it."""
    return any(name == module or name.startswith(f"{module}.") for module in modules)
