"""Cubins with what a device must know to launch them, by cross-compilation: no GPU is needed."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

from lepto.kernels.attention.tables import ARCHITECTURES, architecture
from lepto.kernels.attention.validation import check_head_dim
from lepto.kernels.ship.cross import cross_compile
from lepto.kernels.ship.manifest import ABI, HIDDEN, TARGETS, CubinError, Manifest, check_triton
from lepto.kernels.ship.specification import Specification

DTYPES = ("float16", "bfloat16")
_C_TYPES = {"i32": "int32_t", "i64": "int64_t", "fp32": "float"}


def architecture_of_target(target: str) -> str:
    """``jetson-orin`` or ``sm_87`` to ``sm_87``.

    Raises:
        ValueError: It is unknown, or Triton has no tensor cores for it.
    """
    if target == "t4":
        target = "sm_75"
    if target not in TARGETS and not target.startswith("sm_"):
        raise ValueError(
            f"unknown target {target!r}: known are {', '.join(TARGETS)} and architectures ({', '.join(ARCHITECTURES)})"
        )
    name = TARGETS.get(target, target)
    architecture(name)
    return name


def specifications(target: str, head_dims: Sequence[int], dtypes: Sequence[str]) -> list[Specification]:
    """What is built: padded with lengths and packed, causal or not.

    Raises:
        ValueError: The target, a head_dim or a dtype is not supported.
    """
    name = architecture_of_target(target)
    for head_dim in head_dims:
        check_head_dim(head_dim)
    if unknown := [dtype for dtype in dtypes if dtype not in DTYPES]:
        raise ValueError(f"dtype must be {' or '.join(DTYPES)}, got {unknown[0]!r}")
    return [
        Specification(kernel, name, head_dim, dtype, causal=causal, lengths=kernel == "attention")
        for head_dim in head_dims
        for dtype in dtypes
        for kernel in ("attention", "attention_varlen")
        for causal in (False, True)
    ]


def source_digest() -> str:
    """Sha256 of the kernels' sources."""
    digest = hashlib.sha256()
    folder = Path(__file__).parents[1] / "attention"
    for name in ("forward.py", "tables.py"):
        digest.update((folder / name).read_bytes())
    return digest.hexdigest()


def build(wanted: Sequence[Specification], output: Path, done: Callable[[Manifest], None]) -> list[Manifest]:
    """Compile and write ``NAME.cubin``, ``NAME.json`` and one ``lepto_kernels.h``.

    Args:
        wanted: What to compile.
        output: A folder; it is made.
        done: Called with each cubin that was written.

    Raises:
        CubinError: Triton has another ABI, or a kernel takes arguments that were not expected.
    """
    triton = version("triton")
    check_triton(triton, where="lepto kernels build")
    output.mkdir(parents=True, exist_ok=True)
    made = []
    for specification in wanted:
        compiled = cross_compile(specification)
        taken = len(re.findall(r"\.param ", compiled.ptx.split(".entry", 1)[1].split(")", 1)[0]))
        if taken != len(compiled.arguments) + HIDDEN or compiled.scratch_bytes:
            raise CubinError(
                f"{specification.name}: a kernel must take {len(compiled.arguments)} arguments, {HIDDEN} hidden "
                f"pointers and no scratch memory; Triton {triton} made one of {taken} with {compiled.scratch_bytes} "
                "bytes: its ABI is another"
            )
        manifest = Manifest(
            name=specification.name,
            symbol=compiled.symbol,
            kernel=specification.kernel,
            architecture=specification.architecture,
            head_dim=specification.head_dim,
            dtype=specification.dtype,
            arguments=[list(argument) for argument in compiled.arguments],
            hidden=HIDDEN,
            block_m=specification.launch.block_m,
            threads=32 * compiled.num_warps,
            shared_bytes=compiled.shared_bytes,
            registers=compiled.registers,
            stack_bytes=compiled.stack_bytes,
            triton=triton,
            source_sha256=source_digest(),
            cubin_sha256=hashlib.sha256(compiled.cubin).hexdigest(),
        )
        (output / f"{manifest.name}.cubin").write_bytes(compiled.cubin)
        (output / f"{manifest.name}.json").write_text(manifest.to_json())
        made.append(manifest)
        done(manifest)
    (output / "lepto_kernels.h").write_text(header(made))
    return made


def header(manifests: Sequence[Manifest]) -> str:
    """The C header: one launcher for each cubin, over the CUDA driver's API."""
    parts = [
        "/* Attention kernels of Lepto: load NAME.cubin with cuModuleLoad, get LEPTO_..._SYMBOL, launch. */",
        "#ifndef LEPTO_KERNELS_H\n#define LEPTO_KERNELS_H\n#include <stdint.h>\n#include <cuda.h>",
        f"#define LEPTO_KERNELS_ABI {ABI}",
    ]
    for m in manifests:
        upper = m.name.upper()
        arguments = ", ".join(f"{_C_TYPES.get(kind, 'CUdeviceptr')} {name}" for name, kind in m.arguments)
        pointers = ", ".join(f"&{name}" for name, _ in m.arguments)
        hidden = "".join(f", &hidden[{i}]" for i in range(m.hidden))
        parts.append(
            f"""
/* For {m.architecture} alone. blocks = ceil(max_q / {m.block_m}) * heads * batch. */
#define LEPTO_{upper}_SYMBOL "{m.symbol}"
#define LEPTO_{upper}_BLOCK_M {m.block_m}
#define LEPTO_{upper}_SHARED_BYTES {m.shared_bytes}
static inline CUresult lepto_{m.name}(CUfunction function, CUstream stream, unsigned blocks, {arguments})
{{
  CUdeviceptr hidden[{m.hidden}] = {{0}};
  void *values[] = {{{pointers}{hidden}}};
  CUresult set = cuFuncSetAttribute(function, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, {m.shared_bytes});
  if (set != CUDA_SUCCESS) return set;
  return cuLaunchKernel(function, blocks, 1, 1, {m.threads}, 1, 1, {m.shared_bytes}, stream, values, 0);
}}"""
        )
    return "\n".join([*parts, "#endif", ""])
