"""Where a graph spends its time: ONNX Runtime's own profile, by node, with the layer that each node came from.

ONNX Runtime rewrites a graph when it loads it, so that the nodes that run have other names than the file's. The tensors
that they write keep theirs, and lead back to the layer. Profiling costs some microseconds for each node: the times of a
profile explain a difference, they do not measure it.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx

from lepto.runtime.session import session_options

Feed = Mapping[str, npt.NDArray[Any]]

RUNTIME: Final = "(outside of nodes)"
_NO_LAYER: Final = "_empty_nn_module_stack_from_metadata_hook"
_KERNEL: Final = "_kernel_time"
_BLOCK: Final = 20
_DROPPED: Final = 3  # the first of a block: the other session's threads are still spinning


@dataclass(frozen=True, slots=True)
class NodeTime:
    """One node that ran.

    Attributes:
        node: Its name after the runtime's rewriting.
        operator: What it computes.
        layer: The module that it came from; empty where the graph does not tell.
        us: Microseconds a run, the median.
    """

    node: str
    operator: str
    layer: str
    us: float


@dataclass(frozen=True, slots=True)
class Moved:
    """The time of one part of the graph on both sides.

    Attributes:
        part: A layer, or an operator.
        baseline_us: Microseconds a run.
        candidate_us: The same of the candidate.
        baseline_operators: What ran there, such as ``MatMul, 2 Add``.
        candidate_operators: The same of the candidate.
    """

    part: str
    baseline_us: float
    candidate_us: float
    baseline_operators: str
    candidate_operators: str

    @property
    def change_us(self) -> float:
        """Positive is slower."""
        return self.candidate_us - self.baseline_us

    def __str__(self) -> str:
        """For people."""
        ran = self.baseline_operators or "nothing"
        if self.candidate_operators != self.baseline_operators:
            ran += f" → {self.candidate_operators or 'nothing'}"
        return f"{self.part} {self.change_us:+.1f} µs ({self.baseline_us:.1f} → {self.candidate_us:.1f}): {ran}"


class _Profiled:
    """A session that writes its profile and the graph that it really runs."""

    def __init__(self, model: Path, threads: int, folder: Path) -> None:
        import onnxruntime

        options = session_options(threads)
        options.enable_profiling = True
        options.profile_file_prefix = str(folder / "profile")
        self.optimized = folder / "optimized.onnx"
        options.optimized_model_filepath = str(self.optimized)
        self.session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        self.names = {value.name for value in self.session.get_inputs()}
        self.model = model

    def run(self, feed: Feed) -> None:
        self.session.run(None, {name: array for name, array in feed.items() if name in self.names})

    def times(self, counted: Sequence[int]) -> list[NodeTime]:
        events = json.loads(Path(self.session.end_profiling()).read_text())
        layers = _layers(onnx.load(self.model, load_external_data=False), onnx.load(self.optimized))
        spent: dict[str, list[float]] = defaultdict(list)
        operators: dict[str, str] = {}
        whole: list[float] = []
        for event in events:
            if event.get("cat") == "Node" and str(event.get("name", "")).endswith(_KERNEL):
                node = event["name"].removesuffix(_KERNEL)
                spent[node].append(float(event["dur"]))
                operators[node] = event["args"].get("op_name", "?")
            elif event.get("name") == "model_run":
                whole.append(float(event["dur"]))
        found = [NodeTime(n, operators[n], layers.get(n, ""), _median(values, counted)) for n, values in spent.items()]
        rest = _median(whole, counted) - sum(item.us for item in found)
        return [*found, NodeTime(RUNTIME, RUNTIME, RUNTIME, max(rest, 0.0))]


def profile_pair(
    models: tuple[Path, Path],
    feeds: tuple[Sequence[Feed], Sequence[Feed]],
    *,
    threads: int,
    runs: int = 200,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[NodeTime], list[NodeTime]]:
    """Profile two graphs in turns on the same samples.

    Args:
        models: Baseline and candidate.
        feeds: The samples as each of them takes them; place i stands for the same sample.
        threads: Intra-op threads.
        runs: Runs of each.
        progress: Told what is done, and of how much.

    Raises:
        ValueError: There is no sample, or there are not as many of both.
    """
    if not feeds[0] or len(feeds[0]) != len(feeds[1]):
        raise ValueError(f"both sides need the same samples, got {len(feeds[0])} and {len(feeds[1])}")
    with tempfile.TemporaryDirectory(prefix="lepto-") as name:
        folders = [Path(name) / side for side in ("baseline", "candidate")]
        for folder in folders:
            folder.mkdir()
        sides = [_Profiled(model, threads, folder) for model, folder in zip(models, folders, strict=True)]
        counted: list[int] = []
        while len(counted) < runs:
            block, start = min(_BLOCK, runs - len(counted)), len(counted) // _BLOCK * (_BLOCK + _DROPPED)
            for turn in (0, 1) if (len(counted) // _BLOCK) % 2 else (1, 0):
                for i in range(start, start + _DROPPED + block):
                    sides[turn].run(feeds[turn][i % len(feeds[0])])
            counted += range(start + _DROPPED, start + _DROPPED + block)
            if progress is not None:
                progress(len(counted), runs)
        first, second = (side.times(counted) for side in sides)
    return first, second


def by_layer(baseline: Sequence[NodeTime], candidate: Sequence[NodeTime]) -> list[Moved]:
    """The time of every layer on both sides, what changed most first; nodes without a layer by their operator.

    A fusion moves work between the layers of a block. Layers that only one side has are therefore taken together with
    their neighbours, as long as no two layers become one that can be told apart.
    """

    def part_of(item: NodeTime) -> str:
        return item.layer or f"{item.operator} nodes of no layer"

    merged = _merged({part_of(item) for item in baseline}, {part_of(item) for item in candidate})
    return _aligned(baseline, candidate, lambda item: merged[part_of(item)])


def _merged(first: set[str], second: set[str]) -> dict[str, str]:
    """For each layer the part of the model that it is counted in."""
    into = {name: name for name in first | second}
    stuck: set[str] = set()
    while True:
        sides = {into[name] for name in first}, {into[name] for name in second}
        alone = [name for name in (sides[0] ^ sides[1]) - stuck if "." in name]
        if not alone:
            return into
        name = max(alone, key=lambda part: (part.count("."), part))
        parent = name.rpartition(".")[0]
        inside = {part for part in sides[0] | sides[1] if part == parent or part.startswith(f"{parent}.")}
        if len(inside & sides[0] & sides[1]) > 1:
            stuck.add(name)
            continue
        into = {own: parent if part in inside else part for own, part in into.items()}


def by_operator(baseline: Sequence[NodeTime], candidate: Sequence[NodeTime]) -> list[Moved]:
    """The time of every operator on both sides, what changed most first."""
    return _aligned(baseline, candidate, lambda item: item.operator)


def _aligned(
    baseline: Sequence[NodeTime], candidate: Sequence[NodeTime], part_of: Callable[[NodeTime], str]
) -> list[Moved]:
    sums: tuple[dict[str, float], dict[str, float]] = (defaultdict(float), defaultdict(float))
    ran: tuple[dict[str, Counter[str]], dict[str, Counter[str]]] = (defaultdict(Counter), defaultdict(Counter))
    for side, items in enumerate((baseline, candidate)):
        for item in items:
            sums[side][part_of(item)] += item.us
            ran[side][part_of(item)][item.operator] += 1
    moved = [
        Moved(part, sums[0].get(part, 0.0), sums[1].get(part, 0.0), *(_operators(side.get(part)) for side in ran))
        for part in dict.fromkeys([*sums[0], *sums[1]])
    ]
    # What lies outside of nodes holds the profiler's own cost and other work's: it is shown, but blames no part.
    return sorted(moved, key=lambda item: (item.part == RUNTIME, -abs(item.change_us)))


def _operators(counts: Counter[str] | None) -> str:
    shown = sorted((counts or Counter()).items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(name if count == 1 else f"{count} {name}" for name, count in shown if name != RUNTIME)


def _layers(written: onnx.ModelProto, ran: onnx.ModelProto) -> dict[str, str]:
    """For each node that runs the layer: of the tensor that it writes, of the node it was, else of what it reads."""
    of_tensor = {name: _layer(node) for node in written.graph.node for name in node.output}
    # A change of the memory layout renames the tensors; the node's new name still holds the old one.
    of_node = {node.name: _layer(node) for node in written.graph.node if node.name and _layer(node)}
    of_node |= {name: layer for name, layer in of_tensor.items() if layer}
    longest = sorted(of_node, key=len, reverse=True)
    found: dict[str, str] = {}
    for node in ran.graph.node:
        layer = next((of_tensor[name] for name in node.output if of_tensor.get(name)), "") or _layer(node)
        layer = layer or next((of_node[name] for name in longest if _holds(node.name, name)), "")
        layer = layer or next((of_tensor[name] for name in node.input if of_tensor.get(name)), "")
        for name in node.output:
            of_tensor[name] = layer
        found[node.name] = layer
    return found


def _holds(new: str, old: str) -> bool:
    return re.search(rf"(?<![A-Za-z0-9]){re.escape(old)}(?![A-Za-z0-9])", new.replace("_nchwc", "")) is not None


def _layer(node: onnx.NodeProto) -> str:
    layer = next((p.value for p in node.metadata_props if p.key == "layer"), "")
    return "" if layer == _NO_LAYER else layer


def _median(values: Sequence[float], runs: Sequence[int]) -> float:
    return float(np.median([values[run] for run in runs if run < len(values)] or [0.0]))
