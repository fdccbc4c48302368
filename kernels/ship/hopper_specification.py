"""The warp-specialized kernel with everything fixed that a compiler must know: it is tested so, and never shipped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lepto.kernels.attention.tables import Specialized, choose_specialized

_TYPES = {"float16": "fp16", "bfloat16": "bf16"}
_TILED = ("q_tensor", "k_tensor", "v_tensor", "out_tensor")


@dataclass(frozen=True, slots=True)
class HopperSpecification:
    """One variant.

    Attributes:
        head_dim: D.
        entry: Of the table's launches for this head_dim.
        dtype: ``float16`` or ``bfloat16``.
        causal: No query sees a key after its place.
        even: The mask's edge crosses one block of keys in 64 rows.
        ragged: The number of keys is no multiple of a block.
        lse: Writes the log-sum-exp.
    """

    head_dim: int
    entry: int = 0
    dtype: str = "float16"
    causal: bool = False
    even: bool = False
    ragged: bool = False
    lse: bool = True
    kernel: str = "attention_hopper"
    architecture: str = "sm_90"

    @property
    def launch(self) -> Specialized:
        """From the table."""
        return choose_specialized(self.architecture, self.head_dim)[self.entry]

    @property
    def name(self) -> str:
        """For people."""
        parts = [self.kernel, f"d{self.head_dim}", f"launch{self.entry}", self.dtype]
        parts += [flag for flag in ("causal", "even", "ragged", "lse") if getattr(self, flag)]
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
    def options(self) -> dict[str, Any]:
        """As it is launched."""
        return {"num_warps": 4, "maxnreg": self.launch.registers}

    @property
    def constants(self) -> dict[str, Any]:
        """The kernel's compile-time arguments."""
        return {
            "HEAD_DIM": self.head_dim,
            "BLOCK_N": self.launch.block_n,
            "CAUSAL": self.causal,
            "EVEN": self.even,
            "RAGGED": self.ragged,
            "GROUPS": self.launch.groups,
            "STAGES": self.launch.stages,
            "TURNS": self.launch.turns and self.launch.groups > 1,
            "AHEAD": self.launch.ahead,
            "LSE": self.lse,
        }

    def arguments(self, names: list[str]) -> list[tuple[str, str]]:
        """What the compiled kernel takes, in order: names and Triton's types."""
        kinds = {"lse_ptr": "*fp32" if self.lse else None, "scale": "fp32"}
        kinds |= {name: self._tiled(name) for name in _TILED}
        found = [(name, kinds.get(name, "i32")) for name in names if name not in self.constants]
        return [(name, kind) for name, kind in found if kind is not None]

    def _tiled(self, name: str) -> str:
        from triton.experimental.gluon import language as gl

        rows = self.launch.block_n if name in ("k_tensor", "v_tensor") else 64
        shape = [1, 1, rows, self.head_dim]
        layout = gl.NVMMASharedLayout.get_default_for(shape, gl.float16)
        return f"tensordesc<{_TYPES[self.dtype]}[{','.join(map(str, shape))}],{layout!r}>"

    def divisible(self, name: str) -> bool:
        """Whether the compiler may take the argument for a multiple of 16."""
        return name == "lse_ptr"
