"""Padded attention by Triton's interpreter, against float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerance import assert_close, assert_lse_close

from lepto.kernels.attention import attention
from lepto.kernels.attention.api import seen_window
from lepto.kernels.attention.reference import reference

CASES = {
    # name: (dtype, B, H, G, S_q, S_k, D, options)
    "plain": (torch.float16, 2, 2, 2, 37, 101, 64, {}),
    "one query, one key": (torch.float16, 1, 1, 1, 1, 1, 16, {}),
    "causal, grouped": (torch.bfloat16, 1, 4, 2, 67, 67, 32, {"causal": True}),
    "causal, fewer queries": (torch.float16, 1, 2, 1, 33, 97, 80, {"causal": True}),
    "causal, fewer keys": (torch.float16, 1, 2, 1, 71, 33, 32, {"causal": True}),
    "window": (torch.float16, 1, 2, 2, 131, 131, 32, {"window": (40, 5)}),
    "window of the past": (torch.bfloat16, 1, 2, 2, 101, 101, 96, {"window": (7, -1), "causal": True}),
    "window to the right": (torch.float16, 1, 2, 2, 101, 101, 16, {"window": (-1, 70)}),
    "lengths": (torch.float16, 3, 2, 2, 41, 67, 64, {"lengths": [67, 0, 13]}),
    "lengths, causal": (torch.float16, 2, 2, 2, 67, 67, 16, {"lengths": [50, 1], "causal": True}),
    "bias": (torch.float16, 2, 2, 2, 41, 67, 32, {"bias": (1, 2, 41, 67)}),
    "bias of keys": (torch.bfloat16, 2, 2, 2, 41, 67, 32, {"bias": (2, 1, 1, 67)}),
    "boolean": (torch.float16, 2, 2, 2, 41, 67, 32, {"boolean": (2, 1, 41, 67)}),
    "alibi": (torch.float16, 2, 4, 1, 41, 67, 32, {"alibi": (4,)}),
    "alibi of rows": (torch.float16, 2, 4, 1, 41, 41, 32, {"alibi": (2, 4), "causal": True}),
    "soft cap": (torch.float16, 1, 2, 2, 41, 67, 64, {"softcap": 15.0}),
    "large values": (torch.float16, 1, 2, 2, 41, 67, 64, {"factor": 4.0}),
    "128": (torch.float16, 1, 2, 1, 65, 67, 128, {"causal": True}),
    "256": (torch.bfloat16, 1, 1, 1, 33, 37, 256, {}),
    "float32": (torch.float32, 1, 2, 1, 33, 67, 32, {"causal": True}),
}
QUICK = ["causal, fewer queries", "window", "lengths", "bias of keys", "boolean", "alibi", "soft cap", "large values"]


def draw(case: str, seed: int = 0) -> tuple[list[torch.Tensor], dict]:
    dtype, b, h, g, rows, cols, d, options = CASES[case]
    gen = torch.Generator().manual_seed(seed)
    options = dict(options)
    factor = options.pop("factor", 1.0)
    qkv = [
        (factor * torch.randn(shape, generator=gen)).to(dtype)
        for shape in ((b, h, rows, d), (b, g, cols, d), (b, g, cols, d))
    ]
    if "lengths" in options:
        options["lengths"] = torch.tensor(options["lengths"], dtype=torch.int32)
    if "bias" in options:
        options["bias"] = torch.randn(options["bias"], generator=gen).to(dtype)
    if "boolean" in options:
        options["bias"] = torch.rand(options.pop("boolean"), generator=gen) > 0.3
        options["bias"][0, :, 3] = False  # a query that sees nothing
    if "alibi" in options:
        options["alibi_slopes"] = torch.rand(options.pop("alibi"), generator=gen)
    return qkv, options


def expected(qkv, options, dtype):
    options = dict(options)
    window = seen_window(options.pop("window", None), causal=options.pop("causal", False))
    return reference(*qkv, scale=qkv[0].shape[-1] ** -0.5, window=window, dtype=dtype, **options)


@pytest.mark.parametrize("case", [c if c in QUICK else pytest.param(c, marks=pytest.mark.thorough) for c in CASES])
@pytest.mark.parametrize("layout", ["bhsd", pytest.param("bshd", marks=pytest.mark.thorough)])
def test_as_near_to_float64_as_the_dtype_allows(case, layout):
    qkv, options = draw(case)
    exact, exact_lse = expected(qkv, options, torch.float64)
    low, _ = expected(qkv, options, None)
    given_ = [x.transpose(1, 2).contiguous() for x in qkv] if layout == "bshd" else qkv
    out, lse = attention(*given_, layout=layout, return_lse=True, **options)
    out = out.transpose(1, 2) if layout == "bshd" else out
    assert_close(out, exact, low)
    assert_lse_close(lse, exact_lse)


def test_the_rule_refuses_a_wrong_result():
    qkv, options = draw("plain")
    exact, _ = expected(qkv, options, torch.float64)
    low, _ = expected(qkv, options, None)
    with pytest.raises(AssertionError, match="allowed"):
        assert_close((low * 1.05).half(), exact, low)


def test_a_slice_of_a_fused_projection_is_read_in_place():
    fused = torch.randn(2, 53, 3, 2, 32, dtype=torch.float16)
    q, k, v = fused.unbind(2)  # [B, S, H, D], rows 3 * H * D apart
    assert not q.is_contiguous()
    out = attention(q, k, v, layout="bshd")
    assert torch.equal(out, attention(*(x.contiguous() for x in (q, k, v)), layout="bshd"))


@pytest.mark.thorough
def test_rows_more_than_2_to_the_31_elements_apart():
    try:
        storage = torch.empty(2**31 + 64, dtype=torch.float16)  # pages that nobody touches take no memory
    except RuntimeError:
        pytest.skip("this machine does not lend 4 GiB of address space")
    far = storage.as_strided((1, 1, 2, 16), (2**31 + 32, 2**31 + 32, 2**31, 1))
    far.copy_(torch.randn(1, 1, 2, 16))
    near = far.clone()
    assert torch.equal(attention(far, far, far), attention(near, near, near))


def test_padding_never_changes_a_valid_row():
    qkv, options = draw("lengths")
    clean = attention(*qkv, **options)
    for row, length in enumerate(options["lengths"].tolist()):
        qkv[1][row, :, length:] = float("nan")
        qkv[2][row, :, length:] = float("inf")
    assert torch.equal(attention(*qkv, **options), clean)
    assert not clean[1].any(), "a row of padding only gives zeros"


@settings(max_examples=5, deadline=None)
@given(st.permutations(range(3)), st.integers(1, 3))
def test_a_row_does_not_depend_on_its_batch(order, size):
    qkv = [torch.randn(3, 2, 35, 16, generator=torch.Generator().manual_seed(i)).half() for i in range(3)]
    whole = attention(*qkv)
    assert torch.equal(attention(*(x[order[:size]] for x in qkv)), whole[order[:size]])


def test_two_halves_joined_by_their_log_sum_exp_are_the_whole():
    qkv, _ = draw("plain")
    whole, whole_lse = attention(*qkv, return_lse=True)
    (a, lse_a), (b, lse_b) = (
        attention(qkv[0], *(x[:, :, part] for x in qkv[1:]), return_lse=True)
        for part in (slice(0, 41), slice(41, None))
    )
    lse = torch.logaddexp(lse_a, lse_b)
    joined = a * (lse_a - lse).exp()[..., None] + b * (lse_b - lse).exp()[..., None]
    torch.testing.assert_close(joined, whole.float(), atol=2e-3, rtol=2e-3)
    torch.testing.assert_close(lse, whole_lse, atol=1e-5, rtol=1e-5)


def test_no_keys_and_no_queries():
    q = torch.randn(1, 2, 5, 16, dtype=torch.float16)
    none = torch.empty(1, 2, 0, 16, dtype=torch.float16)
    assert not attention(q, none, none).any()
    assert attention(none, q, q).shape == none.shape


def test_implementations_agree_and_none_stands_in_for_another():
    qkv, options = draw("alibi")
    torch.testing.assert_close(
        attention(*qkv, **options), attention(*qkv, implementation="reference", **options), atol=4e-3, rtol=4e-3
    )
    with pytest.raises(ValueError, match="implementation must be one of triton, reference, hopper, got 'flash'"):
        attention(*qkv, implementation="flash")
