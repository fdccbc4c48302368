"""``make bench-kernels``: attention on a GPU against PyTorch's own, in one run.

Times are medians of CUDA-graph replays (`triton.testing.do_bench_cudagraph`), as small shapes are bound by launches;
whole encoders, which wait for the GPU to learn the lengths, are timed by events and launches are in their time. Errors
are against float64 on the same inputs. What cannot run a shape is written down with the reason, not left out.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from lepto.benchmarks.kernels_shapes import (
    DECODE,
    DISTRIBUTIONS,
    ENCODERS,
    KV_HEADS,
    LONG,
    Shape,
    decode_bytes,
    draw_lengths,
    judge,
    table,
    varlen_flop,
)
from lepto.kernels.attention import attention, attention_decode, attention_varlen
from lepto.kernels.attention.reference import reference

Contender = Callable[[], torch.Tensor]
Check = Callable[[torch.Tensor], float]
_BACKENDS = ("FLASH_ATTENTION", "CUDNN_ATTENTION", "EFFICIENT_ATTENTION", "MATH")


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


def largest_error(out: torch.Tensor, qkv: list[torch.Tensor], *, causal: bool, samples: int = 2) -> float:
    """The largest distance to float64 in the first and the last heads of a padded batch; all heads would not fit.

    Args:
        out: ``[B, H, S, D]``.
        qkv: The inputs, as many heads each.
        causal: The mask.
        samples: Heads that are looked at.
    """
    heads = out.shape[0] * out.shape[1]
    worst = 0.0
    for index in sorted({i * (heads - 1) // max(samples - 1, 1) for i in range(samples)}):
        b, h = divmod(index, out.shape[1])
        one = [x[b : b + 1, h : h + 1] for x in qkv]
        window = (-1, 0 if causal else -1)
        exact, _ = reference(*one, scale=out.shape[3] ** -0.5, window=window, dtype=torch.float64)
        worst = max(worst, float((out[b, h].double() - exact[0, 0]).abs().max()))
    return worst


def padded_contenders(
    shape: Shape, qkv: list[torch.Tensor], lengths: torch.Tensor | None = None
) -> dict[str, Contender]:
    """Each implementation over the same ``[B, H, S, D]``; with ``lengths`` the padding is masked."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention
    from torch.nn.functional import scaled_dot_product_attention as sdpa

    q, k, v = qkv
    mask = None
    if lengths is not None:
        mask = (torch.arange(shape.length, device=q.device)[None] < lengths[:, None])[:, None, None]

    def backend(which: Any) -> Contender:
        def run() -> torch.Tensor:
            with sdpa_kernel(which):
                return sdpa(q, k, v, attn_mask=mask, is_causal=shape.causal)

        return run

    def ours(implementation: str) -> Contender:
        def run() -> torch.Tensor:
            out = attention(
                q, k, v, causal=shape.causal, lengths=lengths, check_values=False, implementation=implementation
            )
            assert isinstance(out, torch.Tensor)
            return out

        return run

    found: dict[str, Contender] = {"lepto": ours("triton")}
    if lengths is None:
        found["lepto hopper"] = ours("hopper")
    found |= {f"sdpa {name.lower()}": backend(getattr(SDPBackend, name)) for name in _BACKENDS}
    flex: Any = torch.compile(flex_attention)
    block_mask = None
    if shape.causal or lengths is not None:

        def counts(b: Any, h: Any, i: Any, j: Any) -> Any:
            seen = j <= i if shape.causal else j >= 0
            return seen if lengths is None else seen & (j < lengths[b])

        size = shape.length
        batch = None if lengths is None else shape.batch
        block_mask = create_block_mask(counts, batch, None, size, size, device=q.device.type)
    found["flex"] = lambda: flex(q, k, v, block_mask=block_mask)
    if lengths is None:
        flash = _flash_attn()
        if flash is not None:
            swapped = [x.transpose(1, 2) for x in qkv]
            found["flash-attn"] = lambda: flash.flash_attn_func(*swapped, causal=shape.causal).transpose(1, 2)
    return found


def _flash_attn() -> Any:
    try:
        import flash_attn  # type: ignore[import-not-found,unused-ignore]  # optional
    except ImportError:
        return None
    return flash_attn


