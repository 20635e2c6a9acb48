"""``vera``: vectors that scale random matrices, which all layers share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from strategies.base import Layout
from strategies.injection import AUTO, Injected, find_targets, inject, is_stored_transposed, layer_sizes, only_linear

__all__ = ["Vera"]


@dataclass(frozen=True)
class Vera(Injected):
    """Train ``W + diag(b) B diag(d) A`` with W, A and B frozen, and the head (Kopiczko et al. 2024, arXiv:2310.11454).

    A (rank, in_features) and B (out_features, rank) are random and the same in every layer, cut to its size; b starts
    at zero, so that the model starts as the pretrained one (section 3.1). A wrapped layer trains
    ``rank + out_features`` parameters. A and B follow from a seed drawn from torch's generator, and are gone after
    merging: of a trained model, the vectors and that seed would be all there is to store. Linear layers only.

    Attributes:
        rank: of the random matrices; an order of magnitude above LoRA's.
        d_initial: what d starts at; small values are best (table 6).
        dropout: probability of dropping an input of A, in [0, 1).
        targets: as in ``lora``.
        num_blocks: only in that many blocks, counted from the head; None = in all.
    """

    name: ClassVar[str] = "vera"
    rank: int = 256
    d_initial: float = 0.1
    dropout: float = 0.0
    targets: str = AUTO
    num_blocks: int | None = None

    def prepare(self, model: nn.Module, layout: Layout) -> nn.Module:
        """Put the vectors beside the target layers, in place, and freeze the rest but the head.

        Raises:
            NotApplicable: a target is a convolution.
            ValueError: no layer of the blocks goes by a name in ``targets``, or the model has fewer blocks.
        """
        from peft import VeraConfig
        from peft.tuners.vera import VeraModel

        names = only_linear(self.name, model, find_targets(layout, self.targets, self.num_blocks))
        config = VeraConfig(
            r=self.rank,
            d_initial=self.d_initial,
            vera_dropout=self.dropout,
            target_modules=list(names),
            fan_in_fan_out=is_stored_transposed(model, names),
            projection_prng_key=int(torch.randint(2**31, ())),
        )
        return inject(VeraModel, config, model, layout)

    def closed_form_params(self, model: nn.Module, layout: Layout) -> int:
        """``rank + outputs``, summed over the target layers."""
        names = find_targets(layout, self.targets, self.num_blocks)
        return sum(self.rank + outputs for _, outputs in layer_sizes(model, names))

    def _problems(self) -> list[str]:
        problems = super()._problems()
        if self.rank < 1:
            problems.append(f"rank={self.rank}: must be at least 1")
        if self.d_initial == 0:
            problems.append(f"d_initial={self.d_initial}: must not be 0: with b at zero too, nothing would ever train")
        if not 0 <= self.dropout < 1:
            problems.append(f"dropout={self.dropout}: must be at least 0 and below 1")
        return problems
