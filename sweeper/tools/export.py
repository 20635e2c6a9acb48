"""``thawline export``: a saved model as ONNX, or for torch.export, verified and timed against PyTorch."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweeper.errors import DataError
from sweeper.tools.predict import add_input_arguments, add_model_arguments, check_input, load_predictor, usable_inputs
from sweeper.winners import chosen_model

if TYPE_CHECKING:
    from sweeper.models.export import Export

__all__ = ["add_arguments", "run"]

RUNTIMES = {"onnx": "ONNX Runtime", "torch_export": "torch.export"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    add_model_arguments(parser)
    parser.add_argument("--format", choices=RUNTIMES, default="onnx", help="default: onnx")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="default: named by the format, in the model's")
    add_input_arguments(parser)


def run(arguments: argparse.Namespace) -> None:
    """Export, compare with PyTorch, on --input too, and time both.

    Raises:
        StudyError: there is no model yet.
        ConfigError: there is no such model or input, a package is missing, or the output holds something else.
        DataError: the input cannot be read, or the output not written.
        ExportError: the model cannot be exported, or what came out differs from it.
    """
    check_input(arguments)
    folder = chosen_model(arguments.model, arguments.output_dir)
    from sweeper.models.export import check_installed, export  # imports torch

    check_installed(arguments.format)
    predictor = load_predictor(arguments)
    inputs: Iterable[Any] = () if arguments.input is None else usable_inputs(predictor, arguments)
    output = arguments.output or folder / arguments.format
    print(f"exporting to {output} ...", file=sys.stderr)
    try:
        found = export(predictor, output, arguments.format, inputs)
    except OSError as error:
        raise DataError(f"{output} cannot be written: {error.strerror or error}", "Name another --output.") from error
    print("\n".join(_lines(found, RUNTIMES[arguments.format])))


def _lines(found: Export, runtime: str) -> list[str]:
    """What is said of an export, for a terminal."""
    import torch

    threads = torch.get_num_threads()
    lines = [
        f"exported: {found.file} ({found.size / 1e6:.1f} MB)",
        f"verified: {found.inputs} inputs have the labels of PyTorch; logits differ by at most",
        f"          {found.difference:.1e} (allowed: {found.allowed:.1e})",
        f"timed:    medians in milliseconds on the CPU, {threads} {'thread' if threads == 1 else 'threads'}",
        f"          {'batch':>5} {'tokens':>7} {'PyTorch':>9} {runtime:>13} {'ratio':>6}",
    ]
    for timing in found.timings:
        lines.append(
            f"          {timing.batch:5} {timing.tokens or '-':>7} {timing.eager:9.1f} {timing.exported:13.1f} "
            f"{timing.eager / timing.exported:6.2f}"
        )
    return lines
