"""Decode, its join, pack, unpack and quantize with everything fixed that a compiler must know."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lepto.kernels.attention.tables import CHAINED, Launch, choose_copy, choose_decode, padded_head_dim

DECODE, JOIN, PACK, UNPACK, QUANTIZE = "attention_decode", "decode_join", "pack", "unpack", "quantize"
KERNELS = (DECODE, JOIN, PACK, UNPACK, QUANTIZE)
_TYPES = {"float16": "fp16", "bfloat16": "bf16", "int8": "i8", "float8_e4m3fn": "fp8e4nv", "float8_e5m2": "fp8e5"}
_BITS = {"float16": "i16", "bfloat16": "i16", "int64": "i64"}
# What may pass 2^31 elements; the distance of two rows does not.
_WIDE = ("stride_qb", "stride_kb", "stride_vb", "stride_b", "stride_h", "stride_kscale_b", "stride_vscale_b")
_FLOATS = ("scale", "softcap")
_ROWS = tuple(f"stride_{x}{axis}" for x in "qkv" for axis in "bsh")


@dataclass(frozen=True, slots=True)
class SmallSpecification:
    """One variant of a kernel that stands around attention.

    Attributes:
        kernel: One of `KERNELS`.
        architecture: Such as ``sm_87``.
        head_dim: D; for `pack` and `unpack` the values of a token.
        dtype: Of the queries, or of what is copied or quantized.
        cache: Of decode's keys and values; by default as ``dtype``.
        paged: Decode reads pages.
        rows: Rows of one program of decode: ``S_q * H / G`` as a power of two, at least 16.
        window: Decode sees a window to the left.
        softcap: Decode caps the scores.
        smooth: `quantize` takes a mean off.
        whole: Decode has one split, and nothing to join.
        few: Each of its programs has a multiprocessor to itself.
    """

    kernel: str
    architecture: str
    head_dim: int
    dtype: str = "float16"
    cache: str = ""
    paged: bool = False
    rows: int = 16
    window: bool = False
    softcap: bool = False
    smooth: bool = False
    whole: bool = False
    few: bool = False

    @property
    def name(self) -> str:
        """Unique for each variant."""
        parts = [self.kernel, f"d{self.head_dim}", self.dtype, self.cache]
        parts += [flag for flag in ("paged", "window", "softcap", "smooth", "whole", "few") if getattr(self, flag)]
        parts += [f"m{self.rows}"] if self.kernel == DECODE else []
        return "_".join([*filter(None, parts), self.architecture.replace("_", "")])

    @property
    def multiplies(self) -> bool:
        """Whether a matrix product is in it, which must run on tensor cores."""
        return self.kernel == DECODE

    @property
    def function(self) -> Any:
        """The kernel."""
        from lepto.kernels.attention import copy_tokens, quantize, split

        return {
            DECODE: split._decode_kernel,
            JOIN: split._join_kernel,
            PACK: copy_tokens._copy_tokens_kernel,
            UNPACK: copy_tokens._copy_tokens_kernel,
            QUANTIZE: quantize._quantize_kernel,
        }[self.kernel]

    @property
    def _decode(self) -> Launch:
        return choose_decode(self.architecture, self.head_dim, self.rows, few=self.few)

    @property
    def options(self) -> dict[str, Any]:
        """As the wrapper launches it; where nothing stands, Triton's own."""
        if self.kernel == DECODE:
            return {"num_warps": self._decode.num_warps, "num_stages": self._decode.num_stages}
        if self.kernel in (PACK, UNPACK):
            return {"num_warps": choose_copy(self.architecture).num_warps}
        return {}

    @property
    def _chained(self) -> bool:
        return self.architecture in CHAINED

    @property
    def constants(self) -> dict[str, Any]:
        """The kernel's compile-time arguments."""
        copy = choose_copy(self.architecture)
        padded = padded_head_dim(self.head_dim)
        every = {
            DECODE: {
                "HEAD_DIM": self.head_dim,
                "BLOCK_M": self.rows,
                "BLOCK_N": self._decode.block_n if self.kernel == DECODE else 0,
                "BLOCK_D": padded,
                "PAGED": self.paged,
                "SCALED": bool(self.cache),
                "LEFT": self.window,
                "SOFTCAP": self.softcap,
                "WIDEN": False,
                "WHOLE": self.whole,
                "CHAINED": self._chained,
            },
            JOIN: {
                "HEAD_DIM": self.head_dim,
                "BLOCK_M": self.rows,
                "BLOCK_D": padded,
                "SPLITS": 64,
                "CHAINED": self._chained,
            },
            PACK: {"UNPACK": False, "ROWS": copy.rows, "WIDTH": min(copy.width, 1 << (self.head_dim - 1).bit_length())},
            QUANTIZE: {
                "HEAD_DIM": self.head_dim,
                "BLOCK": 128,
                "BLOCK_D": padded,
                "SMOOTH": self.smooth,
                "LENGTHS": self.smooth,
            },
        }
        every[UNPACK] = every[PACK] | {"UNPACK": True}
        return every[self.kernel]

    @property
    def pointers(self) -> dict[str, str | None]:
        """The element type of each pointer, None for one that this variant does not have."""
        scaled = "*fp32" if self.cache else None
        if self.kernel == DECODE:
            cache = f"*{_TYPES[self.cache or self.dtype]}"
            found: dict[str, str | None] = {"Q": f"*{_TYPES[self.dtype]}", "K": cache, "V": cache}
            found |= {"Table": "*i32" if self.paged else None, "Lengths": "*i32", "KScale": scaled, "VScale": scaled}
            parts = None if self.whole else "*fp32"
            return found | {"Partial": parts, "PartialLse": parts, "Out": f"*{_TYPES[self.dtype]}", "Lse": "*fp32"}
        if self.kernel == JOIN:
            return {"Partial": "*fp32", "PartialLse": "*fp32", "Out": f"*{_TYPES[self.dtype]}", "Lse": "*fp32"}
        if self.kernel == QUANTIZE:
            smooth = {"Mean": "*fp32" if self.smooth else None, "Lengths": "*i32" if self.smooth else None}
            return {"X": f"*{_TYPES[self.dtype]}", **smooth, "Out": "*i8", "Scale": "*fp32"}
        bits = f"*{_BITS[self.dtype]}"
        return {"Padded": bits, "Packed": bits, "Cu": "*i32", "Starts": "*i32"}

    def arguments(self, names: list[str]) -> list[tuple[str, str]]:
        """What the compiled kernel takes, in order: names and Triton's types."""
        found = []
        for name in names:
            if name in self.constants:
                continue
            if name in self.pointers:
                kind = self.pointers[name]
                if kind is not None:
                    found.append((name, kind))
            else:
                found.append((name, "fp32" if name in _FLOATS else "i64" if name in _WIDE else "i32"))
        return found

    def divisible(self, name: str) -> bool:
        """Whether the compiler may take the argument for a multiple of 16."""
        if name in ("Table", "Lengths", "Cu", "Starts", "KScale", "VScale", "Mean"):
            return False
        row = name in self.pointers or name in ("width", "stride_b", "stride_s", "stride_h") or name in _ROWS
        return row and self.head_dim % 16 == 0
