"""Small helpers to read and change an ``onnx_ir`` graph; every fusion is written with them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass, RemoveUnusedOpsetsPass

MICROSOFT = "com.microsoft"
"""The domain of ONNX Runtime's own operators (docs/ContribOperators.md of onnxruntime)."""


def constant(value: ir.Value | None) -> npt.NDArray[np.generic] | None:
    """The array behind a value that is an initializer or the output of a ``Constant`` node, else None."""
    if value is None:
        return None
    if value.const_value is not None and not value.is_graph_input():
        return value.const_value.numpy()
    producer = value.producer()
    if (
        producer is not None
        and producer.op_type == "Constant"
        and producer.domain == ""
        and "value" in producer.attributes
    ):
        return producer.attributes["value"].as_tensor().numpy()
    return None


def scalar(value: ir.Value | None) -> float | None:
    """The number behind a constant of one element, else None."""
    array = constant(value)
    return float(array.reshape(-1)[0]) if array is not None and array.size == 1 else None


def producer(value: ir.Value | None, op_type: str) -> ir.Node | None:
    """The node that makes ``value`` if it is a standard operator ``op_type``, else None."""
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == op_type and node.domain == "" else None


def only_user(value: ir.Value) -> ir.Node | None:
    """The one node that reads ``value``, else None (several users, or a graph output)."""
    uses = value.uses()
    if len(uses) != 1 or value.is_graph_output():
        return None
    return next(iter(uses)).node


def integers(node: ir.Node, name: str) -> tuple[int, ...] | None:
    """An attribute of integers, else None."""
    attribute = node.attributes.get(name)
    return None if attribute is None else tuple(attribute.as_ints())


def other(node: ir.Node, value: ir.Value) -> ir.Value:
    """The other operand of a node of two."""
    left, right = node.inputs
    chosen = right if left is value else left
    assert chosen is not None
    return chosen


def linear(value: ir.Value | None) -> tuple[ir.Value, ir.Value, ir.Value, ir.Node, ir.Node] | None:
    """Match ``value = Add(MatMul(x, W), b)`` with constant W ``[in, out]`` and b ``[out]``.

    Returns:
        ``(x, W, b, matmul, add)``, or None where the shape of the graph is another.
    """
    add = producer(value, "Add")
    if add is None:
        return None
    for position in (0, 1):
        matmul, bias = producer(add.inputs[position], "MatMul"), add.inputs[1 - position]
        if matmul is None or bias is None:
            continue
        x, weight = matmul.inputs
        w, b = constant(weight), constant(bias)
        if x is not None and weight is not None and w is not None and b is not None and w.ndim == 2 and b.ndim == 1:
            return x, weight, bias, matmul, add
    return None


def add_initializer(graph: ir.Graph, name: str, array: npt.NDArray[np.generic]) -> ir.Value:
    """Register a new constant under a name that is free."""
    unique, count = name, 1
    while unique in graph.initializers:
        unique, count = f"{name}_{count}", count + 1
    tensor = ir.tensor(np.ascontiguousarray(array) if array.ndim else array, name=unique)
    shape = ir.Shape(array.shape)
    value = ir.Value(name=unique, type=ir.TensorType(tensor.dtype), shape=shape, const_value=tensor)
    graph.register_initializer(value)
    return value


def insert(
    graph: ir.Graph,
    before: ir.Node,
    op_type: str,
    inputs: Sequence[ir.Value | None],
    *,
    domain: str = "",
    output: str | None = None,
    attributes: dict[str, int | float | str | Sequence[int]] | None = None,
    like: ir.Value | None = None,
) -> ir.Value:
    """Insert a node of one output before another node; ``like`` gives the output's type and shape."""
    node = ir.node(op_type, list(inputs), attributes or {}, domain=domain)
    out = node.outputs[0]
    if output is not None:
        out.name = output
    if like is not None:
        out.type, out.shape = like.type, like.shape
    if before.metadata_props:
        node.metadata_props.update(before.metadata_props)
    graph.insert_before(before, node)
    return out


def replace(old: ir.Value, new: ir.Value) -> None:
    """Let every reader of ``old`` read ``new``; the name moves too, so that layers can still be compared by name."""
    old_name = old.name
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    old.name = None if old_name is None else f"{old_name}__before"
    new.name = old_name


def finish(model: ir.Model) -> ir.Model:
    """Drop what is no longer read and declare the domains that are used."""
    RemoveUnusedNodesPass()(model)
    if any(node.domain == MICROSOFT for node in model.graph.all_nodes()):
        model.graph.opset_imports.setdefault(MICROSOFT, 1)
    RemoveUnusedOpsetsPass()(model)
    return model
