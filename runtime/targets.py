"""The hardware that a package is compiled for, as data: what a runtime needs to know of each."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Target:
    """One kind of hardware.

    Attributes:
        name: As in ``--target``.
        kind: Where the model runs.
        isa: Instruction set of its CPU: an x86-64 micro-architecture level, or ``arm64``.
        description: What it is, for people.
        buildable: Whether this release can compile for it.
        compute_capability: NVIDIA's number for the GPU's architecture; empty for CPUs.
    """

    name: str
    kind: Literal["cpu", "gpu"]
    isa: str
    description: str
    buildable: bool
    compute_capability: str = ""


TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Target("x86-64-v2", "cpu", "x86-64-v2", "x86 CPUs with SSE4.2 (from 2009)", buildable=True),
        Target("x86-64-v3", "cpu", "x86-64-v3", "x86 CPUs with AVX2 (Haswell, Zen and later)", buildable=True),
        Target("x86-64-v4", "cpu", "x86-64-v4", "x86 CPUs with AVX-512 (Skylake-X, Zen 4 and later)", buildable=True),
        Target("arm64", "cpu", "arm64", "64-bit Arm CPUs (Graviton, Ampere, Grace, Apple)", buildable=True),
        Target("jetson-orin", "gpu", "arm64", "Jetson Orin modules, TensorRT", False, "8.7"),
        Target("t4", "gpu", "x86-64-v3", "NVIDIA T4 (Turing), TensorRT", False, "7.5"),
        Target("l4", "gpu", "x86-64-v3", "NVIDIA L4 (Ada), TensorRT", False, "8.9"),
        Target("h200", "gpu", "x86-64-v3", "NVIDIA H200 (Hopper), TensorRT", False, "9.0"),
        Target("rtx-ada", "gpu", "x86-64-v3", "GeForce RTX 40 series (Ada), TensorRT for RTX", False, "8.9"),
    )
}


def find_target(name: str) -> Target:
    """The target of that name.

    Raises:
        ValueError: There is none; the message has the nearest name.
    """
    try:
        return TARGETS[name]
    except KeyError:
        near = difflib.get_close_matches(name, TARGETS, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"unknown target {name!r}; {hint}known targets: {', '.join(TARGETS)}") from None
