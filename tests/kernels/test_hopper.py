"""The warp-specialized kernel: right on CPU tensors, whatever order its partitions go on in."""

from __future__ import annotations

import pytest
import torch
from conftest import ON_GPU
from gluon_on_cpu import SOURCE, ProtocolError, run_hopper
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_cross import compile_all, problems
from tolerance import assert_close, assert_lse_close

from lepto.kernels.attention import attention, attention_varlen
from lepto.kernels.attention.api import seen_window
from lepto.kernels.attention.reference import reference
from lepto.kernels.attention.schedule import _busiest, schedule
from lepto.kernels.attention.tables import ARCHITECTURES, Specialized, choose_specialized
from lepto.kernels.ship.hopper_specification import HopperSpecification

TABLE = ARCHITECTURES["sm_90"].specialized
on_cpu = pytest.mark.skipif(ON_GPU, reason="the GPU runs the kernel itself")

CASES = {
    # name: (dtype, B, H, G, S_q, S_k, config, options)
    "one block": (torch.float16, 1, 1, 1, 64, 64, Specialized(64, 1, 1), {}),
    "one query, one key": (torch.float16, 1, 1, 1, 1, 1, Specialized(32, 1, 1), {"causal": True}),
    "one query": (torch.float16, 2, 2, 2, 1, 211, Specialized(64, 2, 2), {"causal": True}),
    "primes": (torch.float16, 1, 2, 2, 199, 257, Specialized(32, 1, 2), {}),
    "grouped": (torch.float16, 1, 6, 2, 97, 101, Specialized(32, 2, 2), {}),
    "bfloat16": (torch.bfloat16, 2, 4, 2, 131, 131, Specialized(64, 2, 2), {"causal": True}),
    "fewer queries": (torch.float16, 1, 2, 1, 37, 307, Specialized(32, 3, 3), {"causal": True}),
    "fewer keys": (torch.float16, 1, 2, 2, 307, 101, Specialized(32, 2, 3), {"causal": True}),  # rows that see no key
    "whole blocks": (torch.float16, 1, 2, 2, 256, 256, Specialized(64, 2, 2), {"causal": True}),
    "three groups": (torch.float16, 1, 3, 1, 401, 401, Specialized(32, 3, 2), {"causal": True}),
    "without turns": (torch.float16, 2, 2, 1, 197, 197, Specialized(32, 3, 4, turns=False), {"causal": True}),
    "one stage": (torch.bfloat16, 2, 2, 1, 67, 211, Specialized(32, 2, 1), {}),
    "four stages": (torch.float16, 2, 2, 1, 67, 211, Specialized(32, 2, 4), {}),
    "two lanes": (torch.float16, 1, 5, 1, 131, 131, Specialized(32, 1, 2), {"causal": True, "lanes": 2}),
    "all lanes": (torch.float16, 2, 3, 1, 131, 131, Specialized(32, 1, 2), {"lanes": 99}),
    "more programs than tiles": (torch.float16, 1, 2, 1, 61, 61, Specialized(32, 1, 2), {"programs": 5}),
    "no tile ahead": (torch.float16, 1, 5, 1, 331, 200, Specialized(64, 3, 2, ahead=False), {}),
    "no tile ahead, causal": (torch.float16, 1, 5, 1, 331, 331, Specialized(64, 2, 2, ahead=False), {"causal": True}),
    "a scale": (torch.float16, 1, 1, 1, 61, 61, Specialized(32, 1, 2), {"scale": 0.7}),
}


def draw(b, h, g, rows, cols, dtype=torch.float16, d=32):
    gen = torch.Generator().manual_seed(0)
    return [torch.randn(b, n, s, d, generator=gen).to(dtype) for n, s in ((h, rows), (g, cols), (g, cols))]


