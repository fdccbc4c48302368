"""The warp-specialized kernel with everything fixed that a compiler must know: it is tested so, and never shipped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lepto.kernels.attention.tables import Launch, choose_specialized

_TYPES = {"float16": "*fp16", "bfloat16": "*bf16"}
_WIDE = tuple(f"stride_{x}{axis}" for x in "qkvo" for axis in "bh")


@dataclass(frozen=True, slots=True)
class HopperSpecification:
    """One variant.

    Attributes:
        head_dim: D.
        dtype: ``float16`` or ``bfloat16``.
        causal: No query sees a key after its place.
        ragged: The number of keys is no multiple of a block.
        num_warps: Another number than the table's.
    """

    head_dim: int
    dtype: str = "float16"
    causal: bool = False
    ragged: bool = False
    num_warps: int | None = None
    kernel: str = "attention_hopper"
    architecture: str = "sm_90"

    @property
    def launch(self) -> Launch:
        """From the table."""
        return choose_specialized(self.architecture, self.head_dim)

    @property
    def name(self) -> str:
        """For people."""
        parts = [self.kernel, f"d{self.head_dim}", self.dtype]
        parts += [flag for flag in ("causal", "ragged") if getattr(self, flag)]
        return "_".join([*parts, self.architecture.replace("_", "")])

    @property
    def multiplies(self) -> bool:
        """A matrix product is in it, which must run on tensor cores."""
        return True

    @property
    def function(self) -> Any:
        """The kernel."""
        from lepto.kernels.attention.hopper import _attention_hopper_kernel

        return _attention_hopper_kernel

    @property
    def warps_and_stages(self) -> tuple[int, int]:
        """From the table, unless other warps are asked for."""
        return self.num_warps or self.launch.num_warps, self.launch.num_stages

    @property
    def constants(self) -> dict[str, Any]:
        """The kernel's compile-time arguments."""
        return {
            "HEAD_DIM": self.head_dim,
            "BLOCK_M": self.launch.block_m,
            "BLOCK_N": self.launch.block_n,
            "CAUSAL": self.causal,
            "MASK": self.causal or self.ragged,
            "LSE": True,
            "WIDEN": False,
        }

    def arguments(self, names: list[str]) -> list[tuple[str, str]]:
        """What the compiled kernel takes, in order: names and Triton's types."""
        kinds = dict.fromkeys(("Q", "K", "V", "Out"), _TYPES[self.dtype]) | {"Lse": "*fp32", "scale": "fp32"}
        return [
            (name, kinds.get(name, "i64" if name in _WIDE else "i32")) for name in names if name not in self.constants
        ]

    def divisible(self, name: str) -> bool:
        """Whether the compiler may take the argument for a multiple of 16."""
        return name in ("Q", "K", "V", "Out") or name.startswith("stride_")
