"""A saved model as a program of its own: ONNX, or the ``ExportedProgram`` of torch, verified and timed.

The file stands in a folder with all that running it takes: the tokenizer or the steps of the preprocessing, the labels
with the temperature of their scores, and a README whose lines run.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from sweeper.errors import ConfigError, ExportError
from sweeper.files import replaced
from sweeper.models.classifier import ClassifierConfig
from sweeper.models.export_folder import sample, write_company
from sweeper.models.predictor import Predictor

__all__ = ["FORMATS", "TOLERANCE", "Export", "Timing", "check_installed", "export"]

#: Format -> the file.
FORMATS = {"onnx": "model.onnx", "torch_export": "model.pt2"}
#: Largest difference of two logits, as a share of the largest one of a batch, or of 1 where that is smaller. Kernels
#: that sum float32 in another order differ by 1e-6 to 1e-5 at the end of a deep network; a part that is exported wrong
#: shows in the first digits.
TOLERANCE = 1e-4
#: Batch sizes and tokens of random inputs; what the model does not take is cut, and its longest input added.
SHAPES = ((1, 1), (1, 128), (2, 7), (3, 2), (5, 33), (8, 16), (32, 64))
LONGEST = 512  # tokens
TIMED = {"text": ((1, 32), (1, 128), (32, 32), (32, 128)), "image": ((1, 0), (32, 0))}
SECONDS = 3.0  # of timing a shape, within these numbers of runs
RUNS = (5, 30)
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
EXAMPLE = (3, 7)  # batch and tokens that the model is traced with
NOT_KEPT = "The file is not kept; `thawline serve` and `thawline predict` use the model as it is."

Batch = Mapping[str, torch.Tensor]
Run = Callable[[Batch], np.ndarray]


@dataclass(frozen=True)
class Timing:
    """Medians of interleaved runs of one shape.

    Attributes:
        batch: inputs at a time.
        tokens: of each text; 0 for images.
        runs: of either.
        eager: milliseconds of PyTorch.
        exported: milliseconds of what was exported.
    """

    batch: int
    tokens: int
    runs: int
    eager: float
    exported: float


@dataclass(frozen=True)
class Export:
    """What an export came to.

    Attributes:
        file: where it is.
        size: bytes, of all files that hold weights.
        inputs: how many were compared.
        difference: the largest of a logit.
        allowed: what it may be at most, for the batch where it is closest to that.
        timings: against PyTorch eager, on the CPU.
    """

    file: Path
    size: int
    inputs: int
    difference: float
    allowed: float
    timings: tuple[Timing, ...]


def check_installed(kind: str) -> None:
    """See that the packages are there that a format takes.

    Raises:
        ConfigError: some are not.
    """
    needed = PACKAGES if kind == "onnx" else ()
    if missing := [name for name in needed if find_spec(name) is None]:
        raise ConfigError(
            f"--format onnx: not installed: {', '.join(missing)}",
            "Run `pip install 'thawline[onnx]'`; --format torch_export needs nothing more.",
        )


def export(predictor: Predictor, folder: Path, kind: str, inputs: Iterable[Any] = ()) -> Export:
    """Export a model, compare it with PyTorch, time both, and keep it if they agree.

    Batch size and number of tokens stay free; images have the model's size. The inputs go by the model's names, the
    output is ``logits`` (batch, labels).

    Args:
        predictor: the saved model, which is moved to the CPU.
        folder: written whole or not at all; an earlier export there is replaced.
        kind: a key of ``FORMATS``.
        inputs: texts, pairs or images to compare on, beside random ones.

    Raises:
        ConfigError: a package is missing, or ``folder`` holds something else.
        ExportError: the model cannot be exported, or labels or logits differ.
    """
    check_installed(kind)
    if folder.exists() and not (folder.is_dir() and (not any(folder.iterdir()) or (folder / FORMATS[kind]).is_file())):
        raise ConfigError(f"{folder} holds something else than an export", "Name another place with --output.")
    nn.Module.to(predictor.model.eval(), "cpu")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with replaced(folder) as fresh, torch.no_grad():
        fresh.mkdir()
        run = _converted(predictor, fresh / FORMATS[kind], kind)
        compared, difference, allowed = _compared(predictor, run, inputs)
        size = sum(path.stat().st_size for path in fresh.iterdir())
        found = Export(folder / FORMATS[kind], size, compared, difference, allowed, _timings(predictor, run))
        record = {"format": kind, "inputs": compared, "difference": difference, "allowed": allowed}
        write_company(predictor, fresh, FORMATS[kind], record)
    return found


class _Logits(nn.Module):
    """A classifier whose inputs have names and whose output is a tensor, which exporters keep."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
    ) -> torch.Tensor:
        given = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            "pixel_values": pixel_values,
        }
        outputs = self.model(**{name: tensor for name, tensor in given.items() if tensor is not None})
        logits: torch.Tensor = outputs.logits
        return logits


def _converted(predictor: Predictor, file: Path, kind: str) -> Run:
    """Export to a file; what runs it."""
    example = dict(_random(predictor, *EXAMPLE, torch.Generator().manual_seed(0)))
    axes = {0: "batch"} if predictor.manifest.modality == "image" else {0: "batch", 1: "tokens"}
    free = dict.fromkeys(axes, torch.export.Dim.DYNAMIC)
    try:
        program = torch.export.export(
            _Logits(predictor.model).eval(), (), example, dynamic_shapes=dict.fromkeys(example, free)
        )
        if kind == "torch_export":
            torch.export.save(program, file)
            return _torch_run(file)
        onnx: Any = torch.onnx.export(
            program,
            input_names=list(example),
            output_names=["logits"],
            dynamic_shapes=dict.fromkeys(example, axes),
            verbose=False,
        )
        onnx.save(file)
        return _onnx_run(file)
    except Exception as error:  # whatever a model's own code raises when it is traced
        other = next(name for name in FORMATS if name != kind)
        raise ExportError(
            f"this {_architecture(predictor)} cannot be exported to {kind}: {_reason(error)}",
            f"--format {other} may work; `thawline serve` and `thawline predict` use the model as it is.",
        ) from error


