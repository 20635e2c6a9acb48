"""``partial``: the head and the last blocks train, the rest stays pretrained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from strategies.base import Layout, Strategy, set_trainable

__all__ = ["Partial"]


@dataclass(frozen=True)
class Partial(Strategy):
    """Train the head, the last ``num_blocks`` blocks and what lies above them.

    The upper layers hold the features most specific to the pretraining task (Yosinski et al. 2014,
    arXiv:1411.1792), so they are the first to adapt.

    Attributes:
        num_blocks: how many blocks train, counted from the head; at least 1. With all of them the stem stays frozen.
        head_lr_multiplier: the head's learning rate over the backbone's.
    """

    name: ClassVar[str] = "partial"
    num_blocks: int = 2
    head_lr_multiplier: float = 1.0

    def __post_init__(self) -> None:
        if self.num_blocks < 1:
            raise ValueError(f"num_blocks={self.num_blocks}: must be at least 1 (frozen trains the head alone)")
        if self.head_lr_multiplier <= 0:
            raise ValueError(f"head_lr_multiplier={self.head_lr_multiplier}: must be above 0")

    def prepare(self, model: nn.Module, layout: Layout) -> nn.Module:
        """Freeze everything below the last ``num_blocks`` blocks.

        Raises:
            ValueError: the model has fewer blocks.
        """
        if self.num_blocks > len(layout.blocks):
            raise ValueError(f"num_blocks={self.num_blocks}: the model has {len(layout.blocks)} blocks")
        set_trainable(model, (*layout.head, *layout.top, *layout.blocks[-self.num_blocks :]))
        return model
