"""``bitfit``: the head and the backbone's biases train."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from strategies.base import BackboneStrategy, Layout, NotApplicable

__all__ = ["BitFit"]


@dataclass(frozen=True)
class BitFit(BackboneStrategy):
    """Train every bias of the backbone and the head (Ben Zaken et al. 2022, section 3, arXiv:2106.10199).

    Attributes:
        norms: also train the scales of the normalisation layers, whose biases train anyway.
    """

    name: ClassVar[str] = "bitfit"
    norms: bool = False

    def prepare(self, model: nn.Module, layout: Layout) -> nn.Module:
        """Freeze everything but the biases and the head.

        Raises:
            NotApplicable: the backbone has no such parameter.
        """
        found = False
        for name, parameter in model.named_parameters():
            # Only scales of norms have one dimension without being a bias.
            chosen = name.endswith("bias") or (self.norms and name.endswith("weight") and parameter.ndim == 1)
            parameter.requires_grad_(chosen or layout.is_head(name))
            found = found or (chosen and not layout.is_head(name))
        if not found:
            hint = "" if self.norms else "; norms=true trains the scales of its norms"
            raise NotApplicable(f"the backbone has no biases{hint}")
        return model
