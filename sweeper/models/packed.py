"""A packed model as MLflow calls it: tables in, labels with calibrated scores out, and what cannot be read named.

Like ``predictor.py`` it needs nothing of the project but the files beside it.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from typing import Any

import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import BAD_REQUEST
from PIL import Image

from .predictor import Predictor, columns
from .preprocessing import BROKEN

__all__ = ["Packed"]

IMAGES = 32  # decoded at a time


class Packed:
    """A predictor with the interface of ``mlflow.pyfunc``: tables of texts or of images in base64."""

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor

    def predict(self, model_input: Any, params: Mapping[str, Any] | None = None) -> pd.DataFrame:
        """Labels and scores for the rows of ``model_input``: columns ``text`` and ``text_pair``, or ``image``.

        Raises:
            MlflowException: a cell holds something else. The scoring server answers with status 400 and the message;
                with any other error it would answer with its own stack trace.
        """
        frame = model_input if isinstance(model_input, pd.DataFrame) else pd.DataFrame(model_input)
        # All texts together are sorted by length into batches; decoded images are large.
        size = IMAGES if self._predictor.manifest.modality == "image" else max(1, len(frame))
        parts = [self._part(frame.iloc[start : start + size], start) for start in range(0, max(1, len(frame)), size)]
        return pd.concat(parts, ignore_index=True)

    def _part(self, frame: pd.DataFrame, start: int) -> pd.DataFrame:
        read = _image if self._predictor.manifest.modality == "image" else _text
        given: list[list[Any]] = []
        for name in columns(self._predictor.manifest):
            given.append([])
            for row, cell in enumerate(frame[name], start):
                try:
                    given[-1].append(read(cell))
                except BROKEN as error:
                    message = f"row {row} (the first is 0), column {name}: {error}"
                    raise MlflowException(message, error_code=BAD_REQUEST) from None
        return self._predictor.predict(given[0] if len(given) == 1 else list(zip(*given, strict=True)))


def _load_pyfunc(data_path: str) -> Packed:
    """What ``mlflow.pyfunc.load_model`` calls."""
    return Packed(Predictor.load(data_path))


def _text(cell: Any) -> str:
    if not isinstance(cell, str):
        raise ValueError(f"{_shown(cell)} is no text. Texts are allowed, empty ones too; leave out rows without one.")
    return cell


def _image(cell: Any) -> Image.Image:
    """No paths: whoever may ask a server for predictions need not read its files."""
    allowed = "The content of an image file is allowed, in base64."
    if not isinstance(cell, str | bytes):
        raise ValueError(f"{_shown(cell)} is no image. {allowed}")
    try:
        image = Image.open(io.BytesIO(cell if isinstance(cell, bytes) else base64.b64decode(cell)))
        image.load()
    except BROKEN as error:
        raise ValueError(f"this is no image that can be read ({type(error).__name__}). {allowed}") from error
    return image


def _shown(cell: Any) -> str:
    missing = cell is None or cell is pd.NA or (isinstance(cell, float) and cell != cell)
    return "null" if missing else f"{cell!r:.40} ({type(cell).__name__})"
