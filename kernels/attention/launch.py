"""From checked tensors to a launch of the forward kernel."""

from __future__ import annotations

from typing import Any

import torch
import triton

from lepto.kernels.attention import forward, hopper
from lepto.kernels.attention.tables import Launch, choose, choose_specialized, padded_head_dim
from lepto.kernels.attention.validation import Window


def interpreted(kernel: Any) -> bool:
    """Whether Triton's interpreter runs the kernel (``TRITON_INTERPRET=1`` when it was imported)."""
    return not isinstance(kernel, triton.JITFunction)


def architecture_of(tensor: torch.Tensor, kernel: Any = forward._attention_forward_kernel) -> str:
    """Where a tensor's kernel runs: ``sm_90``, or ``interpreter``.

    Raises:
        ValueError: It is not on a CUDA device, and the interpreter is off.
    """
    if interpreted(kernel):
        return "interpreter"
    if tensor.device.type != "cuda":
        raise ValueError(
            f"implementation='triton' needs tensors on a CUDA device, these are on {tensor.device}: move them, pass "
            "implementation='reference', or set TRITON_INTERPRET=1 before Python starts to have the kernel interpreted"
        )
    major, minor = torch.cuda.get_device_capability(tensor.device)
    return f"sm_{major}{minor}"


def strides(tensor: torch.Tensor | None, *dims: int) -> tuple[int, ...]:
    """The strides, 0 where a dimension has one element (broadcast; PyTorch leaves such a stride undefined)."""
    if tensor is None:
        return (0,) * len(dims)
    return tuple(0 if tensor.shape[dim] == 1 else tensor.stride(dim) for dim in dims)


def launch_forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor | None,
    *,
    scale: float,
    window: Window,
    softcap: float,
    bias: torch.Tensor | None = None,
    slopes: torch.Tensor | None = None,
    lengths: torch.Tensor | None = None,
    packed: tuple[torch.Tensor, torch.Tensor, int, int] | None = None,
    scales: tuple[torch.Tensor, torch.Tensor] | None = None,
    config: Launch | None = None,
    kernel: Any = forward._attention_forward_kernel,
) -> None:
    """Fill ``out`` and ``lse``. Dense tensors are views of ``[B, H, S, D]``; packed ones ``[T, H, D]``."""
    if packed is not None:
        batch, heads, kv_heads, head_dim = packed[0].numel() - 1, q.shape[1], k.shape[1], q.shape[2]
        max_q, max_k = packed[2], packed[3]
        all_strides = [s for x in (q, k, v, out) for s in (0, *strides(x, 1, 0))]
        lse_strides = (0, *strides(lse, 0))
    else:
        batch, heads, max_q, head_dim = q.shape
        kv_heads, max_k = k.shape[1], k.shape[2]
        all_strides = [s for x in (q, k, v, out) for s in strides(x, 0, 1, 2)]
        lse_strides = strides(lse, 0, 1)
    if not batch * heads * max_q:
        return
    kind = 0 if bias is None else 2 if bias.dtype == torch.bool else 1
    if config is None:
        rich = kind > 0 or softcap > 0 or slopes is not None
        name = architecture_of(q, _raw(kernel))
        config = choose(name, head_dim, max_q, float32=v.dtype == torch.float32, rich=rich)
    slope_batch = slopes.stride(0) if slopes is not None and slopes.ndim == 2 else 0
    grid = (triton.cdiv(max_q, config.block_m) * heads * batch,)
    kernel[grid](
        q, k, v, out, lse,
        bias.view(torch.int8) if bias is not None and kind == 2 else bias,
        slopes,
        packed[0] if packed else None,
        packed[1] if packed else lengths,
        *(scales or (None, None)),
        *all_strides, *lse_strides, *strides(bias, 0, 1, 2, 3), slope_batch,
        heads, heads // kv_heads, max_q, max_k, float(scale), float(softcap), *window,
        HEAD_DIM=head_dim,
        BLOCK_M=config.block_m,
        BLOCK_N=config.block_n,
        BLOCK_D=padded_head_dim(head_dim, int8=scales is not None),
        PACKED=packed is not None,
        LENGTHS=lengths is not None,
        LEFT=window[0] >= 0,
        RIGHT=window[1] >= 0,
        BIAS=kind,
        ALIBI=slopes is not None,
        SOFTCAP=softcap > 0,
        LSE=lse is not None,
        INT8=scales is not None,
        WIDEN=v.dtype == torch.bfloat16 and interpreted(_raw(kernel)),
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )  # fmt: skip


def launch_hopper(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor | None,
    *,
    scale: float,
    causal: bool,
) -> None:
    """Fill ``out`` and ``lse`` by the warp-specialized kernel; tensors are views of ``[B, H, S, D]``."""
    batch, heads, rows, head_dim = q.shape
    kernel = hopper._attention_hopper_kernel
    config = choose_specialized(architecture_of(q, kernel), head_dim)
    keys = k.shape[2]
    if not batch * heads * rows:
        return
    if not keys:  # no descriptor has no rows
        out.zero_()
        if lse is not None:
            lse.fill_(float("-inf"))
        return
    if not interpreted(kernel):  # for the descriptors
        triton.set_allocator(lambda size, alignment, stream: torch.empty(size, dtype=torch.int8, device=q.device))
    kernel[(triton.cdiv(rows, config.block_m) * heads * batch,)](
        q, k, v, out, lse, *(s for x in (q, k, v, out) for s in (*strides(x, 0, 1), strides(x, 2)[0] or head_dim)),
        heads, heads // k.shape[1], rows, keys, float(scale),
        HEAD_DIM=head_dim, BLOCK_M=config.block_m, BLOCK_N=config.block_n, CAUSAL=causal,
        MASK=causal or keys % config.block_n > 0, LSE=lse is not None,
        WIDEN=v.dtype == torch.bfloat16 and interpreted(kernel),
        num_warps=config.num_warps, num_stages=config.num_stages,
    )  # fmt: skip


def _raw(kernel: Any) -> Any:
    """What ``torch.library.wrap_triton`` wrapped, else the kernel itself."""
    return kernel if isinstance(kernel, triton.JITFunction) else getattr(kernel, "kernel", kernel)
