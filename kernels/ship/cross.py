"""Compile kernels for a GPU that is not here, and read what came out: registers, spills, shared memory."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from lepto.kernels.attention.tables import architecture
from lepto.kernels.ship.hopper_specification import HopperSpecification
from lepto.kernels.ship.plugin_specification import PluginSpecification
from lepto.kernels.ship.small_specification import KERNELS as SMALL
from lepto.kernels.ship.small_specification import SmallSpecification
from lepto.kernels.ship.specification import Specification

HEAD_DIMS = (16, 32, 64, 80, 96, 128, 256)


class Compilable(Protocol):
    """A kernel with everything fixed: each kind of specification."""

    @property
    def name(self) -> str:
        """One for each variant."""

    @property
    def architecture(self) -> str:
        """Such as ``sm_87``."""

    @property
    def function(self) -> Any:
        """Triton's function."""

    @property
    def multiplies(self) -> bool:
        """Whether a matrix product is in it, which must run on tensor cores."""

    @property
    def constants(self) -> dict[str, Any]:
        """The compile-time arguments; what is neither these nor an argument is None."""

    @property
    def options(self) -> dict[str, Any]:
        """As it is launched: ``num_warps`` and what else Triton's compiler takes."""

    def arguments(self, names: list[str]) -> list[tuple[str, str]]:
        """What the compiled kernel takes, in order: names and Triton's types."""

    def divisible(self, name: str) -> bool:
        """Whether the compiler may take the argument for a multiple of 16."""


@dataclass(frozen=True, slots=True)
class Compiled:
    """A compiled kernel.

    Attributes:
        symbol: The function's name in the cubin.
        cubin: The machine code.
        ptx: What it was assembled from.
        ttgir: Triton's last representation but one.
        arguments: Names and types in order, without Triton's own at the end.
        num_warps: Warps to launch, which may be more than asked for.
        shared_bytes: Shared memory to launch with.
        registers: Of one thread.
        stack_bytes: Of one thread; what does not fit into registers is spilled there.
        scratch_bytes: Global memory that Triton's runtime would have to provide.
    """

    symbol: str
    cubin: bytes
    ptx: str
    ttgir: str
    arguments: list[tuple[str, str]]
    num_warps: int
    shared_bytes: int
    registers: int
    stack_bytes: int
    scratch_bytes: int

    @property
    def tensor_core(self) -> str:
        """The kinds of tensor-core instruction in the PTX."""
        found = {m for m in ("mma.sync", "wgmma", "tcgen05") if re.search(rf"\b{re.escape(m)}[\w.]*", self.ptx)}
        return " ".join(sorted(found))


def cross_compile(specification: Compilable, *, ptx_version: int | None = None) -> Compiled:
    """Compile one variant.

    Args:
        specification: What to compile.
        ptx_version: Of the PTX, 80 for 8.0: a driver reads none that is newer than itself. By default the newest.

    Raises:
        ValueError: Its architecture is in no table.
        RuntimeError: Triton is in interpreter mode, or does not bring what reads a cubin.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.experimental.gluon._runtime import GluonASTSource

    kernel = specification.function
    architecture(specification.architecture)
    if not isinstance(kernel, triton.JITFunction):
        raise RuntimeError("nothing can be compiled while Triton interprets: unset TRITON_INTERPRET")
    names = list(kernel.arg_names)
    arguments = specification.arguments(names)
    types = dict(arguments)
    constants: dict[str, Any] = {name: specification.constants.get(name) for name in names if name not in types}
    source = (GluonASTSource if kernel.is_gluon() else ASTSource)(
        kernel,
        signature={name: types.get(name, "constexpr") for name in names},
        constexprs=constants,
        attrs={
            (names.index(name),): [["tt.divisibility", 16]] for name, _ in arguments if specification.divisible(name)
        },
    )
    compiled = triton.compile(
        source,
        target=GPUTarget("cuda", int(specification.architecture.removeprefix("sm_")), 32),
        options={
            **specification.options,
            "enable_fp_fusion": True,
            **({} if ptx_version is None else {"ptx_version": ptx_version}),
        },
    )
    registers, stack = _resources(compiled.asm["cubin"])
    return Compiled(
        symbol=compiled.metadata.name,
        cubin=compiled.asm["cubin"],
        ptx=compiled.asm["ptx"],
        ttgir=compiled.asm["ttgir"],
        arguments=arguments,
        num_warps=compiled.metadata.num_warps,
        shared_bytes=compiled.metadata.shared,
        registers=registers,
        stack_bytes=stack,
        scratch_bytes=compiled.metadata.global_scratch_size,
    )


def _resources(cubin: bytes) -> tuple[int, int]:
    import triton.backends.nvidia

    tool = Path(triton.backends.nvidia.__file__).parent / "bin" / "cuobjdump"
    if not tool.exists():
        raise RuntimeError(f"this triton package has no {tool.name}, which reads the registers of a cubin: {tool}")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(cubin)
        text = subprocess.run(
            [tool, "--dump-resource-usage", file], check=True, capture_output=True, text=True, timeout=60
        ).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) .*?LOCAL:(\d+)", text)
    if found is None:
        raise RuntimeError(f"cuobjdump says nothing of registers: {text!r}")
    return int(found[1]), int(found[2]) + int(found[3])


def summary(specification: Compilable) -> dict[str, Any]:
    """What the tests judge, as JSON."""
    compiled = cross_compile(specification)
    return {
        "name": specification.name,
        "architecture": specification.architecture,
        "multiplies": specification.multiplies,
        "tensor_core": compiled.tensor_core,
        "int8": "s32.s8.s8" in compiled.ptx,
        "tma": "cp.async.bulk.tensor" in compiled.ptx,
        "specialized": "ttg.warp_specialize" in compiled.ttgir and "setmaxnreg" in compiled.ptx,
        "shared_bytes": compiled.shared_bytes,
        "registers": compiled.registers,
        "stack_bytes": compiled.stack_bytes,
        "scratch_bytes": compiled.scratch_bytes,
        "num_warps": compiled.num_warps,
        "block_m": specification.constants.get("BLOCK_M", 64),
    }


def read(line: str) -> Compilable:
    """A specification from JSON: its kernel tells the kind."""
    fields = json.loads(line)
    kinds: dict[str, Any] = dict.fromkeys(SMALL, SmallSpecification)
    kinds |= {"plugin": PluginSpecification, "attention_hopper": HopperSpecification}
    made: Compilable = kinds.get(fields["kernel"], Specification)(**fields)
    return made


def main() -> None:
    """Read specifications as JSON lines, write summaries as JSON lines: for tests, whose process interprets."""
    specifications = [read(line) for line in sys.stdin if line.strip()]
    with ProcessPoolExecutor(2) as pool:
        for found in pool.map(summary, specifications):
            print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
