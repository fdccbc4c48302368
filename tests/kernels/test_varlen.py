"""Packed attention, pack and unpack by Triton's interpreter."""

from __future__ import annotations

import pytest
import torch
from tolerance import assert_close, assert_lse_close

from lepto.kernels.attention import Packing, attention, attention_varlen, pack, unpack
from lepto.kernels.attention.api import seen_window
from lepto.kernels.attention.reference import reference_varlen


def cu(*lengths: int) -> torch.Tensor:
    return torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0).int()


def packed(total_q: int, total_k: int, h: int, g: int, d: int, dtype=torch.float16) -> list[torch.Tensor]:
    gen = torch.Generator().manual_seed(1)
    return [
        torch.randn(n, heads, d, generator=gen).to(dtype) for n, heads in ((total_q, h), (total_k, g), (total_k, g))
    ]


@pytest.mark.parametrize(
    ("lengths_q", "lengths_k", "d", "options"),
    [
        ([37, 1, 0, 67], [37, 1, 0, 67], 64, {}),
        ([37, 1, 5, 31], [53, 0, 5, 67], 32, {"causal": True}),
        pytest.param([64, 3], [64, 3], 80, {"window": (9, 9)}, marks=pytest.mark.thorough),
        pytest.param([33, 71], [33, 71], 32, {"alibi": True, "causal": True}, marks=pytest.mark.thorough),
        pytest.param([0, 0], [0, 0], 16, {}, marks=pytest.mark.thorough),
        pytest.param([70, 5], [70, 5], 128, {"softcap": 10.0}, marks=pytest.mark.thorough),
    ],
)
def test_each_sequence_by_itself(lengths_q, lengths_k, d, options):
    qkv = packed(sum(lengths_q), sum(lengths_k), 4, 2, d)
    cus = cu(*lengths_q), cu(*lengths_k)
    options = dict(options)
    if options.pop("alibi", False):
        options["alibi_slopes"] = torch.rand(len(lengths_q), 4)
    out, lse = attention_varlen(
        *qkv, *cus, max_seqlen_q=max(lengths_q), max_seqlen_k=max(lengths_k), return_lse=True, **options
    )
    window = seen_window(options.pop("window", None), causal=options.pop("causal", False))
    if not sum(lengths_q):
        assert out.shape == qkv[0].shape
        return
    args = {"scale": d**-0.5, "window": window, **options}
    exact, exact_lse = reference_varlen(*qkv, *cus, dtype=torch.float64, **args)
    low, _ = reference_varlen(*qkv, *cus, **args)
    assert_close(out, exact, low)
    assert_lse_close(lse, exact_lse)


def test_packed_is_padded_without_the_padding():
    lengths = torch.tensor([40, 7, 0, 33], dtype=torch.int32)
    mask = torch.arange(40)[None] < lengths[:, None]
    packing = Packing.from_mask(mask)
    qkv = [torch.randn(4, 40, 2, 32).half() for _ in range(3)]
    padded = attention(*qkv, layout="bshd", lengths=lengths)
    out = attention_varlen(*(pack(x, packing) for x in qkv), packing.cu_seqlens, max_seqlen_q=packing.max_seqlen)
    assert torch.equal(out, padded[mask])
    back = unpack(out, packing)
    assert torch.equal(back[mask], padded[mask])
    assert not back[~mask].any()


@pytest.mark.parametrize("dtype", [torch.int64, torch.float16, torch.float32, torch.bool])
@pytest.mark.parametrize("shape", [(), (3,), (5, 61)])
def test_unpack_undoes_pack_with_padding_on_either_side(dtype, shape):
    mask = torch.tensor([[0, 1, 1, 1, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0], [0, 0, 0, 1, 1]])
    packing = Packing.from_mask(mask)
    x = torch.randint(0, 2, (4, 5, *shape)).to(dtype)
    tokens = pack(x, packing)
    assert torch.equal(tokens, x[mask.bool()])
    assert torch.equal(tokens, pack(x, packing, implementation="reference"))
    back = unpack(tokens, packing)
    assert torch.equal(back, unpack(tokens, packing, implementation="reference"))
    assert torch.equal(pack(back, packing), tokens)


def test_a_mask_with_a_hole_is_refused():
    with pytest.raises(ValueError, match="row 1 of the mask has padding between them"):
        Packing.from_mask(torch.tensor([[1, 1, 0], [1, 0, 1]]))
