"""``lp_ft``: a linear probe first, then everything."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from strategies.base import BackboneStrategy, Layout, Stage

__all__ = ["LpFt"]


@dataclass(frozen=True)
class LpFt(BackboneStrategy):
    """Train the head alone, then everything from there (Kumar et al. 2022, section 3.4, arXiv:2202.10054).

    A head that fits keeps the first gradients from distorting the pretrained features.

    Attributes:
        probe_share: part of the epochs that the head trains alone, in (0, 1); at least one epoch.
        probe_lr_multiplier: the head's learning rate meanwhile, over the run's, which is that of fine-tuning.
    """

    name: ClassVar[str] = "lp_ft"
    probe_share: float = 1 / 3
    probe_lr_multiplier: float = 100.0

    def prepare(self, model: nn.Module, layout: Layout) -> nn.Module:
        """Unfreeze everything, as the second stage does."""
        return model.requires_grad_(True)

    def stages(self, layout: Layout) -> list[Stage]:
        """The probe and the fine-tuning."""
        # The first stage undoes the head's multiplier, which is meant for fine-tuning.
        probe = Stage(self.probe_share, self.probe_lr_multiplier / self.head_lr_multiplier, layout.head)
        return [probe, Stage(1 - self.probe_share)]

    def _problems(self) -> list[str]:
        problems = super()._problems()
        if not 0 < self.probe_share < 1:
            problems.append(f"probe_share={self.probe_share}: must be above 0 and below 1")
        if self.probe_lr_multiplier <= 0:
            problems.append(f"probe_lr_multiplier={self.probe_lr_multiplier}: must be above 0")
        return problems
