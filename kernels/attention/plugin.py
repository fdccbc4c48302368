"""The attention kernel as TensorRT launches it: inputs, then whole numbers, then the output; all else is compiled in.

TensorRT gives dense tensors, so that strides follow from sizes, and it has no way to pass a number that is not whole.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lepto.kernels.attention.forward import _attention_forward_kernel


@triton.jit
def _attention_plugin_kernel(
    Q,  # [B, S_q, H * D]; packed: [T, H * D]
    K,  # [B, S_k, G * D]; packed: [T, G * D]
    V,  # as K
    Mask,  # broadcasts to [B, H, S_q, S_k]: boolean (True takes part), or added
    CuSeqlens,  # packed: [B + 1] int32
    Places,  # packed: [S] int32; its size is all that counts, nothing is read
    rows,  # S_q; packed: S
    cols,  # S_k; packed: S
    mask_b,  # the sizes of the mask
    mask_h,
    mask_q,
    mask_k,
    Out,  # as Q
    SCALE: tl.constexpr,
    CAP: tl.constexpr,
    WINDOW_LEFT: tl.constexpr,  # -1 for all, as in `attention`
    WINDOW_RIGHT: tl.constexpr,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,  # query heads that share a key/value head
    HEAD_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PACKED: tl.constexpr,
    BIAS: tl.constexpr,  # 0 none, 1 added, 2 boolean
    WIDEN: tl.constexpr,
):
    q_row: tl.constexpr = HEADS * HEAD_DIM
    k_row: tl.constexpr = HEADS // GROUP * HEAD_DIM
    if PACKED:
        q_batch = 0
        k_batch = 0
    else:
        q_batch = rows.to(tl.int64) * q_row
        k_batch = cols.to(tl.int64) * k_row
    if BIAS > 0:  # what has one element is the same for all
        bias_k = tl.where(mask_k == 1, 0, 1)
        bias_q = tl.where(mask_q == 1, 0, mask_k)
        bias_h = tl.where(mask_h == 1, 0, mask_q.to(tl.int64) * mask_k)
        bias_b = tl.where(mask_b == 1, 0, mask_h.to(tl.int64) * mask_q * mask_k)
    else:
        bias_k = 0
        bias_q = 0
        bias_h = 0
        bias_b = 0
    _attention_forward_kernel(
        Q, K, V, Out, None, Mask, None, CuSeqlens, CuSeqlens, None, None,
        q_batch, HEAD_DIM, q_row, k_batch, HEAD_DIM, k_row, k_batch, HEAD_DIM, k_row, q_batch, HEAD_DIM, q_row,
        0, 0, bias_b, bias_h, bias_q, bias_k, 0,
        HEADS, GROUP, rows, cols, SCALE, CAP, WINDOW_LEFT, WINDOW_RIGHT,
        HEAD_DIM, BLOCK_M, BLOCK_N, BLOCK_D, PACKED, False, WINDOW_LEFT >= 0, WINDOW_RIGHT >= 0, BIAS, False,
        CAP > 0, False, False, WIDEN,
    )  # fmt: skip
