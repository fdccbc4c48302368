"""Attention of an exported graph becomes a node of domain ``lepto``, and an encoder runs without its padding.

The node (`lepto.kernels.ship.onnx`) carries a function of standard operators, so the graph computes the same in any
runtime. Unpadding gathers the tokens of all rows before the embedding, lets everything that treats each position by
itself work on tokens alone, and puts the rows back together where something reads them by row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from lepto.compiler.passes.fusions import graph as g
from lepto.compiler.passes.fusions.attention import find_core, split_heads, weighs_values, why_not_key_padding
from lepto.compiler.passes.fusions.rows import by_position
from lepto.kernels.ship.onnx import DOMAIN, Variant

MASKED = Variant("bool").op_type
PACKED = Variant("packed").op_type
_ALSO_BY_POSITION = {"Cast", "Identity", "Neg", "Pow", "Reciprocal", "Sqrt"}


def to_attention_nodes(model: ir.Model) -> tuple[int, list[str]]:
    """Replace every attention by a ``lepto`` node.

    Returns:
        How many there are now, and for each one that was left alone a line that says why.
    """
    graph = model.graph
    made, reasons = 0, list[str]()
    key_padding: dict[ir.Value, str | None] = {}
    keep: ir.Value | None = None
    for softmax in [node for node in graph if node.op_type == "Softmax" and node.domain == ""]:
        if not weighs_values(softmax.outputs[0]):
            continue  # probabilities of a classifier's head
        core = find_core(softmax)
        if isinstance(core, str):
            reasons.append(f"{softmax.outputs[0].name}: {core}")
            continue
        node = core.joined.producer()
        assert node is not None
        sides = [_side(graph, node, core.query, (0, 2, 1, 3)), _side(graph, node, core.key, (0, 2, 3, 1))]
        sides.append(_side(graph, node, core.value, (0, 2, 1, 3)))
        heads = {side[1] for side in sides if side is not None}
        if None in sides or len(heads) != 1:
            reasons.append(f"{softmax.outputs[0].name}: the number of heads is no constant of the graph")
            continue
        mask, kind = core.mask, "float"
        if mask is not None:
            if mask not in key_padding:
                key_padding[mask] = why_not_key_padding(model, mask)
            if key_padding[mask] is None:
                keep = _keep(graph) if keep is None else keep
                mask, kind = keep, "bool"
        variant = Variant("" if mask is None else kind)
        attributes = {"num_heads": heads.pop(), "scale": core.scale}
        attributes["kv_num_heads"] = attributes["num_heads"]
        inputs = [side[0] for side in sides if side is not None] + ([] if mask is None else [mask])
        out = g.insert(
            graph, node, variant.op_type, inputs, domain=DOMAIN, attributes=dict(attributes), like=core.joined
        )
        g.replace(core.joined, out)
        made += 1
    return made, reasons


def _side(graph: ir.Graph, before: ir.Node, value: ir.Value, perm: tuple[int, ...]) -> tuple[ir.Value, int] | None:
    """Queries, keys or values as ``[B, S, H * D]``, and H."""
    found = split_heads(value, perm)
    if found is not None and found[1] is not None and _rank(found[0]) == 3:
        return found[0], found[1]
    # Something stands between the split and the product (rotations, norms): what the product reads is put together.
    if value.shape is None or len(value.shape) != 4 or not isinstance(value.shape[1], int):
        return None
    order = [perm.index(axis) for axis in range(4)]
    joined = g.insert(graph, before, "Transpose", [value], attributes={"perm": order})
    shape = g.add_initializer(graph, "joined_heads", np.array([0, 0, -1], np.int64))
    flat = g.insert(graph, before, "Reshape", [joined, shape])
    flat.type = value.type
    return flat, value.shape[1]


def _keep(graph: ir.Graph) -> ir.Value:
    """``attention_mask [B, S]`` as a boolean mask ``[B, 1, 1, S]``."""
    mask = next(value for value in graph.inputs if value.name == "attention_mask")
    first = graph[0]
    keep = g.insert(graph, first, "Cast", [mask], attributes={"to": ir.DataType.BOOL.value})
    axes = g.add_initializer(graph, "mask_axes", np.array([1, 2], np.int64))
    return g.insert(graph, first, "Unsqueeze", [keep, axes], output="keep")


def unpad(model: ir.Model) -> int | str:
    """Let an encoder with ``lepto`` attention of key padding work on tokens alone.

    Returns:
        The number of nodes that now see no padding, or why none does.
    """
    graph = model.graph
    attentions = {node for node in graph if node.domain == DOMAIN}
    masks = {node.inputs[-1] for node in attentions}
    if any(node.op_type != MASKED for node in attentions) or len(masks) != 1:
        return "not every attention has the padding of attention_mask, and nothing else, for its mask"
    if any(_rank(value) not in (1, 2) for value in graph.outputs):
        return "an output has a place for each token, the padding too"
    mask = next(value for value in graph.inputs if value.name == "attention_mask")
    region = _region(graph, attentions)
    first = graph[0]
    insert = _inserter(graph, first)
    number = _numbers(graph)

    # Where the tokens stand: [T] places among the B * S of the batch, and the way back.
    kept = insert("Cast", mask, to=ir.DataType.BOOL.value)
    flat = insert("Reshape", kept, number("flat", -1))
    places = insert("Squeeze", insert("NonZero", flat), number("first_axis", 0))
    length = insert("Shape", mask, start=1, end=2)
    columns = insert("Mod", places, length)
    counts = insert("Cast", kept, to=ir.DataType.INT32.value)
    lengths = insert("ReduceSum", counts, number("last_axis", -1), keepdims=0)
    zero = g.add_initializer(graph, "cumsum_axis", np.array(0, np.int64))
    ends = insert("CumSum", lengths, zero)
    start = g.add_initializer(graph, "cu_seqlens_start", np.array([0], np.int32))
    cu_seqlens = insert("Concat", start, ends, axis=0)
    cu_seqlens.name = "cu_seqlens"
    scalar = insert("Squeeze", insert("Cast", length, to=ir.DataType.INT32.value))
    zero32, one32 = (g.add_initializer(graph, f"int32_{n}", np.array(n, np.int32)) for n in (0, 1))
    longest = insert("Range", zero32, scalar, one32)
    longest.name = "places"
    index = insert("CumSum", insert("Reshape", counts, number("flat", -1)), zero)
    back = insert("Reshape", insert("Sub", index, one32), insert("Shape", mask))  # [B, S]; -1 before the first token
    back = insert("Max", back, zero32)
    shown = insert("Unsqueeze", kept, number("last_axis", -1))

    entries: dict[ir.Value, ir.Value] = {}
    for node in [node for node in graph if node in region]:
        for position, value in enumerate(node.inputs):
            if value is None or g.constant(value) is not None or value.producer() in region:
                continue
            if node in attentions and position == 3:
                continue
            if value not in entries:
                entries[value] = _pack(graph, node, value, places, columns, mask, number)
            node.replace_input_with(position, entries[value])
    for node in [node for node in graph if node in region]:
        for output in node.outputs:
            _unpack(graph, node, output, region, back, shown, number)
    for node in attentions:
        _varlen(graph, node, cu_seqlens, longest, number)
    return len(region)


def _region(graph: ir.Graph, attentions: set[ir.Node]) -> set[ir.Node]:
    """The attentions and all around them that treats each position by itself."""
    region = set(attentions)
    grown = True
    while grown:
        grown = False
        for node in graph:
            if node in region or not _position_wise(node):
                continue
            below = any(use.node in region for output in node.outputs for use in output.uses())
            above = any(value is not None and value.producer() in region for value in node.inputs)
            if above or below:
                region.add(node)
                grown = True
    return region


def _position_wise(node: ir.Node) -> bool:
    if node.domain == DOMAIN or any(output.is_graph_output() for output in node.outputs):
        return False
    if node.op_type == "Gather" and node.domain == "":  # an embedding
        axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
        table = g.constant(node.inputs[0])
        ids = node.inputs[1]
        return table is not None and table.ndim == 2 and axis == 0 and ids is not None and _rank(ids) == 2
    shaped = all(_rank(output) == 3 for output in node.outputs)
    if node.op_type in _ALSO_BY_POSITION and node.domain == "":
        exponents = [g.constant(value) for value in node.inputs[1:]]
        return shaped and all(array is not None and array.size == 1 for array in exponents)
    return shaped and by_position(node)


def _pack(
    graph: ir.Graph,
    before: ir.Node,
    value: ir.Value,
    places: ir.Value,
    columns: ir.Value,
    mask: ir.Value,
    number: Callable[..., ir.Value],
) -> ir.Value:
    """``[B, S, ...]`` to ``[1, T, ...]``; what is the same for all rows, ``[1, S, ...]``, is taken by column."""
    insert = _inserter(graph, before)
    shape = value.shape
    rest = number("rest_3", -1, 0) if _rank(value) == 3 else number("flat", -1)
    where = places
    if shape is not None and shape[0] == 1:
        flat, where = insert("Squeeze", value, number("first_axis", 0)), columns
    elif _rank(value) == 3:
        full = value
        if not _like(value, mask):
            full = insert("Expand", value, insert("Concat", insert("Shape", mask), number("one", 1), axis=0))
        width = insert("Shape", full, start=2, end=3)
        flat = insert("Reshape", full, insert("Concat", number("flat", -1), width, axis=0))
    else:
        full = value if _like(value, mask) else insert("Expand", value, insert("Shape", mask))
        flat = insert("Reshape", full, rest)
    packed = insert("Unsqueeze", insert("Gather", flat, where, axis=0), number("first_axis", 0))
    packed.type, packed.name = value.type, f"{value.name}.packed"
    return packed


def _like(value: ir.Value, mask: ir.Value) -> bool:
    """Whether the first two sizes are known to be the mask's."""
    if value.shape is None or mask.shape is None:
        return False
    return all(value.shape[axis] == mask.shape[axis] and value.shape[axis] is not None for axis in (0, 1))


