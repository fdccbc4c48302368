"""Attention as operators of PyTorch: ``torch.ops.lepto.attention`` and ``torch.ops.lepto.attention_varlen``.

``torch.export`` keeps each as one node; ``torch.compile`` and AOTInductor see the launch of the kernel in it
(``torch.library.triton_op``). The shapes of the results are found without running anything, so a model is traced on a
machine without a GPU. What is run is chosen by name, as everywhere: ``triton`` on CPU tensors is an error unless Triton
interprets.

Numbers inside ``lengths`` and ``cu_seqlens`` are trusted by the kernel: to check them would wait for the GPU in every
layer. ``lepto.kernels.attention`` checks them.
"""

from __future__ import annotations

import torch
from torch.library import custom_op, triton_op, wrap_triton

from lepto.kernels.attention import forward
from lepto.kernels.attention.api import attention, attention_varlen, check_packed, seen_window
from lepto.kernels.attention.launch import interpreted, launch_forward
from lepto.kernels.attention.validation import (
    check_bias,
    check_dense,
    check_implementation,
    check_lengths,
    check_numbers,
    check_slopes,
    check_tensors,
)


@custom_op("lepto::attention_untraced", mutates_args=())
def _attention_untraced(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    lengths: torch.Tensor | None,
    bias: torch.Tensor | None,
    alibi_slopes: torch.Tensor | None,
    causal: bool,
    window_left: int,
    window_right: int,
    softcap: float,
    scale: float | None,
    implementation: str,
) -> torch.Tensor:
    """What no compiler can look into: the reference, and the interpreter."""
    out = attention(
        q, k, v, lengths=lengths, bias=bias, alibi_slopes=alibi_slopes, causal=causal,
        window=(window_left, window_right), softcap=softcap, scale=scale, implementation=implementation,
    )  # fmt: skip
    assert isinstance(out, torch.Tensor)
    return out.contiguous()


@_attention_untraced.register_fake
def _(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    lengths: torch.Tensor | None,
    bias: torch.Tensor | None,
    alibi_slopes: torch.Tensor | None,
    causal: bool,
    window_left: int,
    window_right: int,
    softcap: float,
    scale: float | None,
    implementation: str,
) -> torch.Tensor:
    return torch.empty(q.shape, dtype=q.dtype, device=q.device)


@triton_op("lepto::attention", mutates_args={})
def attention_op(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    lengths: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    alibi_slopes: torch.Tensor | None = None,
    causal: bool = False,
    window_left: int = -1,
    window_right: int = -1,
    softcap: float = 0.0,
    scale: float | None = None,
    implementation: str = "triton",
) -> torch.Tensor:
    """`lepto.kernels.attention.attention` over ``[B, H, S, D]`` of any strides; the result is contiguous.

    Args:
        q: ``[B, H, S_q, D]``.
        k: ``[B, G, S_k, D]``.
        v: As ``k``.
        lengths: ``[B]`` int32.
        bias: Broadcasts to ``[B, H, S_q, S_k]``.
        alibi_slopes: ``[H]`` or ``[B, H]``.
        causal: As there.
        window_left: Keys to the left that a query sees, -1 for all.
        window_right: The same to the right.
        softcap: As there.
        scale: As there.
        implementation: ``triton`` or ``reference``.

    Raises:
        ValueError: A shape, a number or the architecture is not supported.
        TypeError: A dtype is not supported.
    """
    _check_attention(q, k, v, lengths, bias, alibi_slopes, window_left, window_right, softcap, scale, implementation)
    if implementation == "reference" or interpreted(forward._attention_forward_kernel):
        result: torch.Tensor = _attention_untraced(
            q, k, v, lengths, bias, alibi_slopes, causal, window_left, window_right, softcap, scale, implementation
        )
        return result
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    launch_forward(
        q, k, v, out, None,
        scale=q.shape[3] ** -0.5 if scale is None else scale,
        window=seen_window((window_left, window_right), causal=causal),
        softcap=softcap, bias=bias, slopes=alibi_slopes, lengths=lengths,
        kernel=wrap_triton(forward._attention_forward_kernel),
    )  # fmt: skip
    return out


@attention_op.register_fake  # type: ignore[untyped-decorator]  # triton_op says nothing of what it returns
def _(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    lengths: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    alibi_slopes: torch.Tensor | None = None,
    causal: bool = False,
    window_left: int = -1,
    window_right: int = -1,
    softcap: float = 0.0,
    scale: float | None = None,
    implementation: str = "triton",
) -> torch.Tensor:
    _check_attention(q, k, v, lengths, bias, alibi_slopes, window_left, window_right, softcap, scale, implementation)
    return torch.empty(q.shape, dtype=q.dtype, device=q.device)


