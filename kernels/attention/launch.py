"""From checked tensors to a launch of the forward kernel."""

from __future__ import annotations

from typing import Any

import torch
import triton

from lepto.kernels.attention import forward
from lepto.kernels.attention.schedule import schedule
from lepto.kernels.attention.tables import Launch, Specialized, choose, choose_specialized, padded_head_dim
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
        float32 = v.dtype == torch.float32
        config = choose(name, head_dim, max_q, float32=float32, rich=rich, packed=packed is not None)
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


def hopper_launches(q: torch.Tensor) -> tuple[Specialized, ...]:
    """The launches of the warp-specialized kernel on the GPU that the queries lie on.

    Raises:
        ValueError: They do not lie on a GPU that it runs on.
    """
    if q.device.type != "cuda":
        raise ValueError(
            f"implementation='hopper' needs tensors on an sm_90 GPU, these are on {q.device}, and Triton's interpreter "
            "knows no Gluon: move them, or pass implementation='triton' or implementation='reference'"
        )
    major, minor = torch.cuda.get_device_capability(q.device)
    return choose_specialized(f"sm_{major}{minor}", q.shape[-1])


def hopper_arguments(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor | None,
    *,
    scale: float,
    causal: bool,
    config: Specialized,
    lanes: int,
) -> dict[str, Any]:
    """What the warp-specialized kernel takes, by name; tensors are views of ``[B, H, S, D]`` with at least one key."""
    from triton.experimental.gluon import language as gl
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    batch, heads, rows, head_dim = q.shape
    kv_heads, keys = k.shape[1], k.shape[2]
    dtype = gl.float16 if q.dtype == torch.float16 else gl.bfloat16

    def tiled(tensor: torch.Tensor, tile_rows: int) -> Any:
        shape = [1, 1, tile_rows, head_dim]
        steps = [tensor.stride(dim) if tensor.shape[dim] > 1 else head_dim for dim in range(3)]
        layout = gl.NVMMASharedLayout.get_default_for(shape, dtype)
        return TensorDescriptor(tensor, [*tensor.shape], [*steps, 1], shape, layout)

    return {
        "q_tensor": tiled(q, 64),
        "k_tensor": tiled(k, config.block_n),
        "v_tensor": tiled(v, config.block_n),
        "out_tensor": tiled(out, 64),
        "lse_ptr": lse,
        "blocks": triton.cdiv(rows, config.block_m),
        "heads": heads,
        "group": heads // kv_heads,
        "batches": batch,
        "lanes": lanes,
        "len_q": rows,
        "len_k": keys,
        "scale": float(scale),
        "HEAD_DIM": head_dim,
        "BLOCK_N": config.block_n,
        "CAUSAL": causal,
        "EVEN": causal and config.ahead and not (keys - rows) % 64 and not config.block_n % 64,
        "RAGGED": keys % config.block_n > 0,
        "GROUPS": config.groups,
        "STAGES": config.stages,
        "TURNS": config.turns and config.groups > 1,
        "AHEAD": config.ahead,
        "LSE": lse is not None,
    }


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
    from lepto.kernels.attention import hopper

    launches = hopper_launches(q)
    if not q.numel():
        return
    if not k.shape[2]:  # no descriptor has no rows
        out.zero_()
        if lse is not None:
            lse.fill_(float("-inf"))
        return
    batch, heads, rows, head_dim = q.shape
    processors = torch.cuda.get_device_properties(q.device).multi_processor_count
    config, lanes = schedule(launches, rows, k.shape[2], batch * heads, head_dim, processors, causal=causal)
    arguments = hopper_arguments(q, k, v, out, lse, scale=scale, causal=causal, config=config, lanes=lanes)
    tiles = arguments["blocks"] * heads * batch
    grid = (min(processors * config.programs, tiles),)
    hopper._attention_hopper_kernel[grid](**arguments, num_warps=4, maxnreg=config.registers)


def _raw(kernel: Any) -> Any:
    """What ``torch.library.wrap_triton`` wrapped, else the kernel itself."""
    return kernel if isinstance(kernel, triton.JITFunction) else getattr(kernel, "kernel", kernel)