def _unpack(
    graph: ir.Graph,
    node: ir.Node,
    output: ir.Value,
    region: set[ir.Node],
    back: ir.Value,
    shown: ir.Value,
    number: Callable[..., ir.Value],
) -> None:
    """Give readers outside of the region rows again, zeros where there is no token."""
    outside = [(use.node, use.idx) for use in output.uses() if use.node not in region]
    rank = _rank(output)
    if outside:
        insert = _inserter(graph, node, after=True)
        flat = insert("Squeeze", output, number("first_axis", 0))
        rows = insert("Gather", flat, back, axis=0)
        none = insert("CastLike", number("nothing", 0), rows)
        padded = insert("Where", shown, rows, none)
        padded.type, padded.shape, padded.name = output.type, output.shape, f"{output.name}.rows"
        for reader, place in outside:
            reader.replace_input_with(place, padded)
    output.name = f"{output.name}.packed"  # a name of its own, so that it is not compared with the padded one
    if output.shape is not None and rank == 3:
        output.shape = ir.Shape([1, None, output.shape[2]])


def _varlen(
    graph: ir.Graph, node: ir.Node, cu_seqlens: ir.Value, places: ir.Value, number: Callable[..., ir.Value]
) -> None:
    insert = _inserter(graph, node)
    flat = []
    for value in node.inputs[:3]:
        assert value is not None
        flat.append(insert("Squeeze", value, number("first_axis", 0)))
    attributes = {name: node.attributes[name] for name in Variant("packed").attributes}
    packed = ir.node(PACKED, [*flat, cu_seqlens, places], attributes, domain=DOMAIN)
    packed.metadata_props.update(node.metadata_props)
    graph.insert_before(node, packed)
    out = insert("Unsqueeze", packed.outputs[0], number("first_axis", 0))
    old = node.outputs[0]
    out.type, out.shape = old.type, old.shape
    g.replace(old, out)


def _rank(value: ir.Value) -> int | None:
    return None if value.shape is None else len(value.shape)


def _numbers(graph: ir.Graph) -> Callable[..., ir.Value]:
    """Constants of int64, one value for each name."""
    made: dict[str, ir.Value] = {}

    def number(name: str, *values: int) -> ir.Value:
        if name not in made:
            made[name] = g.add_initializer(graph, f"unpad_{name}", np.array(values, np.int64))
        return made[name]

    return number


def _inserter(graph: ir.Graph, anchor: ir.Node, *, after: bool = False) -> Callable[..., ir.Value]:
    """Insert nodes before or after another, in order."""
    last = [anchor]

    def insert(op_type: str, *inputs: ir.Value, **attributes: int | Sequence[int]) -> ir.Value:
        node = ir.node(op_type, list(inputs), dict(attributes))
        if after:
            graph.insert_after(last[0], node)
            last[0] = node
        else:
            graph.insert_before(anchor, node)
        return node.outputs[0]

    return insert