def _check_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    lengths: torch.Tensor | None,
    bias: torch.Tensor | None,
    alibi_slopes: torch.Tensor | None,
    window_left: int,
    window_right: int,
    softcap: float,
    scale: float | None,
    implementation: str,
) -> None:
    """What can be known without the values, so that a wrong model is refused where it is traced."""
    check_implementation(implementation)
    check_tensors(q=q, k=k, v=v)
    check_dense(q, k, v)
    check_lengths(lengths, q.shape[0], k.shape[2], values=False)
    check_bias(bias, (*q.shape[:3], k.shape[2]))
    check_slopes(alibi_slopes, q.shape[0], q.shape[1])
    check_numbers((window_left, window_right), softcap, scale)


@custom_op("lepto::attention_varlen_untraced", mutates_args=())
def _varlen_untraced(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    alibi_slopes: torch.Tensor | None,
    causal: bool,
    window_left: int,
    window_right: int,
    softcap: float,
    scale: float | None,
    implementation: str,
) -> torch.Tensor:
    """What no compiler can look into: the reference, and the interpreter."""
    out = attention_varlen(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q=max_seqlen_q, max_seqlen_k=max_seqlen_k,
        alibi_slopes=alibi_slopes, causal=causal, window=(window_left, window_right), softcap=softcap, scale=scale,
        implementation=implementation,
    )  # fmt: skip
    assert isinstance(out, torch.Tensor)
    return out


@_varlen_untraced.register_fake
def _(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    alibi_slopes: torch.Tensor | None,
    causal: bool,
    window_left: int,
    window_right: int,
    softcap: float,
    scale: float | None,
    implementation: str,
) -> torch.Tensor:
    return torch.empty(q.shape, dtype=q.dtype, device=q.device)


@triton_op("lepto::attention_varlen", mutates_args={})
def attention_varlen_op(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    alibi_slopes: torch.Tensor | None = None,
    causal: bool = False,
    window_left: int = -1,
    window_right: int = -1,
    softcap: float = 0.0,
    scale: float | None = None,
    implementation: str = "triton",
) -> torch.Tensor:
    """`lepto.kernels.attention.attention_varlen` over packed ``[T, H, D]``.

    Args:
        q: ``[T_q, H, D]``.
        k: ``[T_k, G, D]``.
        v: As ``k``.
        cu_seqlens_q: ``[B + 1]`` int32.
        cu_seqlens_k: ``[B + 1]`` int32.
        max_seqlen_q: Queries of the longest sequence, or more.
        max_seqlen_k: Keys of the longest sequence, or more.
        alibi_slopes: ``[H]`` or ``[B, H]``.
        causal: As there, as all that follow.
        window_left: Keys to the left that a query sees, -1 for all.
        window_right: The same to the right.
        softcap: As there.
        scale: As there.
        implementation: ``triton`` or ``reference``.

    Raises:
        ValueError: A shape, a number or the architecture is not supported.
        TypeError: A dtype is not supported.
    """
    check_implementation(implementation)
    check_packed(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, alibi_slopes, values=False)
    check_numbers((window_left, window_right), softcap, scale)
    if implementation == "reference" or interpreted(forward._attention_forward_kernel):
        result: torch.Tensor = _varlen_untraced(
            q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, alibi_slopes, causal, window_left,
            window_right, softcap, scale, implementation,
        )  # fmt: skip
        return result
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    launch_forward(
        q, k, v, out, None,
        scale=q.shape[2] ** -0.5 if scale is None else scale,
        window=seen_window((window_left, window_right), causal=causal),
        softcap=softcap, slopes=alibi_slopes, packed=(cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k),
        kernel=wrap_triton(forward._attention_forward_kernel),
    )  # fmt: skip
    return out


@attention_varlen_op.register_fake  # type: ignore[untyped-decorator]  # as above
def _(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    alibi_slopes: torch.Tensor | None = None,
    causal: bool = False,
    window_left: int = -1,
    window_right: int = -1,
    softcap: float = 0.0,
    scale: float | None = None,
    implementation: str = "triton",
) -> torch.Tensor:
    check_implementation(implementation)
    check_packed(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, alibi_slopes, values=False)
    check_numbers((window_left, window_right), softcap, scale)
    return torch.empty(q.shape, dtype=q.dtype, device=q.device)
