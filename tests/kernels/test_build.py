"""Cubins for a GPU that is not here: built, described, and checked before they are loaded."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lepto.kernels.ship.build import architecture_of_target, specifications
from lepto.kernels.ship.loader import pack_arguments
from lepto.kernels.ship.manifest import TARGETS, CubinError, Manifest, check_cubin, check_triton, read_manifest
from lepto.runtime.targets import TARGETS as RUNTIME


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cubins")
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "lepto.runtime.cli", "kernels", "build", "--target", "jetson-orin"]
    done = subprocess.run(
        [*command, "--head-dim", "32", "-o", str(folder), "--json"],
        env=env, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(json.loads(done.stdout)) == 4
    return folder


def one(built: Path) -> tuple[Manifest, bytes]:
    path = built / "attention_varlen_d32_float16_sm87.json"
    return read_manifest(path), path.with_suffix(".cubin").read_bytes()


def test_each_cubin_is_described(built):
    manifest, cubin = one(built)
    assert cubin[:4] == b"\x7fELF"
    assert (manifest.architecture, manifest.head_dim, manifest.hidden) == ("sm_87", 32, 2)
    assert manifest.stack_bytes == 0
    assert manifest.symbol.encode() in cubin
    check_cubin(manifest, cubin, "sm_87")


def test_what_must_not_be_loaded_is_refused(built, tmp_path):
    manifest, cubin = one(built)
    with pytest.raises(CubinError, match="is for sm_87, this GPU is sm_90: build with `lepto kernels build --target"):
        check_cubin(manifest, cubin, "sm_90")
    with pytest.raises(CubinError, match=r"must have the sha256 .* it was changed or cut short"):
        check_cubin(manifest, cubin[:-1], "sm_87")
    other = dataclasses.replace(manifest, triton="4.0.1")
    with pytest.raises(CubinError, match=r"Triton must be one of 3.6, 3.7, 3.8, 3.9, got 4.0.1"):
        check_cubin(other, cubin, "sm_87")
    with pytest.raises(CubinError, match="must take 2 hidden pointers, got 1"):
        check_cubin(dataclasses.replace(manifest, hidden=1), cubin, "sm_87")
    path = tmp_path / "x.json"
    path.write_text(dataclasses.replace(manifest, abi=2).to_json())
    with pytest.raises(CubinError, match="abi must be 1, got 2"):
        read_manifest(path)
    path.write_text("{")
    with pytest.raises(CubinError, match="is no JSON"):
        read_manifest(path)


def test_arguments_are_packed_in_order_with_null_at_the_end(built):
    manifest, _ = one(built)
    values = {name: index for index, (name, _) in enumerate(manifest.arguments)}
    packed = pack_arguments(manifest, values)
    assert len(packed) == len(values) + 2
    assert packed[-2:] == [0, 0]
    with pytest.raises(CubinError, match="missing or unknown: Q"):
        pack_arguments(manifest, {name: 0 for name in values if name != "Q"})


def test_the_loader_needs_neither_triton_nor_torch_and_says_what_is_missing(built):
    code = f"""
import sys
sys.modules["triton"] = sys.modules["torch"] = None
from lepto.kernels.ship.loader import load
try:
    load({str(built / "attention_varlen_d32_float16_sm87.json")!r})
