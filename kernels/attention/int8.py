"""`attention_int8`: scores from int8 products, weights times values in float16 or bfloat16."""

from __future__ import annotations

import torch
import triton

from lepto.kernels.attention.api import Layout, attention, seen_window
from lepto.kernels.attention.launch import architecture_of, launch_forward, strides
from lepto.kernels.attention.quantize import _quantize_kernel
from lepto.kernels.attention.tables import choose, padded_head_dim
from lepto.kernels.attention.validation import (
    Window,
    check_bias,
    check_dense,
    check_implementation,
    check_lengths,
    check_numbers,
    check_slopes,
    check_tensors,
)


def quantize_blocks(
    x: torch.Tensor, block: int, *, mean: torch.Tensor | None = None, lengths: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """``[B, H, S, D]`` less its mean ``[B, H, D]`` to int8 and one scale for each block of rows ``[B, H, blocks]``."""
    batch, heads, length, head_dim = x.shape
    blocks = triton.cdiv(length, block)
    out = torch.empty(x.shape, dtype=torch.int8, device=x.device)
    scale = torch.empty((batch, heads, blocks), dtype=torch.float32, device=x.device)
    if out.numel():
        _quantize_kernel[(blocks * heads * batch,)](
            x, mean, lengths, out, scale, *strides(x, 0, 1, 2), heads, length,
            HEAD_DIM=head_dim, BLOCK=block, BLOCK_D=padded_head_dim(head_dim),
            SMOOTH=mean is not None, LENGTHS=lengths is not None,
        )  # fmt: skip
    return out, scale


def attention_int8(
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
    scale: float | None = None,
    smooth: bool = True,
    return_lse: bool = False,
    check_values: bool = True,
    implementation: str = "triton",
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """`attention` with scores of int8: queries and keys are quantized with one scale for each block of rows.

    Args:
        q: float16 or bfloat16; otherwise as `attention`'s, as all that is not named here.
        k: As there.
        v: As there.
        layout: As there.
        causal: As there.
        lengths: As there.
        bias: As there.
        alibi_slopes: As there.
        window: As there.
        scale: As there.
        smooth: Take the mean of the keys off first, which no softmax can see (arXiv 2410.02367, section 4.2).
        return_lse: As there.
        check_values: As there.
        implementation: ``triton``, or ``reference``, which quantizes nothing.

    Returns:
        As `attention`.

    Raises:
        ValueError: A shape, a number or the architecture is not supported.
        TypeError: A dtype is not supported.
    """
    check_implementation(implementation)
    check_tensors((torch.float16, torch.bfloat16), q=q, k=k, v=v)
    if implementation == "reference":
        return attention(
            q, k, v, layout=layout, causal=causal, lengths=lengths, bias=bias, alibi_slopes=alibi_slopes,
            window=window, scale=scale, return_lse=return_lse, implementation=implementation,
        )  # fmt: skip
    if layout not in ("bhsd", "bshd"):
        raise ValueError(f"layout must be bhsd or bshd, got {layout!r}")
    if layout == "bshd":
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    check_dense(q, k, v)
    batch, heads, rows, head_dim = q.shape
    check_lengths(lengths, batch, k.shape[2], values=check_values)
    check_bias(bias, (batch, heads, rows, k.shape[2]))
    check_slopes(alibi_slopes, batch, heads)
    check_numbers(window, 0.0, scale)
    scale = head_dim**-0.5 if scale is None else scale
    config = choose(architecture_of(q), head_dim, rows, rich=bias is not None or alibi_slopes is not None)
    mean = keys_mean(k, lengths) if smooth else None
    q8, q_scale = quantize_blocks(q, config.block_m)
    k8, k_scale = quantize_blocks(k, config.block_n, mean=mean, lengths=lengths)
    out = torch.empty_like(q)
    lse = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
    launch_forward(
        q8, k8, v, out, lse if return_lse else None,
        scale=scale, window=seen_window(window, causal=causal), softcap=0.0, bias=bias, slopes=alibi_slopes,
        lengths=lengths, scales=(q_scale, k_scale), config=config,
    )  # fmt: skip
    if mean is not None and return_lse:  # what smoothing took off every score of a query
        group = heads // k.shape[1]
        lse += scale * (q.float() * mean.repeat_interleave(group, 1)[:, :, None]).sum(-1)
    out = out.transpose(1, 2) if layout == "bshd" else out
    return (out, lse) if return_lse else out


def keys_mean(k: torch.Tensor, lengths: torch.Tensor | None) -> torch.Tensor:
    """The mean of the keys that count, ``[B, G, D]`` float32."""
    if lengths is None:
        return k.float().mean(2) if k.shape[2] else k.new_zeros((*k.shape[:2], k.shape[3]), dtype=torch.float32)
    beyond = torch.arange(k.shape[2], device=k.device)[None] >= lengths[:, None]
    total = k.float().masked_fill(beyond[:, None, :, None], 0.0).sum(2)
    return total / lengths.clamp(min=1)[:, None, None]