def assert_near(out, lse, qkv, *, causal, scale=None):
    options = {"scale": scale or qkv[0].shape[-1] ** -0.5, "window": seen_window(None, causal=causal)}
    exact, exact_lse = reference(*qkv, dtype=torch.float64, **options)
    low, _ = reference(*qkv, **options)
    assert_close(out, exact, low)
    assert_lse_close(lse, exact_lse)


@on_cpu
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("layout", ["bhsd", "bshd"])
def test_as_near_to_float64_as_the_dtype_allows(case, layout):
    dtype, *shape, config, options = CASES[case]
    options = {"causal": False, **options}
    qkv = draw(*shape, dtype)
    if layout == "bshd":
        qkv = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in qkv]
    lse = torch.full(qkv[0].shape[:3], float("nan"))
    out = run_hopper(*qkv, config=config, lse=lse, **options)
    assert out.stride() == qkv[0].stride()
    assert_near(out, lse, qkv, causal=options["causal"], scale=options.get("scale"))


@on_cpu
@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(1, 3), st.integers(1, 4), st.booleans(), st.integers(1, 4), st.integers(1, 300), st.integers(1, 300))
@example(3, 2, True, 2, 300, 300)
@example(3, 3, True, 1, 47, 303)  # a multiple of 64 more keys
@example(2, 1, True, 1, 300, 44)
def test_any_lengths_and_any_pipeline(groups, stages, causal, lanes, rows, cols):
    qkv = draw(1, 3, 1, rows, cols)
    lse = torch.full(qkv[0].shape[:3], float("nan"))
    block_n = 64 if (cols - rows) % 64 == 0 else 32
    config = Specialized(block_n, groups, stages, turns=rows % 2 == 0, ahead=cols % 3 > 0)
    out = run_hopper(*qkv, causal=causal, config=config, lse=lse, lanes=lanes, seed=cols)
    assert_near(out, lse, qkv, causal=causal)


@on_cpu
def test_the_order_in_which_partitions_go_on_never_changes_a_number():
    qkv = draw(1, 2, 1, 200, 200)
    outs = [run_hopper(*qkv, causal=True, config=Specialized(32, 2, 2), seed=seed) for seed in range(12)]
    assert all(torch.equal(out, outs[0]) for out in outs)


@on_cpu
def test_rows_that_see_no_key_are_zeros():
    qkv = draw(1, 1, 1, 300, 40)
    lse = torch.zeros(1, 1, 300)
    out = run_hopper(*qkv, causal=True, config=Specialized(32, 2, 2), lse=lse)
    assert not out[:, :, :260].any()
    assert (lse[:, :, :260] == float("-inf")).all()
    assert out[:, :, 260:].any(-1).all()
    assert lse[:, :, 260:].isfinite().all()


@on_cpu
@pytest.mark.parametrize("causal", [False, True])
def test_what_lies_past_a_sequence_never_changes_it(causal):
    storage = draw(2, 2, 2, 192, 192)[0]
    part = storage[:, :, :131]
    clean = run_hopper(part, part, part, causal=causal, config=Specialized(64, 2, 2))
    storage[:, :, 131:] = float("nan")
    assert torch.equal(run_hopper(part, part, part, causal=causal, config=Specialized(64, 2, 2)), clean)


@on_cpu
def test_a_slice_of_a_fused_projection_is_read_in_place():
    fused = torch.randn(2, 53, 3, 2, 32).half()
    qkv = [x.transpose(1, 2) for x in fused.unbind(2)]
    out = run_hopper(*qkv, causal=True, config=Specialized(32, 1, 2))
    whole = run_hopper(*(x.contiguous() for x in qkv), causal=True, config=Specialized(32, 1, 2))
    assert torch.equal(out, whole)


@on_cpu
@settings(max_examples=5, deadline=None)
@given(st.permutations(range(3)), st.integers(1, 3))
def test_a_row_does_not_depend_on_its_batch(order, size):
    qkv = draw(3, 2, 1, 67, 67)
    config = Specialized(32, 2, 2)
    whole = run_hopper(*qkv, causal=True, config=config)
    part = [x[order[:size]] for x in qkv]
    assert torch.equal(run_hopper(*part, causal=True, config=config, lanes=3), whole[order[:size]])


