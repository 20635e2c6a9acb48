"""``partial``: the head and the last blocks train, the rest stays pretrained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from strategies.base import BackboneStrategy, Layout, set_trainable

__all__ = ["Partial"]


@dataclass(frozen=True)
class Partial(BackboneStrategy):
    """Train the head, the last ``num_blocks`` blocks and what lies above them.

    The upper layers hold the features most specific to the pretraining task (Yosinski et al. 2014,
    arXiv:1411.1792), so they are the first to adapt.

    Attributes:
        num_blocks: how many blocks train, counted from the head; at least 1. With all of them the stem stays frozen.
    """

    name: ClassVar[str] = "partial"
    num_blocks: int = 2

    def prepare(self, model: nn.Module, layout: Layout) -> nn.Module:
        """Freeze everything below the last ``num_blocks`` blocks.

        Raises:
            ValueError: the model has fewer blocks.
        """
        set_trainable(model, (*layout.head, *layout.top, *layout.last_blocks(self.num_blocks)))
        return model
