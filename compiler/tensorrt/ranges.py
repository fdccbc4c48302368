"""What activations reach on calibration data, and inside of which layers fp16 would overflow."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from lepto.compiler.context import Feed
from lepto.compiler.model import OnnxModel
from lepto.compiler.passes.observe import observe
from lepto.compiler.tensorrt.standard import float_tensors, layer_of
from lepto.kernels.ship.onnx import DOMAIN

LARGEST = float(np.finfo(np.float16).max)
SMALLEST = float(np.finfo(np.float16).smallest_normal)

_SUMS = ("ReduceMean", "ReduceSum", "GlobalAveragePool", "ReduceL1")
_SQUARES = ("LayerNormalization", "InstanceNormalization", "GroupNormalization", "RMSNormalization", "ReduceL2")
_SINGLE = ("Range", "Resize", "If", "Loop", "Scan", "NonMaxSuppression")


@dataclass(frozen=True)
class Kept:
    """A node that stays in float32.

    Attributes:
        node: Its name.
        operator: What it computes.
        layer: The layer that it was traced from, if known.
        reaches: The largest magnitude that was seen in it; 0 where the reason is another.
        why: The reason.
    """

    node: str
    operator: str
    layer: str
    reaches: float
    why: str


def reaches(model: OnnxModel, feeds: Sequence[Feed], threads: int) -> dict[str, float]:
    """The largest magnitude of each float activation, by name.

    Sums inside of reductions stand under ``NODE.sum``, the scores inside of ``lepto`` attention under ``NODE.scores``.

    Raises:
        PassError: One is not finite on the data.
    """
    proto = model.proto()
    constants = {tensor.name for tensor in proto.graph.initializer}
    floats = float_tensors(proto) - constants
    made = [name for node in proto.graph.node for name in node.output if name in floats]
    names = [value.name for value in proto.graph.input if value.name in floats] + made
    place = {name: i for i, name in enumerate(names)}
    sums = [node for node in proto.graph.node if node.op_type in _SUMS and node.input[0] in place]
    axes = {node.name: _axes(node, proto.graph) for node in sums}
    attentions = [node for node in proto.graph.node if node.domain == DOMAIN and {*node.input[:2]} <= place.keys()]
    found = dict.fromkeys([*names, *(f"{node.name}.sum" for node in sums)], 0.0)
    found |= dict.fromkeys((f"{node.name}.scores" for node in attentions), 0.0)
    for values in observe(model, names, feeds, threads):
        for name, value in zip(names, values, strict=True):
            found[name] = max(found[name], float(np.abs(value).max(initial=0.0)))
        for node in sums:
            value = np.abs(values[place[node.input[0]]].astype(np.float64))
            over = axes[node.name]
            total = value.sum(axis=tuple(range(2, value.ndim)) if over == () else over)
            found[f"{node.name}.sum"] = max(found[f"{node.name}.sum"], float(np.max(total, initial=0.0)))
        for node in attentions:
            q, k = (values[place[name]].astype(np.float64) for name in node.input[:2])
            found[f"{node.name}.scores"] = max(found[f"{node.name}.scores"], _scores(node, q, k))
    return found


def without_bf16(model: OnnxModel, asked: Collection[str] = ()) -> list[Kept]:
    """The nodes that must stay in float32 beside bf16, in the graph's order: nothing overflows that did not before.

    Args:
        model: With names on all nodes.
        asked: Nodes to keep whatever they are.
    """
    proto = model.proto()
    floats = float_tensors(proto) | {t.name for t in proto.graph.initializer if t.data_type == onnx.TensorProto.FLOAT}
    opset = next(entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx"))
    kept = []
    for node in proto.graph.node:
        if not floats & {*node.input, *node.output}:
            continue
        why = "asked for" if node.name in asked else "" if _has_bf16(node, opset) else "has no bf16 form"
        if why:
            kept.append(Kept(node.name, node.op_type, layer_of(node), 0.0, why))
    return kept


def _has_bf16(node: onnx.NodeProto, opset: int) -> bool:
    if node.domain == DOMAIN:
        return True  # its body is made of operators that have it
    if node.op_type in _SINGLE:
        return False
    schema = onnx.defs.get_schema(node.op_type, opset, "")
    return any("tensor(bfloat16)" in constraint.allowed_type_strs for constraint in schema.type_constraints)


def overflow_prone(
    model: OnnxModel, seen: Mapping[str, float], *, margin: float, asked: Collection[str] = ()
) -> list[Kept]:
    """The nodes that must stay in float32, in the graph's order.

    A value that was seen may grow by ``margin`` on data that was not. Besides outputs and inputs the inside counts:
    the sum of a mean, the square of a normalization.

    Args:
        model: With names on all nodes.
        seen: From :func:`reaches`.
        margin: How many times larger than what was seen a value may become.
        asked: Nodes to keep whatever was seen.
    """
    proto = model.proto()
    floats = float_tensors(proto)
    constants = {t.name: t for t in proto.graph.initializer if t.data_type == onnx.TensorProto.FLOAT}
    limit = LARGEST / margin
    kept = []
    for node in proto.graph.node:
        names = [name for name in (*node.input, *node.output) if name in floats or name in constants]
        if not names:
            continue
        largest = max((seen.get(name, 0.0) for name in names), default=0.0)
        why, value = "", largest
        weight = max((_largest(constants[name]) for name in node.input if name in constants), default=0.0)
        if node.name in asked:
            why = "asked for"
        elif node.op_type in _SINGLE:
            why, value = "has no fp16 form", 0.0
        elif largest > limit:
            why = "values"
        elif weight > LARGEST:
            why, value = "a constant", weight
        elif (total := seen.get(f"{node.name}.sum", 0.0)) > limit:
            why, value = "the sum inside", total
        elif (scores := seen.get(f"{node.name}.scores", 0.0)) > limit:
            why, value = "the scores inside", scores
        elif node.op_type in _SQUARES and (square := seen.get(node.input[0], 0.0) ** 2) > limit:
            why, value = "the square inside", square
        elif any(_tiny(constants[name]) for name in node.input if name in constants):
            why, value = "a constant below fp16's smallest normal number", 0.0
        if why:
            kept.append(Kept(node.name, node.op_type, layer_of(node), value, why))
    return kept


def _scores(node: onnx.NodeProto, q: npt.NDArray[np.float64], k: npt.NDArray[np.float64]) -> float:
    """The largest score of queries ``[…, S, H * D]`` and keys ``[…, S, G * D]``; of packed ones across sequences."""
    given = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    heads, kv_heads = given["num_heads"], given["kv_num_heads"]
    q = q.reshape(*q.shape[:-1], heads, -1).swapaxes(-2, -3)
    k = k.reshape(*k.shape[:-1], kv_heads, -1).swapaxes(-2, -3).repeat(heads // kv_heads, axis=-3)
    return float(np.abs(q @ k.swapaxes(-1, -2) * given["scale"]).max(initial=0.0))


def _axes(node: onnx.NodeProto, graph: onnx.GraphProto) -> tuple[int, ...] | None:
    """The axes that a reduction sums over; () for all but the first two, None for all."""
    if node.op_type == "GlobalAveragePool":
        return ()
    given = next((attribute.ints for attribute in node.attribute if attribute.name == "axes"), None)
    if given is not None:
        return tuple(given)
    if len(node.input) > 1 and node.input[1]:
        tensor = next((t for t in graph.initializer if t.name == node.input[1]), None)
        if tensor is not None:
            return tuple(int(axis) for axis in numpy_helper.to_array(tensor).reshape(-1))
    return None


def _largest(tensor: onnx.TensorProto) -> float:
    return float(np.abs(numpy_helper.to_array(tensor)).max(initial=0.0))


def _tiny(tensor: onnx.TensorProto) -> bool:
    """Whether a number that stands alone, such as an epsilon, would be lost."""
    array = numpy_helper.to_array(tensor)
    return array.size == 1 and 0 < abs(float(array.reshape(-1)[0])) < SMALLEST
