"""What stands beside a cubin, and the checks before it is loaded. Needs neither Triton nor PyTorch."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ABI = 1
"""Raised whenever what a kernel takes, or how it is launched, changes."""
HIDDEN = 2
"""Pointers that Triton appends to every kernel (global scratch, profiler): null here, as no kernel uses them."""
TRITONS = ("3.6", "3.7", "3.8", "3.9")
"""Versions of Triton whose kernels take their arguments so."""

TARGETS = {
    "a100": "sm_80",
    "rtx-ampere": "sm_86",
    "jetson-orin": "sm_87",
    "l4": "sm_89",
    "rtx-ada": "sm_89",
    "h200": "sm_90",
    "b200": "sm_100",
}


class CubinError(Exception):
    """A cubin that must not be loaded, and why."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """One cubin.

    Attributes:
        name: The variant: also the name of its files.
        symbol: The function in the cubin.
        kernel: ``attention`` or ``attention_varlen``.
        architecture: The only one that it runs on.
        head_dim: D.
        dtype: Of q, k, v and the output.
        arguments: Names and types in order, without the hidden pointers at the end.
        hidden: Null pointers to append.
        block_m: Query rows of one program: the grid is ``cdiv(max_q, block_m) * heads * batch`` in x.
        threads: Of one block.
        shared_bytes: Dynamic shared memory.
        registers: Of one thread.
        stack_bytes: Of one thread; more than 0 means spilled registers.
        triton: The version that compiled it.
        source_sha256: Of the kernel's source.
        cubin_sha256: Of the file beside.
        abi: `ABI` when it was built.
    """

    name: str
    symbol: str
    kernel: str
    architecture: str
    head_dim: int
    dtype: str
    arguments: list[list[str]]
    hidden: int
    block_m: int
    threads: int
    shared_bytes: int
    registers: int
    stack_bytes: int
    triton: str
    source_sha256: str
    cubin_sha256: str
    abi: int = ABI

    def to_json(self) -> str:
        """As the file is written."""
        return json.dumps(asdict(self), indent=2) + "\n"


def read_manifest(path: Path) -> Manifest:
    """Read the JSON beside a cubin.

    Raises:
        CubinError: It is no manifest, or of another ABI.
    """
    try:
        values: Any = json.loads(path.read_text())
    except (ValueError, UnicodeDecodeError) as error:
        raise CubinError(f"{path} is no JSON: {error}") from error
    abi = values.get("abi") if isinstance(values, dict) else None
    if abi != ABI:
        raise CubinError(f"{path}: abi must be {ABI}, got {abi!r}: build the cubins with this version of lepto")
    names = set(Manifest.__dataclass_fields__)
    if set(values) != names:
        wrong = ", ".join(sorted(names ^ set(values)))
        raise CubinError(f"{path} must have the fields of a manifest, these are missing or unknown: {wrong}")
    return Manifest(**values)


def check_triton(version: str, *, where: str) -> None:
    """Refuse a version of Triton whose kernels may take other hidden arguments.

    Raises:
        CubinError: It is none of `TRITONS`.
    """
    if ".".join(version.split(".")[:2]) not in TRITONS:
        raise CubinError(
            f"{where}: Triton must be one of {', '.join(TRITONS)}, got {version}: its kernels may take other hidden "
            "arguments; build with one of these"
        )


def check_cubin(manifest: Manifest, cubin: bytes, architecture: str) -> None:
    """Everything that must hold before a cubin is loaded on a GPU.

    Args:
        manifest: What stands beside it.
        cubin: Its bytes.
        architecture: Of the GPU, such as ``sm_87``.

    Raises:
        CubinError: It was changed, is for another GPU, or was built by a Triton with another ABI.
    """
    check_triton(manifest.triton, where=manifest.name)
    if manifest.hidden != HIDDEN:
        raise CubinError(f"{manifest.name}: a kernel must take {HIDDEN} hidden pointers, got {manifest.hidden}")
    digest = hashlib.sha256(cubin).hexdigest()
    if digest != manifest.cubin_sha256:
        raise CubinError(
            f"{manifest.name}.cubin must have the sha256 {manifest.cubin_sha256[:12]}…, got {digest[:12]}…: it was "
            "changed or cut short; build it again"
        )
    if manifest.architecture != architecture:
        raise CubinError(
            f"{manifest.name} is for {manifest.architecture}, this GPU is {architecture}: build with "
            f"`lepto kernels build --target {architecture}`"
        )
