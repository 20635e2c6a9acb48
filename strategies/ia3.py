"""``ia3``: vectors that scale keys, values and the inside of the feed-forward layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from strategies.base import Layout, NotApplicable
from strategies.injection import AUTO, Injected, find_targets, inject, is_stored_transposed, layer_sizes, only_linear

__all__ = ["Ia3"]

#: Names that attention's key and value projections go by; fused ones scale the query with them, as in peft.
_KEYS_AND_VALUES = frozenset(
    [
        *("key", "k_lin", "k_proj", "key_proj", "k"),
        *("value", "v_lin", "v_proj", "value_proj", "v"),
        *("kv", "qkv", "c_attn", "query_key_value", "Wqkv", "in_proj"),
    ]
)


@dataclass(frozen=True)
class Ia3(Injected):
    """Train vectors that scale keys, values and the input of each block's last linear layer, and the head.

    The vectors start at one, so that the model starts as the pretrained one. A block trains
    ``keys + values + intermediate size`` parameters (Liu et al. 2022, section 3.3, arXiv:2205.05638). The last linear
    layer of a block is the one that brings the feed-forward part back to the model's width, in every architecture.

    Attributes:
        targets: the layers whose outputs are scaled: ``auto`` = keys and values by the names they usually have, or
            layer names separated by commas.
        feedforward: the layers whose inputs are scaled: ``auto`` = the last linear layer of each block, or layer names.
        num_blocks: only in that many blocks, counted from the head; None = in all.
    """

    name: ClassVar[str] = "ia3"
    targets: str = AUTO
    feedforward: str = AUTO
    num_blocks: int | None = None

    def prepare(self, model: nn.Module, layout: Layout) -> nn.Module:
        """Put the vectors beside their layers, in place, and freeze the rest but the head.

        Raises:
            NotApplicable: a layer is a convolution, or none goes by a usual name of keys or values.
            ValueError: no layer of the blocks goes by a name that was given, or the model has fewer blocks.
        """
        from peft import IA3Config
        from peft.tuners.ia3 import IA3Model

        outputs, inputs = self._outputs(model, layout), self._inputs(model, layout)
        names = only_linear(self.name, model, tuple(dict.fromkeys([*outputs, *inputs])))
        if both := sorted(set(outputs) & set(inputs)):
            raise ValueError(f"targets={self.targets!r} and feedforward={self.feedforward!r} share {', '.join(both)}")
        config = IA3Config(
            target_modules=list(names),
            feedforward_modules=list(inputs),
            fan_in_fan_out=is_stored_transposed(model, names),
        )
        return inject(IA3Model, config, model, layout)

    def closed_form_params(self, model: nn.Module, layout: Layout) -> int:
        """A scale for each output of keys and values, and for each input of the feed-forward layers."""
        outputs = sum(size for _, size in layer_sizes(model, self._outputs(model, layout)))
        return outputs + sum(size for size, _ in layer_sizes(model, self._inputs(model, layout)))

    def _outputs(self, model: nn.Module, layout: Layout) -> tuple[str, ...]:
        if self.targets != AUTO:
            return find_targets(layout, self.targets, self.num_blocks)
        every = only_linear(self.name, model, find_targets(layout, "all-linear", self.num_blocks))
        found = tuple(name for name in every if name.rpartition(".")[2] in _KEYS_AND_VALUES)
        if not found:
            has = ", ".join(dict.fromkeys(name.rpartition(".")[2] for name in every))
            raise NotApplicable(f"targets=auto: no layer goes by a usual name of keys or values; name some of {has}")
        return found

    def _inputs(self, model: nn.Module, layout: Layout) -> tuple[str, ...]:
        if self.feedforward != AUTO:
            return find_targets(layout, self.feedforward, self.num_blocks, field="feedforward")
        every = find_targets(layout, "all-linear", self.num_blocks)
        return tuple({layout.depth(name): name for name in every}.values())  # the last one of each block

    def _is_decayed(self, name: str, parameter: nn.Parameter) -> bool:
        return super()._is_decayed(name, parameter) and "ia3_l" not in name  # decay would pull it to 0, not to 1
