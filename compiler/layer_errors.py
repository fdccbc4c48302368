"""How far a rewritten graph's layers lie from the float graph's: where an error begins, and how it grows.

The measure is the root mean square of the difference over that of the reference, the inverse of the signal-to-noise
ratio that quantization debuggers print; over several inputs the squares are summed first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from lepto.compiler.context import Feed
from lepto.compiler.model import OnnxModel
from lepto.compiler.verify import _expose, _float_tensors, _layers, _tensor_order

_NO_LAYER = "_empty_nn_module_stack_from_metadata_hook"  # the exporter's words for "not known"


@dataclass(frozen=True, slots=True)
class LayerError:
    """How far one layer's output lies from the reference's.

    Attributes:
        layer: The module's path; the tensor's name where the graph does not tell.
        tensor: The layer's last tensor that both graphs have.
        error: Relative, see above; 0 is the same, 1 as large as the signal. Infinite where outputs are not finite.
        grew: By how much more than at the layer before, 0 where it did not grow.
    """

    layer: str
    tensor: str
    error: float
    grew: float = 0.0

    def __str__(self) -> str:
        """For people."""
        return f"layer {self.layer!r}: relative error {self.error:.3g}, {self.grew:+.3g} at this layer"


def layer_errors(
    reference: OnnxModel,
    candidate: OnnxModel,
    feeds: Sequence[Feed],
    threads: int,
    candidate_feeds: Sequence[Feed] = (),
) -> list[LayerError]:
    """The error of every layer that both graphs have, in the candidate's order of computation.

    Args:
        reference: The graph that is right.
        candidate: Its rewrite, which keeps the names of the tensors that it still computes.
        feeds: Inputs.
        threads: Intra-op threads.
        candidate_feeds: The same samples as the candidate takes them; by default the same inputs.

    Returns:
        One for each layer; empty where no tensor has a name in both graphs.
    """
    read = _as_it_is_read(reference), _as_it_is_read(candidate)
    # What comes out of a dequantization stands for the tensor that went in; weights are no layer's output.
    shared = (_float_tensors(reference) & _float_tensors(candidate)) - _dequantized(reference) - _dequantized(candidate)
    ordered = [name for name in _tensor_order(candidate) if name in shared]
    if not ordered or not feeds:
        return []
    layers = _layers(candidate) | {k: v for k, v in _layers(reference).items() if v}
    first, second = (
        _expose(model, [names.get(name, name) for name in ordered], threads)
        for model, names in zip((reference, candidate), read, strict=True)
    )
    squares = {name: [0.0, 0.0] for name in ordered}
    for feed, own in zip(feeds, candidate_feeds or feeds, strict=True):
        for name, a, b in zip(ordered, first(feed), second(own), strict=True):
            if a.shape != b.shape:  # a pass selected rows: another tensor under the same name
                squares.pop(name, None)
            if name in squares:
                x, y = a.astype(np.float64), b.astype(np.float64)
                squares[name][0] += float(np.square(x - y).sum())
                squares[name][1] += float(np.square(x).sum())
    last: dict[str, LayerError] = {}
    for name, (difference, signal) in squares.items():
        error = float(np.sqrt(difference / max(signal, 1e-30))) if np.isfinite(difference) else float("inf")
        layer = layers.get(name, "")
        layer = name if layer in ("", _NO_LAYER) else layer
        last.pop(layer, None)  # a layer stands where its last tensor is computed
        last[layer] = LayerError(layer, name, error)
    return _with_growth(list(last.values()))


def _as_it_is_read(model: OnnxModel) -> dict[str, str]:
    """For each tensor that is only read through QuantizeLinear the tensor that comes out of DequantizeLinear.

    What a later node sees is that one. An activation function may be left to the quantization's range, so that the
    tensor before it is no longer what its name says.
    """
    graph = model.proto().graph
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    found = {}
    for name, nodes in readers.items():
        if nodes and all(node.op_type == "QuantizeLinear" and node.input[0] == name for node in nodes):
            back = [n for n in readers.get(nodes[0].output[0], []) if n.op_type == "DequantizeLinear"]
            if back:
                found[name] = back[0].output[0]
    return found


def _dequantized(model: OnnxModel) -> set[str]:
    return {node.output[0] for node in model.proto().graph.node if node.op_type == "DequantizeLinear"}


def _with_growth(errors: list[LayerError]) -> list[LayerError]:
    grown, before = [], 0.0
    for item in errors:
        growth = item.error - before if np.isfinite(item.error) else float("inf") if np.isfinite(before) else 0.0
        grown.append(LayerError(item.layer, item.tensor, item.error, max(growth, 0.0)))
        before = item.error
    return grown


def grew_most(errors: Sequence[LayerError]) -> LayerError | None:
    """The layer at which the error grew most; None where it grew nowhere."""
    worst = max(errors, key=lambda item: item.grew, default=None)
    return worst if worst is not None and worst.grew > 0 else None
