"""``zero_shot``: nothing trains. A reference: what the pretrained model knows of the labels already."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from strategies.base import Layout, Strategy

__all__ = ["ZeroShot"]


@dataclass(frozen=True)
class ZeroShot(Strategy):
    """Choose the label whose description fits an item best, as the pretrained model sees it.

    It is scored once and stands beside the trained strategies at 0 parameters; there is nothing to search. How the
    fit is measured depends on the model: see ``sweeper/models/zero_shot.py``.

    Attributes:
        template: sentence around a label's description, with ``{}`` in its place; ``None`` = "a photo of {}" around
            the bare names of image classes, and nothing around anything else.
    """

    name: ClassVar[str] = "zero_shot"
    trains: ClassVar[bool] = False
    template: str | None = None

    def __post_init__(self) -> None:
        if self.template is not None and self.template.count("{}") != 1:
            raise ValueError(f"template={self.template!r}: must hold {{}} once, the place of a label's description")

    def sentence(self, *, names_of_images: bool) -> str:
        """The template that is used; a caption fits an image better than a word (Radford et al. 2021, 3.1.4)."""
        return self.template or ("a photo of {}" if names_of_images else "{}")

    def prepare(self, model: nn.Module, layout: Layout) -> nn.Module:
        """Freeze everything, the head too."""
        return model.requires_grad_(False)
