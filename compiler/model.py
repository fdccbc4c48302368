"""What flows through the compiler: immutable values with a content digest.

A source becomes an :class:`OnnxModel` by export (``lepto.compiler.export``); passes turn one :class:`OnnxModel` into
another.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import onnx
import onnx_ir as ir


@dataclass(frozen=True)
class OnnxModel:
    """An ONNX model as bytes, weights inside.

    Attributes:
        data: The serialized ``ModelProto``; no external data.
    """

    data: bytes

    @classmethod
    def from_proto(cls, proto: onnx.ModelProto) -> OnnxModel:
        """Serialize deterministically, so that equal models have equal digests."""
        return cls(proto.SerializeToString(deterministic=True))

    @classmethod
    def from_ir(cls, model: ir.Model) -> OnnxModel:
        """Serialize a model in the ``onnx_ir`` representation."""
        return cls.from_proto(ir.to_proto(model))

    @cached_property
    def digest(self) -> str:
        """Sha256 of the bytes, in hex."""
        return hashlib.sha256(self.data).hexdigest()

    @property
    def bytes(self) -> int:
        """Size in bytes."""
        return len(self.data)

    def proto(self) -> onnx.ModelProto:
        """A fresh ``ModelProto``: the caller may change it."""
        return onnx.load_model_from_string(self.data)

    def ir(self) -> ir.Model:
        """A fresh ``onnx_ir.Model``: the caller may change it."""
        return ir.from_proto(self.proto())

    def operators(self) -> Counter[str]:
        """How many nodes of each operator the graph has, subgraphs included."""
        return count_operators(self.proto().graph)

    def __reduce__(self) -> Any:
        """Pickle by the bytes alone (process pools), without the cached digest."""
        return (OnnxModel, (self.data,))


def count_operators(graph: onnx.GraphProto) -> Counter[str]:
    """Count the operators of a graph and of its subgraphs."""
    counts: Counter[str] = Counter()
    for node in graph.node:
        counts[node.op_type] += 1
        for attribute in node.attribute:
            if attribute.HasField("g"):
                counts += count_operators(attribute.g)
            for graph_ in attribute.graphs:
                counts += count_operators(graph_)
    return counts
