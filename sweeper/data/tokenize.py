"""Texts to token ids, once per process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase

from sweeper.data.dataset import content
from sweeper.data.encoding import EncodedSplit

__all__ = ["TextEncoder", "token_summary"]

#: Tokens per word, and share of unknown tokens, above which a model of another domain or language may fit better.
MANY_TOKENS_PER_WORD = 2.0
MANY_UNKNOWN = 0.01
MANY_TRUNCATED = 0.1
SUMMARISED = 1000  # texts of train that are looked at


@dataclass(frozen=True, eq=False)
class TextEncoder:
    """A tokenizer that cuts texts, or pairs of texts, at ``max_length`` tokens, special ones included."""

    tokenizer: PreTrainedTokenizerBase
    max_length: int

    def encode(self, inputs: Sequence[Any], labels: np.ndarray | None, *, by_length: bool) -> EncodedSplit:
        """Tokenise without padding; of a pair, the longer text is cut first.

        Args:
            inputs: texts, or pairs of texts.
            labels: shape (rows,), or ``None`` where there are none.
            by_length: sort the examples by length, so that an evaluation pads little.
        """
        columns = [list(column) for column in zip(*inputs, strict=True)] if _are_pairs(inputs) else [list(inputs)]
        encoded = self.tokenizer(*columns, truncation=False, verbose=False)
        truncated = sum(len(ids) > self.max_length for ids in encoded["input_ids"])
        if truncated:
            encoded = self.tokenizer(*columns, truncation=True, max_length=self.max_length)
        lengths = np.array([len(ids) for ids in encoded["input_ids"]])
        order = np.argsort(lengths, kind="stable") if by_length else np.arange(len(lengths))
        names: Sequence[str] = [name for name in self.tokenizer.model_input_names if name in encoded]
        examples = [
            {
                **{name: encoded[name][row] for name in names},
                **({} if labels is None else {"labels": int(labels[row])}),
            }
            for row in order.tolist()
        ]
        return EncodedSplit(examples, [inputs[row] for row in order], order, lengths[order], truncated)

    def training(self, split: EncodedSplit, seed: int) -> Sequence[Mapping[str, Any]]:
        """The examples as they are."""
        return split.examples

    def collate(self, examples: list[Any]) -> Mapping[str, Any]:
        """A batch, padded to its longest example."""
        return DataCollatorWithPadding(self.tokenizer)(examples)


def token_summary(
    splits: Mapping[str, EncodedSplit], tokenizer: PreTrainedTokenizerBase
) -> tuple[dict[str, Any], list[str]]:
    """How a tokenizer copes with the texts: values for the data summary, and warnings in sentences."""
    texts = [content(item) for item in splits["train"].inputs[:SUMMARISED]]
    encoded = tokenizer(texts, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
    tokens = sum(map(len, encoded))
    unknown = sum(token == tokenizer.unk_token_id for ids in encoded for token in ids) / max(tokens, 1)
    per_word = tokens / max(sum(len(text.split()) for text in texts), 1)
    cut = {name: split.truncated for name, split in splits.items()}
    warnings = []
    if (share := cut["train"] / max(len(splits["train"]), 1)) > MANY_TRUNCATED:
        warnings.append(f"{share:.0%} of the train texts are cut at dataset.max_length; a larger value keeps more.")
    if per_word > MANY_TOKENS_PER_WORD:
        warnings.append(
            f"The tokenizer needs {per_word:.1f} tokens per word: a model of this domain or language may fit better."
        )
    if unknown > MANY_UNKNOWN:
        warnings.append(
            f"{unknown:.1%} of the tokens are unknown to the model: a multilingual one, or one of this domain, may fit "
            "better."
        )
    return {"tokens_per_word": per_word, "unknown_token_rate": unknown, "truncated": cut}, warnings


def _are_pairs(inputs: Sequence[Any]) -> bool:
    return bool(inputs) and isinstance(inputs[0], tuple)
