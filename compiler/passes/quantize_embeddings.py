"""Embedding tables in 8 or 4 bits, with a scale for each token or one for the table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from lepto.compiler.context import Context, Left
from lepto.compiler.model import OnnxModel
from lepto.compiler.passes.fusions import graph as g
from lepto.compiler.passes.quantize_dynamic import check_names, kept_in_float

Floats = npt.NDArray[np.float32]


def quantize_table(table: Floats) -> tuple[npt.NDArray[np.int8], Floats]:
    """Symmetric int8 with one scale.

    Args:
        table: ``[V, K]``.

    Returns:
        Integers in [-127, 127] ``[V, K]`` and the scale ``[]``; a table of zeros has scale 1.
    """
    scale = _scales(np.abs(table).max(), 127)
    return np.clip(np.round(table / scale), -127, 127).astype(np.int8), scale


def quantize_rows(table: Floats) -> tuple[npt.NDArray[np.int8], Floats]:
    """Symmetric int8 with a scale for each row.

    Args:
        table: ``[V, K]``.

    Returns:
        Integers in [-127, 127] ``[V, K]`` and scales ``[V, 1]``; a row of zeros has scale 1.
    """
    scales = _scales(np.abs(table).max(axis=1, keepdims=True), 127)
    return np.clip(np.round(table / scales), -127, 127).astype(np.int8), scales


def quantize_blocks(table: Floats, block_size: int) -> tuple[npt.NDArray[np.uint8], Floats]:
    """Symmetric 4 bits with a scale for each block of a row, two numbers in a byte.

    The layout is that of ``com.microsoft::GatherBlockQuantized`` with uint8 data: the first number of a pair in the low
    half of the byte, 8 standing for zero. A block's largest magnitude, with its sign, is the level -8, so that all
    sixteen levels are used (as in ONNX Runtime's own 4-bit quantizer).

    Args:
        table: ``[V, K]``, K even.
        block_size: Columns that share a scale; the last block may be shorter.

    Returns:
        Bytes ``[V, K / 2]`` and scales ``[V, ceil(K / block_size)]``.

    Raises:
        ValueError: K is odd.
    """
    rows, columns = table.shape
    if columns % 2:
        raise ValueError(f"two numbers share a byte, so a table needs an even number of columns, got {columns}")
    blocks = -(-columns // block_size)
    padded = np.zeros((rows, blocks * block_size), np.float32)
    padded[:, :columns] = table
    padded = padded.reshape(rows, blocks, block_size)
    furthest = np.take_along_axis(padded, np.abs(padded).argmax(axis=2, keepdims=True), axis=2)
    scales = _scales(furthest, -8)
    levels = np.clip(np.round(padded / scales), -8, 7).astype(np.int8) + 8
    flat = levels.reshape(rows, -1)[:, :columns].astype(np.uint8)
    return flat[:, 0::2] | flat[:, 1::2] << 4, scales[:, :, 0]


def _scales(extremes: Floats, level: int) -> Floats:
    scales = (extremes / level).astype(np.float32)
    # Denormals divided by the level may round to zero.
    return np.where(np.abs(scales) < np.finfo(np.float32).tiny, np.float32(1), scales)


@dataclass(frozen=True, slots=True)
class QuantizeEmbeddings:
    """Lookup tables in few bits, each row (token) with scales of its own unless one is to do for all.

    The 8-bit passes give a table one scale, which the row with the largest value decides for all. Goes before them;
    they leave what is quantized here alone. It saves bytes, not time: a 4-bit lookup costs some microseconds more, and
    so do scales of rows. One scale costs next to nothing.

    4 bits need ``com.microsoft::GatherBlockQuantized``. Its data is written as packed uint8: for the type INT4, which
    ONNX Runtime's own quantizer writes, its CPU kernel is four times slower (1.32). For ids outside the table it gives
    zeros, where ``Gather`` fails.

    Attributes:
        bits: 8 or 4.
        block_size: Columns that share a scale with 4 bits, a power of two of at least 16; 8 bits have a scale per row.
        per_row: Whether each row has its own scale. 4 bits have scales of blocks in any case.
        smallest_bytes: Tables smaller than this in float are left alone: their lookup would cost more than they hold.
        exclude: Names of nodes that stay in float.
    """

    name: ClassVar[str] = "quantize-embeddings"
    preserves_function: ClassVar[bool] = False
    reads: ClassVar[tuple[str, ...]] = ()

    bits: Literal[4, 8] = 8
    block_size: int = 32
    per_row: bool = True
    smallest_bytes: int = 65_536
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check the options."""
        if self.bits not in (4, 8):
            raise ValueError(f"bits must be 4 or 8, got {self.bits}")
        if self.block_size < 16 or self.block_size & (self.block_size - 1):
            raise ValueError(f"block_size must be a power of two of at least 16, got {self.block_size}")
        if self.smallest_bytes < 0:
            raise ValueError(f"smallest_bytes must not be negative, got {self.smallest_bytes}")

    def __call__(self, model: OnnxModel, context: Context) -> OnnxModel:
        """Return the model with quantized tables.

        Raises:
            Left: No table is large enough, or none fits into 4 bits.
            LeptoError: A name in ``exclude`` is unknown.
        """
        loaded = model.ir()
        graph = loaded.graph
        lookups = [node for node in graph if _table(node) is not None]
        names = {node: node.name or node.outputs[0].name or "" for node in lookups}
        check_names(model, self.exclude, list(names.values()))
        notes, skipped = [], []
        for node in lookups:
            table = _table(node)
            assert table is not None
            if names[node] in self.exclude:
                continue
            if table.nbytes < self.smallest_bytes:
                skipped.append(f"{names[node]} has {table.nbytes} bytes, smallest_bytes is {self.smallest_bytes}")
                continue
            if self.bits == 4 and table.shape[1] % 2:
                skipped.append(f"{names[node]} has {table.shape[1]} columns, 4 bits need an even number")
                continue
            after, error = self._rewrite(graph, node, table)
            notes.append(
                f"{names[node]} {list(table.shape)}: {table.nbytes / 1e6:.2f} → {after / 1e6:.2f} MB, "
                f"relative error {error:.1e}"
            )
        if not notes:
            raise Left("no embedding table to quantize" + "".join(f"; {why}" for why in skipped))
        context.note("; ".join(notes) + kept_in_float(self.exclude))
        return OnnxModel.from_ir(g.finish(loaded))

    def _rewrite(self, graph: ir.Graph, node: ir.Node, table: Floats) -> tuple[int, float]:
        """Replace a lookup; the table's bytes and the root mean square of the error over that of the values."""
        source, ids, out = node.inputs[0], node.inputs[1], node.outputs[0]
        assert source is not None
        if self.bits == 8 and not self.per_row:
            integers, scales = quantize_table(table)
            restored, stored = integers * scales, integers.nbytes
            picked = g.insert(graph, node, "Gather", [g.add_initializer(graph, f"{source.name}.int8", integers), ids])
            made = g.insert(
                graph,
                node,
                "DequantizeLinear",
                [
                    picked,
                    g.add_initializer(graph, f"{source.name}.scale", scales),
                    g.add_initializer(graph, f"{source.name}.zero_point", np.array(0, np.int8)),
                ],
                like=out,
            )
        elif self.bits == 8:
            integers, scales = quantize_rows(table)
            restored, stored = integers * scales, integers.nbytes
            # Standard operators: they run everywhere, and on CPUs faster than the one that does all (15 ids: 11 to 14
            # microseconds).
            picked = g.insert(graph, node, "Gather", [g.add_initializer(graph, f"{source.name}.int8", integers), ids])
            scale = g.insert(graph, node, "Gather", [g.add_initializer(graph, f"{source.name}.scale", scales), ids])
            cast = g.insert(graph, node, "Cast", [picked], attributes={"to": ir.DataType.FLOAT.value}, like=out)
            made = g.insert(graph, node, "Mul", [cast, scale], like=out)
        else:
            packed, scales = quantize_blocks(table, self.block_size)
            stored = packed.nbytes
            restored = unpack_blocks(packed, scales, self.block_size)
            made = g.insert(
                graph,
                node,
                "GatherBlockQuantized",
                [
                    g.add_initializer(graph, f"{source.name}.int4", packed),
                    ids,
                    g.add_initializer(graph, f"{source.name}.scale", scales),
                ],
                domain=g.MICROSOFT,
                attributes={"bits": 4, "block_size": self.block_size, "gather_axis": 0, "quantize_axis": 1},
                like=out,
            )
        g.replace(out, made)
        error = float(np.sqrt(np.square(restored - table, dtype=np.float64).mean()))
        size = float(np.sqrt(np.square(table, dtype=np.float64).mean()))
        return stored + scales.nbytes, error / max(size, 1e-30)


def unpack_blocks(packed: npt.NDArray[np.uint8], scales: Floats, block_size: int) -> Floats:
    """The float table ``[V, K]`` that :func:`quantize_blocks` stands for."""
    levels = np.empty((packed.shape[0], packed.shape[1] * 2), np.float32)
    levels[:, 0::2], levels[:, 1::2] = packed & 15, packed >> 4
    spread = np.repeat(scales, block_size, axis=1)[:, : levels.shape[1]]
    table: Floats = (levels - 8) * spread
    return table


def _table(node: ir.Node) -> Floats | None:
    """The float table ``[V, K]``, K > 1, of a lookup along its first axis, else None."""
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
    if node.op_type != "Gather" or node.domain != "" or axis != 0:
        return None
    array = g.constant(node.inputs[0])
    if array is None or array.dtype != np.float32 or array.ndim != 2 or array.shape[1] < 2:
        return None
    return array.astype(np.float32, copy=False)
