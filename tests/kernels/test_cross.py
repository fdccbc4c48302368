"""Every entry of the launch tables, compiled for its architecture without having it."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Sequence

import pytest

from lepto.kernels.attention.tables import ARCHITECTURES
from lepto.kernels.ship.cross import HEAD_DIMS, Compilable
from lepto.kernels.ship.small_specification import DECODE, JOIN, PACK, QUANTIZE, UNPACK, SmallSpecification
from lepto.kernels.ship.specification import Specification

QUICK: list[Compilable] = [
    Specification("attention", "sm_87", 64, lengths=True),
    Specification("attention_varlen", "sm_90", 128, causal=True, lse=True),
    Specification("attention_int8", "sm_89", 64),
    SmallSpecification(DECODE, "sm_87", 64, paged=True, cache="int8"),
    SmallSpecification(DECODE, "sm_90", 128, whole=True, few=True),
    SmallSpecification(JOIN, "sm_90", 128),
    Specification("attention_varlen", "sm_90", 32, short=True),
    Specification("attention", "sm_90", 64, softcap=True, doubles=True),
    SmallSpecification(JOIN, "sm_87", 64),
    SmallSpecification(PACK, "sm_90", 384),
    SmallSpecification(UNPACK, "sm_90", 384),
]
# Triton has float8_e4m3fn from sm_89 on; before, decode refuses such a cache.
NO_E4M3 = ("sm_80", "sm_86", "sm_87")
SMALL: list[Compilable] = [
    SmallSpecification(DECODE, architecture, head_dim, **options)
    for architecture in ARCHITECTURES
    for head_dim in HEAD_DIMS
    for options in (
        {"window": True},
        {"whole": True},
        {"whole": True, "few": True},
        {"rows": 64, "dtype": "bfloat16", "softcap": True},
        {"paged": True, "cache": "int8"},
        {"paged": True, "rows": 64, "cache": "float8_e5m2" if architecture in NO_E4M3 else "float8_e4m3fn"},
    )
] + [
    SmallSpecification(kernel, architecture, width, **options)
    for architecture in ARCHITECTURES
    for kernel, width, options in (
        (JOIN, 32, {}),
        (JOIN, 80, {"rows": 64}),
        (JOIN, 256, {"dtype": "bfloat16"}),
        (PACK, 1, {"dtype": "int64"}),
        (PACK, 384, {}),
        (UNPACK, 1, {"dtype": "int64"}),
        (UNPACK, 384, {}),
        (QUANTIZE, 64, {}),
        (QUANTIZE, 128, {"smooth": True}),
    )
]
ALL: list[Compilable] = [
    Specification(kernel, architecture, head_dim, **options)
    for architecture in ARCHITECTURES
    for head_dim in HEAD_DIMS
    for kernel, options in (
        ("attention", {"causal": True, "lse": True}),
        ("attention", {"short": True, "lengths": True}),
        ("attention", {"tiny": True}),
        ("attention_varlen", {"dtype": "bfloat16"}),
        ("attention_varlen", {"short": True}),
        ("attention_int8", {}),
    )
] + [
    Specification(
        "attention", architecture, head_dim, bias=1, alibi=True, softcap=True, window=True, causal=True, lse=True
    )
    for architecture in ARCHITECTURES
    for head_dim in HEAD_DIMS
]


def compile_all(specifications: Sequence[Compilable]) -> list[dict]:
    lines = "\n".join(json.dumps(dataclasses.asdict(s)) for s in specifications)
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "lepto.kernels.ship.cross"],
        input=lines, env=env, capture_output=True, text=True, timeout=1500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [f["name"] for f in found] == [s.name for s in specifications]
    assert len({f["name"] for f in found}) == len(found)
    return found


def wanted(found: dict) -> str:
    """The tensor-core instruction; one for larger blocks takes at least 64 rows."""
    if not found["multiplies"]:
        return ""
    return "mma.sync" if found["block_m"] < 64 else ARCHITECTURES[found["architecture"]].tensor_core


def problems(found: dict) -> list[str]:
    entry = ARCHITECTURES[found["architecture"]]
    checks = {
        f"no {wanted(found)}, but {found['tensor_core'] or 'nothing'}": wanted(found) not in found["tensor_core"],
        f"spills {found['stack_bytes']} bytes": found["stack_bytes"] > 0,
        f"{found['shared_bytes']} bytes shared, limit {entry.shared_bytes}": found["shared_bytes"] > entry.shared_bytes,
        f"{found['scratch_bytes']} bytes of global scratch": found["scratch_bytes"] > 0,
        # A cache in int8 is scaled before its products; only attention_int8 multiplies in int8.
        "no int8 product": found["name"].startswith("attention_int8")
        and found["architecture"] != "sm_100"
        and not found["int8"],
    }
    return [f"{found['name']}: {what}" for what, wrong in checks.items() if wrong]


def test_a_slice_of_the_tables_fits_its_gpus():
    assert not [p for found in compile_all(QUICK) for p in problems(found)]


@pytest.mark.thorough
@pytest.mark.timeout(1800)
def test_every_entry_of_the_tables_fits_its_gpu():
    assert not [p for found in compile_all(ALL) for p in problems(found)]


@pytest.mark.thorough
@pytest.mark.timeout(1800)
def test_the_kernels_around_attention_fit_every_gpu():
    assert not [p for found in compile_all(SMALL) for p in problems(found)]


def test_the_judge_sees_each_problem():
    good = {"name": "attention_int8", "architecture": "sm_89", "tensor_core": "mma.sync", "int8": True}
    good |= {"multiplies": True, "block_m": 64}
    good |= {"stack_bytes": 0, "shared_bytes": 1024, "scratch_bytes": 0}
    assert problems(good) == []
    bad = good | {"tensor_core": "", "int8": False, "stack_bytes": 8, "shared_bytes": 1 << 20, "scratch_bytes": 1}
    assert len(problems(bad)) == 5
