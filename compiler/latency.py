"""What a shape costs on this machine: a table of measured blocks, from which the cost of a whole encoder is added up.

A block is one attention or one feed-forward half of a layer in the form in which it will run: fused and int8. A few
sizes are measured, interleaved in one run; between them the cost is interpolated. B = 1, S typical tokens, W width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

from lepto.compiler.encoder import Sizes
from lepto.compiler.model import OnnxModel
from lepto.compiler.passes.quantize_dynamic import dynamic_int8
from lepto.compiler.verify import Run, runner
from lepto.runtime.measure import interleave

_OPSET = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]


@dataclass(frozen=True)
class Curve:
    """Cost by size, from measurements at a few sizes.

    Between and below them it is the lower convex hull of what was measured: other work on the machine only ever adds,
    and a fit that goes down step by step must not take a plateau between two sizes for a price without end.

    Attributes:
        sizes: Ascending.
        ms: As many costs.
    """

    sizes: tuple[int, ...]
    ms: tuple[float, ...]

    def __call__(self, size: int) -> float:
        """Milliseconds at a size; below the smallest with the slope that is there, beyond the largest in proportion."""
        sizes, ms = self.hull
        if size >= sizes[-1]:
            return ms[-1] * size / sizes[-1]
        if size < sizes[0] and len(sizes) > 1:
            slope = (ms[1] - ms[0]) / (sizes[1] - sizes[0])
            return max(ms[0] - slope * (sizes[0] - size), ms[0] * size / sizes[0])
        return float(np.interp(size, sizes, ms))

    @cached_property
    def hull(self) -> tuple[tuple[int, ...], tuple[float, ...]]:
        """Sizes and costs of its corners; a size never costs more than a larger one."""
        corners: list[tuple[int, float]] = []
        for place, size in enumerate(self.sizes):
            point = (size, min(self.ms[place:]))
            while len(corners) > 1 and _slope(corners[-2], corners[-1]) >= _slope(corners[-1], point):
                corners.pop()
            corners.append(point)
        return tuple(size for size, _ in corners), tuple(ms for _, ms in corners)


def _slope(first: tuple[int, float], second: tuple[int, float]) -> float:
    return (second[1] - first[1]) / (second[0] - first[0])


@dataclass(frozen=True)
class LatencyTable:
    """Measured costs of an encoder's halves of layers.

    Attributes:
        attention: By number of heads.
        neurons: By number of feed-forward neurons, over all positions.
        one_row: The same for the one position that the head reads.
        rows: S of the measurement.
        detail: Everything that was measured, for the record.
    """

    attention: Curve
    neurons: Curve
    one_row: Curve
    rows: int
    detail: Mapping[str, float] = field(default_factory=dict)

    def layer_ms(self, heads: int, neurons: int, *, last_row_only: bool) -> float:
        """One layer."""
        return self.attention(heads) + (self.one_row if last_row_only else self.neurons)(neurons)

    def encoder_ms(self, sizes: Sizes, *, last_row_only: bool) -> float:
        """All layers, without tables and head."""
        last = sizes.layers - 1
        return sum(
            self.layer_ms(h, n, last_row_only=last_row_only and i == last)
            for i, (h, n) in enumerate(zip(sizes.heads, sizes.neurons, strict=True))
        )


def measure_table(sizes: Sizes, *, rows: int, threads: int, seed: int = 0, blocks: int = 12) -> LatencyTable:
    """Measure what an encoder's halves of layers cost on this machine.

    Args:
        sizes: The uncut encoder.
        rows: Typical number of tokens.
        threads: Intra-op threads.
        seed: Of the order of runs.
        blocks: Repetitions; ten runs of every block in each.
    """
    heads, neurons = _steps(max(sizes.heads), 1), _steps(max(sizes.neurons), 16)
    graphs: dict[str, tuple[OnnxModel, int]] = {}
    for count in heads:
        graphs[f"attention/{count}"] = (attention_block(sizes.width, count, sizes.head_dim), rows)
    for count in neurons:
        graphs[f"neurons/{count}"] = (feed_forward_block(sizes.width, count), rows)
        graphs[f"one_row/{count}"] = (feed_forward_block(sizes.width, count), 1)
    runs: dict[str, Run] = {}
    rng = np.random.default_rng(seed)
    for name, (graph, length) in graphs.items():
        model = dynamic_int8(graph, per_channel=True, reduce_range=False)
        feed = {
            "x": rng.standard_normal((1, length, sizes.width), dtype=np.float32),
            "mask": np.ones((1, length), np.int32),
        }
        run = runner(model, threads)
        runs[name] = lambda _, run=run, feed=feed: run(feed)  # type: ignore[misc]
    seconds = interleave(runs, [{}], blocks=blocks, per_block=10, warmup=3, seed=seed)
    # The lower quartile: other work on the machine only ever adds.
    ms = {name: float(np.quantile(values, 0.25)) * 1e3 for name, values in seconds.items()}
    return LatencyTable(
        Curve(heads, tuple(ms[f"attention/{n}"] for n in heads)),
        Curve(neurons, tuple(ms[f"neurons/{n}"] for n in neurons)),
        Curve(neurons, tuple(ms[f"one_row/{n}"] for n in neurons)),
        rows,
        ms,
    )


def _steps(most: int, unit: int) -> tuple[int, ...]:
    """Quarter, half, three quarters and all, in whole units."""
    return tuple(sorted({max(unit, round(most * share / unit) * unit) for share in (0.25, 0.5, 0.75, 1.0)} | {most}))


def fit_to_latency(
    table: LatencyTable,
    heads: Sequence[npt.NDArray[np.float64]],
    neurons: Sequence[npt.NDArray[np.float64]],
    budget_ms: float,
    *,
    last_row_only: bool,
    block: int = 64,
    least_heads: int | Sequence[int] = 1,
    least_neurons: int | Sequence[int] = 64,
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """How many heads and neurons each layer keeps so that the encoder costs at most ``budget_ms``.

    Greedy: again and again the head, or block of neurons, goes that loses the least importance for each millisecond it
    saves (the knapsack of Shen et al. 2022, "Structural Pruning via Latency-Saliency Knapsack", by its greedy bound).

    Args:
        table: Measured costs.
        heads: For each layer the importance of its heads.
        neurons: For each layer the importance of its neurons.
        budget_ms: The most that all layers may cost together.
        last_row_only: Whether the last feed-forward block computes one row.
        block: Neurons that go together: a multiple of what the target's matrix unit takes at once.
        least_heads: No layer keeps fewer; one number, or one for each layer.
        least_neurons: The same for neurons.

    Returns:
        Heads and neurons kept, for each layer.
    """
    ordered = [np.sort(scores / max(float(sum(map(np.sum, heads))), 1e-30)) for scores in heads]
    blocks = [
        np.add.reduceat(np.sort(scores), np.arange(0, len(scores), block))
        / max(float(sum(map(np.sum, neurons))), 1e-30)
        for scores in neurons
    ]
    kept_heads, kept_neurons = [len(s) for s in heads], [len(s) for s in neurons]
    gone_heads, gone_blocks = [0] * len(heads), [0] * len(neurons)
    last = len(heads) - 1
    fewest_heads, fewest_neurons = (
        [least] * len(heads) if isinstance(least, int) else list(least) for least in (least_heads, least_neurons)
    )

    def cost() -> float:
        return sum(
            table.layer_ms(h, n, last_row_only=last_row_only and i == last)
            for i, (h, n) in enumerate(zip(kept_heads, kept_neurons, strict=True))
        )

    while (now := cost()) > budget_ms:
        best: tuple[float, int, str] | None = None
        for i in range(len(heads)):
            for kind, kept, least, lost, step in (
                (
                    "head",
                    kept_heads,
                    fewest_heads[i],
                    ordered[i][gone_heads[i]] if kept_heads[i] > fewest_heads[i] else 0,
                    1,
                ),
                (
                    "block",
                    kept_neurons,
                    fewest_neurons[i],
                    blocks[i][gone_blocks[i]] if gone_blocks[i] < len(blocks[i]) else 0,
                    block,
                ),
            ):
                if kept[i] - step < least:
                    continue
                kept[i] -= step
                saved = now - cost()
                kept[i] += step
                price = float(lost) / max(saved, 1e-6)
                if best is None or price < best[0]:
                    best = (price, i, kind)
        if best is None:
            break
        _, i, kind = best
        if kind == "head":
            kept_heads[i], gone_heads[i] = kept_heads[i] - 1, gone_heads[i] + 1
        else:
            kept_neurons[i], gone_blocks[i] = kept_neurons[i] - block, gone_blocks[i] + 1
    return tuple(kept_heads), tuple(kept_neurons)


def feed_forward_block(width: int, neurons: int) -> OnnxModel:
    """``x + W2 gelu(W1 x)`` and its normalization, fused, in float32."""
    rng = np.random.default_rng(0)
    weights = {
        "up": rng.standard_normal((width, neurons)) / width**0.5,
        "up_bias": np.zeros(neurons),
        "down": rng.standard_normal((neurons, width)) / neurons**0.5,
        "down_bias": np.zeros(width),
        "gamma": np.ones(width),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "up"], ["a"]),
        helper.make_node("BiasGelu", ["a", "up_bias"], ["b"], domain="com.microsoft"),
        helper.make_node("MatMul", ["b", "down"], ["c"]),
        helper.make_node("Add", ["c", "down_bias"], ["d"]),
        *_normalized("d", "x"),
    ]
    return _graph(nodes, weights, width)


def attention_block(width: int, heads: int, head_dim: int) -> OnnxModel:
    """Self-attention with its projection and normalization, fused, in float32."""
    rng = np.random.default_rng(0)
    size = heads * head_dim
    weights = {
        "qkv": rng.standard_normal((width, 3 * size)) / width**0.5,
        "qkv_bias": np.zeros(3 * size),
        "out": rng.standard_normal((size, width)) / size**0.5,
        "out_bias": np.zeros(width),
        "gamma": np.ones(width),
    }
    nodes = [
        helper.make_node(
            "Attention",
            ["x", "qkv", "qkv_bias", "mask"],
            ["a"],
            domain="com.microsoft",
            num_heads=heads,
            qkv_hidden_sizes=[size, size, size],
        ),
        helper.make_node("MatMul", ["a", "out"], ["c"]),
        helper.make_node("Add", ["c", "out_bias"], ["d"]),
        *_normalized("d", "x"),
    ]
    return _graph(nodes, weights, width, mask=True)


def _normalized(value: str, residual: str) -> list[onnx.NodeProto]:
    return [
        helper.make_node("ReduceMean", [residual, "last_axis"], ["mean"], keepdims=1),
        helper.make_node("Sub", [residual, "mean"], ["centred"]),
        helper.make_node(
            "SkipSimplifiedLayerNormalization", [value, "centred", "gamma"], ["y"], domain="com.microsoft"
        ),
    ]


def _graph(
    nodes: list[onnx.NodeProto], weights: Mapping[str, npt.NDArray[np.float64]], width: int, *, mask: bool = False
) -> OnnxModel:
    tensors = [onnx.numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()]
    tensors.append(onnx.numpy_helper.from_array(np.array([-1], dtype=np.int64), "last_axis"))
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "sequence", width])]
    if mask:
        inputs.append(helper.make_tensor_value_info("mask", TensorProto.INT32, ["batch", "sequence"]))
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "sequence", width])
    graph = helper.make_graph(nodes, "block", inputs, [output], tensors)
    return OnnxModel.from_proto(helper.make_model(graph, opset_imports=_OPSET, ir_version=10))
