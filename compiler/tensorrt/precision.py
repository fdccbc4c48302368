"""Strongly typed fp16 or bf16: every float tensor gets a type of its own, with a cast wherever it changes.

Inputs and outputs of the graph stay float32. Constants are stored in the type of what reads them.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from lepto.compiler.model import OnnxModel
from lepto.compiler.tensorrt.standard import float_tensors, infer

Half = Literal["fp16", "bf16"]
"""16-bit types: 11 and 8 bits of precision, up to 65,504 and up to float32's largest number."""

_FLOAT = int(onnx.TensorProto.FLOAT)
_KINDS: dict[Half, int] = {"fp16": int(onnx.TensorProto.FLOAT16), "bf16": int(onnx.TensorProto.BFLOAT16)}
_DTYPES: dict[Half, Any] = {"fp16": np.float16, "bf16": ml_dtypes.bfloat16}


def to_half(model: OnnxModel, keep: Collection[str], half: Half = "fp16") -> OnnxModel:
    """The model in a 16-bit type, with some nodes in float32.

    Args:
        model: In float32, with types and with names on all nodes.
        keep: Names of the nodes that stay.
        half: The type.
    """
    proto = model.proto()
    graph = proto.graph
    writer = _Writer(graph, float_tensors(proto), half)
    kept = set(keep) | _scales_of_kept(graph, set(keep))
    for node in graph.node:
        writer.add(node, low=node.name not in kept)
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

    def __init__(self, graph: onnx.GraphProto, floats: set[str], half: Half) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self._half, self._low = half, _KINDS[half]
        self.tensors = {tensor.name: tensor for tensor in graph.initializer}
        self._constants = {t.name for t in graph.initializer if t.data_type == _FLOAT}
        self._floats = floats | self._constants
        self._outputs = {value.name for value in graph.output}
        self._made: dict[tuple[str, int], str] = {
            (value.name, _FLOAT): value.name for value in graph.input if value.name in floats
        }
        self._own: dict[str, int] = {value.name: _FLOAT for value in graph.input}

    def add(self, node: onnx.NodeProto, *, low: bool) -> None:
        """Append a node whose float inputs and outputs have one type, of 16 bits or of 32."""
        kind = self._low if low else _FLOAT
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
            if low and name in self._outputs:
                own = f"{name}.{self._half}"
                made.output[index] = own
                self._made[(name, self._low)] = own
                self._made[(name, _FLOAT)] = name
                casts.append(_cast(own, name, _FLOAT))
            else:
                self._made[(name, kind)] = name
        if low:
            self._retype(made)
        self.nodes += [made, *casts]

    def _value(self, name: str, kind: int) -> str:
        if name in self._constants:
            return self._constant(name) if kind == self._low else name
        if (name, kind) not in self._made:
            cast = f"{name}.{self._half if kind == self._low else 'fp32'}"
            self.nodes.append(_cast(self._made[(name, self._own[name])], cast, kind))
            self._made[(name, kind)] = cast
        return self._made[(name, kind)]

    def _constant(self, name: str) -> str:
        low = f"{name}.{self._half}"
        if low not in self.tensors:
            self.tensors[low] = numpy_helper.from_array(self._rounded(self.tensors[name]), low)
        return low

    def _rounded(self, tensor: onnx.TensorProto) -> npt.NDArray[Any]:
        return np.asarray(numpy_helper.to_array(tensor)).astype(_DTYPES[self._half])

    def _retype(self, node: onnx.NodeProto) -> None:
        """Attributes that name a type or hold a float tensor."""
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == _FLOAT:
                attribute.i = self._low
            elif attribute.HasField("t") and attribute.t.data_type == _FLOAT:
                attribute.t.CopyFrom(numpy_helper.from_array(self._rounded(attribute.t), attribute.t.name))


def _cast(source: str, output: str, kind: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [output], name=f"cast.{output}.{kind}", to=kind)
