"""``adapter``: the head and a small bottleneck after each block train."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from strategies.base import BackboneStrategy, Layout, addition, set_trainable

__all__ = ["Adapter"]


@dataclass(frozen=True)
class Adapter(BackboneStrategy):
    """Train ``h + up(gelu(down(h)))`` after frozen blocks, and the head (Houlsby et al. 2019, section 2, 1902.00751).

    There is one adapter after each block (Pfeiffer et al. 2021, arXiv:2005.00247), not one after each of its two
    sublayers. With hidden states of width d and m = d // reduction, an adapter has ``2 d m + m + d`` parameters; ``up``
    starts at zero, so that it starts as the identity. On feature maps (batch, d, h, w) the two layers are 1x1
    convolutions with as many parameters.

    Attributes:
        reduction: d over m; m is at least 1.
        num_blocks: how many blocks get an adapter, counted from the head; None = all of them.
    """

    name: ClassVar[str] = "adapter"
    reduction: int = 16
    num_blocks: int | None = None

    def prepare(self, model: nn.Module, layout: Layout) -> nn.Module:
        """Let the model put adapters after its blocks, and freeze the rest but the head.

        Raises:
            NotApplicable: the model cannot carry them.
            ValueError: it has fewer blocks.
        """
        add_adapters = addition(model, "add_adapters")
        blocks = layout.last_blocks(self.num_blocks)
        add_adapters(blocks, self.reduction)
        set_trainable(model, (*layout.head, *(f"{block}.adapter" for block in blocks)))
        return model

    def closed_form_params(self, model: nn.Module, layout: Layout) -> int | None:
        """``2 d m + m + d`` for each adapter; None for images, whose width d may change from block to block."""
        backbone: Any = model.get_submodule(layout.backbone)
        if backbone.main_input_name != "input_ids":
            return None
        width = int(backbone.config.hidden_size)
        bottleneck = max(1, width // self.reduction)
        return len(layout.last_blocks(self.num_blocks)) * (2 * width * bottleneck + bottleneck + width)

    def _problems(self) -> list[str]:
        problems = super()._problems()
        if self.reduction < 1:
            problems.append(f"reduction={self.reduction}: must be at least 1")
        return problems
