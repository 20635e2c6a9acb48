"""The adapter of a saved model apart from it: written for peft, and put on the pretrained model again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModel, AutoModelForImageClassification, AutoModelForSequenceClassification

from sweeper.assets import ASSETS, fetch
from sweeper.errors import ConfigError
from sweeper.models.classifier import Classifier, ClassifierConfig, without_pooler
from sweeper.models.predictor import Manifest

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
        ConfigError: a folder has no adapter, or they differ in the model, the head or the classes.
        OSError: the pretrained model cannot be read.
    """
    from peft import PeftModel

    problems, bases = [], {}
    for name, folder in folders.items():
        manifest = Manifest.read(folder)
        if manifest is None or manifest.adapter is None:
            problems.append(f"{name}: {folder} holds no model with an adapter of its own")
        else:
            bases[name] = {**manifest.base, "labels": list(AutoConfig.from_pretrained(folder).id2label.values())}
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
    base = _with_new_head(folder, _where(source or bases[first]["source"]), bases[first]["revision"])
    model = PeftModel.from_pretrained(base, str(Path(folder, ADAPTER)), adapter_name=first)
    for name, other in others:
        model.load_adapter(str(Path(other, ADAPTER)), adapter_name=name)
    return model.eval()


def _where(source: str | Path) -> str:
    """A name on the hub, or the folder of the embedded model that is published under it."""
    embedded = next((name for name, asset in ASSETS.items() if asset.published == str(source)), None)
    return str(source) if embedded is None else str(fetch(embedded))


def _with_new_head(folder: str | Path, source: str, revision: str | None) -> Any:
    """The pretrained model under the head of the model in ``folder``, whose weights the adapters bring."""
    config: Any = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    at: dict[str, Any] = {"dtype": torch.float32, "trust_remote_code": False}
    if not Path(source).is_dir():
        at["revision"] = revision or "main"
    if config.model_type == ClassifierConfig.model_type:  # by name: a packed model brings a class of its own
        config = ClassifierConfig.from_pretrained(folder)
        bare = {} if config.pooling == "native" else without_pooler(config.backbone["model_type"])
        if config.backbone["model_type"] == "timm_wrapper":
            bare = {} if config.pooling == "native" else {"do_pooling": False}
        return Classifier(config, AutoModel.from_pretrained(source, **bare, **at))
    texts = Path(folder, "tokenizer_config.json").is_file()
    auto: Any = AutoModelForSequenceClassification if texts else AutoModelForImageClassification
    labels = {"num_labels": len(config.id2label), "id2label": config.id2label, "label2id": config.label2id}
    model = auto.from_pretrained(source, ignore_mismatched_sizes=True, **labels, **at)
    if texts:
        model.config.pad_token_id = config.pad_token_id  # which decoders come without
    return model