def measure(run: Contender, check: Check | None, *, graph: bool = True) -> dict[str, Any]:
    """Median milliseconds and the largest error, or why it cannot run."""
    from triton.testing import do_bench, do_bench_cudagraph

    try:
        out = run()
        error = None if check is None else check(out)
        bench: Any = do_bench_cudagraph if graph else do_bench
        return {"median_ms": float(bench(run, return_mode="median")), "max_error": error}
    except Exception as error:  # each backend refuses in its own way
        return {"refused": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"}


def peaks() -> dict[str, float]:
    """What this GPU reaches: TFLOP/s of a large float16 product, GB/s of a large copy (read and written)."""
    from triton.testing import do_bench

    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.float16) for _ in range(2))
    product = float(do_bench(lambda: a @ b, return_mode="median"))
    source = torch.empty(1 << 30, device="cuda", dtype=torch.int8)
    target = torch.empty_like(source)
    copy = float(do_bench(lambda: target.copy_(source), return_mode="median"))
    return {"tflops": 2 * 8192**3 / product / 1e9, "gb_per_s": 2 * source.numel() / copy / 1e6}


def padded(shape: Shape, peak: dict[str, float]) -> dict[str, Any]:
    """All contenders on one padded shape."""
    size = (shape.batch, shape.heads, shape.length, shape.head_dim)
    qkv = [torch.randn(size, device="cuda", dtype=torch.float16) for _ in range(3)]
    rows = []
    for name, run in padded_contenders(shape, qkv).items():
        row = measure(run, lambda out: largest_error(out, qkv, causal=shape.causal))
        rows.append({"implementation": name, **row, **_rates(row, shape.flop, peak)})
    return _result(shape, rows)


def packed(distribution: str, batch: int, heads: int, head_dim: int, peak: dict[str, float]) -> dict[str, Any]:
    """Packed attention against the same rows padded, in work that is there."""
    sizes = draw_lengths(distribution, batch)
    lengths = torch.tensor(sizes, dtype=torch.int32, device="cuda")
    cu = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).int()
    shape = Shape("varlen", batch, heads, max(sizes), head_dim)
    size = (batch, heads, shape.length, head_dim)
    qkv = [torch.randn(size, device="cuda", dtype=torch.float16) for _ in range(3)]
    there = torch.arange(shape.length, device="cuda")[None] < lengths[:, None]
    q, k, v = (x.transpose(1, 2)[there] for x in qkv)  # [T, H, D]
    first = [x[:1, :, : sizes[0]] for x in qkv]

    def check(out: torch.Tensor) -> float:
        part = out[: sizes[0]].transpose(0, 1)[None] if out.ndim == 3 else out[:1, :, : sizes[0]]
        return largest_error(part, first, causal=False)

    def ours() -> torch.Tensor:
        out = attention_varlen(q, k, v, cu, max_seqlen_q=shape.length, check_values=False)
        assert isinstance(out, torch.Tensor)
        return out

    runs: dict[str, Contender] = {"lepto varlen": ours}
    flash = _flash_attn()
    if flash is not None:
        longest = shape.length
        runs["flash-attn varlen"] = lambda: flash.flash_attn_varlen_func(q, k, v, cu, cu, longest, longest)
    runs |= padded_contenders(shape, qkv, lengths)
    flop = varlen_flop(sizes, heads, head_dim)
    rows = []
    for name, run in runs.items():
        row = measure(run, check)
        rows.append({"implementation": name, **row, **_rates(row, flop, peak)})
    return {**_result(shape, rows), "shape": f"{distribution} {shape}", "lengths": sizes}


