"""``scratch``: everything trains, from random weights. The control: what is pretraining worth?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from strategies.base import BackboneStrategy, Layout

__all__ = ["Scratch"]


@dataclass(frozen=True)
class Scratch(BackboneStrategy):
    """Train everything from the architecture's own random initialisation (He et al. 2019, arXiv:1811.08883)."""

    name: ClassVar[str] = "scratch"
    pretrained: ClassVar[bool] = False

    def prepare(self, model: nn.Module, layout: Layout) -> nn.Module:
        """Give the backbone new weights, drawn from torch's generator, and unfreeze everything."""
        backbone: Any = model.get_submodule(layout.backbone)
        if hasattr(backbone, "timm_model"):
            import timm  # takes seconds, which a text model does without

            # transformers' wrapper would initialise every layer alike; timm knows each architecture's rule.
            arguments = backbone.config.model_args or {}
            untrained: Any = timm.create_model(backbone.config.architecture, num_classes=0, **arguments)
            body: Any = backbone.timm_model
            body.load_state_dict(untrained.state_dict(), strict=False)
        else:
            untrained = type(backbone)(backbone.config)  # may bring a pooler that this backbone was loaded without
            backbone.load_state_dict(untrained.state_dict(), strict=False)
        return model.requires_grad_(True)
