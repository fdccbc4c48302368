"""``make bench-kernels``: attention on a GPU against PyTorch's own, in one run.

Times are medians of CUDA-graph replays (`triton.testing.do_bench_cudagraph`), as small shapes are bound by launches.
Every contender's error is against float64 on the same inputs. An implementation that cannot run a shape is written
down with the reason, not left out.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from lepto.kernels.attention import attention, attention_decode, attention_varlen
from lepto.kernels.attention.reference import reference

Contender = Callable[[], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Shape:
    """``[B, H, S, D]`` of one measurement."""

    kind: str
    batch: int
    heads: int
    length: int
    head_dim: int
    causal: bool = False

    @property
    def flop(self) -> float:
        """Of both products; half of the scores where the mask is causal."""
        return 4.0 * self.batch * self.heads * self.length**2 * self.head_dim * (0.5 if self.causal else 1.0)


ENCODERS = [Shape("encoder", b, 12, s, d) for b in (1, 8, 32, 128) for s in (16, 64, 128, 512) for d in (32, 64)]
LONG = [
    Shape("long", max(1, 16384 // s), 16, s, d, causal)
    for s in (1024, 2048, 4096, 8192, 16384)
    for d in (64, 128)
    for causal in (False, True)
]
DECODE = [Shape("decode", b, 32, s, 128) for b in (1, 16, 64) for s in (1024, 8192)]


def require_gpu() -> None:
    """Say what is missing.

    Raises:
        SystemExit: There is no GPU that the kernels run on.
    """
    if not torch.cuda.is_available():
        built = "" if torch.version.cuda else f" and torch {torch.__version__} is built without CUDA"
        raise SystemExit(
            f"error: bench-kernels needs an NVIDIA GPU with compute capability 8.0 or later: none was found{built}; "
            "nothing was measured"
        )
    capability = torch.cuda.get_device_capability()
    if capability < (8, 0):
        raise SystemExit(f"error: bench-kernels needs compute capability 8.0 or later, this GPU has {capability}")


def contenders(shape: Shape, qkv: list[torch.Tensor]) -> dict[str, Contender]:
    """Each implementation over the same ``[B, H, S, D]``."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention as sdpa

    q, k, v = qkv

    def backend(which: Any) -> Contender:
        def run() -> torch.Tensor:
            with sdpa_kernel(which):
                return sdpa(q, k, v, is_causal=shape.causal)

        return run

    def ours() -> torch.Tensor:
        out = attention(q, k, v, causal=shape.causal, check_values=False)
        assert isinstance(out, torch.Tensor)
        return out

    found: dict[str, Contender] = {"lepto": ours}
    for name in ("FLASH_ATTENTION", "CUDNN_ATTENTION", "EFFICIENT_ATTENTION", "MATH"):
        found[f"sdpa {name.lower()}"] = backend(getattr(SDPBackend, name))
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    flex: Any = torch.compile(flex_attention)
    mask = None
    if shape.causal:
        size = shape.length
        mask = create_block_mask(lambda b, h, i, j: i >= j, None, None, size, size, device="cuda")
    found["flex"] = lambda: flex(q, k, v, block_mask=mask)
    try:
        from flash_attn import flash_attn_func  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        return found
    found["flash-attn"] = lambda: flash_attn_func(*(x.transpose(1, 2) for x in qkv), causal=shape.causal).transpose(
        1, 2
    )
    return found


def measure(run: Contender, exact: torch.Tensor | None) -> dict[str, Any]:
    """Median milliseconds and the largest error, or why it cannot run."""
    from triton.testing import do_bench_cudagraph

    try:
        out = run()
        error = None if exact is None else float((out.double() - exact).abs().max())
        return {"median_ms": float(do_bench_cudagraph(run, return_mode="median")), "max_error": error}
    except Exception as error:  # each backend refuses in its own way
        return {"refused": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"}


def padded(shape: Shape) -> list[dict[str, Any]]:
    """All contenders on one padded shape."""
    size = (shape.batch, shape.heads, shape.length, shape.head_dim)
    qkv = [torch.randn(size, device="cuda", dtype=torch.float16) for _ in range(3)]
    exact = None
    if shape.length <= 1024:  # the scores in float64 must fit
        window = (-1, 0 if shape.causal else -1)
        exact, _ = reference(*qkv, scale=shape.head_dim**-0.5, window=window, dtype=torch.float64)
    rows = []
    for name, run in contenders(shape, qkv).items():
        row = {"implementation": name, **measure(run, exact)}
        if "median_ms" in row:
            row["tflops"] = shape.flop / row["median_ms"] / 1e9
        rows.append(row)
    return rows


def packed(lengths: torch.Tensor, heads: int, head_dim: int) -> list[dict[str, Any]]:
    """Packed attention against the same rows padded."""
    longest, total = int(lengths.max()), int(lengths.sum())
    cu = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).int().cuda()
    q, k, v = (torch.randn(total, heads, head_dim, device="cuda", dtype=torch.float16) for _ in range(3))

    def ours() -> torch.Tensor:
        out = attention_varlen(q, k, v, cu, max_seqlen_q=longest, check_values=False)
        assert isinstance(out, torch.Tensor)
        return out

    shape = Shape("varlen", len(lengths), heads, longest, head_dim)
    return [{"implementation": "lepto varlen", **measure(ours, None)}, *padded(shape)]


def decode(shape: Shape) -> list[dict[str, Any]]:
    """One query against a cache; GB/s of reading it."""
    q = torch.randn(shape.batch, 1, shape.heads, shape.head_dim, device="cuda", dtype=torch.float16)
    size = (shape.batch, shape.length, 8, shape.head_dim)
    k, v = (torch.randn(size, device="cuda", dtype=torch.float16) for _ in range(2))
    lengths = torch.full((shape.batch,), shape.length, dtype=torch.int32, device="cuda")

    def ours() -> torch.Tensor:
        out = attention_decode(q, k, v, lengths, check_values=False)
        assert isinstance(out, torch.Tensor)
        return out

    row = {"implementation": "lepto decode", **measure(ours, None)}
    if "median_ms" in row:
        row["gb_per_s"] = 2 * k.numel() * 2 / row["median_ms"] / 1e6
    return [row]


def main() -> None:
    """Measure, print and store."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/baselines/kernels.json"))
    output = parser.parse_args().output
    require_gpu()
    torch.manual_seed(0)
    results: list[dict[str, Any]] = []
    for shape in (*ENCODERS, *LONG):
        results.append({"shape": str(shape), "rows": padded(shape)})
        print(json.dumps(results[-1]), flush=True)
    for batch in (8, 32, 128):
        lengths = torch.randint(1, 256, (batch,))  # mean 128
        results.append({"lengths": lengths.tolist(), "rows": packed(lengths, 12, 64)})
        print(json.dumps(results[-1]), flush=True)
    for shape in DECODE:
        results.append({"shape": str(shape), "rows": decode(shape)})
        print(json.dumps(results[-1]), flush=True)
    document = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "gpu": torch.cuda.get_device_name(),
        "versions": {name: _version(name) for name in ("torch", "triton", "flash-attn", "lepto")},
        "python": platform.python_version(),
        "results": results,
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(document, indent=2) + "\n")
    print(f"written to {output}", file=sys.stderr)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    main()
