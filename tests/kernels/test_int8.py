"""Attention with int8 scores: exact for the values it rounds to, and near to the values it got."""

from __future__ import annotations

import pytest
import torch
from tolerance import assert_close, assert_lse_close

from lepto.kernels.attention import attention, attention_int8
from lepto.kernels.attention.int8 import keys_mean, quantize_blocks
from lepto.kernels.attention.launch import architecture_of
from lepto.kernels.attention.reference import reference
from lepto.kernels.attention.tables import choose


def draw(rows=41, cols=67, d=64, bias=3.0) -> list[torch.Tensor]:
    gen = torch.Generator().manual_seed(3)
    q, k, v = (torch.randn(2, h, n, d, generator=gen) for h, n in ((4, rows), (2, cols), (2, cols)))
    return [q.half(), (k + bias * torch.randn(1, 2, 1, d, generator=gen)).half(), v.half()]  # keys share an offset


@pytest.mark.parametrize("options", [{"lengths": [67, 13]}, {"causal": True}])
def test_exact_for_what_it_rounds_to(options):
    q, k, v = draw()
    options = {n: torch.tensor(x, dtype=torch.int32) if n == "lengths" else x for n, x in options.items()}
    lengths = options.get("lengths")
    mean = keys_mean(k, lengths)
    launch = choose(architecture_of(q), 64, q.shape[2])
    q8, q_scale = quantize_blocks(q, launch.block_m)
    k8, k_scale = quantize_blocks(k, launch.block_n, mean=mean, lengths=lengths)
    wide = [
        x.double() * s.double().repeat_interleave(block, 2)[:, :, : x.shape[2], None]
        for x, s, block in ((q8, q_scale, launch.block_m), (k8, k_scale, launch.block_n))
    ]
    args = {"scale": 64**-0.5, "window": (-1, 0 if options.get("causal") else -1), "lengths": lengths}
    exact, exact_lse = reference(*wide, v.double(), **args)
    low, _ = reference(*(x.half() for x in wide), v, **args)
    out, lse = attention_int8(q, k, v, return_lse=True, **options)
    assert_close(out, exact, low)
    shift = 64**-0.5 * (q.double() * mean.double().repeat_interleave(2, 1)[:, :, None]).sum(-1)
    assert_lse_close(lse, exact_lse + shift)


def test_smoothing_brings_keys_with_an_offset_nearer():
    qkv = draw(bias=12.0)
    whole = attention(*qkv).double()
    error = {s: float((attention_int8(*qkv, smooth=s) - whole).norm() / whole.norm()) for s in (True, False)}
    assert error[True] < 0.03
    assert error[True] < error[False] / 2, error


def test_padding_never_changes_a_valid_row():
    q, k, v = draw()
    lengths = torch.tensor([67, 13], dtype=torch.int32)
    clean = attention_int8(q, k, v, lengths=lengths)
    k[1, :, 13:], v[1, :, 13:] = float("nan"), float("inf")
    assert torch.equal(attention_int8(q, k, v, lengths=lengths), clean)


def test_float32_is_refused():
    with pytest.raises(TypeError, match="q must be float16 or bfloat16, got float32"):
        attention_int8(*(x.float() for x in draw()))