def _architecture(predictor: Predictor) -> str:
    config: Any = predictor.model.config
    return str(config.backbone["model_type"] if isinstance(config, ClassifierConfig) else config.model_type)


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _torch_run(file: Path) -> Run:
    module = torch.export.load(file).module()
    return lambda batch: module(**batch).numpy()


def _onnx_run(file: Path) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()  # as many as PyTorch has
    options.log_severity_level = 3
    loaded = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return lambda batch: loaded.run(["logits"], {name: tensor.numpy() for name, tensor in batch.items()})[0]


def _random(predictor: Predictor, batch: int, tokens: int, generator: torch.Generator) -> Batch:
    """Random inputs: pixels, or token ids over the whole vocabulary of texts of several lengths, which are padded."""
    given = predictor.encode([sample(predictor)])
    if predictor.manifest.modality == "image":
        return {name: torch.randn(batch, *pixels.shape[1:], generator=generator) for name, pixels in given.items()}
    embedding: Any = predictor.model.get_input_embeddings()
    ids = torch.randint(embedding.num_embeddings, (batch, tokens), generator=generator)
    lengths = torch.randint(1, tokens + 1, (batch, 1), generator=generator)
    lengths[0] = tokens
    mask = (torch.arange(tokens) < lengths).long()
    if predictor.processor.padding_side == "left":
        mask = mask.flip(1)
    made = {
        "input_ids": ids.masked_fill(mask == 0, predictor.processor.pad_token_id or 0),
        "attention_mask": mask,
        "token_type_ids": mask * (torch.arange(tokens) >= tokens // 2) * predictor.manifest.pairs,
    }
    return {name: made[name] for name in given}


def _batches(predictor: Predictor, inputs: Iterable[Any]) -> Iterator[Batch]:
    """What is compared: random inputs of several shapes, then those that were given."""
    generator = torch.Generator().manual_seed(1)
    longest = min(predictor.max_tokens or LONGEST, LONGEST) if predictor.manifest.modality == "text" else 1
    for batch, tokens in dict.fromkeys((size, min(tokens, longest)) for size, tokens in (*SHAPES, (2, longest))):
        yield _random(predictor, batch, tokens, generator)
    given = iter(inputs)
    while some := list(itertools.islice(given, 32)):
        yield predictor.encode(some)


def _compared(predictor: Predictor, run: Run, inputs: Iterable[Any]) -> tuple[int, float, float]:
    """How many inputs agree; the largest difference of their logits, and what is allowed in that batch.

    Raises:
        ExportError: a label differs, or a logit by more than is allowed.
    """
    compared, worst = 0, (0.0, TOLERANCE)
    for batch in _batches(predictor, inputs):
        shape = tuple(next(iter(batch.values())).shape)
        expected = predictor.model(**batch).logits.numpy()
        try:
            found = run(batch)
        except Exception as error:  # each runtime has errors of its own
            raise ExportError(
                f"what was exported does not run on inputs of shape {shape}: {_reason(error)}", NOT_KEPT
            ) from error
        difference = float(np.abs(found - expected).max())
        allowed = TOLERANCE * max(1.0, float(np.abs(expected).max()))
        if not difference <= allowed:  # NaN is not either
            raise ExportError(
                f"what was exported computes something else: on inputs of shape {shape} logits differ by "
                f"{difference:.2g}, allowed is {allowed:.2g}",
                NOT_KEPT,
            )
        if changed := int((found.argmax(-1) != expected.argmax(-1)).sum()):
            raise ExportError(f"{changed} of {len(expected)} labels of shape {shape} differ", NOT_KEPT)
        compared += len(expected)
        worst = max(worst, (difference, allowed), key=lambda pair: pair[0] / pair[1])
    return compared, *worst


def _timings(predictor: Predictor, run: Run) -> tuple[Timing, ...]:
    generator = torch.Generator().manual_seed(2)
    longest = predictor.max_tokens if predictor.manifest.modality == "text" else None
    found = []
    for batch, tokens in TIMED[predictor.manifest.modality]:
        if longest is None or tokens <= longest:
            inputs = _random(predictor, batch, tokens, generator)
            found.append(_timing(predictor.model, run, inputs, tokens))
    return tuple(found)


def _timing(model: nn.Module, run: Run, inputs: Batch, tokens: int) -> Timing:
    eager = dict(inputs)
    if "pixel_values" in eager:  # as `Predictor.encode` lays them out
        eager["pixel_values"] = eager["pixel_values"].contiguous(memory_format=torch.channels_last)

    def both() -> tuple[float, float]:
        return _milliseconds(lambda: model(**eager)), _milliseconds(lambda: run(inputs))

    with torch.inference_mode():
        both()
        runs = int(min(max(SECONDS * 1000 / sum(both()), RUNS[0]), RUNS[1]))
        times = [both() for _ in range(runs)]  # in turns, so that what else the machine does meets either
    batch = len(next(iter(inputs.values())))
    return Timing(batch, tokens, runs, *(statistics.median(column) for column in zip(*times, strict=True)))


def _milliseconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1000
