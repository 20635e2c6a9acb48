"""The adapter of a saved model apart from it: written for peft, and put on the pretrained model again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from transformers import AutoConfig

from sweeper.assets import ASSETS, fetch
from sweeper.errors import ConfigError
from sweeper.models.predictor import Manifest
from sweeper.models.pretrained import load_model

if TYPE_CHECKING:
    from peft import PeftModel

__all__ = ["ADAPTER", "load_adapters", "save_adapter"]

ADAPTER = "adapter"  # folder in that of a saved model


def save_adapter(
    folder: Path, config: Any, tensors: Mapping[str, torch.Tensor], *, source: str, revision: str | None
) -> None:
    """Write an adapter as ``PeftModel.from_pretrained`` reads it.

    Args:
        folder: created.
        config: of peft.
        tensors: adapter and head, by the names that ``PeftModel`` stores them under.
        source: the pretrained model, as a name on the hub or a folder.
        revision: its commit.
    """
    folder.mkdir(parents=True)
    config.base_model_name_or_path, config.revision = source, revision
    config.save_pretrained(folder)
    stored = {name: tensor.clone().contiguous() for name, tensor in tensors.items()}
    save_file(stored, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def load_adapters(folders: Mapping[str, str | Path], *, source: str | Path | None = None) -> PeftModel:
    """Put the adapters of several saved models on one copy of their pretrained model.

    ``set_adapter(name)`` of what is returned switches between them, heads included. A native head needs none of this
    project: ``PeftModel.from_pretrained(model, f"{folder}/adapter")`` and ``load_adapter`` do the same.

    Args:
        folders: name of an adapter -> folder of a saved model that has one.
        source: the pretrained model where it lies now, a folder or a name on the hub; ``None`` = as recorded.

    Raises:
        ConfigError: a folder has no adapter, they differ in the model, the head or the classes, or the pretrained model
            cannot be read.
    """
    from peft import PeftModel

    problems, bases = [], {}
    for name, folder in folders.items():
        manifest = Manifest.read(folder)
        if manifest is None or manifest.adapter is None:
            problems.append(f"{name}: {folder} holds no model with an adapter of its own")
        else:
            named = AutoConfig.from_pretrained(folder, trust_remote_code=False).id2label  # in the file 10 is before 2
            labels = [label for _, label in sorted(named.items())]
            bases[name] = {**manifest.base, "modality": manifest.modality, "labels": labels}
    if len({repr(base) for base in bases.values()}) > 1:
        problems.append(
            "they differ in what they adapt: " + "; ".join(f"{name}: {base}" for name, base in bases.items())
        )
    if problems or not bases:
        raise ConfigError(
            problems or "no folder is named",
            "Name folders of models trained by lora, dora, rslora, pissa, ia3 or vera from one pretrained model.",
        )
    (first, folder), *others = folders.items()
    base = bases[first]
    pretrained = load_model(
        _where(source or base["source"]),
        modality=base["modality"],
        head=base["head"],
        pooling=base["pooling"],
        label_names=base["labels"],
        revision=base["revision"],
    )
    model = PeftModel.from_pretrained(pretrained.model, str(Path(folder, ADAPTER)), adapter_name=first)
    for name, other in others:
        model.load_adapter(str(Path(other, ADAPTER)), adapter_name=name)
    return model.eval()


def _where(source: str | Path) -> str:
    """A name on the hub, or the folder of the embedded model that is published under it."""
    embedded = next((name for name, asset in ASSETS.items() if asset.published == str(source)), None)
    return str(source) if embedded is None else str(fetch(embedded))
