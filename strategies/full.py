"""``full``: fine-tuning of every parameter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from strategies.base import Layout, Strategy

__all__ = ["Full"]


@dataclass(frozen=True)
class Full(Strategy):
    """Train everything (Devlin et al. 2019, section 3.2, arXiv:1810.04805).

    Attributes:
        head_lr_multiplier: the head's learning rate over the backbone's; the head starts from noise, the backbone
            does not.
    """

    name: ClassVar[str] = "full"
    head_lr_multiplier: float = 1.0

    def __post_init__(self) -> None:
        if self.head_lr_multiplier <= 0:
            raise ValueError(f"head_lr_multiplier={self.head_lr_multiplier}: must be above 0")

    def prepare(self, model: nn.Module, layout: Layout) -> nn.Module:
        """Unfreeze everything."""
        return model.requires_grad_(True)
