"""Dynamic int8 quantization by ONNX Runtime's own quantizer."""

from __future__ import annotations

import contextlib
import difflib
import logging
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import onnx
import onnx_ir as ir
from onnxruntime.quantization import QuantType, quantize_dynamic

from lepto.compiler.context import Context, Left, PassError
from lepto.compiler.model import OnnxModel
from lepto.compiler.ort import running_operators
from lepto.compiler.passes.fusions import graph as g
from lepto.runtime.errors import LeptoError

_WEIGHT_INPUT = {"MatMul": 1, "Gemm": 1, "Attention": 1, "Gather": 0}
"""Which input of an operator holds the weights that are quantized."""


@dataclass(frozen=True, slots=True)
class QuantizeDynamic:
    """Weights to int8 ahead of time, activations to uint8 while running, one scale and zero point per tensor.

    U8 activations and S8 weights are what ONNX Runtime's CPU kernels are written for. The embedding tables are
    quantized too (one scale per table) and dequantized after the lookup.

    Attributes:
        granularity: One weight scale per output channel or one per tensor.
        reduce_range: Seven-bit weights, for AVX2 and AVX-512 without VNNI, where U8S8 products saturate in 16 bits.
        exclude: Names of nodes that stay in float.
    """

    name: ClassVar[str] = "quantize-dynamic"
    preserves_function: ClassVar[bool] = False
    reads: ClassVar[tuple[str, ...]] = ()

    granularity: Literal["per-channel", "per-tensor"] = "per-channel"
    reduce_range: bool = False
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check the options."""
        if self.granularity not in ("per-channel", "per-tensor"):
            raise ValueError(f"granularity must be per-channel or per-tensor, got {self.granularity!r}")

    def __call__(self, model: OnnxModel, context: Context) -> OnnxModel:
        """Return the quantized model.

        Raises:
            Left: The graph has no weight that can be quantized.
            PassError: A quantized product is not run by an integer kernel.
        """
        per_channel = self.granularity == "per-channel"
        result = dynamic_int8(model, per_channel=per_channel, reduce_range=self.reduce_range, exclude=self.exclude)
        context.note(check_integer_kernels(result) + kept_in_float(self.exclude))
        return result


def quantizable(model: OnnxModel) -> tuple[str, ...]:
    """Names of the nodes that the 8-bit passes quantize: products and lookups with constant float weights.

    A node without a name has that of its first output.
    """
    return tuple(node.name or node.output[0] for node in _quantizable(model.proto().graph))


def _quantizable(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    weights = {t.name: list(t.dims) for t in graph.initializer if t.data_type == onnx.TensorProto.FLOAT}
    types = _quantized_types(graph)
    found = []
    for node in graph.node:
        place = _WEIGHT_INPUT.get(node.op_type, 0)
        shape = weights.get(node.input[place]) if node.op_type in types and len(node.input) > place else None
        # A column of scales, as quantize-embeddings writes it, is no embedding.
        if shape and (node.op_type != "Gather" or (len(shape) > 1 and shape[-1] > 1)):
            found.append(node)
    return found


def check_names(model: OnnxModel, exclude: Sequence[str], known: Sequence[str] | None = None) -> None:
    """Refuse names of nodes that are not there to be kept in float.

    Raises:
        LeptoError: A name is unknown; the message has the nearest one.
    """
    known = quantizable(model) if known is None else known
    for name in exclude:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise LeptoError(
                f"exclude: no node {name!r} can be quantized in this graph; {hint}those that can: {', '.join(known)}"
            )


def kept_in_float(exclude: Sequence[str]) -> str:
    """The end of a note."""
    return f"; in float: {', '.join(exclude)}" if exclude else ""


def dynamic_int8(model: OnnxModel, *, per_channel: bool, reduce_range: bool, exclude: Sequence[str] = ()) -> OnnxModel:
    """Run ONNX Runtime's dynamic quantizer on a model held in memory.

    Raises:
        Left: No product has constant weights.
        LeptoError: A name in ``exclude`` is unknown.
    """
    proto = model.proto()
    types = _quantized_types(proto.graph)
    if not types:
        raise Left("nothing to quantize: the graph has no MatMul, Gemm, Attention or Gather")
    check_names(model, exclude)
    for node in proto.graph.node:
        node.name = node.name or node.output[0]
    taken = {node.name for node in _quantizable(proto.graph)}
    columns = [n.name for n in proto.graph.node if n.op_type == "Gather" and n.name not in taken]
    with tempfile.TemporaryDirectory(prefix="lepto-") as folder, quiet():
        source, target = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        onnx.save(proto, source)
        quantize_dynamic(
            source,
            target,
            op_types_to_quantize=types,
            per_channel=per_channel,
            reduce_range=reduce_range,
            weight_type=QuantType.QInt8,
            # A Gemm becomes a MatMul of another name before it is quantized.
            nodes_to_exclude=[*exclude, *(f"{name}_MatMul" for name in exclude), *columns],
            extra_options={
                "MatMulConstBOnly": True,
                # Shape inference stops at fused operators, and the quantizer then needs to be told the type.
                "DefaultTensorType": onnx.TensorProto.FLOAT,
            },
        )
        result = _stored_small(OnnxModel.from_proto(onnx.load(target)))
    if _integers(result.proto().graph) == _integers(proto.graph):
        raise Left("nothing to quantize: no product in the graph has constant weights" + kept_in_float(exclude))
    return result


def _stored_small(model: OnnxModel) -> OnnxModel:
    """Store the weights of batched float products (``[H, K, N]``) in int8, with one scale per head and column.

    They are computed in float: a cast and a product with the scales restore them when a session is made, where ONNX
    Runtime folds both. (It would not fold a ``DequantizeLinear``.)
    """
    loaded = model.ir()
    graph = loaded.graph
    batched = [node for node in graph if node.op_type == "FusedMatMul" and node.domain == g.MICROSOFT]
    for node in batched:
        array = g.constant(node.inputs[1])
        if array is None or array.ndim != 3 or array.dtype != np.float32:
            continue
        scale = np.maximum(np.abs(array).max(axis=1, keepdims=True) / 127, np.finfo(np.float32).tiny)
        name = node.inputs[1].name  # type: ignore[union-attr]  # it is a constant
        small = g.add_initializer(graph, f"{name}.int8", np.round(array / scale).astype(np.int8))
        scales = g.add_initializer(graph, f"{name}.scale", scale.astype(np.float32))
        whole = g.insert(graph, node, "Cast", [small], attributes={"to": ir.DataType.FLOAT.value})
        node.replace_input_with(1, g.insert(graph, node, "Mul", [whole, scales]))
    return OnnxModel.from_ir(g.finish(loaded)) if batched else model


def _integers(graph: onnx.GraphProto) -> int:
    """How many constants have 8 bits."""
    return sum(tensor.data_type in (onnx.TensorProto.INT8, onnx.TensorProto.UINT8) for tensor in graph.initializer)


def _quantized_types(graph: onnx.GraphProto) -> list[str]:
    """Operators of this graph that the quantizer is told to quantize."""
    present = {(node.op_type, node.domain) for node in graph.node}
    # The standard Attention (opset 23) must be left out: the quantizer makes an invalid node of it.
    wanted = {op: "com.microsoft" if op == "Attention" else "" for op in _WEIGHT_INPUT}
    types = [op for op, domain in wanted.items() if (op, domain) in present]
    # The quantizer makes a MatMul of each Gemm before it looks at types.
    return [*types, "MatMul"] if "Gemm" in types and "MatMul" not in types else types


def check_integer_kernels(model: OnnxModel) -> str:
    """Compare what the quantizer wrote with what ONNX Runtime runs; return the counts as a sentence.

    Raises:
        PassError: Integer products that ONNX Runtime did not fuse with their scales, which would be slow.
    """
    written, run = model.operators(), running_operators(model)
    fused = run["DynamicQuantizeMatMul"] + run["MatMulIntegerToFloat"]
    wanted = written["MatMulInteger"] + written["MatMulIntegerToFloat"]
    if fused != wanted or run["MatMulInteger"]:
        raise PassError(
            f"{wanted} products were quantized, but onnxruntime runs only {fused} of them fused "
            f"({run['MatMulInteger']} stay MatMulInteger): its load-time fusions do not fit this graph"
        )
    if run["QAttention"] != written["QAttention"]:
        raise PassError(f"{written['QAttention']} QAttention were written, {run['QAttention']} are run")
    names = ("QAttention", "DynamicQuantizeMatMul", "MatMulIntegerToFloat", "DynamicQuantizeLinear", "DequantizeLinear")
    return ", ".join(f"{run[name]} {name}" for name in names if run[name])


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the quantizers off the root logger: they warn about pre-processing that fused graphs cannot have.

    One of their modules also configures that logger when it is imported; it is put back as it was.
    """
    logger = logging.getLogger()
    level, handlers = logger.level, list(logger.handlers)
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.handlers[:] = handlers
