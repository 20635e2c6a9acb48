"""``frozen``: feature extraction. Only the head trains, on what the pretrained backbone computes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from strategies.base import Layout, Strategy, set_trainable

__all__ = ["Frozen"]


@dataclass(frozen=True)
class Frozen(Strategy):
    """Train the head alone: the linear probe where the head is linear (Alain & Bengio 2016, arXiv:1610.01644)."""

    name: ClassVar[str] = "frozen"

    def prepare(self, model: nn.Module, layout: Layout) -> nn.Module:
        """Freeze everything but the head."""
        set_trainable(model, layout.head)
        return model

    def closed_form_params(self, model: nn.Module, layout: Layout) -> int:
        """Nothing."""
        return 0
