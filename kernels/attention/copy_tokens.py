"""The kernel of `pack` and `unpack`."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _copy_tokens_kernel(
    Padded,  # [B, S, WIDTH]
    Packed,  # [T, WIDTH]
    Cu,  # [B + 1] int32
    Starts,  # [B] int32
    columns,
    width,
    stride_b,
    stride_s,
    blocks,
    UNPACK: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    program = tl.program_id(0)
    batch = program // blocks
    rows = (program % blocks) * ROWS + tl.arange(0, ROWS)
    start = tl.load(Cu + batch)
    length = tl.load(Cu + batch + 1) - start
    first = tl.load(Starts + batch)
    index = rows - first
    valid = (index >= 0) & (index < length)
    padded = Padded + batch.to(tl.int64) * stride_b + rows.to(tl.int64)[:, None] * stride_s
    packed = Packed + (start + index).to(tl.int64)[:, None] * width
    for at in range(0, width, WIDTH):
        w = at + tl.arange(0, WIDTH)
        inside = (w < width)[None, :]
        if UNPACK:  # zeros where there is no token
            values = tl.load(packed + w[None, :], mask=valid[:, None] & inside, other=0)
            tl.store(padded + w[None, :], values, mask=(rows < columns)[:, None] & inside)
        else:
            values = tl.load(padded + w[None, :], mask=valid[:, None] & inside, other=0)
            tl.store(packed + w[None, :], values, mask=valid[:, None] & inside)