except Exception as error:
    print(type(error).__name__, error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.startswith(("CubinError cuda.core is missing", "CubinError no NVIDIA GPU", "CubinError atten"))


STUB = """
#include <stdint.h>
#include <stdio.h>
typedef unsigned long long CUdeviceptr; typedef void *CUfunction; typedef void *CUstream; typedef int CUresult;
#define CUDA_SUCCESS 0
#define CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES 8
static int cuFuncSetAttribute(CUfunction f, int a, int v) { return 0; }
static int cuLaunchKernel(CUfunction f, unsigned x, unsigned y, unsigned z, unsigned bx, unsigned by, unsigned bz,
  unsigned shared, CUstream s, void **values, void **extra) {
  printf("%u %u %u %llu\\n", x, bx, shared, *(CUdeviceptr *)values[0]); return 0; }
"""


@pytest.mark.skipif(shutil.which("gcc") is None, reason="no C compiler")
def test_the_header_compiles_and_launches(built, tmp_path):
    manifest, _ = one(built)
    (tmp_path / "cuda.h").write_text(STUB)
    values = ", ".join(["7", *["0"] * (len(manifest.arguments) - 1)])
    (tmp_path / "main.c").write_text(
        f'#include "lepto_kernels.h"\nint main(void) {{ return lepto_{manifest.name}(0, 0, 5, {values}); }}\n'
    )
    flags = ["-Wall", "-Wno-unused-function", f"-I{tmp_path}", f"-I{built}"]
    subprocess.run(["gcc", *flags, str(tmp_path / "main.c"), "-o", str(tmp_path / "main")], check=True)
    done = subprocess.run([tmp_path / "main"], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["5", str(manifest.threads), str(manifest.shared_bytes), "7"]


def test_targets():
    for name, target in RUNTIME.items():
        if name in TARGETS:
            assert TARGETS[name] == "sm_" + target.compute_capability.replace(".", "")
    with pytest.raises(ValueError, match="the architecture is sm_75: Triton emits no tensor-core instruction"):
        architecture_of_target("t4")
    with pytest.raises(ValueError, match="unknown target 'orin': known are a100"):
        architecture_of_target("orin")
    with pytest.raises(ValueError, match="head_dim must be a multiple of 8 from 16 to 256, got 17"):
        specifications("jetson-orin", [17], ["float16"])
    with pytest.raises(ValueError, match="dtype must be float16 or bfloat16, got 'float8'"):
        specifications("jetson-orin", [32], ["float8"])


def test_another_triton_is_refused():
    check_triton("3.9.0", where="x")
    with pytest.raises(CubinError, match=r"got 3\.10\.0: its kernels may take other hidden arguments"):
        check_triton("3.10.0", where="x")


@pytest.mark.skipif(not shutil.which("nvidia-smi"), reason="no GPU")
def test_a_cubin_runs_on_its_gpu_with_neither_triton_nor_torch(tmp_path):
    """More shared memory than 48 KiB, rows of all lengths, against float64."""
    pytest.importorskip("cuda.core")
    code = f"""
import subprocess, sys
import numpy as np
from cuda.bindings import runtime
from cuda.core import Device
from lepto.kernels.ship.loader import current_architecture, load
build = [sys.executable, "-m", "lepto.runtime.cli", "kernels", "build", "--target", current_architecture()]
subprocess.run([*build, "--head-dim", "128", "-o", {str(tmp_path)!r}], check=True)
device = Device()
stream = device.create_stream()
kernel = load({str(tmp_path)!r} + f"/attention_varlen_d128_float16_{{current_architecture().replace('_', '')}}.json")
heads, dim, lengths = 4, 128, [5, 64, 1, 130, 0, 77]
cu = np.cumsum([0, *lengths]).astype(np.int32)
q, k, v = np.random.default_rng(0).standard_normal((3, cu[-1], heads, dim)).astype(np.float16)
out = np.full_like(q, np.nan)
def checked(result):
    assert result[0] == 0, result
    return result[1] if len(result) > 1 else None
def upload(array):
    at = checked(runtime.cudaMalloc(array.nbytes))
    checked(runtime.cudaMemcpy(at, array.ctypes.data, array.nbytes, runtime.cudaMemcpyKind.cudaMemcpyHostToDevice))
    return int(at)
values = {{name: 0 for name, _ in kernel.manifest.arguments}}
values |= {{"Q": upload(q), "K": upload(k), "V": upload(v), "Out": upload(out), "CuQ": upload(cu), "CuK": upload(cu)}}
values |= {{f"stride_{{x}}h": dim for x in "qkvo"}} | {{f"stride_{{x}}s": heads * dim for x in "qkvo"}}
values |= {{"heads": heads, "group": 1, "max_q": 130, "max_k": 130, "scale": dim**-0.5, "left": -1, "right": -1}}
blocks = -(-130 // kernel.manifest.block_m) * heads * len(lengths)
kernel.launch(stream, values, blocks=blocks)
stream.sync()
down = runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
checked(runtime.cudaMemcpy(out.ctypes.data, values["Out"], out.nbytes, down))
for low, high in zip(cu, cu[1:]):
    a, b, c = (x[low:high].astype(float).transpose(1, 0, 2) for x in (q, k, v))
    scores = a @ b.transpose(0, 2, 1) * dim**-0.5
    weights = np.exp(scores - scores.max(-1, keepdims=True, initial=-np.inf))
    exact = (weights / weights.sum(-1, keepdims=True)) @ c
    assert np.abs(exact.transpose(1, 0, 2) - out[low:high]).max(initial=0) < 3e-3
assert "torch" not in sys.modules and "triton" not in sys.modules
"""
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
