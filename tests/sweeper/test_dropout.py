"""Dropout from a pool of draws: what torch's own does, and only when asked."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import dropout, scaled_dot_product_attention

from sweeper.training import dropout as module
from sweeper.training.dropout import PooledDropout


@pytest.mark.parametrize("p", [0.1, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("inplace", [False, True])
def test_elements_are_dropped_with_the_probability_and_the_rest_scaled(
    p: float, dtype: torch.dtype, inplace: bool
) -> None:
    torch.manual_seed(0)
    with PooledDropout():
        out = dropout(torch.ones(200, 1000, dtype=dtype), p, True, inplace).float()
    kept = out > 0
    assert abs(float(kept.float().mean()) - (1 - p)) < 0.005
    assert abs(float(kept.float().mean(0).std()) - (p * (1 - p) / 200) ** 0.5) < 0.002  # columns vary as draws do
    assert out[kept].unique().tolist() == [pytest.approx(1 / (1 - p), rel=4e-3)]


def test_masks_follow_the_seed_and_differ_from_call_to_call() -> None:
    def masks() -> list[torch.Tensor]:
        torch.manual_seed(3)
        with PooledDropout():
            return [dropout(torch.ones(64, 64), 0.1) for _ in range(2)]

    first, second = masks(), masks()
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    assert abs(float(torch.corrcoef(torch.stack(first).flatten(1))[0, 1])) < 0.05


def test_the_gradient_passes_where_the_element_was_kept() -> None:
    values = torch.randn(32, 32, requires_grad=True)
    with PooledDropout():
        out = dropout(values, 0.3)
    out.sum().backward()
    assert values.grad is not None
    assert torch.equal(values.grad != 0, out != 0)


def test_evaluation_is_left_alone() -> None:
    values = torch.randn(4, 4)
    with PooledDropout():
        assert torch.equal(dropout(values, 0.5, training=False), values)
        assert torch.equal(dropout(values, 0.0), values)
        assert not dropout(values, 1.0).any()


def test_a_tensor_larger_than_the_pool_is_dropped_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POOL", 1 << 12)
    module._pool.cache_clear()
    with PooledDropout():
        out = dropout(torch.ones(7, 1000), 0.1)
    module._pool.cache_clear()
    assert out.shape == (7, 1000)
    assert abs(float((out == 0).float().mean()) - 0.1) < 0.02


@pytest.mark.parametrize("masked", ["none", "boolean", "additive", "causal", "grouped"])
def test_attention_is_torchs_own_when_nothing_is_dropped(masked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 4, 9, 8) for _ in range(3))
    options = {
        "none": {},
        "boolean": {"attn_mask": torch.rand(2, 1, 9, 9) > 0.3},
        "additive": {"attn_mask": torch.randn(2, 1, 9, 9)},
        "causal": {"is_causal": True, "scale": 0.5},
        "grouped": {"enable_gqa": True},
    }[masked]
    if masked == "grouped":
        key, value = key[:, :2], value[:, :2]
    expected = scaled_dot_product_attention(query, key, value, **options)
    monkeypatch.setattr(module, "_mask", lambda shape, p, dtype: torch.ones(shape, dtype=dtype))
    with PooledDropout():
        torch.testing.assert_close(scaled_dot_product_attention(query, key, value, dropout_p=0.1, **options), expected)


def test_attention_weights_are_dropped_not_the_values() -> None:
    torch.manual_seed(0)
    size = 400
    with PooledDropout():  # equal scores: each output is the share of the weights that were kept
        out = scaled_dot_product_attention(*(torch.zeros(1, 2, size, 4),) * 2, torch.ones(1, 2, size, 4), dropout_p=0.2)
    assert torch.equal(out[..., 0], out[..., 3])
    assert abs(float(out.mean()) - 1) < 0.01
    assert abs(float(out[..., 0].std()) - (0.25 / size) ** 0.5) < 0.005
