"""Image models at another size than the one that they were trained with."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel

__all__ = ["set_image_size"]


def set_image_size(model: PreTrainedModel, size: int) -> None:
    """Make a model read square images of ``size`` pixels, in place and in its configuration.

    A vision transformer has an embedding for each place of its grid of patches; those of another grid are interpolated,
    by timm's rule (Dosovitskiy et al. 2021, arXiv:2010.11929, section 3.2) or the architecture's own of transformers.
    Models without such embeddings stay as they are: CNNs read any size, and what does not fails on the first image.

    Raises:
        ValueError: ``size`` is not a whole number of patches.
    """
    network: Any = getattr(model, "timm_model", None)
    if network is not None:
        _set_size_of_timm(model, network, size)
        return
    body: Any = next((part for part in model.modules() if hasattr(part, "interpolate_pos_encoding")), None)
    config = getattr(model.config, "vision_config", model.config)
    if body is None or not isinstance(getattr(config, "image_size", None), int) or config.image_size == size:
        return
    table = next((name for name, _ in body.named_parameters() if name.startswith("position_embedding")), None)
    if table is None:
        return
    _check_patches(size, config.patch_size)
    old = body.get_parameter(table)
    features = old.shape[-1]
    others = old.numel() // features - (config.image_size // config.patch_size) ** 2  # of the class token
    places = torch.zeros(1, others + (size // config.patch_size) ** 2, features)
    with torch.no_grad():
        interpolated = body.interpolate_pos_encoding(places, size, size)
    config.image_size = size
    renewed = type(body)(config).train(body.training)
    shape = renewed.get_parameter(table).shape
    renewed.load_state_dict({**body.state_dict(), table: interpolated.reshape(shape)})
    for part in renewed.modules():  # or else the classifier around it would initialise it anew
        part._is_hf_initialized = True
    path = next(name for name, part in model.named_modules() if part is body)
    model.set_submodule(path, renewed)


def _set_size_of_timm(model: PreTrainedModel, network: Any, size: int) -> None:
    config: Any = model.config
    if hasattr(network, "set_input_size"):
        patches = getattr(getattr(network, "patch_embed", None), "patch_size", (1, 1))
        _check_patches(size, patches[0])
        network.set_input_size(img_size=(size, size))
        # For those who load the saved model; windows may have grown with the grid.
        changed = {**(config.model_args or {}), **getattr(network, "_model_args", {}), "img_size": size}
        config.model_args = {name: value for name, value in changed.items() if name != "num_classes"}
    # The image processor has no file of its own and reads this.
    config.pretrained_cfg = {**config.pretrained_cfg, "input_size": [3, size, size]}


def _check_patches(size: int, patch: int) -> None:
    if size % patch:
        below = max(size // patch, 1) * patch
        raise ValueError(
            f"dataset.image_size={size} is no whole number of the model's patches of {patch} pixels: allowed are "
            f"multiples of {patch}, such as {below} or {below + patch}"
        )
