"""Attention for one query: nothing is projected but what that query needs.

Where the head reads one position, the last attention has one query ``q`` per sample. Its scores over the keys,
``q_h · (x W_h + b_h)``, are ``(q_h W_hᵀ) · x`` plus a number that is the same for every key and falls out of the
softmax; its context ``p (x V_h + c_h)`` is ``(p x) V_h + c_h``, since the probabilities sum to one. Keys and values of
all positions are therefore never computed: for S positions of width K and heads of width D, ``2 S K D`` products a head
become ``2 K D + 2 S K``. Both forms are exact; this is the absorption of projections known from multi-head latent
attention (DeepSeek-V2, 2024, section 2.1), used here for an encoder.

The small batched products stay in float: they are written as ``com.microsoft::FusedMatMul``, which quantizers leave
alone.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from lepto.compiler.passes.fusions import graph as g

_HIDDEN = -1e4
"""The score of a key that is padding: its probability is 0 beside any other."""


def attend_one_row(model: ir.Model) -> int:
    """Rewrite every fused attention of which one position is read.

    Returns:
        How many were rewritten.
    """
    graph = model.graph
    return sum(
        _rewrite(graph, node)
        for node in [node for node in graph if node.op_type == "Attention" and node.domain == g.MICROSOFT]
    )


def _rewrite(graph: ir.Graph, node: ir.Node) -> bool:
    reader = g.only_user(node.outputs[0])
    if reader is None or reader.op_type != "Gather" or reader.domain:
        return False
    index, axis = g.constant(reader.inputs[1]), reader.attributes.get("axis")
    if index is None or index.shape != (1,) or axis is None or axis.as_int() != 1:
        return False
    x, weight, bias, *rest = node.inputs
    mask = rest[0] if rest else None
    w, b = g.constant(weight), g.constant(bias)
    plain = set(node.attributes) <= {"num_heads", "scale"} and all(value is None for value in rest[1:])
    if x is None or w is None or b is None or not plain or w.ndim != 2:
        return False
    heads, (width, three) = node.attributes["num_heads"].as_int(), w.shape
    size = three // 3 // heads
    scale = node.attributes["scale"].as_float() if "scale" in node.attributes else size**-0.5
    wq, wk, wv = np.split(w.astype(np.float32), 3, axis=1)
    bq, _, bv = np.split(b.astype(np.float32), 3)  # the keys' bias adds the same to every score
    stem = (weight.name or "attention").removesuffix(".weight").removesuffix(".qkv")  # type: ignore[union-attr]  # it is a constant

    def const(name: str, array: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> ir.Value:
        return g.add_initializer(graph, f"{stem}.{name}", array)

    def add(
        op: str,
        *inputs: ir.Value,
        domain: str = "",
        kind: ir.DataType = ir.DataType.FLOAT,
        **attributes: int | list[int],
    ) -> ir.Value:
        value = g.insert(graph, reader, op, inputs, domain=domain, attributes=dict(attributes))
        value.type = ir.TensorType(kind)
        return value

    def product(left: ir.Value, right: ir.Value, *, across: int = 0) -> ir.Value:
        return add("FusedMatMul", left, right, domain=g.MICROSOFT, transB=across)

    row = add("Gather", x, const("row", index), axis=1)
    query = add("Add", add("MatMul", row, const("query.weight", wq * scale)), const("query.bias", bq * scale))
    by_head = add("Transpose", add("Reshape", query, const("heads", np.array([-1, heads, size]))), perm=[1, 0, 2])
    keys = np.ascontiguousarray(wk.reshape(width, heads, size).transpose(1, 2, 0))
    probe = add("Transpose", product(by_head, const("key.weight", keys)), perm=[1, 0, 2])  # [B, H, K]
    scores = product(probe, x, across=1)  # [B, H, S]
    if mask is not None:
        whether = ir.DataType.BOOL
        attended = add("Cast", mask, kind=whether, to=whether.value)
        attended = add("Unsqueeze", attended, const("axis", np.array([1])), kind=whether)
        scores = add("Where", attended, scores, const("hidden", np.array(_HIDDEN, np.float32)))
    seen = product(add("Softmax", scores, axis=-1), x)  # [B, H, K]
    values = np.ascontiguousarray(wv.reshape(width, heads, size).transpose(1, 0, 2))
    context = product(add("Transpose", seen, perm=[1, 0, 2]), const("value.weight", values))  # [H, B, D]
    joined = add("Reshape", add("Transpose", context, perm=[1, 0, 2]), const("joined", np.array([-1, 1, heads * size])))
    result = add("Add", joined, const("value.bias", bv))
    result.shape = reader.outputs[0].shape
    g.replace(reader.outputs[0], result)
    return True
