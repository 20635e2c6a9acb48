"""What a classifier may carry beside its pretrained weights: adapters after its blocks, and virtual tokens.

They cannot be folded into pretrained weights, so the model itself holds them: their shapes are written into its
config, from which they are rebuilt when it is loaded. Like ``classifier.py``, which imports this file, it needs nothing
of the project: transformers copies both beside saved weights.

Every addition lies inside the part that it belongs to (``<block>.adapter``, ``<block>.virtual_tokens``,
``<input embedding>.virtual_tokens``) and is applied by a hook of that part. The hooks are plain functions that take
what they apply from the module they are called for, so that copies of a model share nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

__all__ = ["BottleneckAdapter", "WithAdditions", "max_positions"]


class BottleneckAdapter(nn.Module):
    """``h + up(gelu(down(h)))``, the identity at first: ``up`` is zero (Houlsby et al. 2019, section 2, 1902.00751).

    Args:
        width: of the hidden states; the bottleneck has ``width // reduction`` units, at least 1.
        reduction: width over bottleneck.
        channels_first: hidden states are feature maps (batch, width, h, w) and the layers 1x1 convolutions; else they
            are (..., width) and the layers linear.
    """

    def __init__(self, width: int, reduction: int, *, channels_first: bool = False) -> None:
        super().__init__()
        bottleneck = max(1, width // reduction)
        self.down: nn.Module
        self.up: nn.Module
        if channels_first:
            self.down, self.up = nn.Conv2d(width, bottleneck, 1), nn.Conv2d(bottleneck, width, 1)
        else:
            self.down, self.up = nn.Linear(width, bottleneck), nn.Linear(bottleneck, width)
        for parameter in self.up.parameters():
            nn.init.zeros_(parameter)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Hidden states to hidden states of the same shape."""
        return states + self.up(nn.functional.gelu(self.down(states)))


class WithAdditions(nn.Module):
    """The part of a classifier that adds, rebuilds and runs additions.

    The class beside it has a ``config`` with the fields ``adapters`` and ``virtual_tokens`` and a ``backbone``, calls
    ``rebuild_additions`` at the end of its ``__init__`` and ``run_backbone`` in its ``forward``.
    """

    config: Any
    backbone: Any

    def add_adapters(self, blocks: Sequence[str], reduction: int) -> None:
        """Put an adapter after each of the blocks, which go by their dotted names in this model.

        Raises:
            ValueError: there are adapters already, or a block gives no hidden states of 3 or 4 dimensions.
        """
        if self.config.adapters is not None:
            raise ValueError("the model has adapters already")
        self.config.adapters = {"reduction": reduction, "blocks": _hidden_states(self, blocks, self.dummy_inputs)}
        self._build_adapters()

    def add_virtual_tokens(self, number: int, blocks: Sequence[str] = (), *, init: str = "vocabulary") -> None:
        """Let every text begin with ``number`` virtual positions, of which the pooling sees nothing.

        Without ``blocks``, one learned matrix (number, width of the embeddings) stands for them at the input. With
        blocks, by their dotted names, each has a matrix (number, width) that takes their place at its input.

        Args:
            number: of positions.
            blocks: those with a matrix of their own.
            init: ``vocabulary``, the embeddings of random tokens (at the input only), or ``normal``, with the standard
                deviation that the architecture initialises its own weights with.

        Raises:
            ValueError: the model has no positions for so many, has virtual tokens already, or reads no texts.
        """
        if self.config.virtual_tokens is not None:
            raise ValueError("the model has virtual tokens already")
        embedding = self.backbone.get_input_embeddings()
        if not isinstance(embedding, nn.Embedding):
            raise ValueError("virtual tokens: text only, and this model embeds no tokens")
        positions = max_positions(self.backbone)
        if positions is not None and number > positions - 2:
            raise ValueError(
                f"num_tokens={number}: the model has {positions} positions, of which a text needs 2 or more: "
                f"at most {positions - 2}"
            )
        widths = {name: int(self.backbone.config.hidden_size) for name in blocks}
        self.config.virtual_tokens = {"number": number, "width": embedding.embedding_dim, "blocks": widths}
        vocabulary, std = embedding.weight, getattr(self.backbone.config, "initializer_range", 0.02)
        for matrix in self._build_virtual_tokens():
            with torch.no_grad():
                if init == "vocabulary" and not blocks:
                    matrix.copy_(vocabulary[torch.randint(len(vocabulary), (number,), device=vocabulary.device)])
                else:
                    matrix.normal_(std=std)

    def max_text_tokens(self) -> int | None:
        """The most tokens of a text that have positions beside the virtual ones; None if nothing limits them."""
        positions = max_positions(self.backbone) if self.config.virtual_tokens else None
        return None if positions is None else positions - self.config.virtual_tokens["number"]

    def rebuild_additions(self) -> None:
        """Make the modules and parameters that the config tells of; loading fills them."""
        if self.config.adapters is not None:
            self._build_adapters()
        if self.config.virtual_tokens is not None:
            self._build_virtual_tokens()

    def run_backbone(self, inputs: Mapping[str, Any]) -> Any:
        """The backbone's outputs for ``inputs``, without the virtual positions."""
        virtual = self.config.virtual_tokens
        if virtual is None:
            return self.backbone(**inputs)
        number = virtual["number"]
        outputs = self.backbone(**_prepend(self.backbone.get_input_embeddings(), number, inputs))
        states = outputs.last_hidden_state[:, number:]
        pooler = getattr(self.backbone, "pooler", None)  # has pooled a virtual position
        return SimpleNamespace(last_hidden_state=states, pooler_output=None if pooler is None else pooler(states))

    @property
    def dummy_inputs(self) -> dict[str, torch.Tensor]:
        """A smallest batch of what the backbone reads."""
        if self.backbone.main_input_name == "input_ids":
            return {"input_ids": torch.ones(1, 2, dtype=torch.long, device=self.backbone.device)}
        timm_model = getattr(self.backbone, "timm_model", None)
        if timm_model is not None:
            shape = tuple(timm_model.pretrained_cfg["input_size"])
        else:
            size, channels = self.backbone.config.image_size, self.backbone.config.num_channels
            shape = (channels, *((size, size) if isinstance(size, int) else size))
        return {self.backbone.main_input_name: torch.zeros(1, *shape, device=self.backbone.device)}

    def _build_adapters(self) -> None:
        settings = self.config.adapters
        for name, states in settings["blocks"].items():
            block = self.get_submodule(name)
            like = next(block.parameters())
            adapter = BottleneckAdapter(states["width"], settings["reduction"], channels_first=states["channels_first"])
            block.add_module("adapter", adapter.to(like.device))
            # A plain Sequential runs its children one after the other, the adapter last: a hook would run it twice.
            if type(block).forward is not nn.Sequential.forward:
                block.register_forward_hook(_apply_adapter)

    def _build_virtual_tokens(self) -> list[nn.Parameter]:
        settings = self.config.virtual_tokens
        number, embedding = settings["number"], self.backbone.get_input_embeddings()
        if not settings["blocks"]:
            embedding.virtual_tokens = _empty(number, settings["width"], embedding.weight.device)
            return [embedding.virtual_tokens]
        matrices = []
        for name, width in settings["blocks"].items():
            block: Any = self.get_submodule(name)
            block.virtual_tokens = _empty(number, width, embedding.weight.device)
            block.register_forward_pre_hook(_place_virtual_tokens, with_kwargs=True)
            matrices.append(block.virtual_tokens)
        return matrices


