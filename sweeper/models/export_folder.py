"""What lies beside an exported file, so that it runs without this project: inputs' preparation, labels, a README."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import io
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from sweeper.models.predictor import EXAMPLES, MANIFEST, Predictor
from sweeper.models.preprocessing import preprocessing_of

__all__ = ["PREPROCESSING", "prepare", "sample", "steps_of", "write_company"]

PREPROCESSING = "preprocessing.json"
LEVELS = 1.0  # mean difference of pixels, of 255, up to which `prepare` gives what the model was trained on


def sample(predictor: Predictor) -> Any:
    """One input, as :meth:`Predictor.encode` takes it."""
    if predictor.manifest.modality == "image":
        return Image.new("RGB", (48, 32))
    return (EXAMPLES["text"], EXAMPLES["text"]) if predictor.manifest.pairs else EXAMPLES["text"]


def write_company(predictor: Predictor, folder: Path, file: str, record: Mapping[str, Any]) -> None:
    """Write the tokenizer's files or ``preprocessing.json``, ``thawline.json`` and ``README.md``.

    Args:
        predictor: what was exported.
        folder: of the exported file.
        file: its name, which ends in ``.onnx`` or ``.pt2``.
        record: of the export, which ``thawline.json`` keeps beside the model's own.
    """
    image = predictor.manifest.modality == "image"
    steps = steps_of(predictor.processor) if image else None
    if image:
        _write_json(folder / PREPROCESSING, steps or _settings(predictor.processor))
    else:
        tokenizer = copy.deepcopy(predictor.processor)
        if predictor.max_tokens is not None:
            tokenizer.model_max_length = predictor.max_tokens
        tokenizer.save_pretrained(folder)
    inputs = {
        name: ["batch", "tokens"] if tensor.ndim == 2 else ["batch", *tensor.shape[1:]]
        for name, tensor in predictor.encode([sample(predictor)]).items()
    }
    manifest = dataclasses.asdict(dataclasses.replace(predictor.manifest, adapter=None))
    _write_json(
        folder / MANIFEST, {"labels": list(predictor.labels), "inputs": inputs, **manifest, "export": dict(record)}
    )
    (folder / "README.md").write_text(_readme(predictor, file, steps), encoding="utf-8")


def prepare(file: str, steps: dict) -> np.ndarray:
    """An image file as the model reads it, (3, height, width), by the steps of preprocessing.json."""
    image = ImageOps.exif_transpose(Image.open(file)).convert("RGB")
    size = steps["resize"]  # [height, width], or the length of the shorter edge
    if isinstance(size, int):
        size = [int(size * edge / min(image.size)) for edge in (image.height, image.width)]
    image = image.resize((size[1], size[0]), Image.Resampling[steps["interpolation"].upper()])
    height, width = steps["crop"]
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    pixels = np.asarray(image.crop((left, top, left + width, top + height)), dtype=np.float32)
    normalised = (pixels * steps["scale"] - np.array(steps["mean"])) / np.array(steps["std"])
    return normalised.transpose(2, 0, 1).astype(np.float32)


def steps_of(processor: Any) -> dict[str, Any] | None:
    """The steps of an image processor as :func:`prepare` takes them; ``None`` where it cannot do the same."""
    preprocessing = preprocessing_of(processor)
    found = _timm_geometry(processor) if hasattr(processor, "data_config") else _geometry(processor)
    if found is None:
        return None
    steps = {
        **found,
        "scale": preprocessing.scale,
        "mean": list(preprocessing.mean),
        "std": list(preprocessing.std),
    }
    generator = np.random.default_rng(0)
    for width, height in ((300, 200), (97, 130), (64, 64)):
        noise = Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        image = noise.resize((width, height), Image.Resampling.BICUBIC)
        stored = io.BytesIO()
        image.save(stored, "PNG")
        expected = preprocessing.normalise(preprocessing.geometry(image)[None])[0]
        given = torch.from_numpy(prepare(stored, steps))  # type: ignore[arg-type]
        if given.shape != expected.shape:
            return None
        levels = (given - expected).abs().mean((1, 2)) * torch.tensor(preprocessing.std) / preprocessing.scale
        if levels.max() > LEVELS:
            return None
    return steps


def _timm_geometry(processor: Any) -> dict[str, Any] | None:
    config = processor.data_config
    _, height, width = config["input_size"]
    resized = [math.floor(edge / config["crop_pct"]) for edge in (height, width)]
    if config["crop_mode"] == "center" and height == width:
        return {"resize": resized[0], "interpolation": config["interpolation"], "crop": [height, width]}
    if config["crop_mode"] == "squash":
        return {"resize": resized, "interpolation": config["interpolation"], "crop": [height, width]}
    return None


def _geometry(processor: Any) -> dict[str, Any] | None:
    """That of an image processor of transformers, by the attributes that most have."""
    size = dict(processor.size or {})
    short = size.get("shortest_edge")
    edges: int | list[int]
    if size.get("height") and size.get("width"):
        edges = crop = [size["height"], size["width"]]
    elif short:
        edges, crop = short, [short, short]
        if share := getattr(processor, "crop_pct", None):  # ConvNeXt's: crops what is small, squeezes what is large
            edges = int(short / share) if short < 384 else crop
    else:
        return None
    if getattr(processor, "do_center_crop", False):
        crop = [processor.crop_size["height"], processor.crop_size["width"]]
    if not getattr(processor, "do_resize", True):
        return None
    return {"resize": edges, "interpolation": Image.Resampling(int(processor.resample)).name.lower(), "crop": crop}


def _settings(processor: Any) -> dict[str, Any]:
    """A processor's own settings, where :func:`prepare` cannot do what it does."""
    config = getattr(processor, "data_config", None)
    return dict(config) if config is not None else json.loads(processor.to_json_string())


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _readme(predictor: Predictor, file: str, steps: Mapping[str, Any] | None) -> str:
    onnx, image = file.endswith(".onnx"), predictor.manifest.modality == "image"
    inputs = {name: tuple(tensor.shape) for name, tensor in predictor.encode([sample(predictor)]).items()}
    libraries = ["import onnxruntime" if onnx else "import torch"]
    libraries.append("from PIL import Image, ImageOps" if image else "from transformers import AutoTokenizer")
    if not image:
        prepared = _TOKENS.format(
            texts='["A first text.", "Another."]' + ', ["Its pair.", "Its own."]' * predictor.manifest.pairs,
            cut=", truncation=True" * (predictor.max_tokens is not None),
        )
    elif steps is not None:
        prepared = _IMAGES.format(function=inspect.getsource(prepare).strip())
    else:
        prepared = _PIXELS.format(shape=inputs["pixel_values"])
    return _README.format(
        file=file,
        inputs=", ".join(f"`{name}`" for name in inputs),
        warning="" if onnx else "torch.export reads it by pickle: load no such file whose maker you do not trust.\n",
        free="the batch size" if image else "batch size and number of tokens",
        packages=" ".join(["onnxruntime" if onnx else "torch", "pillow" if image else "transformers", "numpy"]),
        libraries="\n".join(libraries),
        prepared=prepared.strip(),
        run=(_ONNX if onnx else _TORCH).format(file=file).strip(),
    )


