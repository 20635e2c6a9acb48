"""The precision that a run computes in, and frozen weights kept in it."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from sweeper.files import written
from sweeper.hashing import digest

__all__ = ["DTYPES", "autocast", "device", "frozen_weights_cast", "measured_precision", "resolve_precision"]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
#: Layers that compute nothing of their weight but a product, which autocast takes in low precision; not subclasses.
_PRODUCTS = (nn.Linear, nn.Conv2d, Conv1D)


def device() -> torch.device:
    """Where models train."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def resolve_precision(asked: str) -> str:
    """``auto`` becomes ``bf16`` where this device computes in it natively, else ``fp32``; others stay as asked.

    Raises:
        ValueError: fp16 without a CUDA device.
    """
    cuda = torch.cuda.is_available()
    if asked == "fp16" and not cuda:
        raise ValueError("trainer.precision=fp16 needs a CUDA device; allowed here are auto, fp32, bf16")
    if asked != "auto":
        return asked
    if cuda:
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return "bf16" if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else "fp32"


def measured_precision(model: nn.Module, batch: Mapping[str, Any], name: str, folder: Path) -> str:
    """``bf16`` or ``fp32``, whichever a CPU that has both trains this model faster in.

    Products gain from bf16; some convolutions lose more. Two steps of each are timed, once: the figures are kept, so
    that the choice does not change from run to run. Close calls are bf16.

    Args:
        model: a copy to work on, all of which may train.
        batch: a few examples, with labels.
        name: of the model and the shape of its inputs.
        folder: where the figures are kept.
    """
    key = digest([name, torch.__version__, torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()], 24)
    path = folder / f"{key}.json"
    try:
        seconds = json.loads(path.read_text())
        return _faster(seconds)
    except (OSError, ValueError, KeyError, TypeError):
        pass
    model.train().requires_grad_(True)
    seconds = {}
    for _ in range(3):  # the first pays for what is set up once
        for precision in ("bf16", "fp32"):
            started = time.perf_counter()
            with autocast(precision):
                loss = model(**batch).loss
            loss.backward()
            model.zero_grad()
            seconds.setdefault(precision, []).append(time.perf_counter() - started)
    seconds = {precision: min(times[1:]) for precision, times in seconds.items()}
    with contextlib.suppress(OSError):  # it is measured again
        folder.mkdir(parents=True, exist_ok=True)
        written(path, json.dumps(seconds))
    return _faster(seconds)


def _faster(seconds: Mapping[str, float]) -> str:
    return "fp32" if seconds["bf16"] > 1.1 * seconds["fp32"] else "bf16"


def autocast(precision: str) -> AbstractContextManager[Any]:
    """The mixed precision that the Trainer computes in."""
    return torch.autocast(device().type, DTYPES[precision], enabled=precision != "fp32")


@contextmanager
def frozen_weights_cast(model: nn.Module, precision: str, trained: Collection[str]) -> Iterator[None]:
    """Keep frozen weights in the precision that autocast would cast them to in every forward pass: equal results.

    Weights of which more is computed than a product stay as they are, as DoRA's norms.

    Args:
        model: in which some weights are frozen.
        precision: ``fp32``, ``bf16`` or ``fp16``.
        trained: names of the parameters that train in any stage, of which copies are kept in full precision.
    """
    if precision == "fp32":
        yield
        return
    layers: list[Any] = [layer for layer in model.modules() if len(getattr(layer, "lora_magnitude_vector", ()))]
    normed = {id(layer.base_layer) for layer in layers}
    originals = [
        (module.weight, module.weight.data)
        for name, module in model.named_modules()
        if type(module) in _PRODUCTS and f"{name}.weight" not in trained and id(module) not in normed
    ]
    for weight, data in originals:
        if data.dtype == torch.float32:
            weight.data = data.to(DTYPES[precision])
    try:
        yield
    finally:
        for weight, data in originals:
            weight.data = data
