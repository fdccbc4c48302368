"""The attention of a TensorRT plugin with everything fixed that a compiler must know."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lepto.kernels.attention.tables import PACKED_SHORT, Launch, choose, padded_head_dim

_TYPES = {"float16": "fp16", "bfloat16": "bf16"}
_MASKS = {"": 0, "float": 1, "bool": 2, "packed": 0}


@dataclass(frozen=True, slots=True)
class PluginSpecification:
    """One node's kernel.

    Attributes:
        architecture: Such as ``sm_87``.
        head_dim: D.
        heads: Of the queries.
        kv_heads: Of keys and values.
        scale: Factor of the scores.
        mask: As `lepto.kernels.ship.onnx.Variant` has it: empty, ``bool``, ``float`` or ``packed``.
        dtype: ``float16`` or ``bfloat16``; also of a mask that is added.
        window_left: Keys to the left that a query sees, -1 for all.
        window_right: The same to the right; 0 is the causal mask.
        softcap: 0 for none.
        short: Compiled for at most 64 query rows.
        stages: Depth of the pipeline where it is not that of the table.
    """

    architecture: str
    head_dim: int
    heads: int
    kv_heads: int
    scale: float
    mask: str = ""
    dtype: str = "float16"
    window_left: int = -1
    window_right: int = -1
    softcap: float = 0.0
    short: bool = False
    stages: int | None = None
    kernel: str = "plugin"

    @property
    def launch(self) -> Launch:
        """From the table of the architecture."""
        rich = bool(_MASKS[self.mask]) or self.softcap > 0
        rows = 64 if self.short else PACKED_SHORT + 1
        packed = self.mask == "packed"
        return choose(self.architecture, self.head_dim, rows, rich=rich, plugin=True, packed=packed)

    @property
    def name(self) -> str:
        """For people."""
        parts = ["plugin", self.mask, f"d{self.head_dim}", f"h{self.heads}", f"g{self.kv_heads}", self.dtype]
        parts += ["window"] if self.window_left >= 0 else []
        parts += ["causal"] if self.window_right == 0 else []
        parts += ["softcap"] if self.softcap else []
        parts += ["short"] if self.short else []
        return "_".join([*filter(None, parts), self.architecture.replace("_", "")])

    @property
    def multiplies(self) -> bool:
        """A matrix product is in it, which must run on tensor cores."""
        return True

    @property
    def function(self) -> Any:
        """The kernel."""
        from lepto.kernels.attention.plugin import _attention_plugin_kernel

        return _attention_plugin_kernel

    @property
    def options(self) -> dict[str, Any]:
        """From the table, unless the pipeline is another."""
        return {"num_warps": self.launch.num_warps, "num_stages": self.stages or self.launch.num_stages}

    @property
    def constants(self) -> dict[str, Any]:
        """The kernel's compile-time arguments."""
        return {
            "SCALE": self.scale,
            "CAP": self.softcap,
            "WINDOW_LEFT": self.window_left,
            "WINDOW_RIGHT": self.window_right,
            "HEADS": self.heads,
            "GROUP": self.heads // self.kv_heads,
            "HEAD_DIM": self.head_dim,
            "BLOCK_M": self.launch.block_m,
            "BLOCK_N": self.launch.block_n,
            "BLOCK_D": padded_head_dim(self.head_dim),
            "PACKED": self.mask == "packed",
            "BIAS": _MASKS[self.mask],
            "WIDEN": False,
        }

    @property
    def inputs(self) -> list[tuple[str, str]]:
        """The node's inputs in order: names and Triton's types."""
        value = f"*{_TYPES[self.dtype]}"
        extra = {
            "": [],
            "bool": [("Mask", "*i8")],
            "float": [("Mask", value)],
            "packed": [("CuSeqlens", "*i32"), ("Places", "*i32")],
        }[self.mask]
        return [("Q", value), ("K", value), ("V", value), *extra]

    @property
    def extras(self) -> list[str]:
        """The whole numbers between inputs and output."""
        return ["rows", "cols", *(("mask_b", "mask_h", "mask_q", "mask_k") if _MASKS[self.mask] else ())]

    def arguments(self, names: list[str]) -> list[tuple[str, str]]:
        """What the compiled kernel takes, in the kernel's own order."""
        taken = {**dict(self.inputs), **dict.fromkeys(self.extras, "i32"), "Out": f"*{_TYPES[self.dtype]}"}
        return [(name, taken[name]) for name in names if name in taken]

    def divisible(self, name: str) -> bool:
        """TensorRT's tensors start at multiples of 256 bytes; sizes may be anything."""
        return name in ("Q", "K", "V", "Out")