def _apply_adapter(block: Any, args: tuple[Any, ...], output: Any) -> Any:
    """Forward hook of a block: its adapter on its hidden states, the first of what it returns."""
    if isinstance(output, tuple):
        return (block.adapter(output[0]), *output[1:])
    return block.adapter(output)


def _place_virtual_tokens(block: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Forward pre-hook of a block: its own matrix at the virtual positions of the hidden states that it is given."""
    if args:
        return (_placed(block.virtual_tokens, args[0]), *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": _placed(block.virtual_tokens, kwargs["hidden_states"])}


def _placed(matrix: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    """States (batch, virtual + tokens, width) whose first positions are ``matrix`` (virtual, width)."""
    first = matrix.to(states.dtype).expand(states.shape[0], -1, -1)
    return torch.cat([first, states[:, len(matrix) :]], 1)


def _prepend(embedding: Any, number: int, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs of a text model, given as ``input_ids``, with ``number`` virtual positions before each text."""
    rest = {name: value for name, value in inputs.items() if value is not None}
    ids = rest.pop("input_ids")
    tokens = embedding(ids)  # (batch, tokens, width)
    virtual = getattr(embedding, "virtual_tokens", None)
    if virtual is None:
        virtual = tokens.new_zeros(number, tokens.shape[-1])  # a place that every block fills anew
    virtual = virtual.to(tokens.dtype).expand(tokens.shape[0], -1, -1)
    mask = rest.pop("attention_mask", None)
    mask = torch.ones_like(ids) if mask is None else mask
    extended = {
        "inputs_embeds": torch.cat([virtual, tokens], 1),
        "attention_mask": torch.cat([mask.new_ones(ids.shape[0], number), mask], 1),
    }
    if "token_type_ids" in rest:
        types = rest.pop("token_type_ids")
        extended["token_type_ids"] = torch.cat([types.new_zeros(types.shape[0], number), types], 1)
    if "position_ids" in rest:
        positions = rest.pop("position_ids")
        first = torch.arange(number, dtype=positions.dtype, device=positions.device).expand(positions.shape[0], -1)
        extended["position_ids"] = torch.cat([first, positions + number], 1)
    return {**extended, **rest}


def max_positions(backbone: Any) -> int | None:
    """How many positions a text model has; None where its config sets no limit."""
    limit = getattr(backbone.config, "max_position_embeddings", None)
    if not limit or limit < 0:
        return None
    for name, module in backbone.named_modules():  # RoBERTa and its kin count from the padding's index + 1
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            return int(limit) - module.padding_idx - 1
    return int(limit)


def _empty(number: int, width: int, device: torch.device) -> nn.Parameter:
    return nn.Parameter(torch.zeros(number, width, device=device))


def _hidden_states(model: nn.Module, blocks: Sequence[str], inputs: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Width and layout of what each block returns, from one forward pass.

    Raises:
        ValueError: a block was not run, or returned something else.
    """
    found: dict[str, dict[str, Any]] = {}
    # timm marks the few models whose feature maps are (batch, height, width, channels).
    channels_last = any(getattr(module, "output_fmt", None) == "NHWC" for module in model.modules())

    def look_at(name: str) -> Any:
        def look(module: nn.Module, args: Any, output: Any) -> None:
            states = output[0] if isinstance(output, tuple) else output
            if isinstance(states, torch.Tensor) and states.ndim in (3, 4):
                channels_first = states.ndim == 4 and not channels_last
                found[name] = {"width": states.shape[1 if channels_first else -1], "channels_first": channels_first}

        return look

    hooks = [model.get_submodule(name).register_forward_hook(look_at(name)) for name in blocks]
    training = [module for module in model.modules() if module.training]
    try:
        with torch.no_grad():
            model.eval()(**inputs)
    finally:
        for hook in hooks:
            hook.remove()
        for module in training:
            module.training = True
    if missing := [name for name in blocks if name not in found]:
        raise ValueError(f"no hidden states to adapt: {', '.join(missing)} gave none in a forward pass")
    return found
