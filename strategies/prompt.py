"""``prompt``: the head and virtual tokens before the text train."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from strategies.base import BackboneStrategy, Layout, NotApplicable, addition, set_trainable

__all__ = ["Prompt", "require_text"]

INITS = ("vocabulary", "normal")


@dataclass(frozen=True)
class Prompt(BackboneStrategy):
    """Train n virtual tokens before every text, and the head (Lester et al. 2021, section 2, arXiv:2104.08691).

    The model reads ``[P; E(text)]`` with P (n, d) learned and the embeddings E frozen: ``n d`` parameters. The text
    moves n positions to the right, and the pooling sees the text alone. It changes the input, so that it does not start
    as the pretrained model. Text only.

    Attributes:
        num_tokens: n; a text must still fit into the model's positions beside them.
        init: what P starts as: ``vocabulary``, embeddings of random tokens (section 2.1), or ``normal``.
    """

    name: ClassVar[str] = "prompt"
    num_tokens: int = 20
    init: str = "vocabulary"

    def prepare(self, model: nn.Module, layout: Layout) -> nn.Module:
        """Let the model put virtual tokens before its input, and freeze the rest but the head.

        Raises:
            NotApplicable: the model reads no texts, or cannot carry them.
            ValueError: its positions are too few.
        """
        require_text(model, layout)
        addition(model, "add_virtual_tokens")(self.num_tokens, init=self.init)
        set_trainable(model, layout.head)
        for name, parameter in model.named_parameters():
            if name.endswith(".virtual_tokens"):
                parameter.requires_grad_(True)
        return model

    def closed_form_params(self, model: nn.Module, layout: Layout) -> int:
        """``n d``: virtual tokens times the width of the embeddings."""
        backbone: Any = model.get_submodule(layout.backbone)
        return self.num_tokens * int(backbone.get_input_embeddings().embedding_dim)

    def _problems(self) -> list[str]:
        problems = super()._problems()
        if self.num_tokens < 1:
            problems.append(f"num_tokens={self.num_tokens}: must be at least 1 (frozen trains the head alone)")
        if self.init not in INITS:
            problems.append(f"init={self.init}: allowed are {', '.join(INITS)}")
        return problems


def require_text(model: nn.Module, layout: Layout) -> None:
    """Refuse a model that does not read token ids.

    Raises:
        NotApplicable: it does not.
    """
    reads = getattr(model.get_submodule(layout.backbone), "main_input_name", "input_ids")
    if reads != "input_ids":
        raise NotApplicable(f"text only: virtual tokens stand before token ids, and this model reads {reads}")
