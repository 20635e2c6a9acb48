"""``full``: fine-tuning of every parameter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from strategies.base import BackboneStrategy, Layout

__all__ = ["Full"]


@dataclass(frozen=True)
class Full(BackboneStrategy):
    """Train everything (Devlin et al. 2019, section 3.2, arXiv:1810.04805)."""

    name: ClassVar[str] = "full"

    def prepare(self, model: nn.Module, layout: Layout) -> nn.Module:
        """Unfreeze everything."""
        return model.requires_grad_(True)
