"""Attention for Hopper: tiles come by TMA, and warps of their own load them while others multiply.

For dense batches without masks other than the causal one. Descriptors are made on the device, in memory that Triton's
runtime hands to the kernel, so that it runs in-process only: neither a cubin nor a TensorRT plugin has such memory.
Warp specialization is Triton's (``tl.range(warp_specialize=True)``), which takes place on sm_90 with four warps alone;
the tests look for it in the code.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lepto.kernels.attention.forward import LN_2, LOG2_E


@triton.jit
def _attention_hopper_kernel(
    Q,  # [B, H, S_q, D] by strides, last dimension contiguous, the others multiples of 16 bytes
    K,  # [B, G, S_k, D]
    V,  # [B, G, S_k, D]
    Out,  # as Q
    Lse,  # [B, H, S_q] float32, contiguous
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
    heads,
    group,  # query heads that share a key/value head
    len_q,
    len_k,
    scale,
    HEAD_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    CAUSAL: tl.constexpr,
    MASK: tl.constexpr,  # some scores do not count: causal, or S_k is no multiple of BLOCK_N
    LSE: tl.constexpr,
    WIDEN: tl.constexpr,  # see forward
):
    blocks = tl.cdiv(len_q, BLOCK_M)
    program = tl.program_id(0)
    # The last rows of a causal mask have the most keys: they start first.
    start_m = (blocks - 1 - program % blocks) * BLOCK_M
    head = ((program // blocks) % heads).to(tl.int64)
    batch = ((program // blocks) // heads).to(tl.int64)
    kv_head = head // group
    # What lies past the last row reads as zeros.
    q_tiles = tl.make_tensor_descriptor(
        Q + batch * stride_qb + head * stride_qh, [len_q, HEAD_DIM], [stride_qs, 1], [BLOCK_M, HEAD_DIM]
    )
    k_tiles = tl.make_tensor_descriptor(
        K + batch * stride_kb + kv_head * stride_kh, [len_k, HEAD_DIM], [stride_ks, 1], [BLOCK_N, HEAD_DIM]
    )
    v_tiles = tl.make_tensor_descriptor(
        V + batch * stride_vb + kv_head * stride_vh, [len_k, HEAD_DIM], [stride_vs, 1], [BLOCK_N, HEAD_DIM]
    )
    rows = start_m + tl.arange(0, BLOCK_M)
    n = tl.arange(0, BLOCK_N)
    positions = rows + (len_k - len_q)  # the last query sees the last key
    factor = scale * LOG2_E
    q = q_tiles.load([start_m, 0])
    if WIDEN:
        q = q.to(tl.float32)

    hi = len_k
    if CAUSAL:
        hi = tl.minimum(len_k, start_m + BLOCK_M + len_k - len_q)
    acc = tl.zeros([BLOCK_M, HEAD_DIM], tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    # One loop for all blocks, with the mask in each: Triton cannot specialize a kernel with a second loop of products.
    for start in tl.range(0, hi, BLOCK_N, warp_specialize=True):
        k = k_tiles.load([start, 0])
        if WIDEN:
            scores = tl.dot(q, k.to(tl.float32).T, input_precision="ieee") * factor
        else:
            scores = tl.dot(q, k.T) * factor
        if MASK:
            cols = start + n
            counts = (cols < len_k)[None, :]
            if CAUSAL:
                counts = counts & (cols[None, :] <= positions[:, None])
            scores = tl.where(counts, scores, float("-inf"))
        highest = tl.maximum(top, tl.max(scores, 1))
        if MASK:
            base = tl.where(highest == float("-inf"), 0.0, highest)  # a row that saw no key yet
        else:
            base = highest
        weights = tl.exp2(scores - base[:, None])
        fade = tl.exp2(top - base)
        total = total * fade + tl.sum(weights, 1)
        acc = acc * fade[:, None]
        v = v_tiles.load([start, 0])
        if WIDEN:
            acc = tl.dot(weights.to(v.dtype).to(tl.float32), v.to(tl.float32), acc, input_precision="ieee")
        else:
            acc = tl.dot(weights.to(v.dtype), v, acc)
        top = highest
    empty = total == 0.0
    acc = acc / tl.where(empty, 1.0, total)[:, None]
    out_ptr = Out + batch * stride_ob + head * stride_oh
    at = rows.to(tl.int64)[:, None] * stride_os + tl.arange(0, HEAD_DIM)[None, :]
    tl.store(out_ptr + at, acc.to(Out.dtype.element_ty), mask=(rows < len_q)[:, None])
    if LSE:
        lse = tl.where(empty, float("-inf"), (top + tl.log2(tl.where(empty, 1.0, total))) * LN_2)
        tl.store(Lse + (batch * heads + head) * len_q + rows, lse, mask=rows < len_q)
