"""``qlora``: LoRA beside frozen weights of 4 or 8 bits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn
from transformers.pytorch_utils import Conv1D

from strategies.base import Layout, NotApplicable
from strategies.lora import Lora

__all__ = ["QLora"]

_INSTALL = "pip install 'thawline[quantized]'"


@dataclass(frozen=True)
class QLora(Lora):
    """Train LoRA's matrices in full precision beside linear layers that are stored in 4 or 8 bits, and the head.

    4 bits are NormalFloat in blocks of 64, whose scales are quantised again (Dettmers et al. 2023, section 3,
    arXiv:2305.14314), by bitsandbytes. 8 bits are whole numbers with one scale for each output, of the weights only
    (Dettmers et al. 2022, section 2.1, arXiv:2208.07339, quantises the inputs of a layer too). A weight is
    dequantised whenever it is used, so that memory is saved and time is not; merged and unmerged models agree.

    The model starts as the *quantised* pretrained one: near to the pretrained one, not equal to it. Every linear layer
    of the blocks is quantised, target or not; embeddings, norms, convolutions and the head are not.

    Attributes:
        bits: 4 or 8.
    """

    name: ClassVar[str] = "qlora"
    bits: int = 4

    def prepare(self, model: nn.Module, layout: Layout) -> nn.Module:
        """Quantise the blocks' linear layers and put the matrices beside the targets, in place.

        Raises:
            NotApplicable: the blocks have no linear layers, or bitsandbytes is missing or does not run on this machine.
            ValueError: no layer goes by a name in ``targets``, or the model has fewer blocks.
        """
        names = self._targets(model, layout)
        _quantise(model, layout, self.bits)
        return self._adapt(model, layout, names)

    def adapter(self, model: nn.Module, layout: Layout) -> tuple[Any, dict[str, torch.Tensor]] | None:
        """None: beside weights that are not quantised in the same way the matrices give other outputs."""
        return None

    def merge(self, model: nn.Module) -> nn.Module:
        """Dequantise, add each update to its layer and remove the matrices; the outputs stay the same."""
        from peft.tuners.lora import LoraLayer

        for name, module in list(model.named_modules()):
            if isinstance(module, _QuantisedLinear):
                model.set_submodule(name, module.plain())
        for layer in model.modules():
            if isinstance(layer, LoraLayer) and isinstance(layer.get_base_layer(), Conv1D):
                layer.fan_in_fan_out = True  # type: ignore[assignment]
        return super().merge(model)

    def _problems(self) -> list[str]:
        problems = super()._problems()
        if self.bits not in (4, 8):
            problems.append(f"bits={self.bits}: must be 4 or 8")
        return problems


class _QuantisedLinear(nn.Linear):
    """A frozen linear layer whose weight is stored in few bits.

    bitsandbytes' own layers are not used: on a CPU they compute in other precisions in evaluation than in training.
    """

    def __init__(self, layer: nn.Linear | Conv1D, bits: int) -> None:
        weight = layer.weight.detach().T.contiguous() if isinstance(layer, Conv1D) else layer.weight.detach()
        super().__init__(weight.shape[1], weight.shape[0], bias=False, device="meta")
        self.kind = type(layer)
        self.scale: torch.Tensor | None
        if bits == 4:
            from bitsandbytes.nn.modules import Params4bit

            # As one row: on a CPU bitsandbytes 0.50 dequantises shorter rows wrongly if no block of 64 ends with them.
            stored: Any = Params4bit(weight.reshape(1, -1), requires_grad=False, quant_type="nf4")
            self.weight = stored.to(weight.device)  # quantises
            self.register_buffer("scale", None)
        else:
            scale = weight.abs().amax(1, keepdim=True).clamp_min(1e-8) / 127
            self.weight = nn.Parameter((weight / scale).round().to(torch.int8), requires_grad=False)
            self.register_buffer("scale", scale)
        self.bias = layer.bias

    def dequantised(self) -> torch.Tensor:
        """The weight, (out_features, in_features)."""
        if self.scale is not None:
            return self.weight * self.scale
        import bitsandbytes

        weight: Any = self.weight
        values = bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state)
        return values.view(self.out_features, self.in_features)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """As a linear layer of the dequantised weight: (..., in_features) to (..., out_features)."""
        return _Product.apply(input, self.bias, self.dequantised)

    def plain(self) -> nn.Module:
        """A layer of the original kind, with the dequantised weight."""
        weight = self.dequantised()
        layer: Any
        if self.kind is Conv1D:
            layer = Conv1D(self.out_features, self.in_features)
            weight = weight.T.contiguous()
        else:
            layer = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
        layer.weight = nn.Parameter(weight, requires_grad=False)
        layer.bias = self.bias
        return layer


class _Product(torch.autograd.Function):
    """A linear layer that dequantises its weight again for the gradient, instead of keeping it in between."""

    @staticmethod
    def forward(
        ctx: Any, input: torch.Tensor, bias: torch.Tensor | None, weight: Callable[[], torch.Tensor]
    ) -> torch.Tensor:
        ctx.weight = weight
        return F.linear(input, weight(), bias)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return gradient @ ctx.weight().to(gradient.dtype), None, None


def _quantise(model: nn.Module, layout: Layout, bits: int) -> None:
    full_precision = getattr(model.get_submodule(layout.backbone), "_keep_in_fp32_modules", None) or ()
    found = [
        (f"{block}.{name}", module)
        for block in layout.blocks
        for name, module in model.get_submodule(block).named_modules()
        if type(module) in (nn.Linear, Conv1D) and not set(name.split(".")) & set(full_precision)
    ]
    if not found:
        raise NotApplicable("qlora quantises linear layers; the blocks of this model have none")
    if bits == 4:
        try:
            import bitsandbytes  # noqa: F401
        except (ImportError, OSError, RuntimeError) as error:
            raise NotApplicable(f"bits=4 needs bitsandbytes ({error}): {_INSTALL}; or choose bits=8") from error
    for name, module in found:
        try:
            quantised = _QuantisedLinear(module, bits)
        except (RuntimeError, NotImplementedError, OSError) as error:
            raise NotApplicable(f"bits={bits}: bitsandbytes does not run on {module.weight.device}: {error}") from error
        model.set_submodule(name, quantised)
