"""``gradual``: the head first, then blocks from the top, in stages."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from strategies.base import BackboneStrategy, Layout, Stage, parse_numbers, set_trainable, split_list

__all__ = ["Gradual"]

ALL = "all"


@dataclass(frozen=True)
class Gradual(BackboneStrategy):
    """Unfreeze the backbone from the top in stages (Howard & Ruder 2018, section 3.3, arXiv:1801.06146).

    The three lists have one entry for each stage. The epochs of a run are divided by ``epoch_shares``, every stage
    getting at least one.

    Attributes:
        num_blocks: how many blocks train, counted from the head, increasing: whole numbers separated by commas, 0 for
            the head alone, ``all`` for everything, the stem included.
        epoch_shares: numbers above 0, in proportion to each other.
        learning_rate_factors: numbers above 0, times the run's learning rate.
    """

    name: ClassVar[str] = "gradual"
    num_blocks: str = "0,2,all"
    epoch_shares: str = "1,1,1"
    learning_rate_factors: str = "1,0.1,0.01"

    def prepare(self, model: nn.Module, layout: Layout) -> nn.Module:
        """Unfreeze what the last stage trains.

        Raises:
            ValueError: the model has fewer blocks than a stage asks for.
        """
        parts = self.stages(layout)[-1].parts
        if parts is None:
            return model.requires_grad_(True)
        set_trainable(model, parts)
        return model

    def stages(self, layout: Layout) -> list[Stage]:
        """One for each entry of the lists."""
        return [
            Stage(share, factor, None if count == ALL else self._parts(int(count), layout))
            for count, share, factor in zip(
                split_list(self.num_blocks),
                parse_numbers(self.epoch_shares),
                parse_numbers(self.learning_rate_factors),
                strict=True,
            )
        ]

    def _parts(self, number: int, layout: Layout) -> tuple[str, ...]:
        return (*layout.head, *layout.top, *layout.last_blocks(number)) if number else layout.head

    def _problems(self) -> list[str]:
        problems = super()._problems()
        counts = split_list(self.num_blocks)
        order = [math.inf if count == ALL else int(count) if count.isdigit() else -1 for count in counts]
        if not counts or -1 in order or any(later <= earlier for earlier, later in itertools.pairwise(order)):
            problems.append(
                f"num_blocks={self.num_blocks}: must be increasing whole numbers from 0, the last may be {ALL}"
            )
        for field in ("epoch_shares", "learning_rate_factors"):
            given = getattr(self, field)
            if len(parse_numbers(given)) != len(counts):
                problems.append(f"{field}={given}: must be {len(counts)} numbers above 0, one for each of num_blocks")
        return problems
