"""Scale migration: what makes activations hard to quantize moves into the weights, channel by channel.

A product ``X W`` is ``(X diag(1/s)) (diag(s) W)`` for any positive s. An activation has one scale for all channels, and
a few large channels decide it; weights have a scale for each output, so that they can take a share of that. The
division by s is never computed: it goes into the parameters of what makes X.

Xiao et al., "SmoothQuant", arXiv 2211.10438.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from lepto.compiler.context import Context, Feed, Left
from lepto.compiler.model import OnnxModel
from lepto.compiler.passes.fusions import graph as g
from lepto.compiler.passes.observe import choose_feeds, observe

Doubles = npt.NDArray[np.float64]
Apply = Callable[[Doubles], None]


def migration_scales(activations: Doubles, weights: Doubles, alpha: float) -> Doubles:
    """What each channel of an activation is divided by, and the rows of the weights multiplied with.

    Args:
        activations: Largest magnitude of each channel over the calibration data, ``[K]``.
        weights: Largest magnitude of each channel's row of weights, ``[K]``.
        alpha: How much of the difficulty goes to the weights: ``max|X|^alpha / max|W|^(1 - alpha)``; with 0 all rows
            of the weights become alike, with 1 all channels of the activation.

    Returns:
        Positive scales ``[K]`` with geometric mean 1; 1 for channels that are always zero on either side.
    """
    alive = (activations > 0) & (weights > 0)
    scales = np.ones(len(activations))
    if alive.any():
        logs = alpha * np.log(activations[alive]) - (1 - alpha) * np.log(weights[alive])
        # Beyond this, float32 would lose what little there is in a channel.
        scales[alive] = np.exp(np.clip(logs - logs.mean(), -8, 8))
    return scales


@dataclass(frozen=True, slots=True)
class Smooth:
    """Divide activations by a scale for each channel before they are quantized; the function stays the same.

    It is done where a normalization, a linear layer (also through a ReLU) or the values of an attention make the
    activation, and only products read it. Goes before the 8-bit passes.

    Attributes:
        alpha: How much of the difficulty goes to the weights, in [0, 1].
        samples: How many calibration samples are run at most.
        residuals: Also where a residual connection reads the activation, which is then multiplied back for it: one more
            node for each. Encoders that normalize after the residual need it nearly everywhere.
    """

    name: ClassVar[str] = "smooth"
    preserves_function: ClassVar[bool] = True
    reads: ClassVar[tuple[str, ...]] = ("calibration",)
    prepares: ClassVar[bool] = True

    alpha: float = 0.5
    samples: int = 256
    residuals: bool = False

    def __post_init__(self) -> None:
        """Check the options."""
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha must be in [0, 1], got {self.alpha}")
        if self.samples < 1:
            raise ValueError(f"samples must be at least 1, got {self.samples}")

    def __call__(self, model: OnnxModel, context: Context) -> OnnxModel:
        """Return the model with scales migrated.

        Raises:
            Left: There is no training data, or no activation whose scales can move.
        """
        if not context.calibration:
            raise Left("scales are migrated by what activations reach on training data: give --train")
        loaded = model.ir()
        found = [_group(loaded.graph, node) for node in loaded.graph]
        groups = [group for group in found if group is not None and (self.residuals or not group.residuals)]
        if not groups:
            residual = sum(group is not None for group in found)
            raise Left(
                "no activation whose scales can move into weights: "
                + (f"{residual} are read by residual connections too (residuals=True)" if residual else "none fits")
            )
        reach = _reach(model, groups, choose_feeds(context, self.samples), context.threads)
        spreads, before, after = [], [], []
        for group in groups:
            activations = np.max([reach[_activation(product)] for product in group.products], axis=0)
            weights = np.max([np.abs(_rows(product)).max(axis=1) for product in group.products], axis=0)
            scales = migration_scales(activations, weights, self.alpha)
            spreads.append(scales.max() / scales.min())
            before.append(_imbalance(activations))
            after.append(_imbalance(activations / scales))
            _apply(loaded.graph, group, scales)
        context.note(
            f"{len(groups)} activations, scales up to {max(spreads):.1f} apart, largest over median channel "
            f"{np.mean(before):.1f} → {np.mean(after):.1f} on average"
            + (f"; {sum(len(group.residuals) > 0 for group in groups)} multiplied back" if self.residuals else "")
        )
        return OnnxModel.from_ir(g.finish(loaded))


@dataclass
class _Group:
    """An activation, what makes it and what reads it."""

    value: ir.Value
    divide: Apply  # fold 1 / scales into what makes the value
    products: list[ir.Node] = field(default_factory=list)
    residuals: list[ir.Node] = field(default_factory=list)
    passed: list[ir.Value] = field(default_factory=list)  # values that will be divided too


def _group(graph: ir.Graph, node: ir.Node) -> _Group | None:
    value = node.outputs[0]
    divide = _maker(graph, node)
    if divide is None or value.is_graph_output():
        return None
    group = _Group(value, divide)
    return group if _readers(value, group) and group.products else None


def _readers(value: ir.Value, group: _Group) -> bool:
    """Sort what reads a value that will be divided; False where it leaves the graph."""
    if value.is_graph_output():
        return False
    group.passed.append(value)
    for node in {use.node: None for use in value.uses()}:
        if node.inputs[0] is value and _is_product(node):
            group.products.append(node)
        elif node.inputs[0] is value and _is_selection(node, value):
            if not _readers(node.outputs[0], group):
                return False
        else:
            group.residuals.append(node)
    return True


def _is_product(node: ir.Node) -> bool:
    known = {"MatMul": "", "Gemm": "", "Attention": g.MICROSOFT}
    if known.get(node.op_type) != node.domain or len(node.inputs) < 2:
        return False
    if "transA" in node.attributes and node.attributes["transA"].as_int():
        return False
    weight = g.constant(node.inputs[1])
    return weight is not None and weight.ndim == 2 and weight.dtype == np.float32


def _is_selection(node: ir.Node, value: ir.Value) -> bool:
    """Whether a gather picks whole rows of the value."""
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
    return (
        node.op_type == "Gather" and node.domain == "" and value.shape is not None and 0 <= axis < len(value.shape) - 1
    )


def _maker(graph: ir.Graph, node: ir.Node) -> Apply | None:
    """How what makes a value can take a division of each channel; None where it cannot."""
    gamma = _gamma(node)
    if gamma is not None:
        places = [gamma, *([2] if node.op_type == "LayerNormalization" and len(node.inputs) > 2 else [])]
        return _dividing(graph, [(node, place, slice(None)) for place in places])
    if node.op_type == "Attention" and node.domain == g.MICROSOFT and _is_product(node):
        bias = g.constant(node.inputs[2]) if len(node.inputs) > 2 else None
        if bias is None or len(bias) % 3 or "qkv_hidden_sizes" in node.attributes:
            return None
        values = slice(2 * len(bias) // 3, None)
        return _dividing(graph, [(node, 1, values), (node, 2, values)])
    if node.op_type == "Relu" and node.domain == "":  # relu(x / s) = relu(x) / s
        rectified = node.inputs[0]
        maker = None if rectified is None else rectified.producer()
        if rectified is None or maker is None or g.only_user(rectified) is not node:
            return None
        return _maker(graph, maker)
    if node.op_type == "Add" and node.domain == "":
        for place in (0, 1):
            shift, made = g.constant(node.inputs[place]), node.inputs[1 - place]
            inner_node = None if made is None else made.producer()
            if shift is None or shift.ndim != 1 or made is None or inner_node is None or g.only_user(made) is not node:
                continue
            inner = _maker(graph, inner_node) if _gamma(inner_node) is not None else _columns(graph, inner_node)
            if inner is not None:
                return _both(inner, _dividing(graph, [(node, place, slice(None))]))
        return None
    return _columns(graph, node)


def _gamma(node: ir.Node) -> int | None:
    """Which input of a normalization is its weight, if that is a constant vector."""
    known = {("LayerNormalization", ""): 1, ("SimplifiedLayerNormalization", ""): 1, ("RMSNormalization", ""): 1}
    place = known.get((node.op_type, node.domain))
    if (node.op_type, node.domain) == ("SkipSimplifiedLayerNormalization", g.MICROSOFT):
        place = 2
    weight = g.constant(node.inputs[place]) if place is not None and len(node.inputs) > place else None
    return place if weight is not None and weight.ndim == 1 else None


def _columns(graph: ir.Graph, node: ir.Node) -> Apply | None:
    if node.op_type not in ("MatMul", "Gemm") or not _is_product(node):
        return None
    if node.op_type == "MatMul":
        return _dividing(graph, [(node, 1, slice(None))])
    bias = g.constant(node.inputs[2]) if len(node.inputs) > 2 else None
    if len(node.inputs) > 2 and (bias is None or bias.ndim != 1):
        return None
    rows = "transB" in node.attributes and node.attributes["transB"].as_int()
    weight = _dividing(graph, [(node, 1, slice(None))], axis=0 if rows else -1)
    return weight if bias is None else _both(weight, _dividing(graph, [(node, 2, slice(None))]))


def _both(first: Apply, second: Apply) -> Apply:
    def apply(scales: Doubles) -> None:
        first(scales)
        second(scales)

    return apply


def _dividing(graph: ir.Graph, places: list[tuple[ir.Node, int, slice]], axis: int = -1) -> Apply:
    """Divide (a part of) constants along an axis; other readers keep the originals."""

    def apply(scales: Doubles) -> None:
        for node, place, part in places:
            array = g.constant(node.inputs[place])
            assert array is not None
            wide = np.moveaxis(array.astype(np.float64), axis, -1)
            wide[..., part] /= scales
            _swap(graph, node, place, np.moveaxis(wide, -1, axis))

    return apply


def _swap(graph: ir.Graph, node: ir.Node, place: int, array: Doubles) -> None:
    value = node.inputs[place]
    assert value is not None
    name = str(value.name).removesuffix(".smoothed")
    node.replace_input_with(place, g.add_initializer(graph, f"{name}.smoothed", array.astype(np.float32)))


def _activation(product: ir.Node) -> str:
    activation = product.inputs[0]
    assert activation is not None
    return str(activation.name)


def _rows(product: ir.Node) -> Doubles:
    """The weights as ``[K, N]``."""
    weight = g.constant(product.inputs[1])
    assert weight is not None
    transposed = "transB" in product.attributes and product.attributes["transB"].as_int()
    rows: Doubles = (weight.T if transposed else weight).astype(np.float64)
    return rows


def _reach(model: OnnxModel, groups: list[_Group], feeds: Sequence[Feed], threads: int) -> dict[str, Doubles]:
    """Largest magnitude ``[K]`` of each channel of what the products read, by the tensor's name."""
    names = sorted({_activation(product) for group in groups for product in group.products})
    reach: dict[str, Doubles] = {}
    for values in observe(model, names, feeds, threads):
        for name, value in zip(names, values, strict=True):
            largest = np.abs(value.reshape(-1, value.shape[-1])).max(axis=0, initial=0).astype(np.float64)
            reach[name] = np.maximum(reach.get(name, largest), largest)
    return reach


def _imbalance(channels: Doubles) -> float:
    return float(channels.max() / max(np.median(channels), 1e-30))


def _apply(graph: ir.Graph, group: _Group, scales: Doubles) -> None:
    group.divide(scales)
    for product in group.products:
        weight = _rows(product) * scales[:, None]
        transposed = "transB" in product.attributes and product.attributes["transB"].as_int()
        _swap(graph, product, 1, weight.T if transposed else weight)
    back: dict[ir.Value, ir.Value] = {}
    order = {node: i for i, node in enumerate(graph)}
    for node in sorted(group.residuals, key=lambda n: order[n]):
        for place, value in enumerate(node.inputs):
            if value not in group.passed or value is None:
                continue
            if value not in back:
                factor = g.add_initializer(graph, f"{value.name}.scales", scales.astype(np.float32))
                back[value] = g.insert(graph, node, "Mul", [value, factor], output=f"{value.name}.restored", like=value)
            node.replace_input_with(place, back[value])
    for value in group.passed:
        # Other values than before: a name of its own, so that it is not compared with what it was.
        value.name = f"{value.name}.smoothed"
