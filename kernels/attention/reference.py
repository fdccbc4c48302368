"""Attention written out in PyTorch: what the kernels are measured against, in any dtype, float64 included."""

from __future__ import annotations

import torch

from lepto.kernels.attention.validation import Window


def reference(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    scale: float,
    window: Window = (-1, -1),
    lengths: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    alibi_slopes: torch.Tensor | None = None,
    softcap: float = 0.0,
    dtype: torch.dtype | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention over ``[B, H, S_q, D]`` and ``[B, G, S_k, D]``.

    Args:
        q: Queries.
        k: Keys.
        v: Values.
        scale: Factor of the scores.
        window: Keys to the left and right of a query's place that it sees; -1 for all. Causal is ``(-1, 0)``.
        lengths: Number of keys that count, ``[B]``.
        bias: Added to the scores, or boolean: True takes part. Broadcasts to ``[B, H, S_q, S_k]``.
        alibi_slopes: ``[H]`` or ``[B, H]``: the score falls by slope times distance.
        softcap: ``cap * tanh(score / cap)``; 0 for none.
        dtype: What to compute in; by default that of ``q``.

    Returns:
        The output as ``q``, zero where a query sees no key, and the log-sum-exp ``[B, H, S_q]`` (-inf there).
    """
    wide = dtype or q.dtype
    group = q.shape[1] // k.shape[1]
    q, k, v = q.to(wide), k.to(wide), v.to(wide)
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    rows, cols = q.shape[2], k.shape[2]
    scores = q @ k.transpose(-1, -2) * scale
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    places = torch.arange(rows, device=q.device)[:, None] + (cols - rows)
    keys = torch.arange(cols, device=q.device)[None, :]
    if alibi_slopes is not None:
        slopes = alibi_slopes.to(wide)
        slopes = slopes[None] if slopes.ndim == 1 else slopes
        scores = scores - slopes[:, :, None, None] * (places - keys).abs()
    counts = torch.ones(rows, cols, dtype=torch.bool, device=q.device)
    if window[0] >= 0:
        counts &= keys >= places - window[0]
    if window[1] >= 0:
        counts &= keys <= places + window[1]
    counts = counts[None, None]
    if lengths is not None:
        counts = counts & (keys < lengths[:, None])[:, None, None, :]
        beyond = (torch.arange(cols, device=q.device) >= lengths[:, None])[:, None, :, None]
        v = v.masked_fill(beyond, 0.0)  # padding may hold anything, and 0 times NaN is NaN
    if bias is not None and bias.dtype == torch.bool:
        counts = counts & bias
    elif bias is not None:
        scores = scores + bias.to(wide)
    scores = scores.masked_fill(~counts, float("-inf"))
    if not cols:
        return torch.zeros_like(q), q.new_full(q.shape[:3], float("-inf"))
    seen = (scores > float("-inf")).any(-1, keepdim=True)
    weights = torch.softmax(scores.masked_fill(~seen, 0.0), -1).masked_fill(~seen, 0.0)
    return weights @ v, torch.logsumexp(scores, -1)


def reference_varlen(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    *,
    scale: float,
    window: Window = (-1, -1),
    alibi_slopes: torch.Tensor | None = None,
    softcap: float = 0.0,
    dtype: torch.dtype | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`reference` sequence by sequence over packed ``[T, H, D]``; log-sum-exp ``[H, T_q]``."""
    out = q.new_zeros(q.shape, dtype=dtype or q.dtype)
    lse = q.new_full((q.shape[1], q.shape[0]), float("-inf"), dtype=dtype or q.dtype)
    starts_q, starts_k = cu_seqlens_q.tolist(), cu_seqlens_k.tolist()
    for index in range(len(starts_q) - 1):
        here = slice(starts_q[index], starts_q[index + 1])
        there = slice(starts_k[index], starts_k[index + 1])
        slopes = alibi_slopes[index] if alibi_slopes is not None and alibi_slopes.ndim == 2 else alibi_slopes
        part, part_lse = reference(
            *(x.transpose(0, 1)[None] for x in (q[here], k[there], v[there])),
            scale=scale,
            window=window,
            alibi_slopes=slopes,
            softcap=softcap,
            dtype=dtype,
        )
        out[here], lse[:, here] = part[0].transpose(0, 1), part_lse[0]
    return out, lse
