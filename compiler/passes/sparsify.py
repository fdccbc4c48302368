"""Weights with zeros, where the target multiplies them faster.

NVIDIA's sparse tensor cores do (TensorRT runs a product whose weights are 2:4), ONNX Runtime's CPU provider does not:
it makes a sparse initializer dense when it loads a model, and its ``SparseToDenseMatMul`` takes no constant (1.32). So
the pass measures first, and declines with the figures where nothing is gained.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from lepto.compiler.context import Context, Left
from lepto.compiler.model import OnnxModel
from lepto.compiler.ort import session
from lepto.compiler.passes.fusions import graph as g
from lepto.compiler.passes.quantize_dynamic import check_names, kept_in_float, quantizable
from lepto.compiler.statistics import Ratio, ratio_interval
from lepto.runtime.measure import interleave

Floats = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
Pattern = Literal["2:4", "unstructured"]

_LEAST = 1.02
"""The least gain that counts: below it two runs of one kernel can differ by chance."""

_ROWS = (1, 16)
"""Rows of the products that are measured: one sample's last layers, and a short text's."""


def two_of_four(weight: Floats) -> Mask:
    """Keep the two largest magnitudes of every four consecutive inputs of each output.

    Mishra et al., "Accelerating Sparse Deep Neural Networks", arXiv 2104.08378, section 3.

    Args:
        weight: ``[K, N]``, K inputs; a rest of fewer than four is kept whole.

    Returns:
        ``[K, N]``, True where a weight is kept.
    """
    inputs, outputs = weight.shape
    whole = inputs - inputs % 4
    kept = np.ones(weight.shape, np.bool_)
    groups = np.abs(weight[:whole]).reshape(-1, 4, outputs)
    ranks = np.argsort(np.argsort(-groups, axis=1, kind="stable"), axis=1)
    kept[:whole] = (ranks < 2).reshape(whole, outputs)
    return kept


def magnitude_mask(weight: Floats, sparsity: float) -> Mask:
    """Keep the largest magnitudes of a weight: all but ``sparsity`` of them.

    Zhu & Gupta, "To prune, or not to prune", arXiv 1710.01878.
    """
    removed = round(sparsity * weight.size)
    kept = np.ones(weight.size, np.bool_)
    kept[np.argsort(np.abs(weight), axis=None, kind="stable")[:removed]] = False
    return kept.reshape(weight.shape)


@dataclass(frozen=True, slots=True)
class Sparsify:
    """Set the smallest weights of products to zero, if the target multiplies such weights faster.

    Nothing is trained afterwards: the task metric decides.

    Attributes:
        pattern: ``2:4`` keeps two of every four inputs of an output; ``unstructured`` the largest of a whole weight.
        sparsity: Share of zeros, in (0, 1); for ``unstructured`` alone.
        exclude: Names of nodes whose weights stay as they are.
    """

    name: ClassVar[str] = "sparsify"
    preserves_function: ClassVar[bool] = False
    reads: ClassVar[tuple[str, ...]] = ("machine",)

    pattern: Pattern = "2:4"
    sparsity: float = 0.5
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check the options."""
        if self.pattern not in get_args(Pattern):
            raise ValueError(f"pattern must be one of {', '.join(get_args(Pattern))}, got {self.pattern!r}")
        if not 0 < self.sparsity < 1:
            raise ValueError(f"sparsity must be in (0, 1), got {self.sparsity}")
        if self.pattern == "2:4" and self.sparsity != 0.5:
            raise ValueError(f"sparsity is 0.5 with pattern=2:4, got {self.sparsity}")

    def __call__(self, model: OnnxModel, context: Context) -> OnnxModel:
        """Return the model with zeros in its weights.

        Raises:
            Left: There is no product, or zeros make the largest one no faster on this machine.
            LeptoError: A name in ``exclude`` is unknown.
        """
        check_names(model, self.exclude, quantizable(model))
        weights = [weight for _, weight in _products(model.ir().graph, self.exclude)]
        if not weights:
            raise Left("nothing to make sparse: no MatMul or Gemm has constant weights" + kept_in_float(self.exclude))
        largest = max(weights, key=lambda weight: weight.size)
        kept = self._mask(largest)
        ratios = {rows: time_zeros(largest, kept, rows, context) for rows in _ROWS}
        shape = " x ".join(map(str, largest.shape))
        said = "; ".join(f"{rows} rows: {r.value:.2f} x [{r.low:.2f}, {r.high:.2f}]" for rows, r in ratios.items())
        share = f"{1 - kept.mean():.0%} zeros ({self.pattern})"
        if not all(ratio.low > _LEAST for ratio in ratios.values()):
            raise Left(f"no gain from zeros on this machine: {shape} with {share} against dense weights, {said}")
        result = with_zeros(model, self._mask, self.exclude)
        context.note(f"{len(weights)} products; {shape} with {share} against dense weights, {said}")
        return result

    def _mask(self, weight: Floats) -> Mask:
        return two_of_four(weight) if self.pattern == "2:4" else magnitude_mask(weight, self.sparsity)


def with_zeros(model: OnnxModel, mask: Callable[[Floats], Mask], exclude: Sequence[str] = ()) -> OnnxModel:
    """The model with the weights ``[K, N]`` of its products masked."""
    loaded = model.ir()
    for node, weight in _products(loaded.graph, exclude):
        value = node.inputs[1]
        assert value is not None
        sparse = np.where(mask(weight), weight, np.float32(0))
        sparse = sparse.T if _transposed(node) else sparse
        node.replace_input_with(1, g.add_initializer(loaded.graph, f"{value.name}.sparse", sparse))
    return OnnxModel.from_ir(g.finish(loaded))


def _products(graph: ir.Graph, exclude: Sequence[str]) -> list[tuple[ir.Node, Floats]]:
    """The products with constant weights, and these as ``[K, N]``."""
    found = []
    for node in graph:
        weight = g.constant(node.inputs[1]) if node.op_type in ("MatMul", "Gemm") and node.domain == "" else None
        if weight is None or weight.ndim != 2 or weight.dtype != np.float32:
            continue
        if (node.name or node.outputs[0].name) not in exclude:
            floats = weight.astype(np.float32, copy=False)
            found.append((node, floats.T if _transposed(node) else floats))
    return found


def _transposed(node: ir.Node) -> bool:
    return bool("transB" in node.attributes and node.attributes["transB"].as_int())


def time_zeros(weight: Floats, mask: Mask, rows: int, context: Context) -> Ratio:
    """How many times as fast a product runs once its weights have zeros; interleaved on this machine.

    Args:
        weight: ``[K, N]``.
        mask: ``[K, N]``, True where a weight is kept.
        rows: Rows of the activation.
        context: Threads and seed.
    """
    x = np.random.default_rng(context.seed).standard_normal((rows, len(weight))).astype(np.float32)

    def run(product: OnnxModel) -> Callable[[Floats], object]:
        loaded = session(product, context.threads)
        return lambda value: loaded.run(None, {"x": value})

    runs = {"dense": run(_product(weight)), "sparse": run(_product(np.where(mask, weight, np.float32(0))))}
    seconds = interleave(runs, [x], blocks=16, per_block=10, warmup=5, seed=context.seed)
    return ratio_interval(seconds["dense"], seconds["sparse"])


def _product(weight: Floats) -> OnnxModel:
    """``y = x @ weight``."""
    helper = onnx.helper
    inputs, outputs = weight.shape
    x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["rows", inputs])
    y = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["rows", outputs])
    constant = onnx.numpy_helper.from_array(np.ascontiguousarray(weight), "w")
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "product", [x], [y], [constant])
    return OnnxModel.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9))
