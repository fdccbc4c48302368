"""Strongly typed fp16: every float tensor gets a type of its own, with a cast wherever it changes.

Inputs and outputs of the graph stay float32. Constants are stored in the type of what reads them.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx
from onnx import helper, numpy_helper

from lepto.compiler.model import OnnxModel
from lepto.compiler.tensorrt.standard import float_tensors, infer

_FLOAT, _HALF = int(onnx.TensorProto.FLOAT), int(onnx.TensorProto.FLOAT16)


def to_half(model: OnnxModel, keep: Collection[str]) -> OnnxModel:
    """The model in fp16, with some nodes in float32.

    Args:
        model: In float32, with types and with names on all nodes.
        keep: Names of the nodes that stay.
    """
    proto = model.proto()
    graph = proto.graph
    writer = _Writer(graph, float_tensors(proto))
    kept = set(keep) | _scales_of_kept(graph, set(keep))
    for node in graph.node:
        writer.add(node, _FLOAT if node.name in kept else _HALF)
    del graph.node[:], graph.initializer[:]
    graph.node.extend(writer.nodes)
    read = {name for node in writer.nodes for name in node.input}
    graph.initializer.extend(t for name, t in writer.tensors.items() if name in read)
    return OnnxModel.from_proto(infer(proto))


def _scales_of_kept(graph: onnx.GraphProto, keep: set[str]) -> set[str]:
    """The dequantizations that nodes in float32 read: a cast between the two would break their fusion."""
    readers: dict[str, set[str]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, set()).add(node.name)
    pairs = [node for node in graph.node if node.op_type == "DequantizeLinear"]
    return {node.name for node in pairs if readers.get(node.output[0]) and readers[node.output[0]] <= keep}


class _Writer:
    """Nodes and constants of the typed graph, in order."""

    def __init__(self, graph: onnx.GraphProto, floats: set[str]) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.tensors = {tensor.name: tensor for tensor in graph.initializer}
        self._constants = {t.name for t in graph.initializer if t.data_type == _FLOAT}
        self._floats = floats | self._constants
        self._outputs = {value.name for value in graph.output}
        self._made: dict[tuple[str, int], str] = {
            (value.name, _FLOAT): value.name for value in graph.input if value.name in floats
        }
        self._own: dict[str, int] = {value.name: _FLOAT for value in graph.input}

    def add(self, node: onnx.NodeProto, kind: int) -> None:
        """Append a node whose float inputs and outputs have one type."""
        made = onnx.NodeProto()
        made.CopyFrom(node)
        for index, name in enumerate(node.input):
            if name in self._floats:
                made.input[index] = self._value(name, kind)
        casts = []
        for index, name in enumerate(node.output):
            if name not in self._floats or not name:
                continue
            self._own[name] = kind
            if kind == _HALF and name in self._outputs:
                made.output[index] = f"{name}.fp16"
                self._made[(name, _HALF)] = f"{name}.fp16"
                self._made[(name, _FLOAT)] = name
                casts.append(_cast(f"{name}.fp16", name, _FLOAT))
            else:
                self._made[(name, kind)] = name
        if kind == _HALF:
            _retype(made)
        self.nodes += [made, *casts]

    def _value(self, name: str, kind: int) -> str:
        if name in self._constants:
            return self._constant(name) if kind == _HALF else name
        if (name, kind) not in self._made:
            cast = f"{name}.{'fp16' if kind == _HALF else 'fp32'}"
            self.nodes.append(_cast(self._made[(name, self._own[name])], cast, kind))
            self._made[(name, kind)] = cast
        return self._made[(name, kind)]

    def _constant(self, name: str) -> str:
        half = f"{name}.fp16"
        if half not in self.tensors:
            array = numpy_helper.to_array(self.tensors[name]).astype(np.float16)
            self.tensors[half] = numpy_helper.from_array(array, half)
        return half


def _cast(source: str, output: str, kind: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [output], name=f"cast.{output}.{kind}", to=kind)


def _retype(node: onnx.NodeProto) -> None:
    """Attributes that name a type or hold a float tensor."""
    for attribute in node.attribute:
        if node.op_type == "Cast" and attribute.name == "to" and attribute.i == _FLOAT:
            attribute.i = _HALF
        elif attribute.HasField("t") and attribute.t.data_type == _FLOAT:
            array = numpy_helper.to_array(attribute.t).astype(np.float16)
            attribute.t.CopyFrom(numpy_helper.from_array(array, attribute.t.name))
