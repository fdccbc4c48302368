"""Multi-head self-attention, as exporters write it out, becomes ``com.microsoft::Attention``.

One node replaces some twenty: the three projections become one matrix product, nothing is transposed in memory, and
the quantizer can turn the whole into ``QAttention``. The standard ``Attention`` (opset 23) is not used on CPUs: ONNX
Runtime's dynamic quantizer makes an invalid node of it.

The mask is not recognised by its shape but by what it does: the subgraph from ``attention_mask`` to the additive mask
is run on random masks, and only a pure key-padding mask (0 where the key is attended, a large negative number where
not, the same for every query) is accepted. Causal masks, relative biases and sliding windows therefore stay as they
are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime

from lepto.compiler.passes.fusions import graph as g

_MOVES = ("Reshape", "Where", "Cast", "Unsqueeze", "Squeeze", "Transpose", "Expand", "Identity")


@dataclass(frozen=True)
class Core:
    """A softmax over products of queries and keys that weighs values.

    Attributes:
        query: ``[B, H, S_q, D]``.
        key: ``[B, H, D, S_k]``, as the product reads it.
        value: ``[B, H, S_k, D]``.
        scale: Factor of the scores.
        mask: What is added to the scores, or None.
        joined: The heads side by side again: ``[B, S_q, H * D]``.
    """

    query: ir.Value
    key: ir.Value
    value: ir.Value
    scale: float
    mask: ir.Value | None
    joined: ir.Value


@dataclass(frozen=True)
class _Match:
    x: ir.Value  # [B, S, K], what is attended
    weights: tuple[ir.Value, ir.Value, ir.Value]  # q, k, v: [K, H * D]
    biases: tuple[ir.Value, ir.Value, ir.Value]  # [H * D]
    heads: int
    scale: float
    mask: ir.Value | None  # additive, [B, 1, S or 1, S]
    output: ir.Value  # [B, S, H * D]


def fuse_attention(model: ir.Model) -> tuple[int, list[str]]:
    """Fuse every attention of the graph that is self-attention with at most a key-padding mask.

    Returns:
        The number of fused attentions, and for each one that was left alone a line that says why.
    """
    graph = model.graph
    fused, reasons = 0, []
    masks: dict[int, str | None] = {}
    mask_index: ir.Value | None = None
    for softmax in [node for node in graph if node.op_type == "Softmax" and node.domain == ""]:
        if not weighs_values(softmax.outputs[0]):
            continue  # probabilities of a classifier's head
        match = _match(softmax)
        if isinstance(match, str):
            reasons.append(f"{softmax.outputs[0].name}: {match}")
            continue
        if match.mask is not None:
            key = id(match.mask)
            if key not in masks:
                masks[key] = why_not_key_padding(model, match.mask)
            if (why := masks[key]) is not None:
                reasons.append(f"{softmax.outputs[0].name}: {why}")
                continue
        if match.mask is not None and mask_index is None:
            mask_input = next(value for value in graph.inputs if value.name == "attention_mask")
            mask_index = g.insert(
                graph, graph[0], "Cast", [mask_input], output="mask_index", attributes={"to": ir.DataType.INT32.value}
            )
        _rewrite(graph, match, mask_index if match.mask is not None else None)
        fused += 1
    return fused, reasons


def weighs_values(probabilities: ir.Value, hops: int = 4) -> bool:
    """Whether probabilities weigh values, perhaps masked or reshaped before."""
    for use in probabilities.uses():
        if use.node.op_type in ("MatMul", "Einsum"):
            return True
        if hops and use.node.op_type in _MOVES and weighs_values(use.node.outputs[0], hops - 1):
            return True
    return False


def find_core(softmax: ir.Node) -> Core | str:
    """Walk from a softmax to the queries, keys and values and to the output; else why it is no attention."""
    scores = softmax.inputs[0]
    mask: ir.Value | None = None
    scale = 1.0
    # The scores, possibly scaled, possibly masked, in the order in which exporters write it.
    if (add := g.producer(scores, "Add")) is not None:
        scored = [value for value in add.inputs if _is_scores(value)]
        if len(scored) != 1 or scored[0] is None:
            return "the added mask could not be told from the scores"
        scores, mask = scored[0], g.other(add, scored[0])
    if (mul := g.producer(scores, "Mul")) is not None:
        factors = [g.scalar(value) for value in mul.inputs]
        factor = next((f for f in factors if f is not None), None)
        if factor is None:
            return "the scores are multiplied by something that is no constant"
        scale *= factor
        scores = mul.inputs[0] if factors[1] is not None else mul.inputs[1]
    elif (div := g.producer(scores, "Div")) is not None:
        factor = g.scalar(div.inputs[1])
        if not factor:
            return "the scores are divided by something that is no constant"
        scale /= factor
        scores = div.inputs[0]
    product = g.producer(scores, "MatMul")
    if product is None:
        return "no product of queries and keys before the softmax"
    query, query_scale = _unscale(product.inputs[0])
    key, key_scale = _unscale(product.inputs[1])
    scale *= query_scale * key_scale
    context = g.only_user(softmax.outputs[0])
    if context is None or context.op_type != "MatMul" or context.inputs[0] is not softmax.outputs[0]:
        return "the probabilities go elsewhere than into one product with the values"
    transpose = g.only_user(context.outputs[0])
    if transpose is None or transpose.op_type != "Transpose" or g.integers(transpose, "perm") != (0, 2, 1, 3):
        return "the heads are not put side by side after the values"
    reshape = g.only_user(transpose.outputs[0])
    if reshape is None or reshape.op_type != "Reshape":
        return "the heads are not joined after the values"
    value = context.inputs[1]
    assert query is not None
    assert key is not None
    assert value is not None
    return Core(query, key, value, scale, mask, reshape.outputs[0])


def _match(softmax: ir.Node) -> _Match | str:
    """An attention whose queries, keys and values are projections of one tensor."""
    core = find_core(softmax)
    if isinstance(core, str):
        return core
    q = split_heads(core.query, (0, 2, 1, 3))
    k = split_heads(core.key, (0, 2, 3, 1))
    v = split_heads(core.value, (0, 2, 1, 3))
    if q is None or k is None or v is None:
        return "queries, keys or values are no split projections"
    linears = [g.linear(value) for value in (q[0], k[0], v[0])]
    if any(found is None for found in linears):
        return "queries, keys or values are no linear layers with bias"
    (x, wq, bq, *_), (xk, wk, bk, *_), (xv, wv, bv, *_) = [found for found in linears if found is not None]
    if not (x is xk is xv):
        return "queries, keys and values read different tensors (cross-attention)"
    heads = {found[1] for found in (q, k, v)}
    if len(heads) != 1 or heads == {None}:
        return "the number of heads is no constant of the graph"
    widths = {g.constant(w).shape[1] for w in (wq, wk, wv)}  # type: ignore[union-attr]  # linear() checked them
    if len(widths) != 1:
        return "queries, keys and values have different widths"
    return _Match(x, (wq, wk, wv), (bq, bk, bv), int(heads.pop() or 0), core.scale, core.mask, core.joined)


def _is_scores(value: ir.Value | None) -> bool:
    node = None if value is None else value.producer()
    if node is not None and node.op_type in ("Mul", "Div"):
        return any(_is_scores(v) for v in node.inputs if g.constant(v) is None)
    return node is not None and node.op_type == "MatMul"


def _unscale(value: ir.Value | None) -> tuple[ir.Value | None, float]:
    """Look through a constant factor on queries or keys."""
    for op_type in ("Mul", "Div"):
        node = g.producer(value, op_type)
        if node is not None and (factor := g.scalar(node.inputs[1])):
            return node.inputs[0], factor if op_type == "Mul" else 1.0 / factor
    return value, 1.0


def split_heads(value: ir.Value | None, perm: tuple[int, ...]) -> tuple[ir.Value, int | None] | None:
    """Match ``Transpose(Reshape(y, [B, S, H, D]))``, the transposition possibly in two steps; y and H."""
    node = g.producer(value, "Transpose")
    if node is None:
        return None
    found = g.integers(node, "perm")
    inner = g.producer(node.inputs[0], "Transpose")
    if inner is not None and found is not None and (first := g.integers(inner, "perm")) is not None:
        found, node = tuple(first[axis] for axis in found), inner
    reshape = g.producer(node.inputs[0], "Reshape")
    if found != perm or reshape is None or reshape.inputs[0] is None:
        return None
    return reshape.inputs[0], _head_count(reshape)


def _head_count(reshape: ir.Node) -> int | None:
    """H of a reshape to ``[B, S, H, D]``, where H or D stands as a constant."""
    target = reshape.inputs[1]
    array = g.constant(target)
    dims: list[int | None]
    if array is not None:
        dims = [int(d) for d in array.reshape(-1)]
    elif (concat := g.producer(target, "Concat")) is not None:
        dims = []
        for part in concat.inputs:
            piece = g.constant(part)
            dims += [None] if piece is None else [int(d) for d in piece.reshape(-1)]
    else:
        return None
    source = reshape.inputs[0]
    if len(dims) != 4 or source is None:
        return None
    heads, size = dims[2], dims[3]
    if heads is not None and heads > 0:
        return heads
    found = g.linear(source)
    if size is None or size <= 0 or found is None:
        return None
    return int(g.constant(found[2]).shape[0]) // size  # type: ignore[union-attr]  # linear() checked it


def _rewrite(graph: ir.Graph, match: _Match, mask_index: ir.Value | None) -> None:
    arrays = [g.constant(value) for value in (*match.weights, *match.biases)]
    weight = np.concatenate([a for a in arrays[:3] if a is not None], axis=1)
    bias = np.concatenate([a for a in arrays[3:] if a is not None])
    stem = (match.biases[0].name or "attention").removesuffix(".bias").removesuffix(".query")
    attributes: dict[str, int | float | str | Sequence[int]] = {"num_heads": match.heads}
    head_size = weight.shape[1] // 3 // match.heads
    if not np.isclose(match.scale, head_size**-0.5, rtol=1e-6):
        attributes["scale"] = float(match.scale)
    node = match.output.producer()
    assert node is not None
    inputs = [
        match.x,
        g.add_initializer(graph, f"{stem}.qkv.weight", weight),
        g.add_initializer(graph, f"{stem}.qkv.bias", bias),
    ]
    if mask_index is not None:
        inputs.append(mask_index)
    fused = g.insert(graph, node, "Attention", inputs, domain=g.MICROSOFT, attributes=attributes, like=match.output)
    g.replace(match.output, fused)


def why_not_key_padding(model: ir.Model, mask: ir.Value) -> str | None:
    """Run the mask's own subgraph on random masks; None if it is a key-padding mask, else why not."""
    names = [value.name or "" for value in model.graph.inputs]
    if "attention_mask" not in names:
        return "there is a mask, but no input attention_mask"
    try:
        return _run_masks(ir.to_proto(model), mask.name or "")
    except Exception as error:  # onnxruntime has no common base class; a mask that cannot be run is not understood
        return f"the mask could not be run by itself ({str(error).splitlines()[0][:120]})"


