"""What is timed on one shape: each implementation as a call, and what to hold against it."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
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
    varlen_flop,
)
from lepto.benchmarks.kernels_timing import Check, Contender, largest_error, measure
from lepto.kernels.attention import attention, attention_decode, attention_varlen
from lepto.kernels.attention.reference import reference

_BACKENDS = ("FLASH_ATTENTION", "CUDNN_ATTENTION", "EFFICIENT_ATTENTION", "MATH")
_CACHE_BYTES = 256 << 20  # several times an L2 cache


@dataclass(frozen=True)
class Unit:
    """One shape, cheap to pass to another process.

    Attributes:
        kind: ``padded``, ``packed``, ``decode`` or ``model``.
        arguments: Of the function that makes its case.
    """

    kind: str
    arguments: tuple[Any, ...]


@dataclass
class Case:
    """All implementations on one shape.

    Attributes:
        header: What the result starts with.
        contenders: By name, in the order of the table.
        check: The error of a contender's result; None where nothing is held against it.
        flop: Of the work that is there.
        bytes: That must be read, for decode.
        graph: Whether it can be captured.
        calls: In a graph.
        before: Called before a contender, with its name.
    """

    header: dict[str, Any]
    contenders: dict[str, Contender]
    check: Check | None
    flop: float = 0.0
    bytes: float = 0.0
    graph: bool = True
    calls: int | None = None
    before: Callable[[str], None] = field(default=lambda name: None)

    def row(self, name: str, peak: dict[str, float]) -> dict[str, Any]:
        """Time one contender."""
        self.before(name)
        copied = name.startswith("copy")
        found = measure(self.contenders[name], None if copied else self.check, graph=self.graph, calls=self.calls)
        row = {"implementation": name, **found}
        if "median_ms" in row and self.flop:
            row["tflops"] = self.flop / row["median_ms"] / 1e9
            row["peak_share"] = row["tflops"] / peak["tflops"]
        if "median_ms" in row and self.bytes:
            row["gb_per_s"] = self.bytes / row["median_ms"] / 1e6
            row["bandwidth_share"] = row["gb_per_s"] / peak["gb_per_s"]
        return row


def units() -> list[Unit]:
    """All shapes, in the order of the table."""
    found = [Unit("padded", (shape,)) for shape in (*ENCODERS, *LONG)]
    found += [Unit("packed", (d, batch, 12, dim)) for d in DISTRIBUTIONS for batch in (8, 32, 128) for dim in (32, 64)]
    found += [Unit("decode", (shape,)) for shape in DECODE]
    models = ("MiniLM-L6", "BERT-base")
    return found + [Unit("model", (m, d, batch)) for m in models for d in DISTRIBUTIONS for batch in (1, 32, 128)]


def case_of(unit: Unit) -> Case:
    """Draw the inputs and build the calls."""
    makers: dict[str, Callable[..., Case]] = {"padded": padded, "packed": packed, "decode": decode, "model": model}
    return makers[unit.kind](*unit.arguments)


def padded_contenders(
    shape: Shape, qkv: list[torch.Tensor], lengths: torch.Tensor | None = None
) -> dict[str, Contender]:
    """Each implementation over the same ``[B, H, S, D]``; with ``lengths`` the padding is masked."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
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
    found["flex"] = _flex(shape, qkv, lengths)
    if lengths is None:
        swapped = [x.transpose(1, 2) for x in qkv]
        found |= {name: _flash(module, swapped, shape.causal) for name, module in _flash_attn().items()}
    return found


