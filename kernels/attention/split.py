"""The kernels of decode: parts of the sequence in parallel, then their join (Flash-Decoding)."""

from __future__ import annotations

import triton
import triton.language as tl

from lepto.kernels.attention.forward import LN_2, LOG2_E, _tanh


@triton.jit
def _decode_kernel(
    Q,  # [B, S_q, H, D] by strides
    K,  # [B, S, G, D] by strides; paged: [pages, page, G, D]
    V,  # as K
    Table,  # paged: [B, pages of a row] int32
    Lengths,  # [B] int32
    KScale,  # [B, S, G] or [pages, page, G] float32 by strides
    VScale,  # as KScale
    Partial,  # [B, G, splits, BLOCK_M, D] float32
    PartialLse,  # [B, G, splits, BLOCK_M] float32, in powers of two
    Out,  # [B, S_q, H, D]: written here where there is one split
    Lse,  # [B, H, S_q] float32
    stride_qb,
    stride_qs,
    stride_qh,
    stride_kb,
    stride_ks,
    stride_kh,
    stride_vb,
    stride_vs,
    stride_vh,
    stride_table_b,
    stride_kscale_b,
    stride_kscale_s,
    stride_kscale_h,
    stride_vscale_b,
    stride_vscale_s,
    stride_vscale_h,
    kv_heads,
    group,
    queries,
    page,
    splits,
    left,
    scale,
    softcap,
    HEAD_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PAGED: tl.constexpr,
    SCALED: tl.constexpr,
    LEFT: tl.constexpr,
    SOFTCAP: tl.constexpr,
    WIDEN: tl.constexpr,
    WHOLE: tl.constexpr,  # one split
    CHAINED: tl.constexpr,  # launched while what is before it runs, as is what comes after it
):
    if CHAINED:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()  # the cache may have been written just before
    scale = tl.cast(scale, tl.float32)  # see forward
    softcap = tl.cast(softcap, tl.float32)
    program = tl.program_id(0)
    split = program % splits
    kv_head = (program // splits) % kv_heads
    batch = ((program // splits) // kv_heads).to(tl.int64)
    length = tl.load(Lengths + batch)
    m = tl.arange(0, BLOCK_M)
    d = tl.arange(0, BLOCK_D)
    n = tl.arange(0, BLOCK_N)
    there = (m < group * queries)[:, None] & (d < HEAD_DIM)[None, :]
    head = kv_head * group + m // queries
    q_ptrs = Q + batch * stride_qb + (m % queries)[:, None] * stride_qs + head[:, None] * stride_qh + d[None, :]
    q = tl.load(q_ptrs, mask=there, other=0)
    positions = length - queries + m % queries
    share = tl.cdiv(tl.cdiv(length, BLOCK_N), splits) * BLOCK_N
    lo = split * share
    hi = tl.minimum(length, lo + share)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    for start in range(lo, hi, BLOCK_N):
        cols = start + n
        inside = cols < hi
        if PAGED:
            first = tl.load(Table + batch * stride_table_b + cols // page, mask=inside, other=0).to(tl.int64)
            at = (cols % page).to(tl.int64)
        else:
            first = batch + 0 * cols.to(tl.int64)
            at = cols.to(tl.int64)
        where_k = first * stride_kb + at * stride_ks + kv_head * stride_kh
        where_v = first * stride_vb + at * stride_vs + kv_head * stride_vh
        k = tl.load(K + where_k[None, :] + d[:, None], mask=inside[None, :] & (d < HEAD_DIM)[:, None], other=0.0)
        if WIDEN:
            scores = tl.dot(q.to(tl.float32), k.to(q.dtype).to(tl.float32), input_precision="ieee")
        else:
            scores = tl.dot(q, k.to(q.dtype), input_precision="ieee")
        if SCALED:
            k_scale = tl.load(
                KScale + first * stride_kscale_b + at * stride_kscale_s + kv_head * stride_kscale_h,
                mask=inside,
                other=0,
            )
            scores = scores * k_scale[None, :]
        if SOFTCAP:
            scores = softcap * _tanh(scores * (scale / softcap)) * LOG2_E
        else:
            scores = scores * (scale * LOG2_E)
        counts = inside[None, :] & (cols[None, :] <= positions[:, None])
        if LEFT:
            counts = counts & (cols[None, :] >= positions[:, None] - left)
        scores = tl.where(counts, scores, float("-inf"))
        highest = tl.maximum(top, tl.max(scores, 1))
        base = tl.where(highest == float("-inf"), 0.0, highest)
        weights = tl.exp2(scores - base[:, None])
        fade = tl.exp2(top - base)
        total = total * fade + tl.sum(weights, 1)
        acc = acc * fade[:, None]
        v = tl.load(V + where_v[:, None] + d[None, :], mask=inside[:, None] & (d < HEAD_DIM)[None, :], other=0.0)
        if SCALED:
            v_scale = tl.load(
                VScale + first * stride_vscale_b + at * stride_vscale_s + kv_head * stride_vscale_h,
                mask=inside,
                other=0,
            )
            weights = weights * v_scale[None, :]
        if WIDEN:
            acc = tl.dot(weights, v.to(q.dtype).to(tl.float32), acc, input_precision="ieee")
        else:
            acc = tl.dot(weights.to(q.dtype), v.to(q.dtype), acc, input_precision="ieee")
        top = highest
    empty = total == 0.0
    acc = acc / tl.where(empty, 1.0, total)[:, None]
    lse = tl.where(empty, float("-inf"), top + tl.log2(tl.where(empty, 1.0, total)))
    if WHOLE:
        row = (batch * queries + m % queries) * kv_heads * group + head
        tl.store(Out + row[:, None] * HEAD_DIM + d[None, :], acc.to(Out.dtype.element_ty), mask=there)
        row = (batch * kv_heads * group + head) * queries + m % queries
        tl.store(Lse + row, lse * LN_2, mask=m < group * queries)
    else:
        row = ((batch * kv_heads + kv_head) * splits + split) * BLOCK_M + m
        tl.store(Partial + row[:, None] * HEAD_DIM + d[None, :], acc, mask=there)
        tl.store(PartialLse + row, lse, mask=m < group * queries)


@triton.jit
def _join_kernel(
    Partial,  # [B, G, splits, BLOCK_M, D] float32
    PartialLse,  # [B, G, splits, BLOCK_M] float32, in powers of two
    Out,  # [B, S_q, H, D]
    Lse,  # [B, H, S_q] float32
    kv_heads,
    group,
    queries,
    splits,
    HEAD_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    SPLITS: tl.constexpr,
    CHAINED: tl.constexpr,
):
    if CHAINED:  # all that it reads has been written
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    program = tl.program_id(0)
    m = program % (group * queries)
    kv_row = (program // (group * queries)).to(tl.int64)  # of B * G
    batch = kv_row // kv_heads
    head = (kv_row % kv_heads) * group + m // queries
    query = m % queries
    s = tl.arange(0, SPLITS)
    d = tl.arange(0, BLOCK_D)
    row = (kv_row * splits + s) * BLOCK_M + m
    lse = tl.load(PartialLse + row, mask=s < splits, other=float("-inf"))
    top = tl.max(lse, 0)
    base = tl.where(top == float("-inf"), 0.0, top)
    weights = tl.exp2(lse - base)
    total = tl.sum(weights, 0)
    parts = tl.load(
        Partial + row[:, None] * HEAD_DIM + d[None, :], mask=(s < splits)[:, None] & (d < HEAD_DIM)[None, :], other=0.0
    )
    out = tl.sum(parts * weights[:, None], 0) / tl.where(total == 0.0, 1.0, total)
    heads = kv_heads * group
    at = (batch * queries + query) * heads + head
    tl.store(Out + at * HEAD_DIM + d, out.to(Out.dtype.element_ty), mask=d < HEAD_DIM)
    whole = tl.where(total == 0.0, float("-inf"), (base + tl.log2(tl.where(total == 0.0, 1.0, total))) * LN_2)
    tl.store(Lse + (batch * heads + head) * queries + query, whole)
