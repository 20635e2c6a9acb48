"""``prefix``: the head and virtual tokens at the input of every block train."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from strategies.base import BackboneStrategy, Layout, addition, set_trainable
from strategies.prompt import require_text

__all__ = ["Prefix"]


@dataclass(frozen=True)
class Prefix(BackboneStrategy):
    """Train what every block's attention sees at n positions before the text, and the head.

    Li & Liang 2021 (section 4, arXiv:2101.00190) learn keys and values of these positions directly. Here they are
    computed: each of L blocks has learned hidden vectors (n, d), which take the place of the virtual positions at its
    input and pass through its frozen projections to keys and values. These are deep prompts, as in P-Tuning v2 (Liu et
    al. 2022, section 3, arXiv:2110.07602) and VPT-deep (Jia et al. 2022, section 3.2, arXiv:2203.12119), without
    reparameterisation: ``L n d`` parameters, half as many as keys and values would have. What a block computes at the
    virtual positions is dropped.

    The text moves n positions to the right, and the pooling sees the text alone. The vectors start from a normal
    distribution, so that it does not start as the pretrained model. Text only.

    Attributes:
        num_tokens: n; a text must still fit into the model's positions beside them.
    """

    name: ClassVar[str] = "prefix"
    num_tokens: int = 20

    def prepare(self, model: nn.Module, layout: Layout) -> nn.Module:
        """Let the model put virtual tokens at the input of its blocks, and freeze the rest but the head.

        Raises:
            NotApplicable: the model reads no texts, or cannot carry them.
            ValueError: its positions are too few.
        """
        require_text(model, layout)
        addition(model, "add_virtual_tokens")(self.num_tokens, layout.blocks, init="normal")
        set_trainable(model, (*layout.head, *(f"{block}.virtual_tokens" for block in layout.blocks)))
        return model

    def closed_form_params(self, model: nn.Module, layout: Layout) -> int:
        """``L n d``: virtual tokens of every block times the width of its hidden states."""
        backbone: Any = model.get_submodule(layout.backbone)
        return len(layout.blocks) * self.num_tokens * int(backbone.config.hidden_size)

    def _problems(self) -> list[str]:
        problems = super()._problems()
        if self.num_tokens < 1:
            problems.append(f"num_tokens={self.num_tokens}: must be at least 1 (frozen trains the head alone)")
        return problems