_TOKENS = """
tokenizer = AutoTokenizer.from_pretrained(".")
tokens = tokenizer({texts}, padding=True{cut}, return_tensors="np")
batch = {{name: tokens[name] for name in manifest["inputs"]}}
"""
_IMAGES = """
steps = json.load(open("preprocessing.json", encoding="utf-8"))


{function}


batch = {{"pixel_values": np.stack([prepare(file, steps) for file in ["image.png"]])}}
"""
_PIXELS = """
# Your images, prepared by the settings of the model's own processor, which are those in preprocessing.json.
batch = {{"pixel_values": np.zeros({shape}, np.float32)}}
"""
_ONNX = """
model = onnxruntime.InferenceSession("{file}")
logits = model.run(["logits"], batch)[0]
"""
_TORCH = """
program = torch.export.load("{file}").module()
with torch.no_grad():
    logits = program(**{{name: torch.from_numpy(array) for name, array in batch.items()}}).numpy()
"""
_README = """# An exported classifier

`{file}` takes {inputs} and gives `logits`; {free} may vary.
`thawline.json` holds the labels in the order of the logits, and the temperature by which their scores are calibrated.
{warning}
To run it in this folder, `pip install {packages}`, and

```python
import json

import numpy as np
{libraries}

manifest = json.load(open("thawline.json", encoding="utf-8"))
{prepared}
{run}
scores = np.exp((logits - logits.max(-1, keepdims=True)) / manifest["temperature"])
scores /= scores.sum(-1, keepdims=True)
for row in scores:
    print(manifest["labels"][row.argmax()], f"{{row.max():.4f}}")
```
"""
