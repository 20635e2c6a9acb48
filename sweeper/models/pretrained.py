"""Pretrained text and image models: loaded once per process, copied and given a fresh head for each trial."""

from __future__ import annotations

import copy
import difflib
import hashlib
import pickle
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
)

from strategies.base import Layout
from sweeper.errors import ConfigError
from sweeper.hub import commit_of
from sweeper.models.classifier import Classifier, ClassifierConfig, pooled, without_pooler
from sweeper.models.image_size import set_image_size
from sweeper.models.layout import find_layout
from sweeper.models.preprocessing import preprocessing_of, with_image_size

__all__ = ["Pretrained", "load_model", "timm_repository"]


#: What the libraries raise on checkpoints that are broken, foreign or of another kind than asked for.
_UNREADABLE = (
    *(OSError, ImportError, ValueError, TypeError, KeyError, IndexError, AttributeError, RuntimeError, AssertionError),
    pickle.UnpicklingError,
)


@dataclass(frozen=True)
class Pretrained:
    """A pretrained classifier whose head is not trained yet, with what prepares its inputs and with its layout.

    Attributes:
        model: in eval mode.
        modality: ``text`` or ``image``.
        processor: the model's own tokenizer or image processor.
        layout: the model's parts.
        fingerprint: changes with the weights: a hash of the files of a folder, the commit of a hub model.
        revision: that commit, ``None`` for a folder.
    """

    model: PreTrainedModel
    modality: str
    processor: Any
    layout: Layout
    fingerprint: str
    revision: str | None

    def fresh(self, seed: int, shared: Collection[str] = ()) -> PreTrainedModel:
        """A copy with a head initialised from ``seed``; the backbone's weights are the pretrained ones.

        Args:
            seed: of the head.
            shared: names of parameters whose values are not copied, because nothing will change them.
        """
        parameters = self.model.named_parameters()
        model = copy.deepcopy(
            self.model, {id(value): nn.Parameter(value.data) for name, value in parameters if name in shared}
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for name in self.layout.head:
                _initialise(model, model.get_submodule(name))
        return model

    def unchanged(self, model: nn.Module) -> frozenset[str]:
        """Names of the parameters of a copy that are still what they are here."""
        own = dict(self.model.named_parameters())
        return frozenset(
            name
            for name, value in model.named_parameters()
            if name in own and own[name].dtype == value.dtype and torch.equal(own[name].to(value.device), value)
        )

    def save(self, model: PreTrainedModel, folder: str | Path, *, max_length: int | None = None) -> None:
        """Save a trained copy with its tokenizer or image processor, as a checkpoint of transformers.

        Args:
            model: the copy.
            folder: where to.
            max_length: tokens at which the saved tokenizer cuts texts, where the copy holds fewer than the model did.
        """
        # Under timm's own names timm reads them too, as transformers reads timm's.
        timms: dict[str, Any] = {"state_dict": _named_by_timm(model)} if hasattr(model, "timm_model") else {}
        model.save_pretrained(folder, **timms)
        processor = copy.deepcopy(self.processor)
        if max_length is not None:
            processor.model_max_length = min(processor.model_max_length, max_length)
        processor.save_pretrained(folder)  # timm's saves nothing: it lies in the model's configuration


def load_model(
    source: str | Path,
    *,
    modality: str,
    head: str,
    pooling: str,
    label_names: Sequence[str],
    revision: str | None = None,
    image_size: int | None = None,
) -> Pretrained:
    """Load a checkpoint through transformers, timm's through its wrapper.

    Of a model with a text and a vision tower (CLIP, SigLIP), images take the vision tower.

    Args:
        source: a folder with a checkpoint, or a name on the hub.
        modality: ``text`` or ``image``.
        head: ``linear``, ``mlp``, or ``native``, the head of the architecture's own classifier.
        pooling: ``mean``, ``first``, ``max`` or ``native``; a native head brings its own.
        label_names: the classes in the order of their ids; they go into the checkpoint as ``id2label``.
        revision: a commit or tag on the hub.
        image_size: of the square images that the processor gives; ``None`` = what the model was trained with.

    Raises:
        ConfigError: the checkpoint cannot be read or lacks weights, pooling and head do not fit the architecture, or
            it has no blocks.
    """
    id2label = dict(enumerate(label_names))
    label2id = {label: index for index, label in id2label.items()}
    labels: dict[str, Any] = {"num_labels": len(id2label), "id2label": id2label, "label2id": label2id}
    commit = None if Path(source).is_dir() else commit_of(str(source), revision)
    at: dict[str, Any] = {"revision": commit or "main", "trust_remote_code": False}
    try:
        config = AutoConfig.from_pretrained(source, **at)
        if config.model_type == ClassifierConfig.model_type:
            raise ValueError("it is a classifier that was trained here; name the model it was trained from")
        processor, inputs = _text_inputs(source, at) if modality == "text" else _image_inputs(source, at, image_size)
        own = _without_classes(config)
        if head == "native":
            auto: Any = AutoModelForSequenceClassification if modality == "text" else AutoModelForImageClassification
            model, missing = _read(auto, source, at, ignore_mismatched_sizes=True, **labels, **own)
            _resize(model, image_size)
        else:
            body, missing = _read(AutoModel, source, at, **_body_arguments(config, modality, pooling), **own)
            _resize(body, image_size)
            missing = {f"backbone.{name}" for name in missing}
            with torch.no_grad():  # a pooling or a padding that does not work shows here, not in the first trial
                features = pooled(body, pooling, inputs).shape[1]
            settings = ClassifierConfig(
                backbone={key: value for key, value in body.config.to_dict().items() if key != "_name_or_path"},
                head=head,
                pooling=pooling,
                features=features,
                **_processor_settings(body.config),
                **labels,
            )
            model = Classifier(settings, body)
        if modality == "text":
            model.config.pad_token_id = processor.pad_token_id  # a decoder's own classifier looks for it
        else:
            nn.Module.to(model, memory_format=torch.channels_last)  # in which convolutions are fast
            if hasattr(model.config, "label_names"):
                model.config.label_names = list(label_names)  # timm's; those of the checkpoint, else
        backbone, heads = _backbone_and_head(model)
        layout = find_layout(model.eval(), backbone, heads, inputs)
        _check_complete(layout, missing)
    except _UNREADABLE as error:
        reads = "tokenizer" if modality == "text" else "image processor"
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        hint = f"Give a folder with config.json, weights and {reads} (model.path), or a hub name within reach."
        if "trust_remote_code" in str(error):
            reason = "it brings Python code of its own, which is never run"
            hint = "Choose a model whose architecture transformers or timm has."
        elif isinstance(error, pickle.UnpicklingError):
            reason = "its pickled weights hold more than tensors, which is never read: loading it could run any code"
            hint = "Choose a copy of the model with safetensors."
        raise ConfigError(f"model {str(source)!r} cannot be loaded: {reason}", hint) from error
    return Pretrained(model, modality, processor, layout, commit or _fingerprint(Path(source)), commit)


def timm_repository(name: str) -> str:
    """The repository on the hub of a model that timm names, such as ``resnet50.tv2_in1k``; without a tag, its default.

    Raises:
        ConfigError: timm has no weights of that name.
    """
    import timm  # takes seconds, which other models do without

    try:
        settings = timm.models.get_pretrained_cfg(name)
    except RuntimeError:  # the architecture exists, without that tag
        settings = None
    if settings is None or not settings.hf_hub_id:
        close = difflib.get_close_matches(name, timm.list_pretrained(), n=5, cutoff=0.4)
        raise ConfigError(
            f"model.name={name}: timm {timm.__version__} has no weights of that name"
            + (f"; did you mean {', '.join(close)}?" if close else ""),
            "`timm.list_pretrained()` lists them all.",
        )
    return str(settings.hf_hub_id)


def _text_inputs(source: str | Path, at: dict[str, Any]) -> tuple[Any, dict[str, torch.Tensor]]:
    """The tokenizer, which can pad, and a small padded batch."""
    tokenizer = AutoTokenizer.from_pretrained(source, **at)
    if tokenizer.pad_token is None:  # decoders are trained without one
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer, dict(tokenizer(["a", "a b"], padding=True, return_tensors="pt"))


def _image_inputs(
    source: str | Path, at: dict[str, Any], image_size: int | None
) -> tuple[Any, dict[str, torch.Tensor]]:
    """The image processor and a small batch."""
    from transformers import AutoImageProcessor  # brings torchvision, which takes seconds

    processor = AutoImageProcessor.from_pretrained(source, **at)
    if image_size is not None:
        processor = with_image_size(processor, image_size)
    preprocessing = preprocessing_of(processor)
    images = [preprocessing.geometry(Image.new("RGB", (32, 32), shade)) for shade in ("black", "white")]
    return processor, {"pixel_values": preprocessing.normalise(torch.stack(images))}


def _resize(model: PreTrainedModel, image_size: int | None) -> None:
    if image_size is not None:
        set_image_size(model, image_size)


def _without_classes(config: PretrainedConfig) -> dict[str, Any]:
    """What keeps timm's wrapper from setting the number of classes twice, where timm recorded it with the model."""
    recorded: dict[str, Any] = getattr(config, "model_args", None) or {}
    if "num_classes" not in recorded:
        return {}
    return {"model_args": {name: value for name, value in recorded.items() if name != "num_classes"}}


def _body_arguments(config: PretrainedConfig, modality: str, pooling: str) -> dict[str, Any]:
    """What makes ``AutoModel`` load the part that is asked for, without a pooler that nothing reads."""
    arguments: dict[str, Any] = {}
    if modality == "image" and hasattr(config, "vision_config"):
        config = arguments["config"] = config.vision_config
    if pooling == "native":
        return arguments
    if config.model_type == "timm_wrapper":
        return {**arguments, "do_pooling": False}
    return {**arguments, **without_pooler(config.model_type)}


def _read(auto: Any, source: str | Path, at: dict[str, Any], **arguments: Any) -> tuple[PreTrainedModel, set[str]]:
    """A model in fp32, and the names of the weights that the checkpoint lacks."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # what is missing is the same in every process, as recorded states assume
        model, report = auto.from_pretrained(source, dtype=torch.float32, output_loading_info=True, **at, **arguments)
    if hasattr(model.config, "use_cache"):
        model.config.use_cache = False  # the keys and values that a decoder keeps serve generation only
    return model.eval(), set(report["missing_keys"])


def _processor_settings(config: PretrainedConfig) -> dict[str, Any]:
    """What timm's image processor reads from the configuration of the whole model, where it has no file of its own."""
    if config.model_type != "timm_wrapper":
        return {}
    return {
        "image_processor_type": "TimmWrapperImageProcessor",
        "architecture": config.architecture,
        "pretrained_cfg": config.pretrained_cfg,
    }


def _backbone_and_head(model: Any) -> tuple[str, tuple[str, ...]]:
    """Dotted names of the pretrained part and of the newly initialised modules; see ``Layout``."""
    if hasattr(model, "timm_model"):  # timm's classifiers are one module, with the head inside
        classifiers = model.timm_model.get_classifier()
        wanted = [id(part) for part in (classifiers if isinstance(classifiers, tuple) else (classifiers,))]
        return "", tuple(name for name, part in model.named_modules() if id(part) in wanted)
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    backbone = model.base_model_prefix
    if backbone not in sizes:  # CLIP's prefix is the pair of towers, its classifier has one
        backbone = max(sizes, key=lambda name: sizes[name])
    return backbone, tuple(name for name, size in sizes.items() if name != backbone and size)


def _named_by_timm(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {name.removeprefix("timm_model."): tensor for name, tensor in model.state_dict().items()}


def _check_complete(layout: Layout, missing: set[str]) -> None:
    """Refuse blocks and stems with random weights: the checkpoint is of another model."""
    lacking = sorted(name for name in missing if layout.depth(name) <= len(layout.blocks))
    if lacking:
        raise ValueError(f"the checkpoint lacks {len(lacking)} of the backbone's weights, such as {lacking[0]}")


def _fingerprint(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*")):
        if path.suffix in (".json", ".safetensors", ".bin", ".txt", ".model", ".jinja"):  # weights and tokenizer
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def _initialise(model: PreTrainedModel, head: nn.Module) -> None:
    """Give every layer of the head new weights, by the architecture's own rule where the head is native."""
    for module in head.modules():
        if isinstance(model, Classifier):
            if callable(reset := getattr(module, "reset_parameters", None)):
                reset()
        else:
            for parameter in module.parameters(recurse=False):
                parameter._is_hf_initialized = False  # type: ignore[attr-defined]
            model._init_weights(module)
