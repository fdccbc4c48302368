"""Which nodes a quantization costs the most, and the fewest of them that must stay in float.

Each node is quantized alone, everything else in float. What that does to the outputs is a fast proxy for what it does
to the task; the task metric itself is asked for the worst few alone. The idea is that of the sensitivity analyses of
Wu et al., "Integer Quantization for Deep Learning Inference", arXiv 2004.09602, section 4.2 (partial quantization).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lepto.compiler.model import OnnxModel

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Blame:
    """What quantizing one node costs.

    Attributes:
        node: Its name.
        layer: The module it came from, empty where the graph does not tell.
        proxy: Distance of the outputs from the float model's, see :func:`divergence` and :func:`squared_error`.
        metric: The task metric with this node alone in 8 bits; None where it was not asked for.
        kept: Whether the node stays in float.
    """

    node: str
    layer: str
    proxy: float
    metric: float | None = None
    kept: bool = False

    def __str__(self) -> str:
        """For a note in one line."""
        where = f" ({self.layer})" if self.layer and self.layer != self.node else ""
        said = "" if self.metric is None else f", metric alone {self.metric:.4f}"
        return f"{self.node}{where} {self.proxy:.1e}{said}"


def divergence(reference: Array, candidate: Array) -> float:
    """Mean of Kullback and Leibler's divergence of softmax(candidate) from softmax(reference), in nats.

    Args:
        reference: ``[..., C]`` logits.
        candidate: The same shape.
    """
    p, q = _log_softmax(reference), _log_softmax(candidate)
    return float((np.exp(p) * (p - q)).sum(axis=-1).mean())


def squared_error(reference: Array, candidate: Array) -> float:
    """Mean squared difference over the reference's mean square, for outputs that are no logits."""
    a = reference.astype(np.float64)
    return float(np.square(a - candidate).mean() / max(float(np.square(a).mean()), 1e-30))


def _log_softmax(logits: Array) -> npt.NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    normalized: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return normalized


def layers_of(model: OnnxModel) -> dict[str, str]:
    """For each node by name the path of the module that it came from, as far as the graph tells."""
    return {
        node.name or node.output[0]: next((p.value for p in node.metadata_props if p.key == "layer"), "")
        for node in model.proto().graph.node
    }


def blame(
    nodes: Sequence[str],
    layers: dict[str, str],
    proxy: Callable[[Sequence[str]], float],
    metric: Callable[[Sequence[str]], float] | None,
    *,
    worst: int,
    progress: Callable[[int, int], None] | None = None,
) -> list[Blame]:
    """What each node costs alone, the worst first.

    Args:
        nodes: Names of the nodes that can be quantized.
        layers: See :func:`layers_of`.
        proxy: The proxy of a model in which the named nodes stay in float; never negative.
        metric: The same for the task metric, where there is one; more is better.
        worst: For how many nodes the metric is asked.
        progress: Told how many of how many nodes are done.
    """
    found = []
    for done, node in enumerate(nodes, 1):
        others = [name for name in nodes if name != node]
        found.append(Blame(node, layers.get(node, ""), proxy(others)))
        if progress is not None:
            progress(done, len(nodes))
    found.sort(key=lambda item: -item.proxy)
    if metric is None:
        return found
    judged = [
        dataclasses.replace(item, metric=metric([name for name in nodes if name != item.node]))
        for item in found[:worst]
    ]
    judged.sort(key=lambda item: (item.metric or 0.0, -item.proxy))
    return [*judged, *found[worst:]]


def fewest(ranked: Sequence[Blame], keeps: Callable[[Sequence[str]], bool], *, most: int) -> list[Blame] | None:
    """Keep the smallest number of the worst nodes in float that is enough.

    Args:
        ranked: The worst first.
        keeps: Whether a model in which the named nodes stay in float keeps the budget.
        most: How many nodes may stay in float.

    Returns:
        All of them with ``kept`` set; None where ``most`` nodes are not enough.
    """
    for count in range(1, min(most, len(ranked)) + 1):
        if keeps([item.node for item in ranked[:count]]):
            return [dataclasses.replace(item, kept=place < count) for place, item in enumerate(ranked)]
    return None
