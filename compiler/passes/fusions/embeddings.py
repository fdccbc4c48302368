"""Embedding tables whose rows are known at compile time.

A text model that is always given one kind of token reads the same row of its table of kinds for every token: the row
goes into the table of words, and the input with its lookup is gone.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from lepto.compiler.passes.fusions import graph as g


def fold_constant_input(model: ir.Model, constants: Mapping[str, int]) -> int:
    """Drop integer inputs that always hold one value everywhere, where all that they do can be folded.

    Args:
        model: The graph; changed.
        constants: The value of each such input, by name; inputs that the graph lacks are ignored.

    Returns:
        How many inputs are gone.
    """
    graph = model.graph
    return sum(
        _drop(graph, value, constants[str(value.name)]) for value in list(graph.inputs) if value.name in constants
    )


def _drop(graph: ir.Graph, value: ir.Value, constant: int) -> bool:
    """Whether the input could be dropped: it is only looked up, beside another lookup, or asked for its shape."""
    like = next(
        (
            other
            for other in graph.inputs
            if other is not value and other.shape == value.shape and other.dtype == value.dtype
        ),
        None,
    )
    lookups, shapes = [], []
    for use in value.uses():
        node = use.node
        if node.op_type == "Shape" and node.domain == "" and like is not None:
            shapes.append(node)
            continue
        found = _sum_of_lookups(node, value)
        if found is None:
            return False
        lookups.append((node, *found))
    for node in shapes:
        assert like is not None
        node.replace_input_with(0, like)
    for node, add, words in lookups:
        row, table = g.constant(node.inputs[0]), g.constant(words.inputs[0])
        assert row is not None
        assert table is not None
        assert words.inputs[0] is not None
        whole = (table.astype(np.float64) + row[constant].astype(np.float64)).astype(table.dtype)
        words.replace_input_with(0, g.add_initializer(graph, f"{words.inputs[0].name}.whole", whole))
        words.outputs[0].name = f"{words.outputs[0].name}.whole"
        g.replace(add.outputs[0], words.outputs[0])
        graph.remove([add, node], safe=True)
    graph.inputs.remove(value)
    return True


def _sum_of_lookups(gather: ir.Node, value: ir.Value) -> tuple[ir.Node, ir.Node] | None:
    """For ``Add(Gather(words, ids), Gather(kinds, value))`` the sum and the other lookup."""
    if not _is_lookup(gather) or gather.inputs[1] is not value:
        return None
    add = g.only_user(gather.outputs[0])
    if add is None or add.op_type != "Add" or add.domain != "":
        return None
    words = g.producer(g.other(add, gather.outputs[0]), "Gather")
    if words is None or not _is_lookup(words) or g.only_user(words.outputs[0]) is not add:
        return None
    return add, words


def _is_lookup(node: ir.Node) -> bool:
    table = g.constant(node.inputs[0])
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
    return (
        node.op_type == "Gather"
        and table is not None
        and table.ndim == 2
        and axis == 0
        and bool(np.issubdtype(table.dtype, np.floating))
    )
