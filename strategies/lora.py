"""``lora``: low-rank adaptation. The head and small matrices beside frozen layers train."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from peft import LoraConfig
from peft.tuners.lora import LoraLayer, LoraModel
from torch import nn

from strategies.base import BackboneStrategy, Layout

__all__ = ["Lora"]


@dataclass(frozen=True)
class Lora(BackboneStrategy):
    """Train ``W + (alpha / rank) B A`` with W frozen, A random and B zero at the start, and the head.

    A is (rank, in_features), B is (out_features, rank), so that a wrapped layer adds
    ``rank * (in_features + out_features)`` parameters and starts as the identity (Hu et al. 2022, section 4.1,
    arXiv:2106.09685). The matrices are peft's.

    Attributes:
        rank: the rank of the update; at least 1.
        alpha_ratio: alpha over rank, so that the scale stays the same over ranks; 2 where neither is given.
        alpha: the scale's numerator itself, untied from the rank; not together with ``alpha_ratio``.
        dropout: probability of dropping an input of A, in [0, 1).
        targets: a preset of the layout (``attention`` = queries and values, ``all-linear`` = every linear layer of
            the blocks) or layer names separated by commas, such as ``query,key,value``.
    """

    name: ClassVar[str] = "lora"
    rank: int = 16
    alpha_ratio: float | None = None
    alpha: float | None = None
    dropout: float = 0.05
    targets: str = "attention"

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

    def prepare(self, model: nn.Module, layout: Layout) -> nn.Module:
        """Put the matrices beside the target layers, in place, and freeze the rest but the head.

        Raises:
            ValueError: no layer of the blocks goes by a name in ``targets``.
        """
        LoraModel(
            model,
            LoraConfig(
                r=self.rank,
                lora_alpha=(self.alpha_ratio or 2.0) * self.rank if self.alpha is None else self.alpha,  # type: ignore[arg-type]
                lora_dropout=self.dropout,
                target_modules=list(self._target_names(layout)),
                bias="none",
            ),
            "default",
        )
        for name, parameter in model.named_parameters():
            if layout.is_head(name):
                parameter.requires_grad_(True)
        return model

    def merge(self, model: nn.Module) -> nn.Module:
        """Add each update to its frozen layer and remove the matrices; the outputs stay the same."""
        for name, module in list(model.named_modules()):
            if isinstance(module, LoraLayer):
                module.merge()
                parent, _, child = name.rpartition(".")
                setattr(model.get_submodule(parent), child, module.get_base_layer())
        return model

    def _target_names(self, layout: Layout) -> tuple[str, ...]:
        if self.targets in layout.adapter_targets:
            return layout.adapter_targets[self.targets]
        wanted = [target.strip() for target in self.targets.split(",") if target.strip()]
        linear = layout.adapter_targets.get("all-linear", ())
        found = {target: [name for name in linear if name.endswith(f".{target}")] for target in wanted}
        missing = [target for target, names in found.items() if not names]
        if missing or not wanted:
            layers = ", ".join(dict.fromkeys(name.rpartition(".")[2] for name in linear))
            presets = ", ".join(layout.adapter_targets)
            raise ValueError(f"targets={self.targets!r}: allowed are the presets {presets}, or names among {layers}")
        return tuple(name for names in found.values() for name in names)
