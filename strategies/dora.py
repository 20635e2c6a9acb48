"""``dora``: LoRA on the direction of each weight, and its magnitude apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from strategies.base import Layout
from strategies.injection import convolutions, layer_sizes
from strategies.lora import Lora

__all__ = ["Dora"]


@dataclass(frozen=True)
class Dora(Lora):
    """Train ``m (W + s B A) / ||W + s B A||`` with W frozen and s = alpha / rank (Liu et al. 2024, arXiv:2402.09353).

    The norm is that of each output's row of weights, and a constant to the gradient (equation 5, section 4.3). The
    magnitude m starts as ``||W||``: one parameter per output of a layer more than LoRA. Its gradients do not pass
    through the norm, so that it costs about the time of a second product with the weight.

    Attributes:
        dropout: as in ``lora``; none beside convolutions, where peft would repeat the convolution with torch's padding,
            which is not that of every layer.
    """

    name: ClassVar[str] = "dora"
    options: ClassVar[Mapping[str, Any]] = {"use_dora": True}

    def closed_form_params(self, model: nn.Module, layout: Layout) -> int:
        """LoRA's, and one magnitude for each output."""
        magnitudes = sum(outputs for _, outputs in layer_sizes(model, self._targets(model, layout)))
        return super().closed_form_params(model, layout) + magnitudes

    def _adapt(self, model: nn.Module, layout: Layout, names: tuple[str, ...]) -> nn.Module:
        without_dropout = convolutions(model, names)
        super()._adapt(model, layout, names)
        for name in without_dropout:
            layer: Any = model.get_submodule(name)
            layer.lora_dropout["default"] = nn.Identity()
        return model

    def _is_decayed(self, name: str, parameter: nn.Parameter) -> bool:
        return super()._is_decayed(name, parameter) and "lora_magnitude_vector" not in name
