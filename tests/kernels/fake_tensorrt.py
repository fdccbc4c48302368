"""As much of ``tensorrt.plugin`` as a plugin calls, with numbers in place of symbols: its expressions have values."""

from __future__ import annotations

import enum
import sys
import types
from typing import Any

import pytest


class DataType(enum.IntEnum):
    FLOAT = 0
    HALF = 1
    BF16 = 7


class SymExpr:
    def __init__(self, value: Any = None) -> None:
        self.value: int = value.value if isinstance(value, SymExpr) else value

    def _with(self, value: int) -> Any:
        return type(self)(value)

    def __add__(self, other: Any) -> Any:
        return self._with(self.value + SymExpr(other).value)

    def __sub__(self, other: Any) -> Any:
        return self._with(self.value - SymExpr(other).value)

    def __mul__(self, other: Any) -> Any:
        return self._with(self.value * SymExpr(other).value)


class SymInt32(SymExpr): ...


class ShapeExpr(SymInt32): ...


class SymIntExprs(list):
    @classmethod
    def from_tuple(cls, values: Any) -> SymIntExprs:
        return cls(values)


class TensorDesc:
    """``build`` is what the builder knows, -1 for a size that it does not; ``shape`` what comes in the end."""

    def __init__(self, shape: tuple[int, ...], dtype: DataType, build: tuple[int, ...] | None = None) -> None:
        self.dtype, self.ndim = dtype, len(shape)
        self.shape = build or shape
        self.shape_expr = [ShapeExpr(size) for size in shape]

    def like(self) -> TensorDesc:
        return self


class AutoTuneCombination:
    def __init__(self, io_types: str, layouts: str, tactics: list[int]) -> None:
        self.io_types, self.layouts, self.tactics = io_types.split(", "), layouts, tactics


class KernelLaunchParams:
    grid_x: Any
    block_x: Any
    shared_mem: Any


def cdiv(first: ShapeExpr, second: int) -> ShapeExpr:
    return ShapeExpr(-(-first.value // second))


class Registry:
    """What was registered, by the plugin's id."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.registered: dict[str, Any] = {}
        self.autotuned: dict[str, Any] = {}
        self.implemented: dict[str, Any] = {}
        plugin = types.ModuleType("tensorrt.plugin")
        for entry in (TensorDesc, AutoTuneCombination, KernelLaunchParams, SymIntExprs, SymInt32, cdiv):
            setattr(plugin, entry.__name__, entry)
        for name, into in (
            ("register", self.registered),
            ("autotune", self.autotuned),
            ("aot_impl", self.implemented),
        ):
            setattr(plugin, name, lambda plugin_id, into=into: lambda function: into.update({plugin_id: function}))
        root: Any = types.ModuleType("tensorrt")
        root.plugin, root.DataType, root.__version__ = plugin, DataType, "11.0"
        monkeypatch.setitem(sys.modules, "tensorrt", root)
        monkeypatch.setitem(sys.modules, "tensorrt.plugin", plugin)
