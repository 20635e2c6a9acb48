"""What the strategies that put peft's adapters into a model share: which layers, how in, how out.

Adapters are injected in place, without a ``PeftModel`` around the model, so that modules keep their names and layout,
boundary, counts and saving work as they do for every other strategy.
"""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from strategies.base import BackboneStrategy, Layout, NotApplicable, split_list

if TYPE_CHECKING:
    # peft takes seconds to import; only what adapts a model pays for it.
    from peft.tuners.tuners_utils import BaseTuner

__all__ = [
    "AUTO",
    "Injected",
    "convolutions",
    "find_targets",
    "inject",
    "is_adaptable",
    "is_stored_transposed",
    "layer_sizes",
    "only_linear",
]

#: Queries and values where the model has attention, else every layer that an adapter can wrap.
AUTO = "auto"


class Injected(BackboneStrategy):
    """A strategy whose parameters are an adapter of peft, which ``prepare`` injects."""

    def adapter(self, model: nn.Module, layout: Layout) -> tuple[Any, dict[str, torch.Tensor]] | None:
        """See :meth:`Strategy.adapter`; the head goes with it as one of peft's ``modules_to_save``."""
        from peft import get_peft_model_state_dict

        injected: Any = model
        config = copy.copy(injected.peft_config["default"])
        config.modules_to_save = list(layout.head)
        config.inference_mode = True
        if hasattr(config, "save_projection"):
            config.save_projection = False  # VeRA's matrices lie outside of the model, and their seed gives them again
        injected.peft_config["default"] = config
        tensors = dict(get_peft_model_state_dict(model))
        tensors |= {name: tensor for name, tensor in model.state_dict().items() if layout.is_head(name)}
        return config, {f"base_model.model.{name}": tensor.detach().contiguous() for name, tensor in tensors.items()}

    @torch.no_grad()
    def merge(self, model: nn.Module) -> nn.Module:
        """Fold every adapter into its layer and remove it; the outputs stay the same, no trace of peft is left."""
        from peft.tuners.tuners_utils import BaseTunerLayer

        for name, module in list(model.named_modules()):
            if isinstance(module, BaseTunerLayer):
                module.merge()
                model.set_submodule(name, module.get_base_layer())
        if hasattr(model, "peft_config"):
            del model.peft_config
        return model


def find_targets(
    layout: Layout, targets: str, num_blocks: int | None = None, *, field: str = "targets"
) -> tuple[str, ...]:
    """Full names of the layers that an adapter wraps, in the model's order.

    Args:
        layout: of the model.
        targets: ``auto``, a preset of the layout, or last parts of layer names separated by commas.
        num_blocks: only in that many blocks, counted from the head; None = in all.
        field: what the user calls ``targets``, for messages.

    Raises:
        ValueError: no layer goes by one of the names, or the model has fewer blocks.
    """
    within = set(layout.last_blocks(num_blocks))
    presets = layout.adapter_targets
    every = presets.get("all-linear", ())
    preset = ("attention" if presets.get("attention") else "all-linear") if targets == AUTO else targets
    wanted = split_list(targets)
    if preset in presets:
        found, missing = presets[preset], False
    else:
        found = tuple(name for name in every if any(name.endswith(f".{target}") for target in wanted))
        missing = not wanted or any(not any(name.endswith(f".{target}") for name in every) for target in wanted)
    if missing:
        layers = ", ".join(dict.fromkeys(name.rpartition(".")[2] for name in every)) or "none"
        raise ValueError(
            f"{field}={targets!r}: allowed are the presets {', '.join([AUTO, *presets])}, "
            f"or names of layers that an adapter can wrap: {layers}"
        )
    chosen = tuple(name for name in found if layout.blocks[layout.depth(name) - 1] in within)
    if not chosen:
        raise ValueError(f"num_blocks={num_blocks}: {field}={targets!r} lie in none of the last {num_blocks} blocks")
    return chosen


def convolutions(model: nn.Module, names: tuple[str, ...]) -> list[str]:
    """Those of the layers that are convolutions."""
    return [name for name in names if isinstance(model.get_submodule(name), nn.Conv2d)]


def only_linear(strategy: str, model: nn.Module, names: tuple[str, ...]) -> tuple[str, ...]:
    """The names, where all are linear layers.

    Raises:
        NotApplicable: some are convolutions.
    """
    if found := convolutions(model, names):
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        raise NotApplicable(
            f"{strategy} adapts linear layers only; {', '.join(found[:3])}{more} are convolutions "
            "(lora and dora adapt those)"
        )
    return names


def is_stored_transposed(model: nn.Module, names: tuple[str, ...]) -> bool:
    """Whether the layers hold their weights as (in, out), as GPT-2's do."""
    return any(isinstance(model.get_submodule(name), Conv1D) for name in names)


def layer_sizes(model: nn.Module, names: tuple[str, ...]) -> list[tuple[int, int]]:
    """Inputs and outputs of each layer; of a convolution, area of the kernel times channels in."""
    sizes = []
    for name in names:
        layer: Any = model.get_submodule(name)
        if isinstance(layer, nn.Conv2d):
            sizes.append((math.prod(layer.kernel_size) * layer.in_channels, layer.out_channels))
        else:
            transposed = isinstance(layer, Conv1D)
            inputs, outputs = layer.weight.shape if transposed else layer.weight.shape[::-1]
            sizes.append((inputs, outputs))
    return sizes


def inject(tuner: type[BaseTuner], config: Any, model: nn.Module, layout: Layout) -> nn.Module:
    """Wrap the layers that ``config`` names, in place; adapters and head train, the rest is frozen."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    tuner(model, config, "default")
    for name, parameter in model.named_parameters():
        if layout.is_head(name):
            parameter.requires_grad_(True)
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            module.train(model.training)  # new modules are in training mode
    return model


def is_adaptable(module: nn.Module) -> bool:
    """Whether a layer only multiplies by its weight, so that an update beside it can be merged into the weight.

    Weight-standardised and grouped convolutions do more, and so does the output of ``nn.MultiheadAttention``.
    """
    # Subclasses may use their weight in other ways; timm's Conv2dSame only pads differently.
    if isinstance(module, nn.Conv2d):
        plain = type(module) is nn.Conv2d or type(module).__module__ == "timm.layers.conv2d_same"
        return plain and module.groups == 1 and module.padding_mode == "zeros"
    return type(module) in (nn.Linear, Conv1D)