WAIT = "    acc, weights, total = warpgroup_mma_wait(0, deps=(acc, weights, total))\n"
V_EMPTY = "    mbarrier.arrive(v_empty.index((block - 1) % STAGES), count=1)\n"
VALUES = "    values ="
TURN = "    if TURNS:\n        mbarrier.arrive(turns.index((G + 1) % GROUPS), count=1)\n"
PASSED_K = "    mbarrier.arrive(k_empty.index(block % STAGES), count=1)\n    mbarrier.wait(v_full"
V_FULL = "    mbarrier.wait(v_full.index(block % STAGES), (block // STAGES) & 1)\n"
Q_FULL = "        mbarrier.wait(q_full.index(place), (turn // Q_STAGES) & 1)\n"
Q_EMPTY = "        mbarrier.arrive(q_empty.index(place), count=1)\n"
PASSED = "    mbarrier.wait(v_full.index(block % STAGES), (block // STAGES) & 1)\n    mbarrier.arrive(v_empty"
FAULTS = {
    # name: (what to replace in the source, what is said, keys)
    "values freed before they are added": ({WAIT + V_EMPTY: V_EMPTY + WAIT}, "written while it was read"),
    "queries freed before they are multiplied": (
        {Q_EMPTY: "", Q_FULL: Q_FULL + Q_EMPTY},
        "written while it was read|wrong",
        32,  # with more keys there is no room for those of a tile so far ahead
    ),
    "keys freed by one group for all": (
        {"(STAGES, GROUPS), _barriers(STAGES, 1)": "(STAGES, 1), _barriers(STAGES, 1)"},
        "arrivals at a barrier|written while it was read|nobody can go on",
    ),
    "queries of the wrong phase": (
        {"((turn // Q_STAGES) & 1) ^ 1": "(turn // Q_STAGES) & 1"},
        r"nobody can go on\n.*q_full.index\(place\)",
    ),
    "values passed by before they have come": ({PASSED: "    mbarrier.arrive(v_empty"}, "arrivals|read|nobody"),
    "a step passed by too many": ({"range(steps - own)": "range(steps - own + 1)"}, "nobody can go on|wr"),
    "a turn that is not passed on": ({TURN + PASSED_K: PASSED_K}, "nobody can go on"),
    "a last round that is not full is left out": ({"last * programs - place, 0), 1)": "0, 0), 0)"}, "nan"),
    "values that have not come": (
        {V_FULL + VALUES: VALUES},
        "arrivals at a barrier|written while it was read|nan|nobody can go on",
    ),
    "a phase that ignores the stages": ({"((block // STAGES) & 1) ^ 1)": "(block & 1) ^ 1)"}, "nobody can go on"),
    "half of the bytes": ({"stage), tensor.block_type.nbytes": "stage), tensor.block_type.nbytes // 2"}, "nobody"),
    "the output before the last has left": ({"tma.store_wait(0)  #": "#"}, "written while it was read .*_store_tile"),
    "the output not seen by TMA": ({"        fence_async_shared()\n": ""}, "no fence before the store"),
    "an end before the output has left": ({"    tma.store_wait(0)\n\n\n": "\n\n"}, "ends before what it began"),
    "one key too many under the mask": ({"(len_k - len_q - at))[": "(len_k - len_q - at) + 1)["}, "wrong"),
}


