"""The hardware that a package is compiled for, as data: what a runtime needs to know of each."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Literal

Builder = Literal["onnxruntime", "tensorrt", "tensorrt-rtx"]


@dataclass(frozen=True, slots=True)
class Toolkit:
    """What a target's own software brings.

    Attributes:
        name: As its vendor calls it.
        tensorrt: Major version of its TensorRT.
    """

    name: str
    tensorrt: int


@dataclass(frozen=True, slots=True)
class Target:
    """One kind of hardware.

    Attributes:
        name: As in ``--target``.
        kind: Where the model runs.
        isa: Instruction set of its CPU: an x86-64 micro-architecture level, or ``arm64``.
        description: What it is, for people.
        builder: What makes the model fit: onnxruntime runs it as it is; the others compile it to an engine. An engine
            of ``tensorrt`` is built on the GPU itself, one of ``tensorrt-rtx`` on any machine, with or without a GPU.
        compute_capability: NVIDIA's number for the GPU's architecture; empty for CPUs.
        toolkits: The versions of TensorRT that are in use on it, oldest first.
    """

    name: str
    kind: Literal["cpu", "gpu"]
    isa: str
    description: str
    builder: Builder = "onnxruntime"
    compute_capability: str = ""
    toolkits: tuple[Toolkit, ...] = ()


_TENSORRT = (Toolkit("TensorRT 10", 10), Toolkit("TensorRT 11", 11))
# https://developer.nvidia.com/embedded/jetpack: which TensorRT an Orin has is decided by its JetPack.
_JETPACK = (Toolkit("JetPack 6", 10), Toolkit("JetPack 7.2", 11))
_RTX = (Toolkit("TensorRT for RTX 1.7", 1),)

# Compute capabilities: https://developer.nvidia.com/cuda-gpus
TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Target("x86-64-v2", "cpu", "x86-64-v2", "x86 CPUs with SSE4.2 (from 2009)"),
        Target("x86-64-v3", "cpu", "x86-64-v3", "x86 CPUs with AVX2 (Haswell, Zen and later)"),
        Target("x86-64-v4", "cpu", "x86-64-v4", "x86 CPUs with AVX-512 (Skylake-X, Zen 4 and later)"),
        Target("arm64", "cpu", "arm64", "64-bit Arm CPUs (Graviton, Ampere, Grace, Apple)"),
        Target("jetson-orin", "gpu", "arm64", "Jetson Orin modules, TensorRT", "tensorrt", "8.7", _JETPACK),
        Target("t4", "gpu", "x86-64-v3", "NVIDIA T4 (Turing), TensorRT", "tensorrt", "7.5", _TENSORRT),
        Target("l4", "gpu", "x86-64-v3", "NVIDIA L4 (Ada), TensorRT", "tensorrt", "8.9", _TENSORRT),
        Target("h200", "gpu", "x86-64-v3", "NVIDIA H200 (Hopper), TensorRT", "tensorrt", "9.0", _TENSORRT),
        Target(
            "rtx-ada", "gpu", "x86-64-v3", "GeForce RTX 40 series (Ada), TensorRT for RTX", "tensorrt-rtx", "8.9", _RTX
        ),
        Target(
            "rtx-blackwell",
            "gpu",
            "x86-64-v3",
            "GeForce RTX 50 series (Blackwell), TensorRT for RTX",
            "tensorrt-rtx",
            "12.0",
            _RTX,
        ),
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
