"""`attention` on padded batches and `attention_varlen` on packed ones."""

from __future__ import annotations

from typing import Literal

import torch

from lepto.kernels.attention.launch import architecture_of, hopper_launches, launch_forward, launch_hopper
from lepto.kernels.attention.reference import reference, reference_varlen
from lepto.kernels.attention.tables import choose
from lepto.kernels.attention.validation import (
    HOPPER,
    Window,
    check_bias,
    check_cu_seqlens,
    check_dense,
    check_head_dim,
    check_heads,
    check_hopper,
    check_implementation,
    check_lengths,
    check_numbers,
    check_slopes,
    check_tensors,
)

Layout = Literal["bhsd", "bshd"]


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    layout: Layout = "bhsd",
    causal: bool = False,
    lengths: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    alibi_slopes: torch.Tensor | None = None,
    window: Window | None = None,
    softcap: float = 0.0,
    scale: float | None = None,
    return_lse: bool = False,
    check_values: bool = True,
    implementation: str = "triton",
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Attention over a padded batch.

    Where ``S_q`` and ``S_k`` differ, the last query stands at the last key (as in FlashAttention), for the causal mask,
    the window and ALiBi alike. A query that sees no key gets zeros.

    Args:
        q: ``[B, H, S_q, D]``, or ``[B, S_q, H, D]`` with ``layout="bshd"``; float16, bfloat16 or float32; any strides
            with the last dimension contiguous. float32 runs without tensor cores.
        k: ``[B, G, S_k, D]`` or ``[B, S_k, G, D]``; H is a multiple of G.
        v: As ``k``.
        layout: The order of the dimensions.
        causal: No query sees a key after its place.
        lengths: The keys that count, ``[B]`` int32, for padding at the end.
        bias: Added to the scores, or boolean (True takes part); broadcasts to ``[B, H, S_q, S_k]``.
        alibi_slopes: ``[H]`` or ``[B, H]`` float32 (arXiv 2108.12409).
        window: Keys seen to the left and to the right of a query's place, -1 for all.
        softcap: Scores become ``cap * tanh(score / cap)``; 0 for none.
        scale: Factor of the scores, by default ``1 / sqrt(D)``.
        return_lse: Also return the log-sum-exp of the scores, ``[B, H, S_q]`` float32.
        check_values: Check the numbers in ``lengths``, which waits for the GPU.
        implementation: ``triton``, ``reference``, or ``hopper`` (sm_90; TMA and warp specialization, no mask but the
            causal one); none stands in for another.

    Returns:
        The output in ``q``'s layout, and the log-sum-exp if asked for.

    Raises:
        ValueError: A shape, a number or the architecture is not supported.
        TypeError: A dtype is not supported.
    """
    check_implementation(implementation, HOPPER)
    if layout not in ("bhsd", "bshd"):
        raise ValueError(f"layout must be bhsd or bshd, got {layout!r}")
    swap = layout == "bshd"
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        if tensor.ndim != 4:
            raise ValueError(f"{name} must have 4 dimensions ({layout}), got shape {tuple(tensor.shape)}")
    if swap:
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    check_tensors(q=q, k=k, v=v)
    check_dense(q, k, v)
    batch, heads, rows, head_dim = q.shape
    check_lengths(lengths, batch, k.shape[2], values=check_values)
    check_bias(bias, (batch, heads, rows, k.shape[2]))
    check_slopes(alibi_slopes, batch, heads)
    check_numbers(window, softcap, scale)
    scale = head_dim**-0.5 if scale is None else scale
    seen = seen_window(window, causal=causal)
    if implementation == "reference":
        out, lse = reference(
            q, k, v, scale=scale, window=seen, lengths=lengths, bias=bias, alibi_slopes=alibi_slopes, softcap=softcap
        )
        lse = lse.float()
    else:
        # An architecture without kernels is an error before any work.
        if implementation == HOPPER:
            check_hopper(window, softcap, scale, q=q, k=k, v=v, lengths=lengths, bias=bias, alibi_slopes=alibi_slopes)
            hopper_launches(q)
        else:
            choose(architecture_of(q), head_dim, rows)
        out = torch.empty((batch, rows, heads, head_dim) if swap else q.shape, dtype=q.dtype, device=q.device)
        out = out.transpose(1, 2) if swap else out
        lse = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
        if implementation == HOPPER:
            launch_hopper(q, k, v, out, lse if return_lse else None, scale=scale, causal=causal)
        else:
            launch_forward(
                q, k, v, out, lse if return_lse else None,
                scale=scale, window=seen, softcap=softcap, bias=bias, slopes=alibi_slopes, lengths=lengths,
            )  # fmt: skip
    out = out.transpose(1, 2) if swap else out
    return (out, lse) if return_lse else out


def attention_varlen(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor | None = None,
    *,
    max_seqlen_q: int,
    max_seqlen_k: int | None = None,
    causal: bool = False,
    alibi_slopes: torch.Tensor | None = None,
    window: Window | None = None,
    softcap: float = 0.0,
    scale: float | None = None,
    return_lse: bool = False,
    check_values: bool = True,
    implementation: str = "triton",
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Attention within each sequence of a packed batch: no padding is read, computed or written.

    Args:
        q: ``[T_q, H, D]``, the tokens of all sequences one after another.
        k: ``[T_k, G, D]``.
        v: As ``k``.
        cu_seqlens_q: Where each sequence starts, and the total at the end: ``[B + 1]`` int32.
        cu_seqlens_k: The same for keys, by default that of the queries.
        max_seqlen_q: Queries of the longest sequence.
        max_seqlen_k: Keys of the longest sequence, by default as the queries.
        causal: See `attention`, as all that follow.
        alibi_slopes: ``[H]`` or ``[B, H]`` float32.
        window: Keys seen to the left and to the right.
        softcap: 0 for none.
        scale: By default ``1 / sqrt(D)``.
        return_lse: Also return ``[H, T_q]`` float32.
        check_values: Check the numbers in ``cu_seqlens``, which waits for the GPU.
        implementation: ``triton`` or ``reference``.

    Returns:
        ``[T_q, H, D]``, and the log-sum-exp if asked for.

    Raises:
        ValueError: A shape, a number or the architecture is not supported.
        TypeError: A dtype is not supported.
    """
    check_implementation(implementation)
    cu_seqlens_k = cu_seqlens_q if cu_seqlens_k is None else cu_seqlens_k
    max_seqlen_k = max_seqlen_q if max_seqlen_k is None else max_seqlen_k
    check_packed(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, alibi_slopes, values=check_values)
    check_numbers(window, softcap, scale)
    scale = q.shape[2] ** -0.5 if scale is None else scale
    seen = seen_window(window, causal=causal)
    if implementation == "reference":
        out, lse = reference_varlen(
            q, k, v, cu_seqlens_q, cu_seqlens_k, scale=scale, window=seen, alibi_slopes=alibi_slopes, softcap=softcap
        )
        lse = lse.float()
    else:
        choose(architecture_of(q), q.shape[2], max_seqlen_q)
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        lse = torch.empty((q.shape[1], q.shape[0]), dtype=torch.float32, device=q.device)
        launch_forward(
            q, k, v, out, lse if return_lse else None,
            scale=scale, window=seen, softcap=softcap, slopes=alibi_slopes,
            packed=(cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k),
        )  # fmt: skip
    return (out, lse) if return_lse else out


