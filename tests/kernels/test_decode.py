"""Decode against caches of every kind, by Triton's interpreter."""

from __future__ import annotations

import pytest
import torch
from tolerance import assert_close, assert_lse_close

from lepto.kernels.attention import attention_decode, decode
from lepto.kernels.attention.decode import _reference

B, H, G, D, S = 3, 4, 2, 64, 128


def lengths_of_rows() -> torch.Tensor:
    """Made where the test runs."""
    return torch.tensor([101, 1, 67], dtype=torch.int32)


def draw(queries: int = 1, dtype=torch.float16, seed: int = 5) -> list[torch.Tensor]:
    gen = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=gen).to(dtype) for shape in ((B, queries, H, D), (B, S, G, D), (B, S, G, D))]


def pages(cache: torch.Tensor, size: int, order: torch.Tensor) -> torch.Tensor:
    flat = cache.reshape(-1, size, *cache.shape[2:])
    out = torch.empty_like(flat)
    out[order] = flat
    return out


def check(q, k, v, lengths=None, splits=3, **options) -> torch.Tensor:
    lengths = lengths_of_rows() if lengths is None else lengths
    args = [options.get(n) for n in ("block_table", "k_scale", "v_scale")]
    window, cap = (options.get("window", -1), 0), options.get("softcap", 0.0)
    exact, exact_lse = _reference(q, k, v, lengths, *args, window, cap, D**-0.5, True, torch.float64)
    low = _reference(q, k, v, lengths, *args, window, cap, D**-0.5, False)
    out, lse = attention_decode(q, k, v, lengths, splits=splits, return_lse=True, **options)
    assert_close(out, exact, low)
    assert_lse_close(lse, exact_lse)
    return out


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("options", [{}, {"window": 20}, {"softcap": 10.0}])
def test_contiguous(dtype, options):
    check(*draw(dtype=dtype), **options)


def test_a_few_queries_see_no_later_key():
    check(*draw(queries=3), lengths=torch.tensor([101, 3, 67], dtype=torch.int32))


def test_paged_is_contiguous_in_another_order():
    q, k, v = draw()
    order = torch.randperm(B * S // 16, generator=torch.Generator().manual_seed(0))
    table = order.reshape(B, -1).int()
    out = check(q, pages(k, 16, order), pages(v, 16, order), block_table=table)
    assert torch.equal(out, attention_decode(q, k, v, lengths_of_rows(), splits=3))


@pytest.mark.parametrize("per_token", [False, True])
def test_int8_cache(per_token):
    q, k, v = draw()
    dims = (3,) if per_token else (0, 1, 3)
    k_scale, v_scale = (x.float().abs().amax(dims) / 127 for x in (k, v))
    k8, v8 = (
        (x.float() / s.expand(x.shape[:3])[..., None]).round().to(torch.int8) for x, s in ((k, k_scale), (v, v_scale))
    )
    out = check(q, k8, v8, k_scale=k_scale, v_scale=v_scale)
    whole = attention_decode(q, k, v, lengths_of_rows()).float()
    assert float((out - whole).norm() / whole.norm()) < 0.03


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_float8_cache(dtype):
    q, k, v = draw()
    check(q, k.to(dtype), v.to(dtype), k_scale=torch.ones(G), v_scale=torch.ones(G))


def test_any_number_of_splits_is_the_whole():
    q, k, v = draw()
    whole = attention_decode(q, k, v, lengths_of_rows(), splits=1)
    for splits in (2, 5):
        torch.testing.assert_close(
            attention_decode(q, k, v, lengths_of_rows(), splits=splits), whole, atol=1e-3, rtol=1e-3
        )


def test_an_empty_sequence_gives_zeros_and_padding_changes_nothing():
    q, k, v = draw()
    lengths = torch.tensor([5, 0, 67], dtype=torch.int32)
    clean = attention_decode(q, k, v, lengths)
    assert not clean[1].any()
    k[0, 5:], v[0, 5:], k[1], v[2, 67:] = float("nan"), float("nan"), float("inf"), float("nan")
    assert torch.equal(attention_decode(q, k, v, lengths), clean)


def test_bad_input():
    q, k, v = draw()
    scale = torch.ones(G)
    with pytest.raises(ValueError, match=r"number of keys, 128: lengths\[1\] is 129"):
        attention_decode(q, k, v, torch.tensor([1, 129, 1], dtype=torch.int32))
    with pytest.raises(ValueError, match="a cache of int8 needs k_scale"):
        attention_decode(q, k.to(torch.int8), v.to(torch.int8), lengths_of_rows())
    with pytest.raises(ValueError, match="a cache of float16 takes no k_scale"):
        attention_decode(q, k, v, lengths_of_rows(), k_scale=scale, v_scale=scale)
    with pytest.raises(ValueError, match="S_q \\* H / G must be at most 64, got 40 \\* 4 / 2 = 80: use attention"):
        attention_decode(q.expand(-1, 40, -1, -1), k, v, lengths_of_rows())
    with pytest.raises(ValueError, match="block_table must name pages from 0 to 2, got 0 to 3"):
        attention_decode(q, k, v, lengths_of_rows(), block_table=torch.tensor([[0], [1], [3]], dtype=torch.int32))
    with pytest.raises(ValueError, match="splits must be from 1 to 64, got 0"):
        attention_decode(q, k, v, lengths_of_rows(), splits=0)


@pytest.mark.parametrize(
    ("dtype", "cache", "error", "message"),
    [
        (torch.float32, torch.float32, TypeError, "q must be float16 or bfloat16 on sm_86, got float32"),
        (torch.float16, torch.float8_e4m3fn, ValueError, "needs sm_89 or later, the architecture is sm_86"),
    ],
)
def test_what_a_gpu_does_not_take_is_told(monkeypatch, dtype, cache, error, message):
    monkeypatch.setattr(decode, "architecture_of", lambda *_: "sm_86")
    q, k, v = draw(dtype=dtype)
    scales = {} if cache == dtype else {"k_scale": torch.ones(G), "v_scale": torch.ones(G)}
    with pytest.raises(error, match=message):
        attention_decode(q, k.to(cache), v.to(cache), lengths_of_rows(), **scales)
