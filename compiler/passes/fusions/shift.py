"""The shift of a normalization moves into the biases of what reads it.

A normalization ends in ``n + beta``. Whatever reads it linearly can take beta at compile time: ``(n + beta) W + b`` is
``n W + (b + beta W)``, a residual that is centred adds ``C beta`` to the bias beside it (C as in
:mod:`lepto.compiler.passes.fusions.normalization`), and a selection of rows changes nothing. In attention for one query
(:mod:`lepto.compiler.passes.fusions.one_row`) beta adds the same to all scores, which falls out of the softmax, and
``beta V`` to the bias of the values; that bias in turn moves on into the projection after it. One element-wise node
over all positions is saved for every normalization. Sums are taken in float64 and rounded once.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from lepto.compiler.passes.fusions import graph as g
from lepto.compiler.passes.fusions.normalization import centre

_NORMALIZATIONS = ("SkipSimplifiedLayerNormalization", "SimplifiedLayerNormalization")

Array = npt.NDArray[np.generic]
Action = Callable[[], object]


def fold_shifts(model: ir.Model) -> int:
    """Fold every shift whose readers can all take it; return how many."""
    graph = model.graph
    folded = 0
    for add in [node for node in graph if node.op_type == "Add" and node.domain == ""]:
        found = _shift(add)
        if found is None:
            continue
        normalized, beta = found
        actions = _absorb(graph, add.outputs[0], beta)
        if actions is None:
            continue
        for action in actions:
            action()
        ir.convenience.replace_all_uses_with(add.outputs[0], normalized)
        folded += 1
    return folded


def _shift(add: ir.Node) -> tuple[ir.Value, Array] | None:
    """The normalized value and beta, if a node adds one to the other and nothing else reads the normalized value."""
    for value, other in (tuple(add.inputs), tuple(add.inputs)[::-1]):
        beta, node = g.constant(other), None if value is None else value.producer()
        if (
            value is not None
            and beta is not None
            and beta.ndim == 1
            and node is not None
            and (node.op_type in _NORMALIZATIONS or _joins(node, len(beta)))
            and g.only_user(value) is add
        ):
            return value, beta
    return None


def _joins(node: ir.Node, width: int) -> bool:
    """Whether a node puts heads side by side, to so many values."""
    target = g.constant(node.inputs[1]) if node.op_type == "Reshape" and node.domain == "" else None
    return target is not None and target.size > 0 and int(target.reshape(-1)[-1]) == width


def _absorb(graph: ir.Graph, value: ir.Value, beta: Array) -> list[Action] | None:
    """What must be done so that every reader of ``value`` may read it without ``beta``; None where one cannot."""
    if value.is_graph_output() or not value.uses():
        return None
    actions: list[Action] = []
    readers = {use.node for use in value.uses()}
    for node in readers:
        more = _reader(graph, node, value, beta, readers)
        if more is None:
            return None
        actions += more
    return actions


def _reader(graph: ir.Graph, node: ir.Node, value: ir.Value, beta: Array, readers: set[ir.Node]) -> list[Action] | None:
    if node.op_type == "Gather" and node.domain == "" and node.inputs[0] is value and _by_row(node, value):
        inner = _absorb(graph, node.outputs[0], beta)
        return None if inner is None else [*inner, lambda: _mark(node.outputs[0])]
    if node.op_type == "MatMul" and node.domain == "" and node.inputs[0] is value:
        return _product(graph, node, beta)
    if node.op_type == "Attention" and node.domain == g.MICROSOFT and node.inputs[0] is value:
        weight, bias = g.constant(node.inputs[1]), g.constant(node.inputs[2])
        if weight is None or bias is None:
            return None
        return [lambda: _add_to(graph, node, 2, _times(beta, weight))]
    if node.op_type == "Gemm" and node.domain == "" and node.inputs[0] is value:
        return _gemm(graph, node, beta)
    if node.op_type == "FusedMatMul" and node.domain == g.MICROSOFT and node.inputs[1] is value:
        return _one_query(graph, node, beta)
    if node.op_type == "ReduceMean":  # only as part of a centring, which the subtraction below takes care of
        subtraction = g.only_user(node.outputs[0])
        fits = subtraction in readers and subtraction is not None and _is_centring(subtraction, value)
        return [lambda: _mark(node.outputs[0])] if fits else None
    if _is_centring(node, value):
        return _residual(graph, node, centre(beta))
    return None


def _product(graph: ir.Graph, node: ir.Node, beta: Array) -> list[Action] | None:
    """``MatMul`` with constant weights whose only reader adds a constant bias."""
    weight, reader = g.constant(node.inputs[1]), g.only_user(node.outputs[0])
    if weight is None or weight.ndim != 2 or reader is None or reader.op_type not in ("Add", "BiasGelu"):
        return None
    place = 1 - list(reader.inputs).index(node.outputs[0])
    bias = g.constant(reader.inputs[place])
    if bias is None or bias.ndim != 1:
        return None
    return [
        lambda: _mark(node.outputs[0]),
        lambda: _add_to(graph, reader, place, _times(beta, weight)),
    ]


def _gemm(graph: ir.Graph, node: ir.Node, beta: Array) -> list[Action] | None:
    """``Gemm`` with constant weights and bias, as exporters write a linear layer of rows."""
    weight, bias = g.constant(node.inputs[1]), g.constant(node.inputs[2]) if len(node.inputs) > 2 else None
    plain = all(
        attribute.as_float() == 1.0 if name in ("alpha", "beta") else name == "transB" or attribute.as_int() == 0
        for name, attribute in node.attributes.items()
    )
    if weight is None or bias is None or bias.ndim != 1 or not plain:
        return None
    across = "transB" in node.attributes and node.attributes["transB"].as_int() == 1
    return [lambda: _add_to(graph, node, 2, _times(beta, weight.T if across else weight))]


def _one_query(graph: ir.Graph, node: ir.Node, beta: Array) -> list[Action] | None:
    """The two products of attention for one query that read all positions."""
    across = "transB" in node.attributes and node.attributes["transB"].as_int() == 1
    if across:  # scores: a number more for every key, the same for all
        reader = g.only_user(node.outputs[0])
        if reader is not None and reader.op_type == "Where" and reader.inputs[1] is node.outputs[0]:
            reader = g.only_user(reader.outputs[0])  # keys that are padding keep their own score
        return [lambda: _mark(node.outputs[0])] if reader is not None and reader.op_type == "Softmax" else None
    if g.producer(node.inputs[0], "Softmax") is None:
        return None
    steps: list[ir.Node] = []  # the context of each head, the product with its values, the heads joined, the bias
    for op_type in ("Transpose", "FusedMatMul", "Transpose", "Reshape", "Add"):
        reader = g.only_user(steps[-1].outputs[0] if steps else node.outputs[0])
        if reader is None or reader.op_type != op_type:
            return None
        steps.append(reader)
    weight = g.constant(steps[1].inputs[1])  # [H, K, D]
    place = next((i for i, read in enumerate(steps[4].inputs) if g.constant(read) is not None), None)
    if weight is None or weight.ndim != 3 or place is None:
        return None
    more = np.einsum("k,hkd->hd", beta.astype(np.float64), weight.astype(np.float64)).reshape(-1)
    bias = g.constant(steps[4].inputs[place])
    if bias is None or bias.shape != more.shape:
        return None

    def take() -> None:
        for step in (node, *steps[:4]):
            _mark(step.outputs[0])
        _add_to(graph, steps[4], place, more)

    return [take]


def _is_centring(node: ir.Node, value: ir.Value) -> bool:
    """``Sub(value, ReduceMean(value, [-1]))``."""
    if node.op_type != "Sub" or node.domain != "" or node.inputs[0] is not value:
        return False
    mean = g.producer(node.inputs[1], "ReduceMean")
    if mean is None or mean.inputs[0] is not value or len(mean.inputs) < 2:
        return False
    axes = g.constant(mean.inputs[1])
    return axes is not None and axes.tolist() == [-1]


def _residual(graph: ir.Graph, node: ir.Node, beta: Array) -> list[Action] | None:
    """The centred residual is one operand of a normalization; the linear layer that is the other one has a bias."""
    norm = g.only_user(node.outputs[0])
    if norm is None or norm.op_type != "SkipSimplifiedLayerNormalization":
        return None
    operands = [value for value in norm.inputs[:2] if value is not node.outputs[0]]
    found = g.linear(operands[0]) if len(operands) == 1 else None
    if found is None or operands[0] is None or g.only_user(operands[0]) is not norm:
        return None
    add = found[4]
    place = next(i for i, read in enumerate(add.inputs) if read is found[2])
    return [
        lambda: _mark(node.outputs[0]),
        lambda: _mark(add.outputs[0]),
        lambda: _add_to(graph, add, place, beta.astype(np.float64)),
    ]


def _by_row(gather: ir.Node, value: ir.Value) -> bool:
    """Whether a gather picks whole rows: its axis is not the last one."""
    axis = gather.attributes["axis"].as_int() if "axis" in gather.attributes else 0
    return value.shape is not None and 0 <= axis < len(value.shape) - 1


def _times(beta: Array, weight: Array) -> npt.NDArray[np.float64]:
    product: npt.NDArray[np.float64] = beta.astype(np.float64) @ weight.astype(np.float64)
    return product


def _add_to(graph: ir.Graph, node: ir.Node, place: int, more: npt.NDArray[np.float64]) -> None:
    """Let one node read its bias with ``more`` added; other readers keep the original."""
    bias = node.inputs[place]
    array = g.constant(bias)
    assert bias is not None
    assert array is not None
    moved = g.add_initializer(graph, f"{bias.name}.shifted", (array.astype(np.float64) + more).astype(array.dtype))
    node.replace_input_with(place, moved)


def _mark(value: ir.Value) -> None:
    """Rename a tensor that now has other values, so that it is not compared with the one it was."""
    value.name = f"{value.name}.shifted"
