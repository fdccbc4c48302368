"""The graph as TensorRT reads it: standard operators of one opset, a name on each node, finite masks."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper, version_converter

from lepto.compiler.context import Left
from lepto.compiler.model import OnnxModel
from lepto.kernels.ship.onnx import DOMAIN, declare

OPSET = 20
"""The lowest with all that is written here: Q/DQ of fp16 came with opset 19. TensorRT 10.x and 11.x read it."""

MASKED = -30_000.0
"""What hides a key. Exporters write fp32's lowest number, which is -inf in fp16: a row with nothing but hidden keys
would be NaN. Twice this number still fits into fp16, and exp(-30000) is 0 in every precision."""

_ENDLESS = 1e30
_OWN = ("", "ai.onnx", DOMAIN)


def standard_graph(model: OnnxModel, opset: int = OPSET) -> OnnxModel:
    """Rewrite a model for TensorRT without changing what it computes.

    Args:
        model: In float32.
        opset: Of the result, at least the model's.

    Raises:
        Left: The graph has operators of another runtime, or functions other than lepto's.
    """
    proto = model.proto()
    foreign = {f"{node.domain}::{node.op_type}" for node in proto.graph.node if node.domain not in _OWN}
    if foreign:
        raise Left(
            f"TensorRT reads standard ONNX, and the graph has {', '.join(sorted(foreign))}: leave out the passes that "
            "write them (fuse, quantize-dynamic, …)"
        )
    if other := [function.name for function in proto.functions if function.domain != DOMAIN]:
        raise Left(f"the graph has the function {other[0]!r}: TensorRT is given standard operators and lepto's alone")
    have = next(entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx"))
    if have < opset:
        layers = {tuple(node.output): list(node.metadata_props) for node in proto.graph.node}
        del proto.functions[:]  # the converter would leave them as they are
        proto = declare(version_converter.convert_version(proto, opset))
        for node in proto.graph.node:  # the converter forgets where a node came from
            if not node.metadata_props:
                node.metadata_props.extend(layers.get(tuple(node.output), []))
    _constants_to_initializers(proto.graph)
    _finite_masks(proto.graph)
    _name_nodes(proto.graph)
    return OnnxModel.from_proto(infer(proto))


def infer(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph with the types of all values, found anew."""
    del proto.graph.value_info[:]
    return onnx.shape_inference.infer_shapes(proto, data_prop=True)


def float_tensors(proto: onnx.ModelProto) -> set[str]:
    """Names of the activations that are float32; the graph must have its types."""
    graph = proto.graph
    values = [*graph.input, *graph.value_info, *graph.output]
    return {v.name for v in values if v.type.tensor_type.elem_type == onnx.TensorProto.FLOAT}


def layer_of(node: onnx.NodeProto) -> str:
    """The layer that a node was traced from; empty where that is not known."""
    return next((prop.value for prop in node.metadata_props if prop.key == "layer"), "")


def _constants_to_initializers(graph: onnx.GraphProto) -> None:
    kept = []
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
            tensor = onnx.TensorProto()
            tensor.CopyFrom(node.attribute[0].t)
            tensor.name = node.output[0]
            graph.initializer.append(tensor)
        else:
            kept.append(node)
    del graph.node[:]
    graph.node.extend(kept)


def _finite_masks(graph: onnx.GraphProto) -> None:
    for tensor in graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT:
            continue
        array = numpy_helper.to_array(tensor)
        if array.size and (hidden := array < -_ENDLESS).any():
            tensor.CopyFrom(numpy_helper.from_array(np.where(hidden, np.float32(MASKED), array), tensor.name))


def _name_nodes(graph: onnx.GraphProto) -> None:
    seen: set[str] = set()
    for node in graph.node:
        name = node.name or f"{node.op_type}_{next(o for o in node.output if o)}"
        count = 1
        while name in seen:
            name, count = f"{node.name or node.op_type}.{count}", count + 1
        node.name = name
        seen.add(name)


def prefix(model: OnnxModel, count: int) -> OnnxModel:
    """The first nodes of a graph as a model of their own; what they leave unread is its outputs."""
    proto = infer(model.proto())
    graph = proto.graph
    nodes = list(graph.node)[:count]
    read = {name for node in nodes for name in node.input}
    kinds = {value.name: value for value in (*graph.value_info, *graph.output)}
    outputs = [name for node in nodes for name in node.output if name and name not in read]
    del graph.node[:], graph.output[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.output.extend(kinds[name] if name in kinds else helper.make_empty_tensor_value_info(name) for name in outputs)
    unread = [tensor for tensor in graph.initializer if tensor.name not in read]
    for tensor in unread:
        graph.initializer.remove(tensor)
    for value in [value for value in graph.input if value.name not in read]:
        graph.input.remove(value)
    return OnnxModel.from_proto(proto)
