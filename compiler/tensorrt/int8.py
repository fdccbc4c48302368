"""Explicit int8 for TensorRT: Q/DQ pairs where it fuses them, and nowhere else.

What TensorRT fuses (its documentation, "Working with Quantized Types", Q/DQ placement): the inputs of convolutions and
of products with constant weights, the weights themselves, one scale for each output channel; and in residual blocks the
other input of the addition that follows a convolution. Activations are symmetric, biases and what follows stay in
float, and the two products of attention are left alone, so that attention is still found as one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from lepto.compiler.context import Left
from lepto.compiler.model import OnnxModel
from lepto.compiler.tensorrt.ranges import SMALLEST
from lepto.compiler.tensorrt.standard import infer

_CONVOLUTIONS = ("Conv", "ConvTranspose")
_WEIGHTED = (*_CONVOLUTIONS, "MatMul", "Gemm")
_LEVELS = 127


def weighted(model: OnnxModel, exclude: Collection[str] = ()) -> list[str]:
    """Names of the convolutions and products with constant weights."""
    return [node.name for node in _weighted(model.proto().graph) if node.name not in exclude]


def quantized_tensors(model: OnnxModel, exclude: Collection[str] = ()) -> list[str]:
    """Names of the activations that get a pair, each once, in the graph's order.

    Raises:
        Left: No product or convolution has constant weights.
    """
    graph = model.proto().graph
    nodes = [node for node in _weighted(graph) if node.name not in exclude]
    if not nodes:
        raise Left("nothing to quantize: no product or convolution has constant weights")
    return list(dict.fromkeys([node.input[0] for node in nodes] + list(_residuals(graph, nodes).values())))


def insert_pairs(model: OnnxModel, reach: Mapping[str, float], exclude: Collection[str] = ()) -> OnnxModel:
    """Quantize with known ranges.

    Args:
        model: In float32, with names on all nodes.
        reach: The magnitude that is int8's 127, for each tensor of :func:`quantized_tensors`.
        exclude: Names of nodes that stay in float.
    """
    proto = model.proto()
    graph = proto.graph
    nodes = [node for node in _weighted(graph) if node.name not in exclude]
    residual = _residuals(graph, nodes)
    chosen = {node.name for node in nodes}
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    taken: dict[str, str] = {}
    weights: dict[str, str] = {}
    written: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.name in chosen:
            node.input[0] = _activation(node.input[0], reach, taken, written, graph)
            node.input[1] = _weight(node, tensors, weights, written, graph)
        elif node.name in residual:
            index = list(node.input).index(residual[node.name])
            node.input[index] = _activation(residual[node.name], reach, taken, written, graph)
        written.append(node)
    copies = [_copy(node) for node in written]
    del graph.node[:]
    graph.node.extend(copies)
    read = {name for node in graph.node for name in node.input}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in read]:
        graph.initializer.remove(tensor)
    return OnnxModel.from_proto(infer(proto))


def scales(weight: npt.NDArray[np.float32], axis: int) -> npt.NDArray[np.float32]:
    """``[channels]`` symmetric scales of a weight; none below what fp16 holds without loss."""
    others = tuple(i for i in range(weight.ndim) if i != axis)
    reach = np.abs(weight).max(axis=others) / _LEVELS
    result: npt.NDArray[np.float32] = np.maximum(reach, np.float32(2 * SMALLEST)).astype(np.float32)
    return result


def _copy(node: onnx.NodeProto) -> onnx.NodeProto:
    made = onnx.NodeProto()
    made.CopyFrom(node)
    return made


def _weighted(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    constants = {t.name: len(t.dims) for t in graph.initializer if t.data_type == onnx.TensorProto.FLOAT}
    return [
        node
        for node in graph.node
        if node.op_type in _WEIGHTED
        and node.domain == ""
        and node.input[0] not in constants
        and constants.get(node.input[1], 0) >= 2
        and not (node.op_type == "ConvTranspose" and any(a.name == "group" and a.i != 1 for a in node.attribute))
    ]


def _residuals(graph: onnx.GraphProto, nodes: list[onnx.NodeProto]) -> dict[str, str]:
    """For additions after a convolution the other operand, by the addition's name."""
    constants = {tensor.name for tensor in graph.initializer}
    made = {node.output[0]: node for node in nodes if node.op_type in _CONVOLUTIONS}
    users: dict[str, int] = {}
    for node in graph.node:
        for name in node.input:
            users[name] = users.get(name, 0) + 1
    found = {}
    for node in graph.node:
        if node.op_type != "Add" or any(name in constants for name in node.input):
            continue
        main = next((name for name in node.input if name in made and users[name] == 1), None)
        if main is not None:
            found[node.name] = next((name for name in node.input if name != main), main)
    return {name: other for name, other in found.items() if other}


def _activation(
    name: str,
    reach: Mapping[str, float],
    taken: dict[str, str],
    written: list[onnx.NodeProto],
    graph: onnx.GraphProto,
) -> str:
    if name not in taken:
        scale = np.array(max(reach[name] / _LEVELS, 2 * SMALLEST), np.float32)
        graph.initializer.append(numpy_helper.from_array(scale, f"{name}.scale"))
        graph.initializer.append(numpy_helper.from_array(np.array(0, np.int8), f"{name}.zero"))
        inputs = [f"{name}.scale", f"{name}.zero"]
        quantized, back = f"{name}.int8", f"{name}.dequantized"
        written.append(helper.make_node("QuantizeLinear", [name, *inputs], [quantized], name=f"quantize.{name}"))
        written.append(helper.make_node("DequantizeLinear", [quantized, *inputs], [back], name=f"dequantize.{name}"))
        taken[name] = back
    return taken[name]


def _weight(
    node: onnx.NodeProto,
    tensors: Mapping[str, onnx.TensorProto],
    weights: dict[str, str],
    written: list[onnx.NodeProto],
    graph: onnx.GraphProto,
) -> str:
    name = node.input[1]
    axis = _channel_axis(node, len(tensors[name].dims))
    key = f"{name}.{axis}"
    if key not in weights:
        weight = numpy_helper.to_array(tensors[name])
        scale = scales(weight, axis)
        shape = [-1 if i == axis else 1 for i in range(weight.ndim)]
        levels = np.clip(np.rint(weight / scale.reshape(shape)), -_LEVELS, _LEVELS).astype(np.int8)
        graph.initializer.append(numpy_helper.from_array(levels, f"{key}.int8"))
        graph.initializer.append(numpy_helper.from_array(scale, f"{key}.scale"))
        graph.initializer.append(numpy_helper.from_array(np.zeros(len(scale), np.int8), f"{key}.zero"))
        inputs = [f"{key}.int8", f"{key}.scale", f"{key}.zero"]
        made = helper.make_node("DequantizeLinear", inputs, [f"{key}.dequantized"], f"dequantize.{key}", axis=axis)
        written.append(made)
        weights[key] = f"{key}.dequantized"
    return weights[key]


def _channel_axis(node: onnx.NodeProto, rank: int) -> int:
    if node.op_type == "Conv":
        return 0
    if node.op_type == "Gemm":
        return 0 if any(a.name == "transB" and a.i for a in node.attribute) else 1
    return 1 if node.op_type == "ConvTranspose" else rank - 1
