"""A kernel with everything fixed that a compiler must know: what is cross-compiled, tested and shipped as a cubin."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lepto.kernels.attention.tables import PACKED_SHORT, Launch, choose, padded_head_dim

_DTYPES = {"float16": "fp16", "bfloat16": "bf16"}
# Offsets of batches and heads may pass 2^31 elements; the distance of two rows does not.
_ROW_STRIDES = ("stride_qs", "stride_ks", "stride_vs", "stride_os", "stride_bias_q")


@dataclass(frozen=True, slots=True)
class Specification:
    """One variant of a kernel.

    Attributes:
        kernel: ``attention``, ``attention_varlen`` or ``attention_int8``.
        architecture: Such as ``sm_87``.
        head_dim: D.
        dtype: ``float16`` or ``bfloat16``.
        causal: No query sees a key after its place.
        short: Compiled for at most 64 query rows; packed, for at most 128 in the longest sequence.
        tiny: Compiled for at most 16.
        lengths: Takes the number of keys of each row (`attention` only).
        bias: 0 none, 1 added, 2 boolean.
        alibi: Takes slopes.
        softcap: Caps the scores.
        window: Sees a window to the left.
        lse: Writes the log-sum-exp.
        doubles: Takes scale and soft cap in 64 bits, as PyTorch's Inductor passes them.
    """

    kernel: str
    architecture: str
    head_dim: int
    dtype: str = "float16"
    causal: bool = False
    short: bool = False
    tiny: bool = False
    lengths: bool = False
    bias: int = 0
    alibi: bool = False
    softcap: bool = False
    window: bool = False
    lse: bool = False
    doubles: bool = False

    @property
    def launch(self) -> Launch:
        """From the table of the architecture."""
        rich = bool(self.bias) or self.alibi or self.softcap
        packed = self.kernel == "attention_varlen"
        return choose(
            self.architecture, self.head_dim, 64 if self.short else PACKED_SHORT + 1, rich=rich, packed=packed
        )

    @property
    def options(self) -> dict[str, Any]:
        """From the table."""
        return {"num_warps": self.launch.num_warps, "num_stages": self.launch.num_stages}

    @property
    def multiplies(self) -> bool:
        """A matrix product is in it, which must run on tensor cores."""
        return True

    @property
    def function(self) -> Any:
        """The kernel."""
        from lepto.kernels.attention.forward import _attention_forward_kernel

        return _attention_forward_kernel

    @property
    def name(self) -> str:
        """A name for files and symbols, one for each variant."""
        parts = [self.kernel, f"d{self.head_dim}", self.dtype]
        flags = ("causal", "short", "tiny", "lengths", "alibi", "softcap", "window", "lse", "doubles")
        parts += [flag for flag in flags if getattr(self, flag)]
        parts += [("", "bias", "mask")[self.bias]] if self.bias else []
        return "_".join([*parts, self.architecture.replace("_", "")])

    @property
    def constants(self) -> dict[str, Any]:
        """The kernel's compile-time arguments."""
        return {
            "HEAD_DIM": self.head_dim,
            "BLOCK_M": self.launch.block_m,
            "BLOCK_N": self.launch.block_n,
            "BLOCK_D": padded_head_dim(self.head_dim, int8=self.kernel == "attention_int8"),
            "PACKED": self.kernel == "attention_varlen",
            "LENGTHS": self.lengths,
            "LEFT": self.window,
            "RIGHT": self.causal,
            "BIAS": self.bias,
            "ALIBI": self.alibi,
            "SOFTCAP": self.softcap,
            "LSE": self.lse,
            "INT8": self.kernel == "attention_int8",
            "WIDEN": False,
        }

    @property
    def pointers(self) -> dict[str, str | None]:
        """The element type of each pointer, None for one that this variant does not have."""
        value = f"*{_DTYPES[self.dtype]}"
        int8, packed = self.kernel == "attention_int8", self.kernel == "attention_varlen"
        return {
            "Q": "*i8" if int8 else value,
            "K": "*i8" if int8 else value,
            "V": value,
            "Out": value,
            "Lse": "*fp32" if self.lse else None,
            "Bias": (None, value, "*i8")[self.bias],
            "Slopes": "*fp32" if self.alibi else None,
            "CuQ": "*i32" if packed else None,
            "CuK": "*i32" if packed or self.lengths else None,
            "QScale": "*fp32" if int8 else None,
            "KScale": "*fp32" if int8 else None,
        }

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
            elif name in ("scale", "softcap"):
                found.append((name, "fp64" if self.doubles else "fp32"))
            elif name.startswith("stride_") and name not in (*_ROW_STRIDES, "stride_bias_k"):
                found.append((name, "i64"))
            else:
                found.append((name, "i32"))
        return found

    def divisible(self, name: str) -> bool:
        """Whether the compiler may take the argument for a multiple of 16 (wide loads need it)."""
        if name in self.pointers:
            return name not in ("CuQ", "CuK", "Slopes", "QScale", "KScale", "Bias")
        return name.startswith("stride_") and name[7] in "qkvo" and self.head_dim % 16 == 0