def check_packed(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    alibi_slopes: torch.Tensor | None,
    *,
    values: bool,
) -> None:
    """``[T_q, H, D]`` and twice ``[T_k, G, D]`` with their ``cu_seqlens``; ``values=False`` trusts those's numbers."""
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        if tensor.ndim != 3:
            raise ValueError(f"{name} must be packed, [T, H, D], got shape {tuple(tensor.shape)}")
    check_tensors(q=q, k=k, v=v)
    if k.shape != v.shape or q.shape[2] != k.shape[2]:
        raise ValueError(f"q, k and v must agree, [T, H, D]: they are {[*q.shape]}, {[*k.shape]} and {[*v.shape]}")
    check_head_dim(q.shape[2])
    check_heads(q.shape[1], k.shape[1])
    check_cu_seqlens("cu_seqlens_q", cu_seqlens_q, q.shape[0], max_seqlen_q, values=values)
    check_cu_seqlens("cu_seqlens_k", cu_seqlens_k, k.shape[0], max_seqlen_k, values=values)
    if cu_seqlens_q.shape != cu_seqlens_k.shape:
        raise ValueError(
            f"cu_seqlens_q and cu_seqlens_k must have as many sequences: they have {cu_seqlens_q.numel() - 1} and "
            f"{cu_seqlens_k.numel() - 1}"
        )
    check_slopes(alibi_slopes, cu_seqlens_q.numel() - 1, q.shape[1])


def seen_window(window: Window | None, *, causal: bool) -> Window:
    """The window with the causal mask in it: nothing to the right."""
    left, right = window or (-1, -1)
    return left, 0 if causal else right