@on_cpu
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_the_source_is_found(fault):
    changes, said, *keys = FAULTS[fault]
    source = SOURCE
    for old, new in changes.items():
        assert source.count(old) == 1, f"the kernel has changed, and the fault with it: {old}"
        source = source.replace(old, new)
    qkv = draw(1, 5, 1, 300, *keys or [300])
    options = {"causal": True, "config": Specialized(32, 2, 4 if keys else 2), "programs": 4}  # 15 tiles
    right = run_hopper(*qkv, **options)
    with pytest.raises(ProtocolError, match=said):  # noqa: PT012 - a fault need not show in every order
        for seed in range(8):
            out = run_hopper(*qkv, **options, seed=seed, source=source)
            if out.isnan().any() or not torch.allclose(out, right, atol=1e-2):
                raise ProtocolError("nan" if out.isnan().any() else "wrong")


@on_cpu
def test_without_its_gpu_it_says_what_is_missing():
    x = torch.zeros(1, 2, 8, 32, dtype=torch.float16)
    said = "hopper' needs tensors on an sm_90 GPU, these are on cpu, and Triton's interpreter knows no Gluon"
    with pytest.raises(ValueError, match=said):
        attention(x, x, x, implementation="hopper")


@pytest.mark.skipif(not ON_GPU, reason="the table's entries run on an sm_90 GPU")
@pytest.mark.parametrize("d", TABLE)
@pytest.mark.parametrize(
    ("dtype", "h", "g", "rows", "cols", "causal"),
    [
        (torch.float16, 2, 2, 64, 64, False),
        (torch.float16, 2, 1, 37, 101, False),
        (torch.bfloat16, 4, 2, 1023, 1023, True),
        (torch.float16, 2, 2, 307, 101, True),
        (torch.float16, 1, 1, 1, 1, True),
        (torch.float16, 1, 1, 5, 0, False),
        (torch.float16, 64, 16, 700, 2000, True),  # more tiles than the GPU has processors
    ],
)
@pytest.mark.parametrize("layout", ["bhsd", "bshd"])
def test_the_gpu_as_near_to_float64_as_the_dtype_allows(d, dtype, h, g, rows, cols, causal, layout):
    qkv = draw(2, h, g, rows, cols, dtype, d)
    shown = [x.transpose(1, 2).contiguous() for x in qkv] if layout == "bshd" else qkv
    out, lse = attention(*shown, layout=layout, causal=causal, return_lse=True, implementation="hopper")
    assert_near(out.transpose(1, 2) if layout == "bshd" else out, lse, qkv, causal=causal)


def test_what_it_cannot_is_refused_and_no_other_stands_in():
    x = torch.zeros(1, 2, 8, 32, dtype=torch.float16)
    refused = [
        ({"window": (3, 0)}, "takes no window: use implementation='triton'"),
        ({"softcap": 2.0}, "takes no softcap"),
        ({"lengths": torch.tensor([8], dtype=torch.int32)}, "takes no lengths"),
        ({"bias": torch.zeros(1, 1, 8, 8)}, "takes no bias"),
        ({"alibi_slopes": torch.zeros(2)}, "takes no alibi_slopes"),
        ({"scale": 0.0}, r"needs a positive scale, got 0\.0"),
    ]
    for options, said in refused:
        with pytest.raises(ValueError, match=said):
            attention(x, x, x, implementation="hopper", **options)
    with pytest.raises(TypeError, match="runs in float16 or bfloat16, q is float32"):
        attention(x.float(), x.float(), x.float(), implementation="hopper")
    odd = torch.zeros(1, 2, 8, 36, dtype=torch.float16)[..., :32]
    with pytest.raises(ValueError, match=r"start at multiples of 16 bytes, q has strides \[576, 288, 36, 1\]"):
        attention(odd, odd, odd, implementation="hopper")
    with pytest.raises(ValueError, match=r"k has strides \[512, 0, 32, 1\]"):
        attention(x, x[:, :1].expand(-1, 2, -1, -1), x, implementation="hopper")
    with pytest.raises(ValueError, match="implementation must be one of triton, reference, got 'hopper'"):
        attention_varlen(x[0], x[0], x[0], torch.tensor([0, 2]).int(), max_seqlen_q=2, implementation="hopper")
    for name, head_dim in (("sm_89", 64), ("sm_90", 80), ("sm_100", 64)):
        said = rf"runs on sm_90 \(head_dim {', '.join(map(str, TABLE))}\), got {name} with"
        with pytest.raises(ValueError, match=said):
            choose_specialized(name, head_dim)
    with pytest.raises(ValueError, match="the architecture is sm_75"):
        choose_specialized("sm_75", 64)


