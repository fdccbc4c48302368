"""The warp-specialized kernel: right by the interpreter, and specialized in what is compiled."""

from __future__ import annotations

import pytest
import torch
from test_cross import compile_all, problems
from tolerance import assert_close, assert_lse_close

from lepto.kernels.attention import attention, attention_varlen
from lepto.kernels.attention.api import seen_window
from lepto.kernels.attention.reference import reference
from lepto.kernels.attention.tables import ARCHITECTURES, choose_specialized
from lepto.kernels.ship.hopper_specification import HopperSpecification


@pytest.mark.parametrize(
    ("dtype", "h", "g", "rows", "cols", "d", "causal"),
    [
        (torch.float16, 2, 2, 64, 64, 32, False),
        (torch.float16, 2, 1, 37, 101, 64, False),
        (torch.bfloat16, 4, 2, 67, 67, 32, True),
        (torch.float16, 2, 2, 71, 33, 32, True),  # the first rows see no key
        (torch.float16, 1, 1, 1, 1, 128, True),
        (torch.float16, 1, 1, 5, 0, 32, False),
    ],
)
@pytest.mark.parametrize("layout", ["bhsd", "bshd"])
def test_as_near_to_float64_as_the_dtype_allows(dtype, h, g, rows, cols, d, causal, layout):
    gen = torch.Generator().manual_seed(0)
    qkv = [torch.randn(2, n, s, d, generator=gen).to(dtype) for n, s in ((h, rows), (g, cols), (g, cols))]
    options = {"scale": d**-0.5, "window": seen_window(None, causal=causal)}
    exact, exact_lse = reference(*qkv, dtype=torch.float64, **options)
    low, _ = reference(*qkv, **options)
    given = [x.transpose(1, 2).contiguous() for x in qkv] if layout == "bshd" else qkv
    out, lse = attention(*given, layout=layout, causal=causal, return_lse=True, implementation="hopper")
    assert_close(out.transpose(1, 2) if layout == "bshd" else out, exact, low)
    assert_lse_close(lse, exact_lse)


def test_what_lies_past_a_sequence_never_changes_it():
    storage = torch.randn(2, 2, 64, 32).half()
    part = storage[:, :, :37]
    clean = attention(part, part, part, implementation="hopper")
    storage[:, :, 37:] = float("nan")
    assert torch.equal(attention(part, part, part, implementation="hopper"), clean)


def test_what_it_cannot_is_refused_and_no_other_stands_in():
    x = torch.zeros(1, 2, 8, 32, dtype=torch.float16)
    refused = [
        ({"window": (3, 0)}, "takes no window: use implementation='triton'"),
        ({"softcap": 2.0}, "takes no softcap"),
        ({"lengths": torch.tensor([8], dtype=torch.int32)}, "takes no lengths"),
        ({"bias": torch.zeros(1, 1, 8, 8)}, "takes no bias"),
        ({"alibi_slopes": torch.zeros(2)}, "takes no alibi_slopes"),
    ]
    for options, said in refused:
        with pytest.raises(ValueError, match=said):
            attention(x, x, x, implementation="hopper", **options)
    with pytest.raises(TypeError, match="runs in float16 or bfloat16, q is float32"):
        attention(x.float(), x.float(), x.float(), implementation="hopper")
    odd = torch.zeros(1, 2, 8, 36, dtype=torch.float16)[..., :32]
    with pytest.raises(ValueError, match=r"start at multiples of 16 bytes, q has strides \[576, 288, 36, 1\]"):
        attention(odd, odd, odd, implementation="hopper")
    with pytest.raises(ValueError, match="implementation must be one of triton, reference, got 'hopper'"):
        attention_varlen(x[0], x[0], x[0], torch.tensor([0, 2]).int(), max_seqlen_q=2, implementation="hopper")
    for name, head_dim in (("sm_89", 64), ("sm_90", 80), ("sm_100", 64)):
        with pytest.raises(ValueError, match=rf"runs on sm_90 \(head_dim 32, 64, 128, 256\), got {name} with"):
            choose_specialized(name, head_dim)
    with pytest.raises(ValueError, match="the architecture is sm_75"):
        choose_specialized("sm_75", 64)


def wrong(found: dict) -> list[str]:
    """Descriptors live in memory of Triton's runtime: this kernel alone may ask for some."""
    told = [p for p in problems(found | {"scratch_bytes": 0}) if p]
    told += [] if found["tma"] else [f"{found['name']}: tiles do not come by TMA"]
    told += [] if found["specialized"] else [f"{found['name']}: no warps are specialized"]
    return told + ([] if found["num_warps"] == 12 else [f"{found['name']}: {found['num_warps']} warps"])


def test_warps_are_specialized_and_tiles_come_by_tma():
    (found,) = compile_all([HopperSpecification(64, causal=True)])
    assert not wrong(found)
    assert found["scratch_bytes"] > 0, "then it could be shipped"


@pytest.mark.thorough
@pytest.mark.timeout(900)
def test_every_entry_of_the_table():
    table = ARCHITECTURES["sm_90"].specialized
    every = [
        HopperSpecification(d, dtype, **options)
        for d in table
        for dtype in ("float16", "bfloat16")
        for options in ({}, {"causal": True}, {"ragged": True})
    ]
    assert not [problem for found in compile_all(every) for problem in wrong(found)]


@pytest.mark.thorough
def test_with_eight_warps_triton_says_nothing_and_specializes_none():
    (found,) = compile_all([HopperSpecification(64, num_warps=8)])
    assert (found["specialized"], found["num_warps"], found["tma"]) == (False, 8, True)
    assert len(wrong(found)) == 2
