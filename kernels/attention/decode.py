"""`attention_decode`: one query or a few of each sequence against a cache of keys and values."""

from __future__ import annotations

import torch
import triton

from lepto.kernels.attention.launch import architecture_of, interpreted, strides
from lepto.kernels.attention.reference import reference
from lepto.kernels.attention.split import _decode_kernel, _join_kernel
from lepto.kernels.attention.tables import CHAINED, choose_decode, padded_head_dim
from lepto.kernels.attention.validation import (
    Window,
    check_head_dim,
    check_heads,
    check_implementation,
    check_lengths,
    check_numbers,
    check_tensors,
)

SCALED_DTYPES = (torch.int8, torch.float8_e4m3fn, torch.float8_e5m2)
MOST_ROWS = 64
MOST_SPLITS = 64


def attention_decode(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    lengths: torch.Tensor,
    *,
    block_table: torch.Tensor | None = None,
    k_scale: torch.Tensor | None = None,
    v_scale: torch.Tensor | None = None,
    window: int = -1,
    softcap: float = 0.0,
    scale: float | None = None,
    splits: int | None = None,
    return_lse: bool = False,
    check_values: bool = True,
    implementation: str = "triton",
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Attention of the last ``S_q`` tokens of each sequence; each sees the keys up to its own place.

    Args:
        q: ``[B, S_q, H, D]`` float16 or bfloat16, when interpreted float32 too; ``S_q * H / G`` is at most 64.
        k_cache: ``[B, S, G, D]``, or pages ``[pages, page, G, D]``: q's dtype, or int8, float8_e4m3fn or float8_e5m2.
        v_cache: As ``k_cache``.
        lengths: Tokens of each sequence in the cache, those of ``q`` included, ``[B]`` int32.
        block_table: The pages of each sequence in order, ``[B, P]`` int32; None for a contiguous cache.
        k_scale: For an int8 or float8 cache, float32: ``[G]``, or one for each token and head as the cache without D.
        v_scale: As ``k_scale``.
        window: Keys to the left that a query sees; -1 for all.
        softcap: 0 for none.
        scale: By default ``1 / sqrt(D)``.
        splits: Parts of the sequence that run in parallel; by default so that the GPU is filled.
        return_lse: Also return the log-sum-exp ``[B, H, S_q]``.
        check_values: Check the numbers in ``lengths`` and ``block_table``, which waits for the GPU.
        implementation: ``triton`` or ``reference``.

    Returns:
        ``[B, S_q, H, D]``, and the log-sum-exp if asked for.

    Raises:
        ValueError: A shape, a number or the architecture is not supported.
        TypeError: A dtype is not supported.
    """
    check_implementation(implementation)
    _check(q, k_cache, v_cache, lengths, block_table, k_scale, v_scale, values=check_values)
    check_numbers((window, 0), softcap, scale)
    if splits is not None and not 1 <= splits <= MOST_SPLITS:
        raise ValueError(f"splits must be from 1 to {MOST_SPLITS}, got {splits}")
    batch, queries, heads, head_dim = q.shape
    kv_heads = k_cache.shape[2]
    scale = head_dim**-0.5 if scale is None else scale
    if implementation == "reference":
        return _reference(
            q, k_cache, v_cache, lengths, block_table, k_scale, v_scale, (window, 0), softcap, scale, return_lse
        )
    name = architecture_of(q, _decode_kernel)
    if q.dtype == torch.float32 and name != "interpreter":
        # It would run without tensor cores, and its launches were compiled for no GPU.
        raise TypeError(
            f"q must be float16 or bfloat16 on {name}, got float32: convert it, or implementation='reference'"
        )
    if k_cache.dtype == torch.float8_e4m3fn and name in ("sm_80", "sm_86", "sm_87"):
        raise ValueError(
            f"a float8_e4m3fn cache needs sm_89 or later, the architecture is {name}: use int8 or float8_e5m2"
        )
    group = heads // kv_heads
    block_m = max(16, triton.next_power_of_2(group * queries))
    config = choose_decode(name, head_dim, block_m)
    capacity = k_cache.shape[1] * (1 if block_table is None else block_table.shape[1])
    programs = batch * kv_heads
    processors = 4 * programs  # interpreted: some splits
    if q.device.type == "cuda":
        processors = torch.cuda.get_device_properties(q.device).multi_processor_count
    splits = splits or max(1, min(MOST_SPLITS, triton.cdiv(capacity, config.block_n), processors // max(programs, 1)))
    whole = splits == 1
    if whole and programs <= processors and block_table is None and k_scale is None:
        config = choose_decode(name, head_dim, block_m, few=True)
    partial = None if whole else q.new_empty((batch, kv_heads, splits, block_m, head_dim), dtype=torch.float32)
    partial_lse = None if whole else q.new_empty((batch, kv_heads, splits, block_m), dtype=torch.float32)
    out = torch.empty((batch, queries, heads, head_dim), dtype=q.dtype, device=q.device)
    lse = torch.empty((batch, heads, queries), dtype=torch.float32, device=q.device)
    if not q.numel():
        return (out, lse) if return_lse else out
    scales = [_scale_of(s, k_cache) for s in (k_scale, v_scale)]
    chained = {"launch_pdl": True} if name in CHAINED else {}
    _decode_kernel[(batch * kv_heads * splits,)](
        q, k_cache, v_cache, block_table, lengths, *scales, partial, partial_lse, out, lse,
        *strides(q, 0, 1, 2), *strides(k_cache, 0, 1, 2), *strides(v_cache, 0, 1, 2),
        block_table.stride(0) if block_table is not None else 0,
        *(strides(scales[0], 0, 1, 2)), *(strides(scales[1], 0, 1, 2)),
        kv_heads, group, queries, k_cache.shape[1], splits, window, float(scale), float(softcap),
        HEAD_DIM=head_dim, BLOCK_M=block_m, BLOCK_N=config.block_n, BLOCK_D=padded_head_dim(head_dim),
        PAGED=block_table is not None, SCALED=k_scale is not None, LEFT=window >= 0, SOFTCAP=softcap > 0,
        WIDEN=q.dtype == torch.bfloat16 and interpreted(_decode_kernel), WHOLE=whole, CHAINED=bool(chained),
        num_warps=config.num_warps, num_stages=config.num_stages, **chained,
    )  # fmt: skip
    if not whole:
        _join_kernel[(batch * heads * queries,)](
            partial, partial_lse, out, lse, kv_heads, group, queries, splits,
            HEAD_DIM=head_dim, BLOCK_M=block_m, BLOCK_D=padded_head_dim(head_dim),
            SPLITS=triton.next_power_of_2(splits), CHAINED=bool(chained), **chained,
        )  # fmt: skip
    return (out, lse) if return_lse else out


def _scale_of(scale: torch.Tensor | None, cache: torch.Tensor) -> torch.Tensor | None:
    return scale if scale is None else scale.expand(cache.shape[:3])


def _check(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    lengths: torch.Tensor,
    table: torch.Tensor | None,
    k_scale: torch.Tensor | None,
    v_scale: torch.Tensor | None,
    *,
    values: bool,
) -> None:
    for name, tensor in (("q", q), ("k_cache", k), ("v_cache", v)):
        if tensor.ndim != 4:
            raise ValueError(f"{name} must have 4 dimensions, got shape {[*tensor.shape]}")
    check_tensors(q=q)
    check_tensors((q.dtype, *SCALED_DTYPES), k_cache=k, v_cache=v)
    if k.shape != v.shape or k.shape[3] != q.shape[3]:
        raise ValueError(
            f"caches must have one shape and q's head_dim: q is {[*q.shape]}, they are {[*k.shape]} and {[*v.shape]}"
        )
    check_head_dim(q.shape[3])
    check_heads(q.shape[2], k.shape[2])
    rows = q.shape[1] * q.shape[2] // k.shape[2]
    if rows > MOST_ROWS:
        raise ValueError(
            f"S_q * H / G must be at most {MOST_ROWS}, got {q.shape[1]} * {q.shape[2]} / {k.shape[2]} = {rows}: "
            "use attention"
        )
    capacity = k.shape[1] if table is None else k.shape[1] * table.shape[-1]
    if table is None and k.shape[0] != q.shape[0]:
        raise ValueError(f"q and the caches must have one batch, got {q.shape[0]} and {k.shape[0]}")
    if table is not None:
        if table.shape[:-1] != q.shape[:1] or table.dtype != torch.int32 or table.stride(-1) != 1:
            raise ValueError(
                f"block_table must be contiguous int32 of shape [{q.shape[0]}, P], "
                f"got {table.dtype} of {[*table.shape]}"
            )
        if values and table.numel() and not 0 <= int(table.min()) <= int(table.max()) < k.shape[0]:
            raise ValueError(
                f"block_table must name pages from 0 to {k.shape[0] - 1}, got {int(table.min())} to {int(table.max())}"
            )
    check_lengths(lengths, q.shape[0], capacity, values=values)
    for name, scale in (("k_scale", k_scale), ("v_scale", v_scale)):
        if (k.dtype in SCALED_DTYPES) != (scale is not None):
            need = "needs" if scale is None else "takes no"
            raise ValueError(f"a cache of {str(k.dtype).removeprefix('torch.')} {need} {name}")
        if scale is not None and (scale.dtype != torch.float32 or scale.shape not in ((k.shape[2],), k.shape[:3])):
            raise ValueError(
                f"{name} must be float32 of shape [{k.shape[2]}] or {[*k.shape[:3]]}, "
                f"got {scale.dtype} of {[*scale.shape]}"
            )


def _reference(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    lengths: torch.Tensor,
    table: torch.Tensor | None,
    k_scale: torch.Tensor | None,
    v_scale: torch.Tensor | None,
    window: Window,
    softcap: float,
    scale: float,
    return_lse: bool,
    dtype: torch.dtype | None = None,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    wide = dtype or q.dtype
    outs, lses = [], []
    k_full, v_full = (
        x.to(wide) if s is None else x.to(wide) * s.to(wide).expand(x.shape[:3])[..., None]
        for x, s in ((k, k_scale), (v, v_scale))
    )
    for row, length in enumerate(lengths.tolist()):
        keys, values = (
            (x[row] if table is None else x[table[row].long()].flatten(0, 1))[:length].transpose(0, 1)[None]
            for x in (k_full, v_full)
        )
        out, lse = reference(
            q[row].transpose(0, 1)[None], keys, values, scale=scale, window=window, softcap=softcap, dtype=wide
        )
        outs.append(out[0].transpose(0, 1))
        lses.append(lse[0])
    out, lse = torch.stack(outs), torch.stack(lses)
    return (out, lse.float()) if return_lse else out