@pytest.mark.parametrize("head_dim", TABLE)
@pytest.mark.parametrize("causal", [False, True])
def test_there_is_a_launch_for_any_shape(head_dim, causal):
    for rows in (1, 16, 64, 65, 128, 300, 512, 513, 5000):
        for heads in (1, 12, 1536):
            launch, lanes = schedule(TABLE[head_dim], rows, rows, heads, head_dim, 132, causal=causal)
            assert 1 <= lanes <= heads
            assert launch.causal in (None, causal)
            assert launch.groups == 1 or rows > 64 * (launch.groups - 1), "a group without rows"


def test_the_order_of_tiles_leaves_no_processor_much_more_than_the_others():
    """Shapes that were measured, where the worst order takes half as long again."""
    launch = Specialized(128, 2, 2)
    for keys, heads in ((1024, 256), (2048, 128), (4096, 64)):
        _, lanes = schedule((launch,), keys, keys, heads, 128, 132, causal=True)
        all_steps = sum(block + 2 for block in range(keys // 128)) * heads
        assert _busiest(launch, keys, keys, heads, lanes, 132) < 1.07 * all_steps / 132
        worst = max(_busiest(launch, keys, keys, heads, n, 132) for n in (1, 2, 4, 8, 16))
        assert worst > 1.35 * all_steps / 132


def test_the_estimate_counts_the_steps_of_the_order_that_the_kernel_has():
    launch, rows, keys, heads, lanes, places = Specialized(64, 2, 2), 700, 500, 6, 4, 5
    blocks = -(-rows // 128)
    load = [0.0] * places
    for tile in range(blocks * heads):
        first = tile // (blocks * lanes) * lanes
        here = min(lanes, heads - first)
        block = blocks - 1 - tile % (blocks * lanes) // here
        seen = max(min(keys, (block + 1) * 128 + keys - rows), 1)
        turn, place = divmod(tile, places)
        load[places - 1 - place if turn % 2 else place] += -(-seen // 64) + launch.extra
    assert _busiest(launch, rows, keys, heads, lanes, places) == max(load)


def test_a_long_order_is_estimated_whole():
    """Small tiles are more, and must not look cheap for that: only the first of an order are counted."""
    launch = Specialized(64, 1, 3)
    some = _busiest(launch, 512, 512, 1000, 8, 132)
    assert _busiest(launch, 512, 512, 4000, 8, 132) == pytest.approx(4 * some, rel=0.02)


def wrong(found: dict) -> list[str]:
    told = problems(found)
    told += [] if found["tma"] else [f"{found['name']}: tiles do not come by TMA"]
    return told + ([] if found["specialized"] else [f"{found['name']}: no warps are specialized"])


def variants(head_dim: int) -> list[HopperSpecification]:
    return [
        HopperSpecification(head_dim, entry, dtype, **options)
        for entry, launch in enumerate(TABLE[head_dim])
        for dtype in ("float16", "bfloat16")
        for options in ({}, {"ragged": True, "lse": False}, {"causal": True}, {"causal": True, "even": True})
        if launch.causal in (None, options.get("causal", False))
    ]


def test_warps_are_specialized_and_tiles_come_by_tma():
    assert not [p for found in compile_all([HopperSpecification(128, 1, causal=True)]) for p in wrong(found)]


@pytest.mark.thorough
@pytest.mark.timeout(900)
def test_every_entry_of_the_table():
    every = [one for head_dim in TABLE for one in variants(head_dim)]
    assert not [problem for found in compile_all(every) for problem in wrong(found)]