def _run_masks(proto: onnx.ModelProto, name: str) -> str | None:
    nodes = _ancestors(proto.graph, name)
    if not nodes:
        return "the mask is more than padding of keys (a constant or an input)"
    read = {name for node in nodes for name in node.input}
    graph = onnx.helper.make_graph(
        nodes,
        "mask",
        [value for value in proto.graph.input if value.name in read],
        [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)],
        [tensor for tensor in proto.graph.initializer if tensor.name in read],
    )
    small = onnx.helper.make_model(graph, opset_imports=proto.opset_import, ir_version=proto.ir_version)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(small.SerializeToString(), options, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    for batch, length in ((1, 1), (3, 7), (2, 12)):
        attended = rng.random((batch, length)) < 0.6
        attended[:, 0] = True
        feeds = {
            value.name: attended.astype(np.int64)
            if value.name == "attention_mask"
            else rng.integers(0, 2, (batch, length))
            for value in session.get_inputs()
        }
        added = session.run(None, feeds)[0]
        expected = np.broadcast_to(attended[:, None, None, :], (batch, 1, added.shape[2], length))
        shape_fits = added.ndim == 4 and added.shape[1] == 1 and added.shape[2] in (1, length)
        if not shape_fits or not np.array_equal(np.broadcast_to(added == 0, expected.shape), expected):
            return "the mask is more than padding of keys (causal, a window or a bias)"
        if (added[added != 0] > -1e4).any():
            return "the mask adds a bias instead of hiding keys"
    return None


def _ancestors(graph: onnx.GraphProto, name: str) -> list[onnx.NodeProto]:
    """The nodes that a value depends on, in the graph's order."""
    wanted, kept = {name}, []
    for node in reversed(graph.node):
        if wanted.intersection(node.output):
            kept.append(node)
            wanted.update(node.input)
    return kept[::-1]
