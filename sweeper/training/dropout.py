"""Dropout on a CPU at the price of a multiplication: masks are slices of a pool of draws, at random offsets.

PyTorch samples a mask anew for every call on one thread, at about 10 ns an element, which was the first entry of the
profile of a training step. Here the draws are made once a process. Every mask is as independent of the others as the
offset of one slice among millions is; within a mask the draws are independent.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

__all__ = ["PooledDropout"]

POOL = 1 << 24


@functools.lru_cache(maxsize=8)  # of 64 MB in float32: a search over rates does not add one with each trial
def _pool(p: float, dtype: torch.dtype) -> torch.Tensor:
    """Draws of what an element is multiplied with: 0 with probability ``p``, else 1 / (1 - p)."""
    kept = torch.rand(POOL, generator=torch.Generator().manual_seed(0)) >= p
    return kept.to(dtype).div_(1 - p)


def _mask(shape: torch.Size, p: float, dtype: torch.dtype) -> torch.Tensor:
    """A mask of at most ``POOL`` elements; the offset comes from torch's global generator."""
    size = shape.numel()
    offset = int(torch.randint(POOL - size + 1, ()))
    return _pool(p, dtype)[offset : offset + size].view(shape)


def _dropout(input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
    """Torch's ``dropout``, on any tensor; what the pool does not serve is left to torch."""
    if not training or not 0 < p < 1 or input.device.type != "cpu" or not input.is_floating_point():
        return functional.dropout(input, p, training, inplace)
    if input.numel() > POOL // 4:  # slices of one pool are to overlap seldom
        if len(input) < 2:
            return functional.dropout(input, p, training, inplace)
        return torch.cat([_dropout(part, p) for part in input.split(math.ceil(len(input) / 2))])
    mask = _mask(input.shape, p, input.dtype)
    return input.mul_(mask) if inplace else input * mask


def _attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """Torch's ``scaled_dot_product_attention``, which is at its slowest with dropout on a CPU."""
    if dropout_p == 0 or query.device.type != "cpu":
        return functional.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    if enable_gqa:
        key, value = (part.repeat_interleave(query.shape[-3] // part.shape[-3], -3) for part in (key, value))
    scores = query * (1 / math.sqrt(query.shape[-1]) if scale is None else scale) @ key.transpose(-2, -1)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=query.device).tril()
    if attn_mask is not None:
        if attn_mask.dtype == torch.bool:
            lowest = torch.finfo(scores.dtype).min  # not -inf: a row that sees nothing has no softmax
            attn_mask = torch.zeros_like(attn_mask, dtype=scores.dtype).masked_fill_(~attn_mask, lowest)
        scores = scores + attn_mask
    return _dropout(scores.softmax(-1, dtype=torch.float32).to(value.dtype), dropout_p) @ value


class PooledDropout(TorchFunctionMode):
    """While it is entered, dropout on the CPU, in attention too, takes its masks from the pool."""

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is functional.dropout:
            return _dropout(*args, **(kwargs or {}))
        if func is functional.scaled_dot_product_attention:
            return _attention(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))