def decode(shape: Shape, peak: dict[str, float]) -> dict[str, Any]:
    """One query against a cache; the share of the measured bandwidth at which it is read."""
    q = torch.randn(shape.batch, 1, shape.heads, shape.head_dim, device="cuda", dtype=torch.float16)
    size = (shape.batch, shape.length, KV_HEADS, shape.head_dim)
    k, v = (torch.randn(size, device="cuda", dtype=torch.float16) for _ in range(2))
    lengths = torch.full((shape.batch,), shape.length, dtype=torch.int32, device="cuda")

    def ours() -> torch.Tensor:
        out = attention_decode(q, k, v, lengths, check_values=False)
        assert isinstance(out, torch.Tensor)
        return out

    def theirs() -> torch.Tensor:
        swapped = [x.transpose(1, 2) for x in (q, k, v)]
        out = torch.nn.functional.scaled_dot_product_attention(swapped[0], swapped[1], swapped[2], enable_gqa=True)
        return out.transpose(1, 2)

    def check(out: torch.Tensor) -> float:
        one = [x[:1].transpose(1, 2) for x in (q, k, v)]
        exact, _ = reference(*one, scale=shape.head_dim**-0.5, dtype=torch.float64)
        return float((out[:1].transpose(1, 2).double() - exact).abs().max())

    rows = []
    for name, run in (("lepto decode", ours), ("sdpa", theirs)):
        row = {"implementation": name, **measure(run, check)}
        if "median_ms" in row:
            row["gb_per_s"] = decode_bytes(shape) / row["median_ms"] / 1e6
            row["bandwidth_share"] = row["gb_per_s"] / peak["gb_per_s"]
        rows.append(row)
    return _result(shape, rows)


def encoder(name: str, distribution: str, batch: int) -> dict[str, Any]:
    """A whole encoder on a batch of real lengths."""
    from lepto.benchmarks.kernels_encoder import ENCODERS as SHAPES
    from lepto.benchmarks.kernels_encoder import batch_of, contenders, make_encoder

    sizes = draw_lengths(distribution, batch)
    model = make_encoder(SHAPES[name], "cuda", torch.float16)
    ids, mask = batch_of(sizes, SHAPES[name]["vocab_size"], "cuda")
    exact = make_encoder(SHAPES[name], "cuda", torch.float64)
    rows = []
    with torch.inference_mode():
        wanted = exact(input_ids=ids[:8], attention_mask=mask[:8]).last_hidden_state[:, 0]
        del exact
        for implementation, (attention_name, run) in contenders(model, ids, mask).items():
            model.set_attn_implementation(attention_name)
            row = measure(run, lambda out: float((out[:8].double() - wanted).abs().max()), graph=False)
            rows.append({"implementation": implementation, **row})
    return {"kind": "model", "shape": f"{name}, batch {batch}, {distribution}", "rows": rows, "lengths": sizes}


def _rates(row: dict[str, Any], flop: float, peak: dict[str, float]) -> dict[str, float]:
    if "median_ms" not in row:
        return {}
    tflops = flop / row["median_ms"] / 1e9
    return {"tflops": tflops, "peak_share": tflops / peak["tflops"]}


def _result(shape: Shape, rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "kind": shape.kind,
        "shape": f"B {shape.batch} H {shape.heads} S {shape.length} D {shape.head_dim}{' causal' * shape.causal}",
        "head_dim": shape.head_dim,
        "length": shape.length,
        "rows": rows,
    }


def main() -> None:
    """Measure, print and store."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/baselines/kernels.json"))
    output = parser.parse_args().output
    require_gpu()
    torch.manual_seed(0)
    peak = peaks()
    results: list[dict[str, Any]] = []

    def keep(result: dict[str, Any]) -> None:
        results.append(result)
        print(table([result]), flush=True)

    for shape in (*ENCODERS, *LONG):
        keep(padded(shape, peak))
    for distribution in DISTRIBUTIONS:
        for batch in (8, 32, 128):
            for head_dim in (32, 64):
                keep(packed(distribution, batch, 12, head_dim, peak))
    for shape in DECODE:
        keep(decode(shape, peak))
    for name in ("MiniLM-L6", "BERT-base"):
        for distribution in DISTRIBUTIONS:
            for batch in (1, 32, 128):
                keep(encoder(name, distribution, batch))
    verdicts = judge(results)
    for verdict in verdicts:
        print(f"{'kept  ' if verdict['kept'] else 'MISSED'} {verdict['what']}: {verdict['ratio']} of {verdict['bar']}")
    document = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "gpu": torch.cuda.get_device_name(),
        "cuda": torch.version.cuda,
        "peak": peak,
        "versions": {name: _version(name) for name in ("torch", "triton", "transformers", "flash-attn", "lepto")},
        "python": platform.python_version(),
        "results": results,
        "bars": verdicts,
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
