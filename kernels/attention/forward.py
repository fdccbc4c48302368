"""The attention kernel: padded and packed batches, masks, biases and int8 scores by compile-time switches.

Online softmax (Milakov and Gimelshein, arXiv 1805.02867) in tiles (FlashAttention, arXiv 2205.14135; the loop over keys
inside, as in FlashAttention-2, arXiv 2307.08691). Blocks where every score counts run without any mask.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _tanh(x):
    return 2.0 * tl.sigmoid(2.0 * x) - 1.0


@triton.jit
def _attend(
    acc,  # [BLOCK_M, BLOCK_D] float32
    total,  # [BLOCK_M] sum of the weights so far
    top,  # [BLOCK_M] largest score so far, in powers of two
    q,  # [BLOCK_M, BLOCK_D]
    q_scale,  # of the int8 values
    k_ptr,  # of the sequence's first key
    v_ptr,
    bias_ptr,
    k_scale_ptr,  # [cdiv(S_k, BLOCK_N)]
    slope,
    rows,  # [BLOCK_M]
    positions,  # [BLOCK_M] the rows' places among the keys
    lo,
    hi,
    len_q,
    len_k,
    stride_ks,
    stride_vs,
    stride_bias_q,
    stride_bias_k,
    scale,
    softcap,
    left,
    right,
    HEAD_DIM: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    MASK: tl.constexpr,
    LEFT: tl.constexpr,
    RIGHT: tl.constexpr,
    BIAS: tl.constexpr,
    ALIBI: tl.constexpr,
    SOFTCAP: tl.constexpr,
    INT8: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """Take the keys of ``[lo, hi)`` into the running softmax."""
    d = tl.arange(0, BLOCK_D)
    n = tl.arange(0, BLOCK_N)
    for start in range(lo, hi, BLOCK_N):
        cols = start + n
        # 64 bits: one head of a [B, S, H, D] tensor can lie further than 2^31 elements from its first row.
        where_k = cols.to(tl.int64) * stride_ks
        where_v = cols.to(tl.int64) * stride_vs
        k_ptrs = k_ptr + where_k[None, :] + d[:, None]
        v_ptrs = v_ptr + where_v[:, None] + d[None, :]
        if MASK:
            k = tl.load(k_ptrs, mask=(cols < len_k)[None, :] & (d < HEAD_DIM)[:, None], other=0)
        elif BLOCK_D == HEAD_DIM:
            k = tl.load(k_ptrs)
        else:
            k = tl.load(k_ptrs, mask=(d < HEAD_DIM)[:, None], other=0)
        if INT8:
            scores = tl.dot(q, k, out_dtype=tl.int32).to(tl.float32) * (
                q_scale * tl.load(k_scale_ptr + start // BLOCK_N)
            )
        elif WIDEN:
            scores = tl.dot(q.to(tl.float32), k.to(tl.float32), input_precision="ieee")
        else:
            scores = tl.dot(q, k, input_precision="ieee")
        if SOFTCAP:
            scores = softcap * _tanh(scores * (scale / softcap)) * LOG2_E
        else:
            scores = scores * (scale * LOG2_E)
        if ALIBI:
            distance = positions[:, None] - cols[None, :]
            scores -= slope * LOG2_E * tl.abs(distance).to(tl.float32)
        if BIAS > 0:
            at = rows.to(tl.int64)[:, None] * stride_bias_q + cols[None, :] * stride_bias_k
            there = (rows < len_q)[:, None] & (cols < len_k)[None, :]
            if BIAS == 1:
                scores += tl.load(bias_ptr + at, mask=there, other=0.0).to(tl.float32) * LOG2_E
            else:
                scores = tl.where(tl.load(bias_ptr + at, mask=there, other=0) != 0, scores, float("-inf"))
        if MASK:
            counts = (cols < len_k)[None, :]
            if RIGHT:
                counts = counts & (cols[None, :] <= positions[:, None] + right)
            if LEFT:
                counts = counts & (cols[None, :] >= positions[:, None] - left)
            scores = tl.where(counts, scores, float("-inf"))
        highest = tl.maximum(top, tl.max(scores, 1))
        # A row without any key so far has -inf here, and -inf - -inf is not a number.
        if MASK or BIAS > 0:
            base = tl.where(highest == float("-inf"), 0.0, highest)
        else:
            base = highest
        weights = tl.exp2(scores - base[:, None])
        fade = tl.exp2(top - base)
        total = total * fade + tl.sum(weights, 1)
        acc = acc * fade[:, None]
        if MASK:
            v = tl.load(v_ptrs, mask=(cols < len_k)[:, None] & (d < HEAD_DIM)[None, :], other=0)
        elif BLOCK_D == HEAD_DIM:
            v = tl.load(v_ptrs)
        else:
            v = tl.load(v_ptrs, mask=(d < HEAD_DIM)[None, :], other=0)
        if WIDEN:
            acc = tl.dot(weights.to(v.dtype).to(tl.float32), v.to(tl.float32), acc, input_precision="ieee")
        else:
            acc = tl.dot(weights.to(v.dtype), v, acc, input_precision="ieee")
        top = highest
    return acc, total, top


@triton.jit(do_not_specialize=["heads", "group", "max_q", "max_k", "left", "right"])  # else compiled for each kind
def _attention_forward_kernel(
    Q,  # [B, H, S_q, D] by strides, last dimension contiguous; packed: [T_q, H, D]
    K,  # [B, G, S_k, D]; packed: [T_k, G, D]
    V,  # [B, G, S_k, D]; packed: [T_k, G, D]
    Out,  # as Q
    Lse,  # [B, H, S_q] float32; packed: [H, T_q]
    Bias,  # [B, H, S_q, S_k] by strides
    Slopes,  # [B, H] float32 by strides
    CuQ,  # packed: [B + 1] int32
    CuK,  # packed: [B + 1] int32; else the numbers of keys, [B] int32
    QScale,  # [B, H, cdiv(S_q, BLOCK_M)] float32
    KScale,  # [B, G, cdiv(S_k, BLOCK_N)] float32
    stride_qb,
    stride_qh,
    stride_qs,
    stride_kb,
    stride_kh,
    stride_ks,
    stride_vb,
    stride_vh,
    stride_vs,
    stride_ob,
    stride_oh,
    stride_os,
    stride_lb,
    stride_lh,
    stride_bias_b,
    stride_bias_h,
    stride_bias_q,
    stride_bias_k,
    stride_slope_b,
    heads,
    group,  # query heads that share a key/value head
    max_q,  # S_q; packed: of the longest sequence
    max_k,
    scale,
    softcap,
    left,
    right,
    HEAD_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PACKED: tl.constexpr,
    LENGTHS: tl.constexpr,
    LEFT: tl.constexpr,
    RIGHT: tl.constexpr,
    BIAS: tl.constexpr,  # 0 none, 1 added, 2 boolean: True takes part
    ALIBI: tl.constexpr,
    SOFTCAP: tl.constexpr,
    LSE: tl.constexpr,
    INT8: tl.constexpr,
    WIDEN: tl.constexpr,  # the interpreter multiplies the bits of bfloat16 as integers; in float32 it is exact
):
    # Inductor passes a Python float in 64 bits, and scores of 64 bits would not go with the sums of 32.
    scale = tl.cast(scale, tl.float32)
    softcap = tl.cast(softcap, tl.float32)
    blocks = tl.cdiv(max_q, BLOCK_M)
    program = tl.program_id(0)
    # The last rows of a causal mask have the most keys: they start first.
    block = blocks - 1 - program % blocks
    head = (program // blocks) % heads
    batch = (program // blocks) // heads
    kv_head = head // group

    wide_batch = batch.to(tl.int64)
    wide_head = head.to(tl.int64)
    wide_kv_head = kv_head.to(tl.int64)
    q_ptr = Q + wide_batch * stride_qb + wide_head * stride_qh
    k_ptr = K + wide_batch * stride_kb + wide_kv_head * stride_kh
    v_ptr = V + wide_batch * stride_vb + wide_kv_head * stride_vh
    out_ptr = Out + wide_batch * stride_ob + wide_head * stride_oh
    len_q = max_q
    len_k = max_k
    first = batch * 0
    if PACKED:
        first = tl.load(CuQ + batch)
        len_q = tl.load(CuQ + batch + 1) - first
        first_k = tl.load(CuK + batch)
        len_k = tl.load(CuK + batch + 1) - first_k
        q_ptr += first.to(tl.int64) * stride_qs
        out_ptr += first.to(tl.int64) * stride_os
        k_ptr += first_k.to(tl.int64) * stride_ks
        v_ptr += first_k.to(tl.int64) * stride_vs
    offset = len_k - len_q  # the last query sees the last key
    if LENGTHS:
        len_k = tl.minimum(tl.load(CuK + batch), max_k)
    start_m = block * BLOCK_M
    if start_m < len_q:
        rows = start_m + tl.arange(0, BLOCK_M)
        d = tl.arange(0, BLOCK_D)
        positions = rows + offset
        there = (rows < len_q)[:, None] & (d < HEAD_DIM)[None, :]
        wide_rows = rows.to(tl.int64)[:, None]
        q = tl.load(q_ptr + wide_rows * stride_qs + d[None, :], mask=there, other=0)
        q_scale = 1.0
        k_scale_ptr = KScale
        if INT8:
            q_scale = tl.load(QScale + (wide_batch * heads + head) * blocks + block)
            k_scale_ptr += (wide_batch * (heads // group) + kv_head) * tl.cdiv(max_k, BLOCK_N)
        slope = 0.0
        if ALIBI:
            slope = tl.load(Slopes + batch * stride_slope_b + head)
        bias_ptr = Bias
        if BIAS > 0:
            bias_ptr += wide_batch * stride_bias_b + wide_head * stride_bias_h

        lo = block * 0
        hi = len_k
        lo_full = block * 0
        hi_full = len_k
        if RIGHT:
            hi = tl.minimum(len_k, start_m + BLOCK_M + offset + right)
            hi_full = tl.minimum(len_k, start_m + offset + right + 1)
        if LEFT:
            lo = tl.maximum(start_m + offset - left, 0) // BLOCK_N * BLOCK_N
            lo_full = tl.cdiv(tl.maximum(start_m + BLOCK_M - 1 + offset - left, 0), BLOCK_N) * BLOCK_N
        hi_full = tl.maximum(tl.maximum(hi_full, 0) // BLOCK_N * BLOCK_N, lo)
        lo_full = tl.minimum(lo_full, hi_full)

        acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
        total = tl.zeros([BLOCK_M], tl.float32)
        top = tl.full([BLOCK_M], float("-inf"), tl.float32)
        if LEFT:
            acc, total, top = _attend(
                acc, total, top, q, q_scale, k_ptr, v_ptr, bias_ptr, k_scale_ptr, slope, rows, positions, lo, lo_full,
                len_q, len_k, stride_ks, stride_vs, stride_bias_q, stride_bias_k, scale, softcap, left, right,
                HEAD_DIM, BLOCK_N, BLOCK_D, True, LEFT, RIGHT, BIAS, ALIBI, SOFTCAP, INT8, WIDEN,
            )  # fmt: skip
        acc, total, top = _attend(
            acc, total, top, q, q_scale, k_ptr, v_ptr, bias_ptr, k_scale_ptr, slope, rows, positions, lo_full, hi_full,
            len_q, len_k, stride_ks, stride_vs, stride_bias_q, stride_bias_k, scale, softcap, left, right,
            HEAD_DIM, BLOCK_N, BLOCK_D, False, LEFT, RIGHT, BIAS, ALIBI, SOFTCAP, INT8, WIDEN,
        )  # fmt: skip
        acc, total, top = _attend(
            acc, total, top, q, q_scale, k_ptr, v_ptr, bias_ptr, k_scale_ptr, slope, rows, positions, hi_full, hi,
            len_q, len_k, stride_ks, stride_vs, stride_bias_q, stride_bias_k, scale, softcap, left, right,
            HEAD_DIM, BLOCK_N, BLOCK_D, True, LEFT, RIGHT, BIAS, ALIBI, SOFTCAP, INT8, WIDEN,
        )  # fmt: skip

        empty = total == 0.0
        acc = acc / tl.where(empty, 1.0, total)[:, None]
        tl.store(out_ptr + wide_rows * stride_os + d[None, :], acc.to(Out.dtype.element_ty), mask=there)
        if LSE:
            lse = tl.where(empty, float("-inf"), (top + tl.log2(tl.where(empty, 1.0, total))) * LN_2)
            lse_ptr = Lse + wide_batch * stride_lb + wide_head * stride_lh + first
            tl.store(lse_ptr + rows, lse, mask=rows < len_q)
