"""``lora``: low-rank adaptation. The head and small matrices beside frozen layers train."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from strategies.base import Layout
from strategies.injection import AUTO, Injected, find_targets, inject, is_stored_transposed, layer_sizes

__all__ = ["Lora"]


@dataclass(frozen=True)
class Lora(Injected):
    """Train ``W + (alpha / rank) B A`` with W frozen, A random and B zero at the start, and the head.

    A is (rank, in_features), B is (out_features, rank), so that a wrapped layer adds
    ``rank * (in_features + out_features)`` parameters and starts as the identity (Hu et al. 2022, section 4.1,
    arXiv:2106.09685). Beside a convolution of size k, A is one of size k with ``rank`` channels out and B one of size
    1: ``rank * (k * k * in_channels + out_channels)`` parameters. The matrices are peft's.

    Attributes:
        rank: the rank of the update; at least 1.
        alpha_ratio: alpha over rank, so that the scale stays the same over ranks; 2 where neither is given.
        alpha: the scale's numerator itself, untied from the rank; not together with ``alpha_ratio``.
        dropout: probability of dropping an input of A, in [0, 1).
        targets: ``auto`` (``attention`` where the model has it, else ``all-linear``), a preset of the layout
            (``attention`` = queries and values; ``all-linear`` = every linear layer of the blocks, in a CNN every
            convolution that is not grouped) or layer names separated by commas, such as ``query,key,value``.
        num_blocks: only in that many blocks, counted from the head; None = in all.
    """

    name: ClassVar[str] = "lora"
    #: What a variant changes in peft's configuration.
    options: ClassVar[Mapping[str, Any]] = {}
    default_alpha_ratio: ClassVar[float] = 2.0
    rank: int = 16
    alpha_ratio: float | None = None
    alpha: float | None = None
    dropout: float = 0.05
    targets: str = AUTO
    num_blocks: int | None = None

    def prepare(self, model: nn.Module, layout: Layout) -> nn.Module:
        """Put the matrices beside the target layers, in place, and freeze the rest but the head.

        Raises:
            ValueError: no layer of the blocks goes by a name in ``targets``, or the model has fewer blocks.
        """
        return self._adapt(model, layout, self._targets(model, layout))

    def closed_form_params(self, model: nn.Module, layout: Layout) -> int:
        """``rank * (inputs + outputs)``, summed over the target layers."""
        return sum(self.rank * sum(sizes) for sizes in layer_sizes(model, self._targets(model, layout)))

    def _targets(self, model: nn.Module, layout: Layout) -> tuple[str, ...]:
        return find_targets(layout, self.targets, self.num_blocks)

    def _alpha(self) -> float:
        return (self.alpha_ratio or self.default_alpha_ratio) * self.rank if self.alpha is None else self.alpha

    def _adapt(self, model: nn.Module, layout: Layout, names: tuple[str, ...]) -> nn.Module:
        from peft import LoraConfig
        from peft.tuners.lora import LoraLayer, LoraModel

        config = LoraConfig(
            r=self.rank,
            lora_alpha=self._alpha(),  # type: ignore[arg-type]
            lora_dropout=self.dropout,
            target_modules=list(names),
            fan_in_fan_out=is_stored_transposed(model, names),
            bias="none",
            **self.options,
        )
        inject(LoraModel, config, model, layout)
        for module in model.modules():
            if isinstance(module, LoraLayer) and isinstance(base := module.get_base_layer(), nn.Conv2d):
                module.lora_A["default"].dilation = base.dilation  # type: ignore[assignment]  # peft leaves it at 1
        return model

    def _problems(self) -> list[str]:
        problems = super()._problems()
        if self.rank < 1:
            problems.append(f"rank={self.rank}: must be at least 1")
        problems += [
            f"{field}={value}: must be above 0"
            for field in ("alpha_ratio", "alpha")
            if (value := getattr(self, field)) is not None and value <= 0
        ]
        if self.alpha is not None and self.alpha_ratio is not None:
            problems.append(
                f"alpha={self.alpha} and alpha_ratio={self.alpha_ratio} exclude each other: fix or search one of them "
                "and set the other to null, in strategy.search_space too"
            )
        if not 0 <= self.dropout < 1:
            problems.append(f"dropout={self.dropout}: must be at least 0 and below 1")
        return problems
