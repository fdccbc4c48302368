"""The graph for TensorRT: standard ONNX, every type written out."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from lepto.compiler.context import Context, Left, Table
from lepto.compiler.model import OnnxModel
from lepto.compiler.passes.observe import choose_feeds
from lepto.compiler.passes.quantize_static import activation_ranges
from lepto.compiler.tensorrt.int8 import insert_pairs, quantized_tensors
from lepto.compiler.tensorrt.precision import Half, to_half
from lepto.compiler.tensorrt.ranges import LARGEST, Kept, overflow_prone, reaches, without_bf16
from lepto.compiler.tensorrt.standard import standard_graph
from lepto.runtime.errors import LeptoError

Precision = Literal["fp32", "fp16", "bf16", "int8"]


@dataclass(frozen=True, slots=True)
class Tensorrt:
    """Prepare the graph for TensorRT: fp16, bf16 or int8 with explicit types, overflow-prone layers in fp32.

    What overflows is found by measuring: a layer whose values, inner sums or squares come within ``margin`` of fp16's
    largest number stays in float32, and the list is shown. The result is standard ONNX; no speed is measured here, as
    only its GPU could tell.

    Attributes:
        precision: fp16; bf16 (nothing overflows, but three bits fewer; from compute capability 8.0 on); int8 (products
            and convolutions in 8 bits, the rest in fp16); or fp32.
        margin: How many times larger than on the calibration data values may become before fp16 overflows.
        samples: How many calibration samples are run at most.
        percentile: Percent of an activation's values inside its int8 range, in (0, 100].
        exclude: Names of nodes that stay out of int8.
        keep: Names of nodes that stay in float32, whatever was measured.
        batch: Typical batch of the engine's profile.
        max_batch: Largest batch of the engine's profile; clients cannot send more at once.
        sizes: Percentile of the data's sizes that the profile takes as typical, in (0, 100].
        version_compatible: An engine that other TensorRT versions of the same major number run; slower.
        same_compute_capability: An engine that other GPUs of the same compute capability run.
    """

    name: ClassVar[str] = "tensorrt"
    preserves_function: ClassVar[bool] = False
    reads: ClassVar[tuple[str, ...]] = ("calibration",)
    untimed: ClassVar[bool] = True

    precision: Precision = "fp16"
    margin: float = 2.0
    samples: int = 128
    percentile: float = 99.99
    exclude: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    batch: int = 8
    max_batch: int = 32
    sizes: float = 95.0
    version_compatible: bool = False
    same_compute_capability: bool = False

    def __post_init__(self) -> None:
        """Check the options."""
        if self.precision not in get_args(Precision):
            raise ValueError(f"precision must be one of {', '.join(get_args(Precision))}, got {self.precision!r}")
        if self.margin < 1:
            raise ValueError(f"margin must be at least 1, got {self.margin}")
        if self.samples < 1:
            raise ValueError(f"samples must be at least 1, got {self.samples}")
        for name in ("percentile", "sizes"):
            if not 0 < getattr(self, name) <= 100:
                raise ValueError(f"{name} must be in (0, 100], got {getattr(self, name)}")
        if not 1 <= self.batch <= self.max_batch:
            raise ValueError(f"a profile needs 1 <= batch <= max_batch, got {self.batch} and {self.max_batch}")

    def __call__(self, model: OnnxModel, context: Context) -> OnnxModel:
        """Return the prepared model.

        Raises:
            Left: There is no training data, nothing to quantize, or the graph has another runtime's operators.
            LeptoError: A name in ``exclude`` or ``keep`` is unknown.
            PassError: A value is not finite on the calibration data.
        """
        if not context.calibration:
            raise Left("what overflows in fp16 is found on training data: give --train")
        graph = standard_graph(model)
        names = {node.name for node in graph.proto().graph.node}
        for option in ("exclude", "keep"):
            if unknown := [name for name in getattr(self, option) if name not in names]:
                raise LeptoError(f"tensorrt: {option} names {unknown[0]!r}, which is no node of the graph")
        feeds = choose_feeds(context, self.samples)
        seen = reaches(graph, feeds, context.threads)
        kept: list[Kept] = []
        if self.precision == "bf16":
            kept = without_bf16(graph, self.keep)
        elif self.precision != "fp32":
            kept = overflow_prone(graph, seen, margin=self.margin, asked=self.keep)
        said = [f"{self.precision}, standard ONNX, {len(feeds)} calibration samples"]
        if self.precision == "int8":
            tensors = quantized_tensors(graph, self.exclude)
            ranges = activation_ranges(
                graph, tensors, feeds, method="percentile", percentile=self.percentile, threads=context.threads
            )
            reach = {name: max(abs(low), abs(high)) for name, (low, high) in ranges.items()}
            graph = insert_pairs(graph, reach, self.exclude)
            pairs = Counter(node.op_type for node in graph.proto().graph.node)
            said.append(f"{pairs['QuantizeLinear']} QuantizeLinear, {pairs['DequantizeLinear']} DequantizeLinear")
        if self.precision != "fp32":
            half: Half = "bf16" if self.precision == "bf16" else "fp16"
            graph = to_half(graph, [entry.node for entry in kept], half)
            said.append(_told(kept, max(seen.values(), default=0.0), half))
            context.tables.append(_table(kept))
        context.note("; ".join(said))
        return graph


def _told(kept: list[Kept], largest: float, half: Half) -> str:
    measured = [entry for entry in kept if entry.reaches]
    rest = len(kept) - len(measured)
    if not kept:
        most = f"fp16 holds {LARGEST:.0f}" if half == "fp16" else "bf16 holds what fp32 does"
        return f"no layer in fp32 (values reach {largest:.3g}, {most})"
    worst = max(measured, key=lambda entry: entry.reaches, default=kept[0])
    other = f", {rest} for other reasons" if rest and measured else ""
    where = worst.layer or worst.node
    return f"{len(kept)} nodes in fp32: {where} ({worst.operator}: {worst.why}, {worst.reaches:.3g}){other}"


def _table(kept: list[Kept]) -> Table:
    rows = [
        [entry.layer or entry.node, entry.operator, entry.why, f"{entry.reaches:.3g}" if entry.reaches else "-"]
        for entry in kept
    ]
    return Table("kept in fp32", ["layer", "operator", "why", "reaches"], rows, names=3)
