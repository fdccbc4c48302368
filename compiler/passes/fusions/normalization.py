"""Residual layer normalization becomes one RMS normalization of a centred sum.

``LayerNorm(y + s) = RMSNorm(C y + C s)`` with the centring ``C = I - 11ᵀ/n`` (n features): normalizing by the standard
deviation is normalizing by the root mean square once the mean is zero. Where y comes from a linear layer, ``C`` goes
into its weights and bias at compile time; an embedding table is centred the same way. What is left at run time is the
mean of the residual ``s``, which is cheap, and ONNX Runtime's ``SkipSimplifiedLayerNormalization``, which is vectorized
on CPUs where its ``SkipLayerNormalization`` is not (15 x 384 on Zen 4, one thread: 6 µs against 32 µs).

Zhang and Sennrich, "Root Mean Square Layer Normalization", arXiv 1910.07467; the folding of the mean into the weights:
Ashkboos et al., "SliceGPT", arXiv 2401.15024, section 3.2.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from lepto.compiler.passes.fusions import graph as g

Array = npt.NDArray[np.generic]


def centre(array: Array) -> Array:
    """Subtract the mean over the last axis, computed in float64; shape and dtype stay."""
    wide = array.astype(np.float64)
    centred: Array = (wide - wide.mean(axis=-1, keepdims=True)).astype(array.dtype)
    return centred


def fuse_normalization(model: ir.Model) -> tuple[int, list[str]]:
    """Fuse every ``LayerNormalization(Add(a, b))`` in which one operand can be centred at compile time.

    Returns:
        The number of fused normalizations, and for each one that was left alone a line that says why.
    """
    graph = model.graph
    fused, reasons = 0, []
    for node in [node for node in graph if node.op_type == "LayerNormalization" and node.domain == ""]:
        why = _fuse(graph, node)
        if why is None:
            fused += 1
        else:
            reasons.append(f"{node.outputs[0].name}: {why}")
    return fused, reasons


def _fuse(graph: ir.Graph, norm: ir.Node) -> str | None:
    x, gamma = norm.inputs[0], norm.inputs[1]
    beta = norm.inputs[2] if len(norm.inputs) > 2 else None
    axis = norm.attributes["axis"].as_int() if "axis" in norm.attributes else -1
    epsilon = norm.attributes["epsilon"].as_float() if "epsilon" in norm.attributes else 1e-5
    weight = g.constant(gamma)
    if (
        weight is None
        or weight.ndim != 1
        or (axis != -1 and (x is None or x.shape is None or axis != len(x.shape) - 1))
    ):
        return "it does not normalize the last axis alone"
    add = g.producer(x, "Add")
    if add is None or x is None or g.only_user(x) is not norm:
        return "its input is no sum that it alone reads"
    if (why := _shapes_do_not_fit(x, add)) is not None:
        return why
    centrings = [_centring(graph, value, add) for value in add.inputs]
    if centrings[0] is None and centrings[1] is None:
        return "neither operand can be centred at compile time"
    for apply in centrings:
        if apply is not None:
            apply()
    operands: list[ir.Value | None] = []
    for value, apply in zip(add.inputs, centrings, strict=True):
        assert value is not None
        operands.append(value if apply is not None else _centred_at_run_time(graph, value, norm))
    # The operator's first input has the full shape [B, S, K]; its second may be one row of positions for all.
    ranked = sorted(operands, key=lambda v: _static_first_dimension(v))
    out = norm.outputs[0]
    normalized = g.insert(
        graph,
        norm,
        "SkipSimplifiedLayerNormalization",
        [*ranked, gamma],
        domain=g.MICROSOFT,
        attributes={"epsilon": epsilon},
        like=out,
    )
    if beta is not None:
        normalized = g.insert(graph, norm, "Add", [normalized, beta], like=out)
    g.replace(out, normalized)
    return None


def _shapes_do_not_fit(x: ir.Value, add: ir.Node) -> str | None:
    """SkipSimplifiedLayerNormalization takes [B, S, K] or [N, K], and beside it only the same or [1, S, K]."""
    if x.shape is None or any(value is None or value.shape is None for value in add.inputs):
        return "the shapes of its operands are not known"
    if len(x.shape) not in (2, 3):
        return f"it has {len(x.shape)} axes, not [B, S, K] or [N, K]"
    shapes = [value.shape for value in add.inputs if value is not None and value.shape is not None]
    whole = [shape == x.shape for shape in shapes]
    row = [len(x.shape) == 3 and _is_row_of(shape, x.shape) for shape in shapes]
    if not any(whole) or not all(a or b for a, b in zip(whole, row, strict=True)):
        return f"its operands {' and '.join(map(str, shapes))} are broadcast to {x.shape}"
    return None


def _is_row_of(shape: ir.Shape, whole: ir.Shape) -> bool:
    """Whether a shape is [1, S, K]; exporters may name S otherwise there, as in ``Min(512, sequence)``."""
    if len(shape) != 3 or shape[0] != 1 or shape[2] != whole[2]:
        return False
    return shape[1] == whole[1] or not isinstance(shape[1], int)


def _static_first_dimension(value: ir.Value | None) -> bool:
    """True where a value is known to have one row for all samples (positions)."""
    return value is not None and value.shape is not None and len(value.shape) > 0 and value.shape[0] == 1


def _centred_at_run_time(graph: ir.Graph, value: ir.Value, before: ir.Node) -> ir.Value:
    axes = g.add_initializer(graph, "last_axis", np.array([-1], dtype=np.int64))
    mean = g.insert(graph, before, "ReduceMean", [value, axes], attributes={"keepdims": 1})
    return g.insert(graph, before, "Sub", [value, mean], like=value)


def _centring(graph: ir.Graph, value: ir.Value | None, reader: ir.Node) -> Callable[[], object] | None:
    """A function that centres what makes ``value`` at compile time, or None where that would change another reader."""
    if value is None or g.only_user(value) is not reader:
        return None
    found = g.linear(value)
    if found is not None:
        _, weight, bias, matmul, add = found
        if g.only_user(matmul.outputs[0]) is not add:
            return None

        def centre_linear() -> None:
            for owner, constant in ((matmul, weight), (add, bias)):
                _swap(graph, owner, constant)
                _mark(owner.outputs[0])

        return centre_linear
    gather = g.producer(value, "Gather")
    if gather is not None and _is_lookup(gather):

        def centre_table() -> None:
            _swap(graph, gather, gather.inputs[0])
            _mark(value)

        return centre_table
    inner = g.producer(value, "Add")  # the sum of several embeddings
    if inner is not None:
        parts = [_centring(graph, part, inner) for part in inner.inputs]
        known = [part for part in parts if part is not None]
        if len(known) == len(parts):

            def centre_sum() -> None:
                for part in known:
                    part()
                _mark(value)

            return centre_sum
    return None


def _is_lookup(gather: ir.Node) -> bool:
    table = g.constant(gather.inputs[0])
    axis = gather.attributes["axis"].as_int() if "axis" in gather.attributes else 0
    return table is not None and table.ndim == 2 and axis == 0 and np.issubdtype(table.dtype, np.floating)


def _mark(value: ir.Value) -> None:
    """Rename a tensor that now has other values, so that it is not compared with the one it was."""
    value.name = f"{value.name}.centred"


def _swap(graph: ir.Graph, node: ir.Node, value: ir.Value | None) -> None:
    """Let one node read the centred copy of a constant; other readers keep the original."""
    array = g.constant(value)
    assert value is not None
    assert array is not None
    centred = g.add_initializer(graph, f"{value.name}.centred", centre(array))
    for index, read in enumerate(node.inputs):
        if read is value:
            node.replace_input_with(index, centred)
