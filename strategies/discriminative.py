"""``discriminative``: everything trains, at learning rates that decay with the depth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from strategies.base import BackboneStrategy, Layout, parse_numbers

__all__ = ["Discriminative"]


@dataclass(frozen=True)
class Discriminative(BackboneStrategy):
    """Train everything, what is nearer to the input more slowly (Howard & Ruder 2018, section 3.2, arXiv:1801.06146).

    The rate falls from block to block by ``layer_decay``, or from group to group by ``group_factors``. A decay of 1
    is uniform fine-tuning.

    Attributes:
        group_factors: numbers above 0 separated by commas, times the run's learning rate: stem and blocks are cut into
            that many groups of equal depth, from the input up; None = by ``layer_decay``. What lies above the last
            block belongs to the last group, the head has its own multiplier.
    """

    name: ClassVar[str] = "discriminative"
    layer_decay: float = 0.8
    group_factors: str | None = None

    def prepare(self, model: nn.Module, layout: Layout) -> nn.Module:
        """Unfreeze everything."""
        return model.requires_grad_(True)

    def learning_rate_factor(self, parameter_name: str, layout: Layout) -> float:
        """The decay or the group's factor, and the multiplier on the head."""
        if self.group_factors is None or layout.is_head(parameter_name):
            return super().learning_rate_factor(parameter_name, layout)
        factors = parse_numbers(self.group_factors)
        levels = len(layout.blocks) + 1  # the stem is one
        depth = min(layout.depth(parameter_name), levels - 1)
        return factors[depth * len(factors) // levels]

    def _problems(self) -> list[str]:
        problems = super()._problems()
        if self.group_factors is None:
            return problems
        if not parse_numbers(self.group_factors):
            problems.append(f"group_factors={self.group_factors}: must be numbers above 0, separated by commas")
        if self.layer_decay != 1:
            problems.append(
                f"layer_decay={self.layer_decay} and group_factors={self.group_factors} exclude each other: set "
                "layer_decay=1, in strategy.search_space too, or group_factors=null"
            )
        return problems
