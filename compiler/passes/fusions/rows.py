"""Compute only the rows that the head reads.

A classifier that reads the first token alone needs the last layer's feed-forward part, its normalizations and its
output projection for that token alone. The selection ``x[:, 0]`` is therefore moved up through every node that works
on each position by itself, to where positions meet: the attention, or a value that others still need whole.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from lepto.compiler.passes.fusions import graph as g

# Operators that treat each position [.., k, :] by itself, given that their other operands are constants or positions.
_BY_POSITION = {
    "": {"Add", "Sub", "Mul", "Div", "Erf", "Tanh", "Relu", "Sigmoid", "Gelu"},
    g.MICROSOFT: {"SkipSimplifiedLayerNormalization", "BiasGelu", "Gelu"},
}


def select_rows(model: ir.Model) -> tuple[int, list[str]]:
    """Move every selection of one position (``Gather`` of a scalar on axis 1) up as far as it goes.

    Returns:
        The number of nodes that now work on one position, and for each selection that could not move why.
    """
    graph = model.graph
    moved, reasons = 0, []
    for gather in [node for node in graph if node.op_type == "Gather" and node.domain == ""]:
        data, index = gather.inputs[0], g.constant(gather.inputs[1])
        axis = gather.attributes["axis"].as_int() if "axis" in gather.attributes else 0
        if data is None or index is None or index.ndim or axis != 1 or g.constant(data) is not None or _rank(data) != 3:
            continue
        if data.shape is not None and data.shape[1] == 1:
            continue  # the one position that there is
        nodes = _closure(data, gather)
        if not nodes:
            reasons.append(f"{gather.outputs[0].name}: the selected value is needed whole")
            continue
        _move(graph, gather, nodes, int(index))
        moved += len(nodes)
    return moved, reasons


def _rank(value: ir.Value) -> int | None:
    return None if value.shape is None else len(value.shape)


def _closure(data: ir.Value, gather: ir.Node) -> set[ir.Node]:
    """The position-wise nodes above ``data`` whose results nothing else reads."""
    inside: set[ir.Node] = set()
    grown = True
    while grown:
        grown = False
        frontier = [data] if not inside else [v for node in inside for v in node.inputs if v is not None]
        for value in frontier:
            node = value.producer()
            if node is None or node in inside or not by_position(node):
                continue
            readers = {use.node for output in node.outputs for use in output.uses()}
            if any(output.is_graph_output() for output in node.outputs) or not readers <= inside | {gather}:
                continue
            inside.add(node)
            grown = True
    return inside


def by_position(node: ir.Node) -> bool:
    """Whether a node treats each position ``[.., k, :]`` of its operands by itself."""
    if node.op_type == "MatMul" and node.domain == "":
        weight = g.constant(node.inputs[1])
        return weight is not None and weight.ndim == 2 and g.constant(node.inputs[0]) is None
    if node.op_type == "ReduceMean" and node.domain == "":
        axes = g.constant(node.inputs[1]) if len(node.inputs) > 1 else None
        keep = node.attributes["keepdims"].as_int() if "keepdims" in node.attributes else 1
        return axes is not None and axes.tolist() == [-1] and keep == 1
    if node.op_type == "LayerNormalization" and node.domain == "":
        axis = node.attributes["axis"].as_int() if "axis" in node.attributes else -1
        return axis == -1 or axis == 2
    if node.op_type not in _BY_POSITION.get(node.domain, ()):
        return False
    # A constant must not run along the positions, and every other operand must have them.
    for value in node.inputs:
        if value is None:
            continue
        array = g.constant(value)
        if array is not None and array.ndim > 1 and any(size != 1 for size in array.shape[:-1]):
            return False
        if array is None and _rank(value) not in (None, 3):
            return False
    return True


def _move(graph: ir.Graph, gather: ir.Node, nodes: set[ir.Node], index: int) -> None:
    """Select before the closure instead of after it; the axis stays, with size 1, until the old selection."""
    kept = g.add_initializer(graph, "selected_row", np.array([index], dtype=np.int64))
    selected: dict[ir.Value, ir.Value] = {}
    for node in [node for node in graph if node in nodes]:
        for position, value in enumerate(node.inputs):
            if value is None or g.constant(value) is not None or value.producer() in nodes:
                continue
            if value not in selected:
                shape = None if value.shape is None else ir.Shape([value.shape[0], 1, value.shape[2]])
                row = g.insert(graph, node, "Gather", [value, kept], attributes={"axis": 1})
                row.type, row.shape, row.name = value.type, shape, f"{value.name}.selected"
                selected[value] = row
            node.replace_input_with(position, selected[value])
        for output in node.outputs:
            # Other rows are gone: a name of its own, so that it is not compared with the whole value.
            output.name = f"{output.name}.selected"
            if output.shape is not None and len(output.shape) == 3:
                output.shape = ir.Shape([output.shape[0], 1, output.shape[2]])
    zero = g.add_initializer(graph, "first_row", np.array(0, dtype=np.int64))
    gather.replace_input_with(1, zero)
