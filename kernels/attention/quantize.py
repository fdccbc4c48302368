"""Queries and keys to int8, one scale for each block of rows (SageAttention, arXiv 2410.02367)."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _quantize_kernel(
    X,  # [B, H, S, D] by strides
    Mean,  # [B, H, D] float32, contiguous
    Lengths,  # [B] int32
    Out,  # [B, H, S, D] int8, contiguous
    Scale,  # [B, H, cdiv(S, BLOCK)] float32
    stride_b,
    stride_h,
    stride_s,
    heads,
    length,
    HEAD_DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
    SMOOTH: tl.constexpr,
    LENGTHS: tl.constexpr,
):
    blocks = tl.cdiv(length, BLOCK)
    program = tl.program_id(0)
    block = program % blocks
    row = (program // blocks).to(tl.int64)  # of B * H
    batch = row // heads
    rows = block * BLOCK + tl.arange(0, BLOCK)
    d = tl.arange(0, BLOCK_D)
    there = (rows < length)[:, None] & (d < HEAD_DIM)[None, :]
    counts = there
    if LENGTHS:  # padding may hold anything: it must not widen the scale of its block
        counts = counts & (rows < tl.load(Lengths + batch))[:, None]
    wide = rows.to(tl.int64)[:, None]
    x = tl.load(X + batch * stride_b + (row % heads) * stride_h + wide * stride_s + d[None, :], mask=counts, other=0)
    x = x.to(tl.float32)
    if SMOOTH:
        mean = tl.load(Mean + row * HEAD_DIM + d, mask=d < HEAD_DIM, other=0.0)
        x = tl.where(counts, x - mean[None, :], 0.0)
    scale = tl.maximum(tl.max(tl.max(tl.abs(x), 1), 0) / 127.0, 1e-12)
    rounded = tl.floor(x / scale + 0.5)
    tl.store(Out + (row * length + wide) * HEAD_DIM + d[None, :], rounded.to(tl.int8), mask=there)
    tl.store(Scale + row * blocks + block, scale)
