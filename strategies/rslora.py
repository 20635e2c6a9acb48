"""``rslora``: LoRA whose updates keep their size at high ranks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from strategies.lora import Lora

__all__ = ["RsLora"]


@dataclass(frozen=True)
class RsLora(Lora):
    """Train ``W + (alpha / sqrt(rank)) B A`` (Kalajdzievski 2023, section 3, arXiv:2312.03732).

    With alpha fixed, the size of activations and gradients does not depend on the rank, which alpha / rank lets vanish.

    Attributes:
        alpha: 8 where neither is given: at rank 16 the scale is that of ``lora``.
        alpha_ratio: alpha over rank; the scale then grows as the square root of the rank.
    """

    name: ClassVar[str] = "rslora"
    options: ClassVar[Mapping[str, Any]] = {"use_rslora": True}

    def _alpha(self) -> float:
        return 8.0 if self.alpha is None and self.alpha_ratio is None else super()._alpha()
