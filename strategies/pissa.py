"""``pissa``: LoRA that starts from the principal components of each weight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from strategies.base import Layout
from strategies.injection import only_linear
from strategies.lora import Lora

__all__ = ["Pissa"]


@dataclass(frozen=True)
class Pissa(Lora):
    """Train ``W_res + (alpha / rank) B A``, where B A starts as W's best approximation of that rank.

    With ``W = U S V^T``, A holds ``sqrt(S) V^T`` and B holds ``U sqrt(S)`` of the largest ``rank`` singular values,
    over the scale; the rest of W is frozen (Meng et al. 2024, section 3, arXiv:2404.02948). The model starts as the
    pretrained one. Linear layers only, whose smaller side is the highest rank.

    Attributes:
        alpha_ratio: 1 where neither is given, as in the paper.
        dropout: 0 by default, as in the paper: what it drops belongs to the pretrained weight.
    """

    name: ClassVar[str] = "pissa"
    options: ClassVar[Mapping[str, Any]] = {"init_lora_weights": "pissa"}
    default_alpha_ratio: ClassVar[float] = 1.0
    dropout: float = 0.0

    def _targets(self, model: nn.Module, layout: Layout) -> tuple[str, ...]:
        names = only_linear(self.name, model, super()._targets(model, layout))
        highest = min(min(model.get_parameter(f"{name}.weight").shape) for name in names)
        if self.rank > highest:
            raise ValueError(f"rank={self.rank}: must be at most {highest}, the smaller side of a target's weight")
        return names
