"""Texts to token ids, once per process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from sweeper.data.text import TextSplit

__all__ = ["TokenizedSplit", "tokenize"]


@dataclass(frozen=True, eq=False)
class TokenizedSplit:
    """The examples of a split as the model reads them.

    Attributes:
        examples: one dict each, ``input_ids``, ``attention_mask`` (no padding yet) and ``labels``.
        order: where each example stands in its split, shape (rows,).
        truncated: number of texts that were cut at the maximal length.
    """

    examples: list[dict[str, Any]]
    order: np.ndarray
    truncated: int

    def __len__(self) -> int:
        return len(self.examples)


def tokenize(
    split: TextSplit, tokenizer: PreTrainedTokenizerBase, max_length: int, *, by_length: bool
) -> TokenizedSplit:
    """Tokenise a split, cut at ``max_length`` tokens.

    Args:
        split: the texts and labels.
        tokenizer: the model's own.
        max_length: in tokens, special ones included.
        by_length: sort the examples by length, so that an evaluation pads little.
    """
    encoded = tokenizer(split.texts, truncation=False, verbose=False)
    truncated = sum(len(ids) > max_length for ids in encoded["input_ids"])
    if truncated:
        encoded = tokenizer(split.texts, truncation=True, max_length=max_length)
    lengths = np.array([len(ids) for ids in encoded["input_ids"]])
    order = np.argsort(lengths, kind="stable") if by_length else np.arange(len(lengths))
    names: Sequence[str] = [name for name in tokenizer.model_input_names if name in encoded]
    examples = [
        {**{name: encoded[name][row] for name in names}, "labels": int(split.labels[row])} for row in order.tolist()
    ]
    return TokenizedSplit(examples, order, truncated)