def _flex(shape: Shape, qkv: list[torch.Tensor], lengths: torch.Tensor | None) -> Contender:
    """FlexAttention, compiled for this shape alone at its first call."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    made: list[Any] = []

    def counts(b: Any, h: Any, i: Any, j: Any) -> Any:
        seen = j <= i if shape.causal else j >= 0
        return seen if lengths is None else seen & (j < lengths[b])

    def run() -> torch.Tensor:
        if not made:
            torch._dynamo.reset()  # after a few shapes it would stop to compile, and say so in a log alone
            mask = None
            if shape.causal or lengths is not None:
                batch = None if lengths is None else shape.batch
                device = qkv[0].device.type
                mask = create_block_mask(counts, batch, None, shape.length, shape.length, device=device)
            made.extend([torch.compile(flex_attention, dynamic=False), mask])
        out = made[0](*qkv, block_mask=made[1])
        assert isinstance(out, torch.Tensor)
        return out

    return run


def _flash_attn() -> dict[str, Any]:
    """The releases of flash-attn that are installed; the fourth lives in the package of the others."""
    found = {}
    for name, module in (("flash-attn", "flash_attn"), ("flash-attn 4", "flash_attn.cute")):
        with contextlib.suppress(ImportError):
            made = importlib.import_module(module)
            if hasattr(made, "flash_attn_func"):  # without the others the package is an empty folder
                found[name] = made
    return found


def _flash(module: Any, swapped: list[torch.Tensor], causal: bool) -> Contender:
    def run() -> torch.Tensor:
        return _first(module.flash_attn_func(*swapped, causal=causal)).transpose(1, 2)

    return run


def _flash_varlen(module: Any, qkv: list[torch.Tensor], cu: torch.Tensor, longest: int) -> Contender:
    options = {"cu_seqlens_q": cu, "cu_seqlens_k": cu, "max_seqlen_q": longest, "max_seqlen_k": longest}
    return lambda: _first(module.flash_attn_varlen_func(*qkv, **options))


def _first(out: Any) -> torch.Tensor:
    """The result, where the log-sum-exp may stand beside it."""
    result: torch.Tensor = out[0] if isinstance(out, tuple) else out
    return result


def padded(shape: Shape) -> Case:
    """All contenders on one padded shape."""
    size = (shape.batch, shape.heads, shape.length, shape.head_dim)
    qkv = [torch.randn(size, device="cuda", dtype=torch.float16) for _ in range(3)]
    cache: dict[int, Any] = {}
    return Case(
        _header(shape), padded_contenders(shape, qkv),
        lambda out: largest_error(out, qkv, causal=shape.causal, cache=cache), flop=shape.flop,
    )  # fmt: skip


def packed(distribution: str, batch: int, heads: int, head_dim: int) -> Case:
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
    for name, module in _flash_attn().items():
        runs[f"{name} varlen"] = _flash_varlen(module, [q, k, v], cu, shape.length)
    header = {**_header(shape), "shape": f"{distribution} {_header(shape)['shape']}", "lengths": sizes}
    runs |= padded_contenders(shape, qkv, lengths)
    return Case(header, runs, check, flop=varlen_flop(sizes, heads, head_dim))


def decode(shape: Shape) -> Case:
    """One query against caches that together are larger than the GPU's own; beside it a copy of as many bytes."""
    copies = max(1, -(-_CACHE_BYTES // int(decode_bytes(shape))))
    size = (shape.batch, shape.length, KV_HEADS, shape.head_dim)

    def draw() -> torch.Tensor:
        return torch.randn(size, device="cuda", dtype=torch.float16)

    caches = [(draw(), draw()) for _ in range(copies)]  # as a step finds them: other layers were read since
    q = torch.randn(shape.batch, 1, shape.heads, shape.head_dim, device="cuda", dtype=torch.float16)
    lengths = torch.full((shape.batch,), shape.length, dtype=torch.int32, device="cuda")
    target = torch.empty(size, device="cuda", dtype=torch.float16)
    turn = [0]

    def rotate() -> tuple[torch.Tensor, torch.Tensor]:
        turn[0] += 1
        return caches[turn[0] % copies]

    def ours() -> torch.Tensor:
        out = attention_decode(q, *rotate(), lengths, check_values=False)
        assert isinstance(out, torch.Tensor)
        return out

    def theirs() -> torch.Tensor:
        swapped = [x.transpose(1, 2) for x in (q, *rotate())]
        out = torch.nn.functional.scaled_dot_product_attention(swapped[0], swapped[1], swapped[2], enable_gqa=True)
        return out.transpose(1, 2)

    def check(out: torch.Tensor) -> float:
        k, v = caches[turn[0] % copies]
        one = [x[:1].transpose(1, 2) for x in (q, k, v)]
        exact, _ = reference(*one, scale=shape.head_dim**-0.5, dtype=torch.float64)
        return float((out[:1].transpose(1, 2).double() - exact).abs().max())

    runs: dict[str, Contender] = {
        "lepto decode": ours, "sdpa": theirs, "copy of as many bytes": lambda: target.copy_(rotate()[0]),
    }  # fmt: skip
    return Case(_header(shape), runs, check, bytes=decode_bytes(shape), calls=copies * -(-20 // copies))


def model(name: str, distribution: str, batch: int) -> Case:
    """A whole encoder on a batch of real lengths."""
    from lepto.benchmarks.kernels_encoder import ENCODERS as SHAPES
    from lepto.benchmarks.kernels_encoder import batch_of, contenders, make_encoder

    sizes = draw_lengths(distribution, batch)
    made = make_encoder(SHAPES[name], "cuda", torch.float16)
    ids, mask = batch_of(sizes, SHAPES[name]["vocab_size"], "cuda")
    with torch.inference_mode():
        exact = make_encoder(SHAPES[name], "cuda", torch.float64)
        wanted = exact(input_ids=ids[:8], attention_mask=mask[:8]).last_hidden_state[:, 0]
        del exact
    found = contenders(made, ids, mask)
    header = {"kind": "model", "shape": f"{name}, batch {batch}, {distribution}", "lengths": sizes}

    def before(contender: str) -> None:
        torch._dynamo.reset()  # one way to run the model leaves nothing to the next
        made.set_attn_implementation(found[contender][0])

    return Case(
        header, {n: run for n, (_, run) in found.items()},
        lambda out: float((out[:8].double() - wanted).abs().max()), graph=False, before=before,
    )  # fmt: skip


def _header(shape: Shape) -> dict[str, Any]:
    return {
        "kind": shape.kind,
        "shape": f"B {shape.batch} H {shape.heads} S {shape.length} D {shape.head_dim}{' causal' * shape.causal}",
        "head_dim": shape.head_dim,
        "length": shape.length,
    }
