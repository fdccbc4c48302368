"""What a call must fulfil. Each error names the argument, the rule, the value and what to do."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
IMPLEMENTATIONS = ("triton", "reference")
HOPPER = "hopper"
Window = tuple[int, int]


def check_implementation(name: str, *more: str) -> None:
    """The implementation is one of those that exist; none stands in for another."""
    if name not in (*IMPLEMENTATIONS, *more):
        raise ValueError(f"implementation must be one of {', '.join((*IMPLEMENTATIONS, *more))}, got {name!r}")


def check_head_dim(head_dim: int) -> None:
    """A multiple of 8 (16-byte loads of 2-byte values) from 16 (the smallest matrix product) to 256 (registers)."""
    if not 16 <= head_dim <= 256 or head_dim % 8:
        raise ValueError(
            f"head_dim must be a multiple of 8 from 16 to 256, got {head_dim}: pad the last dimension of q, k and v "
            "with zeros and pass the scale of the original head_dim"
        )


def check_tensors(dtypes: Sequence[torch.dtype] = DTYPES, **tensors: torch.Tensor) -> None:
    """One dtype of those supported, one device, rows contiguous."""
    names = ", ".join(tensors)
    found = {name: tensor.dtype for name, tensor in tensors.items()}
    if len(set(found.values())) > 1:
        listing = ", ".join(f"{name} is {_short(dtype)}" for name, dtype in found.items())
        raise TypeError(f"{names} must have one dtype: {listing}")
    first_name, first = next(iter(tensors.items()))
    if first.dtype not in dtypes:
        raise TypeError(f"{first_name} must be {' or '.join(map(_short, dtypes))}, got {_short(first.dtype)}")
    devices = {name: str(tensor.device) for name, tensor in tensors.items()}
    if len(set(devices.values())) > 1:
        raise ValueError(f"{names} must be on one device: " + ", ".join(f"{n} is on {d}" for n, d in devices.items()))
    for name, tensor in tensors.items():
        if tensor.shape[-1] > 1 and tensor.stride(-1) != 1 and tensor.numel():
            raise ValueError(
                f"{name}'s last dimension must be contiguous, its stride is {tensor.stride(-1)}: call .contiguous()"
            )


def check_hopper(window: Window | None, softcap: float, scale: float, **tensors: torch.Tensor | None) -> None:
    """What the warp-specialized kernel can: no mask but the causal one, tensors that TMA can read.

    Args:
        window: Must be None.
        softcap: Must be 0.
        scale: Must be positive: the largest score is found before it is scaled.
        **tensors: q, k and v; and by name those that it does not take, None.
    """
    wrong = [name for name in ("lengths", "bias", "alibi_slopes") if tensors.get(name) is not None]
    wrong += ["window"] if window is not None else []
    wrong += ["softcap"] if softcap else []
    if wrong:
        raise ValueError(f"implementation='hopper' takes no {wrong[0]}: use implementation='triton'")
    if scale <= 0:
        raise ValueError(f"implementation='hopper' needs a positive scale, got {scale}: use implementation='triton'")
    for name in ("q", "k", "v"):
        tensor = tensors[name]
        assert tensor is not None
        if tensor.dtype not in (torch.float16, torch.bfloat16):
            raise TypeError(f"implementation='hopper' runs in float16 or bfloat16, {name} is {_short(tensor.dtype)}")
        steps = [tensor.stride(dim) for dim in range(3) if tensor.shape[dim] > 1]
        if any(step % 8 or not step for step in steps) or tensor.data_ptr() % 16:
            raise ValueError(
                f"implementation='hopper' needs rows that start at multiples of 16 bytes, {name} has strides "
                f"{[*tensor.stride()]} of 2 bytes at address {tensor.data_ptr():#x}: call .contiguous()"
            )


def check_heads(heads: int, kv_heads: int) -> None:
    """Every key/value head serves the same number of query heads."""
    if kv_heads < 1 or heads % kv_heads:
        raise ValueError(
            f"the heads of q must be a multiple of those of k and v: q has {heads}, k and v have {kv_heads}"
        )


def check_dense(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
    """Shapes of ``[B, H, S_q, D]`` and twice ``[B, G, S_k, D]``."""
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        if tensor.ndim != 4:
            raise ValueError(f"{name} must have 4 dimensions, got shape {tuple(tensor.shape)}")
    if k.shape != v.shape:
        raise ValueError(f"k and v must have one shape, got {tuple(k.shape)} and {tuple(v.shape)}")
    if q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3]:
        raise ValueError(f"q and k must agree in batch and head_dim: [B, H, S, D] are {[*q.shape]} and {[*k.shape]}")
    check_head_dim(q.shape[3])
    check_heads(q.shape[1], k.shape[1])


def check_lengths(lengths: torch.Tensor | None, batch: int, keys: int, *, values: bool) -> None:
    """``[B]`` int32, each from 0 to the number of keys. ``values=False`` trusts the numbers: no wait for the GPU."""
    if lengths is None:
        return
    if lengths.shape != (batch,) or lengths.dtype != torch.int32:
        raise ValueError(
            f"lengths must be int32 of shape [{batch}], got {_short(lengths.dtype)} of shape {[*lengths.shape]}"
        )
    if values and batch and (int(lengths.min()) < 0 or int(lengths.max()) > keys):
        row = int(((lengths < 0) | (lengths > keys)).nonzero()[0])
        raise ValueError(f"lengths must be from 0 to the number of keys, {keys}: lengths[{row}] is {int(lengths[row])}")


def check_cu_seqlens(name: str, cu: torch.Tensor, total: int, longest: int, *, values: bool) -> None:
    """``[B + 1]`` int32 from 0, never falling, to the total of tokens, no sequence over ``longest``."""
    if cu.ndim != 1 or cu.dtype != torch.int32 or not cu.numel():
        raise ValueError(f"{name} must be int32 of shape [B + 1], got {_short(cu.dtype)} of shape {[*cu.shape]}")
    if not cu.is_contiguous():
        raise ValueError(f"{name} must be contiguous, its stride is {cu.stride(0)}: call .contiguous()")
    if not values:
        return
    numbers = cu.tolist()
    if numbers[0] != 0:
        raise ValueError(f"{name} must start at 0, got {numbers[0]}")
    if numbers[-1] != total:
        raise ValueError(f"{name} must end at the number of tokens, {total}, got {numbers[-1]}")
    for index, (start, end) in enumerate(pairwise(numbers)):
        if end < start:
            raise ValueError(f"{name} must never fall: {name}[{index}] is {start}, {name}[{index + 1}] is {end}")
        if end - start > longest:
            raise ValueError(
                f"max_seqlen of {name} must be at least the longest sequence: sequence {index} has {end - start} "
                f"tokens, max_seqlen is {longest}"
            )


def check_bias(bias: torch.Tensor | None, shape: Sequence[int]) -> None:
    """4 dimensions that broadcast to ``[B, H, S_q, S_k]``, floating or boolean."""
    if bias is None:
        return
    fits = bias.ndim == 4 and all(have in (1, want) for have, want in zip(bias.shape, shape, strict=True))
    if not fits:
        raise ValueError(f"bias must broadcast to [B, H, S_q, S_k] = {[*shape]}, got shape {[*bias.shape]}")
    if bias.dtype not in (*DTYPES, torch.bool):
        raise TypeError(f"bias must be float16, bfloat16, float32 or bool, got {_short(bias.dtype)}")


def check_slopes(slopes: torch.Tensor | None, batch: int, heads: int) -> None:
    """``[H]`` or ``[B, H]`` float32."""
    if slopes is None:
        return
    if slopes.dtype != torch.float32 or tuple(slopes.shape) not in {(heads,), (batch, heads)}:
        raise ValueError(
            f"alibi_slopes must be float32 of shape [{heads}] or [{batch}, {heads}], "
            f"got {_short(slopes.dtype)} of shape {[*slopes.shape]}"
        )
    if slopes.stride(-1) != 1 and heads > 1:
        raise ValueError(f"alibi_slopes' last dimension must be contiguous, its stride is {slopes.stride(-1)}")


def check_numbers(window: Window | None, softcap: float, scale: float | None) -> None:
    """A window of two numbers from -1, a soft cap of at least 0, a scale that is a number."""
    if window is not None and (len(window) != 2 or min(window) < -1):
        raise ValueError(f"window must be (left, right), each a number of keys or -1 for all, got {window}")
    if not 0.0 <= softcap < float("inf"):
        raise ValueError(f"softcap must be 0 (none) or a positive number, got {softcap}")
    if scale is not None and not abs(scale) < float("inf"):
        raise ValueError(f"scale must be a finite number, got {scale}")


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
