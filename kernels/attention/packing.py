"""Between padded batches and packed tokens: an encoder unpads once, before the embedding, and pads once, at the end."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton

from lepto.kernels.attention.copy_tokens import _copy_tokens_kernel
from lepto.kernels.attention.launch import architecture_of
from lepto.kernels.attention.tables import choose_copy
from lepto.kernels.attention.validation import check_implementation


@dataclass(frozen=True, slots=True)
class Packing:
    """Where the tokens of a padded batch lie when packed.

    Attributes:
        cu_seqlens: ``[B + 1]`` int32.
        starts: The first valid column of each row, ``[B]`` int32: padding may stand on either side.
        max_seqlen: Tokens of the longest sequence.
        total: Tokens of all.
        columns: The padded length.
    """

    cu_seqlens: torch.Tensor
    starts: torch.Tensor
    max_seqlen: int
    total: int
    columns: int

    @classmethod
    def from_mask(cls, mask: torch.Tensor) -> Packing:
        """From an attention mask ``[B, S]``, non-zero where there is a token. Waits for the GPU once.

        Raises:
            ValueError: The mask has another shape, or a row has padding between tokens.
        """
        if mask.ndim != 2:
            raise ValueError(f"mask must be [B, S], got shape {[*mask.shape]}")
        valid = mask != 0
        lengths = valid.sum(1, dtype=torch.int32)
        starts = valid.int().argmax(1).to(torch.int32) if mask.shape[1] else torch.zeros_like(lengths)
        columns = torch.arange(mask.shape[1], device=mask.device)
        block = (columns >= starts[:, None]) & (columns < (starts + lengths)[:, None])
        if not bool((block == valid).all()):
            row = int((block != valid).any(1).nonzero()[0])
            raise ValueError(f"a row's tokens must lie in one block, row {row} of the mask has padding between them")
        cu = torch.zeros(len(lengths) + 1, dtype=torch.int32, device=mask.device)
        cu[1:] = lengths.cumsum(0)
        longest = int(lengths.max()) if len(lengths) else 0
        return cls(cu, starts, longest, int(cu[-1]), mask.shape[1])


def pack(padded: torch.Tensor, packing: Packing, *, implementation: str = "triton") -> torch.Tensor:
    """``[B, S, ...]`` to ``[T, ...]``: any dtype of 1, 2, 4 or 8 bytes, token ids included.

    Raises:
        ValueError: The shape is not the packing's.
    """
    check_implementation(implementation)
    batch = packing.starts.numel()
    if padded.ndim < 2 or tuple(padded.shape[:2]) != (batch, packing.columns):
        raise ValueError(f"padded must be [{batch}, {packing.columns}, ...], got shape {[*padded.shape]}")
    out = torch.empty((packing.total, *padded.shape[2:]), dtype=padded.dtype, device=padded.device)
    if implementation == "reference":
        for row, start in enumerate(packing.starts.tolist()):
            low, high = packing.cu_seqlens[row : row + 2].tolist()
            out[low:high] = padded[row, start : start + high - low]
        return out
    _copy(padded.contiguous(), out, packing, unpack=False)
    return out


def unpack(packed: torch.Tensor, packing: Packing, *, implementation: str = "triton") -> torch.Tensor:
    """``[T, ...]`` to ``[B, S, ...]``, zeros where there is no token.

    Raises:
        ValueError: The number of tokens is not the packing's.
    """
    check_implementation(implementation)
    if packed.ndim < 1 or packed.shape[0] != packing.total:
        raise ValueError(f"packed must have {packing.total} tokens, got shape {[*packed.shape]}")
    shape = (packing.starts.numel(), packing.columns, *packed.shape[1:])
    if implementation == "reference":
        padded = torch.zeros(shape, dtype=packed.dtype, device=packed.device)
        for row, start in enumerate(packing.starts.tolist()):
            low, high = packing.cu_seqlens[row : row + 2].tolist()
            padded[row, start : start + high - low] = packed[low:high]
        return padded
    padded = torch.empty(shape, dtype=packed.dtype, device=packed.device)
    _copy(padded, packed.contiguous(), packing, unpack=True)
    return padded


def _copy(padded: torch.Tensor, packed: torch.Tensor, packing: Packing, *, unpack: bool) -> None:
    config = choose_copy(architecture_of(packed, _copy_tokens_kernel))
    if not padded.numel():
        return
    bits = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[padded.element_size()]
    width = padded[0, 0].numel()
    blocks = triton.cdiv(packing.columns, config.rows)
    _copy_tokens_kernel[(blocks * packing.starts.numel(),)](
        padded.view(bits), packed.view(bits), packing.cu_seqlens, packing.starts, packing.columns, width,
        packing.columns * width, width, blocks,
        UNPACK=unpack, ROWS=config.rows, WIDTH=min(config.width, triton.next_power_of_2(width)),
        num_warps=config.num_warps,
    )  # fmt: skip
