"""Texts to token ids, once per process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase

from sweeper.data.dataset import content
from sweeper.data.encoding import EncodedSplit
from sweeper.hashing import digest

__all__ = ["TextEncoder", "token_summary"]

#: Tokens per word, and share of unknown tokens, above which a model of another domain or language may fit better.
MANY_TOKENS_PER_WORD = 2.0
MANY_UNKNOWN = 0.01
MANY_TRUNCATED = 0.1
SUMMARISED = 1000  # texts of train that are looked at


@dataclass(frozen=True, eq=False)
class TextEncoder:
    """A tokenizer that cuts texts, or pairs of texts, at ``max_length`` tokens, special ones included.

    ``accepted`` are the names of the inputs that the model takes; ``None`` = all that the tokenizer gives.
    """

    tokenizer: PreTrainedTokenizerBase
    max_length: int
    accepted: frozenset[str] | None = None

    @property
    def augments(self) -> bool:
        """Texts are not."""
        return False

    @property
    def evaluation_batch_size(self) -> int:
        """With MiniLM on two cores the fastest, or close to it."""
        return 64

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
        given = [name for name in self.tokenizer.model_input_names if name in encoded]
        names = [name for name in given if self.accepted is None or name in self.accepted]
        examples = [
            {
                **{name: encoded[name][row] for name in names},
                **({} if labels is None else {"labels": int(labels[row])}),
            }
            for row in order.tolist()
        ]
        return EncodedSplit(
            examples=examples,
            inputs=[inputs[row] for row in order],
            order=order,
            lengths=lengths[order],
            truncated=truncated,
            key=digest([[example[name] for name in names] for example in examples], 16),
            shells=examples,
        )

    def training(self, split: EncodedSplit, seed: int, seen: np.ndarray | None = None) -> Sequence[Mapping[str, Any]]:
        """The examples as they are."""
        return split.examples

    def collate(self, examples: list[Any]) -> Mapping[str, Any]:
        """A batch, padded to its longest example."""
        return DataCollatorWithPadding(self.tokenizer)(examples)

    def blank(self, batch: int, tokens: int) -> dict[str, torch.Tensor]:
        """The first ordinary token, again and again."""
        token = next(number for number in range(len(self.tokenizer)) if number not in self.tokenizer.all_special_ids)
        names = [*self.tokenizer.model_input_names, "attention_mask"]
        fill = {"input_ids": token, "attention_mask": 1, "token_type_ids": 0}
        return {
            name: torch.full((batch, tokens), fill[name])
            for name in names
            if name in fill and (self.accepted is None or name in self.accepted)
        }


def token_summary(
    splits: Mapping[str, EncodedSplit], tokenizer: PreTrainedTokenizerBase, longest: int
) -> tuple[dict[str, Any], list[str]]:
    """How a tokenizer copes with the texts: values for the data summary, and warnings in sentences.

    Args:
        splits: the encoded splits by name.
        tokenizer: the model's.
        longest: the most tokens that the model reads.
    """
    texts = [content(item) for item in splits["train"].inputs[:SUMMARISED]]
    encoded = tokenizer(texts, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
    tokens = sum(map(len, encoded))
    unknown = sum(token == tokenizer.unk_token_id for ids in encoded for token in ids) / max(tokens, 1)
    per_word = tokens / max(sum(len(text.split()) for text in texts), 1)
    cut = {name: split.truncated for name, split in splits.items()}
    warnings = []
    if (share := cut["train"] / max(len(splits["train"]), 1)) > MANY_TRUNCATED:
        at_limit = int(splits["train"].lengths.max()) >= longest
        where = (
            f"the {longest} tokens that the model reads"
            if at_limit
            else "dataset.max_length; a larger value keeps more"
        )
        warnings.append(f"{share:.0%} of the train texts are cut at {where}.")
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
