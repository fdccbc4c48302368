"""8 bits for every node but the few that cost the most."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import numpy as np
import numpy.typing as npt

from lepto.compiler.blame import Blame, blame, divergence, fewest, layers_of, squared_error
from lepto.compiler.context import Context, Feed, Left, Table
from lepto.compiler.judged import Judged
from lepto.compiler.model import OnnxModel
from lepto.compiler.passes.calibration import METHODS, Method, Range
from lepto.compiler.passes.quantize_dynamic import QuantizeDynamic, check_integer_kernels, dynamic_int8, quantizable
from lepto.compiler.passes.quantize_static import QuantizeStatic
from lepto.compiler.recipe import allowed_drop
from lepto.compiler.verify import runner

Array = npt.NDArray[np.float32]
Activations = Literal["static", "dynamic"]

TRAINING = "training samples"


@dataclass(frozen=True, slots=True)
class MixedPrecision:
    """Quantize to int8, and keep in float the smallest number of nodes that brings the metric within the budget.

    Every node is quantized alone and blamed by what that does to the outputs; see :mod:`lepto.compiler.blame`. Judged
    on the development data, else on training samples that calibrate nothing: the evaluation data is never looked at.
    Training samples are easier than others, so that a small loss may not show on them.

    Attributes:
        activations: Ranges found on training data, or while running.
        max_drop: What the metric may lose, ``1%`` of the float model's or ``0.01``; by default what the request says.
        tolerance: What the mean distance of the outputs may be where there are no labels to judge by.
        method: How static ranges are chosen.
        samples: How many calibration samples are run at most.
        probes: How many samples the proxy is measured on at most.
        judged: How many samples the metric is measured on at most.
        worst: For how many of the worst nodes the metric is measured.
        most: How many nodes may stay in float.
        reduce_range: Seven-bit weights, for CPUs without VNNI.
    """

    name: ClassVar[str] = "mixed-precision"
    preserves_function: ClassVar[bool] = False
    reads: ClassVar[tuple[str, ...]] = ("calibration", "labels")

    activations: Activations = "static"
    max_drop: str = "1%"
    tolerance: float = 0.01
    method: Method = "mse"
    samples: int = 256
    probes: int = 64
    judged: int = 512
    worst: int = 6
    most: int = 6
    reduce_range: bool = False

    def __post_init__(self) -> None:
        """Check the options."""
        if self.activations not in get_args(Activations):
            raise ValueError(f"activations must be one of {', '.join(get_args(Activations))}, got {self.activations!r}")
        try:
            allowed_drop(self.max_drop, 1.0)
        except ValueError as error:
            raise ValueError(f"max_drop {error}") from None
        if not self.tolerance >= 0:
            raise ValueError(f"tolerance must not be negative, got {self.tolerance}")
        if self.method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}, got {self.method!r}")
        for name in ("samples", "probes", "judged", "worst", "most"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    def __call__(self, model: OnnxModel, context: Context) -> OnnxModel:
        """Return the model with all but a few nodes quantized.

        Raises:
            Left: There is no training data, nothing to quantize, plain quantization already keeps the budget, or too
                many nodes would have to stay in float.
            PassError: A quantized product is not run by an integer kernel.
        """
        if not context.calibration:
            raise Left("nodes are blamed by what they do on training data: give --train")
        bench = _Bench.of(model, context, self)
        nothing: tuple[str, ...] = ()
        if bench.keeps(nothing):
            easy = "; training samples are easier than others: a smaller max_drop asks for more, or give --dev"
            raise Left(
                f"plain quantization keeps the budget: {bench.said(nothing)}; quantize-{self.activations} does the "
                f"same without a search{easy if bench.where == TRAINING else ''}"
            )
        ranked = blame(
            bench.nodes,
            layers_of(model),
            bench.proxy,
            None if bench.judged is None else bench.metric,
            worst=self.worst,
            progress=context.progress,
        )
        plain = bench.said(nothing)
        chosen = fewest(ranked, bench.keeps, most=self.most)
        shown = chosen or ranked
        context.tables.append(_table(shown, bench))
        listed = "; ".join(map(str, shown[: self.most + 2]))
        if chosen is None:
            count = min(self.most, len(ranked))
            most = bench.said([item.node for item in ranked[:count]])
            raise Left(
                f"even with the {count} worst nodes in float the budget is not kept: {most}; without them {plain}; "
                f"alone: {listed}"
            )
        kept = [item.node for item in chosen if item.kept]
        result = bench.quantized(kept)
        counts = "" if self.activations == "static" and bench.static.pairs(model) else check_integer_kernels(result)
        context.note(
            f"{len(kept)} of {len(chosen)} nodes in float: {', '.join(kept)}; {bench.said(kept)}, "
            f"without them {plain}; distance when quantized alone: {listed}" + (f"; {counts}" if counts else "")
        )
        return result


def split(count: int, calibrating: int, seed: int) -> tuple[list[int], list[int]]:
    """Training samples to calibrate on and others to judge on; at most half of them calibrate."""
    order = np.random.default_rng(seed).permutation(count)
    first = min(calibrating, max(1, count // 2))
    return sorted(order[:first].tolist()), sorted(order[first:].tolist())


@dataclass(eq=False)
class _Bench:
    """The model, quantized in many ways and tried on the same samples.

    Attributes:
        model: The float model.
        step: The options.
        static: What quantizes, and finds ranges.
        ranges: Of all activations, found once.
        nodes: What can be quantized.
        feeds: What is judged on.
        judged: The same with labels, in the same order; None without them.
        reference: The float model's outputs.
        where: What the samples are, for people.
        threads: Of the runs.
    """

    model: OnnxModel
    step: MixedPrecision
    static: QuantizeStatic
    ranges: dict[str, Range]
    nodes: tuple[str, ...]
    feeds: Sequence[Feed]
    judged: Judged | None
    reference: list[Array]
    where: str
    threads: int
    known: dict[tuple[str, ...], list[Array]] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, model: OnnxModel, context: Context, step: MixedPrecision) -> _Bench:
        static = QuantizeStatic(samples=step.samples, method=step.method, reduce_range=step.reduce_range)
        calibrating, others = split(len(context.calibration), step.samples, context.seed)
        judged = context.judged
        training = judged is None or judged.training
        rows = (others or calibrating) if training or judged is None else list(range(len(judged)))
        count = min(step.judged, len(rows))
        rows = sorted(np.random.default_rng(context.seed).choice(rows, count, replace=False).tolist())
        judged = None if judged is None else judged.take(rows)
        feeds = [context.calibration[i] for i in rows] if judged is None else judged.feeds
        where = TRAINING if training else "development samples"
        ranges = {}
        if step.activations == "static":
            calibration = [context.calibration[i] for i in calibrating]
            ranges = static.calibrate(model, static.tensors(model), calibration, context)
        nodes = static.nodes(model) if step.activations == "static" else quantizable(model)
        reference = _outputs(model, feeds, context.threads)
        return cls(model, step, static, ranges, nodes, feeds, judged, reference, where, context.threads)

    def quantized(self, kept: Sequence[str]) -> OnnxModel:
        """The model with these nodes in float."""
        names = tuple(kept)
        reduce_range = self.step.reduce_range
        if self.step.activations == "dynamic":
            return QuantizeDynamic(reduce_range=reduce_range, exclude=names)(self.model, Context())
        try:
            return dataclasses.replace(self.static, exclude=names).with_ranges(self.model, self.ranges)[0]
        except Left:  # a lookup has no activation
            return dynamic_int8(self.model, per_channel=True, reduce_range=reduce_range, exclude=names)

    def proxy(self, kept: Sequence[str]) -> float:
        """The distance of the outputs from the float model's; 0 where nothing can be quantized besides these nodes."""
        outputs = self._run(kept, self.step.probes)
        reference = self.reference[: len(outputs)]
        logits = reference[0].shape[-1] > 1 if self.judged is None else self.judged.decides
        measure = divergence if logits else squared_error
        return float(np.mean([measure(a, b) for a, b in zip(reference, outputs, strict=True)]))

    def metric(self, kept: Sequence[str]) -> float:
        """The task's metric."""
        assert self.judged is not None
        return self.judged.score(self._run(kept, len(self.feeds)), self.reference)

    def keeps(self, kept: Sequence[str]) -> bool:
        """Whether the budget is kept."""
        if self.judged is None:
            return self.proxy(kept) <= self.step.tolerance
        return self.metric(kept) >= self.float_metric - allowed_drop(self.step.max_drop, self.float_metric) - 1e-12

    @property
    def float_metric(self) -> float:
        """The task's metric of the float model."""
        assert self.judged is not None
        return self.judged.score(self.reference, self.reference)

    def said(self, kept: Sequence[str]) -> str:
        """The figures for people."""
        if self.judged is None:
            return (
                f"distance {self.proxy(kept):.1e}, tolerance {self.step.tolerance:g} "
                f"({min(self.step.probes, len(self.feeds))} {self.where})"
            )
        allowed = allowed_drop(self.step.max_drop, self.float_metric)
        return (
            f"metric {self.float_metric:.4f} → {self.metric(kept):.4f}, allowed -{allowed:.4f} "
            f"({len(self.feeds)} {self.where}), distance {self.proxy(kept):.1e}"
        )

    def _run(self, kept: Sequence[str], count: int) -> list[Array]:
        """Outputs of the first samples; more of them are run only if they are asked for."""
        key = tuple(kept)
        done = self.known.get(key, [])
        if len(done) < min(count, len(self.feeds)):
            try:
                model = self.quantized(kept)
            except Left:
                return self.reference[:count]
            done = self.known[key] = [*done, *_outputs(model, self.feeds[len(done) : count], self.threads)]
        return done[:count]


def _outputs(model: OnnxModel, feeds: Sequence[Feed], threads: int) -> list[Array]:
    run: Callable[[Feed], Array] = runner(model, threads)
    return [np.asarray(run(feed), np.float32) for feed in feeds]


def _table(ranked: Sequence[Blame], bench: _Bench) -> Table:
    rows = [
        (
            item.node,
            item.layer,
            f"{item.proxy:.2e}",
            "" if item.metric is None else f"{item.metric:.4f}",
            "float" if item.kept else "int8",
        )
        for item in ranked
    ]
    title = f"what quantizing one node alone costs ({len(bench.feeds)} {bench.where})"
    return Table(title, ("node", "layer", "distance", "metric", "kept in"), rows, names=2)
