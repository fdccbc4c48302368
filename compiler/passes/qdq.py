"""Standard ``QuantizeLinear``/``DequantizeLinear`` pairs, written by ONNX Runtime's static quantizer.

TensorRT and other runtimes read them, and ONNX Runtime fuses them into integer convolutions and products at load time.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.calibrate import TensorsData, save_tensors_data

from lepto.compiler.context import Left, PassError
from lepto.compiler.model import OnnxModel
from lepto.compiler.ort import running_operators
from lepto.compiler.passes.calibration import Range
from lepto.compiler.passes.quantize_dynamic import check_names, kept_in_float, quiet

_PRODUCTS = ("MatMul", "Gemm", "Conv", "ConvTranspose")
_LOOKUP = "Gather"
# Between convolutions what follows stays in 8 bits too; between matrix products it would only add roundings.
_BETWEEN = ("Add", "Relu", "Clip", "MaxPool", "AveragePool", "GlobalAveragePool", "Concat", "Flatten", "Reshape")
_WEIGHT_INPUT = {_LOOKUP: 0}


def quantizable_qdq(model: OnnxModel) -> tuple[str, ...]:
    """Names of the products, convolutions and lookups with constant float weights."""
    return tuple(node.name or node.output[0] for node in _weighted(model.proto().graph))


def quantized_tensors(model: OnnxModel, exclude: Sequence[str] = ()) -> list[str]:
    """Names of the activations whose range :func:`qdq_int8` needs.

    Raises:
        Left: There is no product with constant weights.
        LeptoError: A name in ``exclude`` is unknown.
    """
    proto = model.proto()
    check_names(model, exclude, quantizable_qdq(model))
    graph = proto.graph
    weighted = [node for node in _weighted(graph) if (node.name or node.output[0]) not in exclude]
    if not any(node.op_type in _PRODUCTS for node in weighted):
        raise Left("nothing to quantize: no product in the graph has constant weights" + kept_in_float(exclude))
    between = [node for node in graph.node if node.op_type in _BETWEEN] if _convolutional(graph) else []
    constants = {tensor.name for tensor in graph.initializer}
    floats = _float_tensors(proto)
    names: dict[str, None] = {}
    for node in [*weighted, *between]:
        names.update((name, None) for name in (*node.input, *node.output) if name in floats and name not in constants)
    return list(names)


def qdq_int8(
    model: OnnxModel,
    ranges: Mapping[str, Range],
    *,
    reduce_range: bool,
    symmetric: bool,
    exclude: Sequence[str] = (),
) -> tuple[OnnxModel, str]:
    """Quantize with known ranges.

    Args:
        model: The float model.
        ranges: Of each tensor that :func:`quantized_tensors` names.
        reduce_range: Seven-bit weights.
        symmetric: int8 activations with zero point 0 and float biases, as TensorRT wants them; else uint8.
        exclude: Names of nodes that stay in float.

    Returns:
        The model, and which integer operators ONNX Runtime makes of it.

    Raises:
        PassError: ONNX Runtime makes no integer product of it.
    """
    proto = model.proto()
    types = [*_PRODUCTS, *(_BETWEEN if _convolutional(proto.graph) else ()), *(() if symmetric else (_LOOKUP,))]
    types = [op for op in types if any(node.op_type == op for node in proto.graph.node)]
    for node in proto.graph.node:
        node.name = node.name or node.output[0]
    weighted = {node.name for node in _weighted(proto.graph)}
    # The quantizer takes every node of a type; those without weights of their own are left as they are.
    bare = [n.name for n in proto.graph.node if n.op_type in (*_PRODUCTS, _LOOKUP) and n.name not in weighted]
    data = {name: (np.float32(low), np.float32(high)) for name, (low, high) in ranges.items()}
    with tempfile.TemporaryDirectory(prefix="lepto-") as folder, quiet():
        source, target, cache = (Path(folder) / name for name in ("float.onnx", "int8.onnx", "ranges.json"))
        onnx.save(proto, source)
        save_tensors_data(TensorsData(CalibrationMethod.MinMax, data), cache)
        quantize_static(
            source,
            target,
            None,
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=types,
            per_channel=True,
            reduce_range=reduce_range,
            activation_type=QuantType.QInt8 if symmetric else QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=[*exclude, *bare],
            calibration_cache_path=cache,
            extra_options={
                "ActivationSymmetric": symmetric,
                "WeightSymmetric": True,
                "QuantizeBias": not symmetric,
                # What a product gives goes to a bias, a GELU or a sum in float: rounding it would cost accuracy alone.
                "OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"],
                "DefaultTensorType": onnx.TensorProto.FLOAT,
            },
        )
        result = OnnxModel.from_proto(onnx.load(target))
    run = running_operators(result)
    names = ("QLinearConv", "QLinearMatMul", "QGemm", "MatMulIntegerToFloat", "QLinearAdd", "DequantizeLinear")
    if not symmetric and not any(run[name] for name in names[:4]):
        raise PassError("Q/DQ pairs were written, but onnxruntime makes no integer product of them")
    pairs = result.operators()["QuantizeLinear"]
    return result, f"{pairs} QuantizeLinear written; run: " + ", ".join(f"{run[n]} {n}" for n in names if run[n])


def _convolutional(graph: onnx.GraphProto) -> bool:
    return any(node.op_type in ("Conv", "ConvTranspose") for node in graph.node)


def _weighted(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    weights = {tensor.name for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT}
    return [
        node
        for node in graph.node
        if node.op_type in (*_PRODUCTS, _LOOKUP)
        and node.domain == ""
        and len(node.input) > 1
        and node.input[_WEIGHT_INPUT.get(node.op_type, 1)] in weights
    ]


def _float_tensors(proto: onnx.ModelProto) -> set[str]:
    """Names of the activations that are float as far as the graph tells, and of those it says nothing about."""
    graph = proto.graph
    infos = [*graph.input, *graph.value_info, *graph.output]
    others = {v.name for v in infos if v.type.tensor_type.elem_type not in (0, onnx.TensorProto.FLOAT)}
    made = {value.name for value in graph.input} | {name for node in graph.node for name in node.output}
    return made - others - {""}
