"""Static int8 quantization: activation ranges from training data instead of from each request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import numpy as np
import onnx
import onnx_ir as ir

from lepto.compiler.context import Context, Feed, Left
from lepto.compiler.model import OnnxModel
from lepto.compiler.passes.calibration import (
    METHODS,
    Histogram,
    Method,
    Range,
    activation_range,
    count_values,
    quantization_parameters,
)
from lepto.compiler.passes.fusions import graph as g
from lepto.compiler.passes.observe import choose_feeds, observe
from lepto.compiler.passes.qdq import qdq_int8, quantizable_qdq, quantized_tensors
from lepto.compiler.passes.quantize_dynamic import check_integer_kernels, dynamic_int8, kept_in_float, quantizable

Format = Literal["auto", "operators", "qdq"]


@dataclass(frozen=True, slots=True)
class QuantizeStatic:
    """Weights to int8, activations to uint8 with ranges found on training data.

    The integer products are those of dynamic quantization; only the ranges are constants, so that nothing is searched
    at run time and no row depends on the rows beside it.

    Attributes:
        samples: How many calibration samples are run at most.
        reduce_range: Seven-bit weights, for CPUs without VNNI.
        method: How ranges are chosen from what was seen; see :mod:`lepto.compiler.passes.calibration`.
        percentile: Percent of an activation's values inside its range, in (0, 100]; for that method alone.
        format: ``operators`` writes ONNX Runtime's fused integer products; ``qdq`` writes standard
            ``QuantizeLinear``/``DequantizeLinear`` pairs around float operators, for TensorRT and other runtimes, and
            for convolutions, which ONNX Runtime fuses from them; ``auto`` is ``qdq`` where there are convolutions.
        symmetric: Activations to int8 with zero point 0, as TensorRT wants them; for ``qdq`` alone.
        exclude: Names of nodes that stay in float.
    """

    name: ClassVar[str] = "quantize-static"
    preserves_function: ClassVar[bool] = False
    reads: ClassVar[tuple[str, ...]] = ("calibration",)

    samples: int = 256
    reduce_range: bool = False
    method: Method = "mse"
    percentile: float = 99.99
    format: Format = "auto"
    symmetric: bool = False
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check the options."""
        if self.samples < 1:
            raise ValueError(f"samples must be at least 1, got {self.samples}")
        if self.method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}, got {self.method!r}")
        if not 0 < self.percentile <= 100:
            raise ValueError(f"percentile must be in (0, 100], got {self.percentile}")
        if self.format not in get_args(Format):
            raise ValueError(f"format must be one of {', '.join(get_args(Format))}, got {self.format!r}")
        if self.symmetric and self.format != "qdq":
            raise ValueError(f"symmetric activations are written with format='qdq' alone, got {self.format!r}")

    def __call__(self, model: OnnxModel, context: Context) -> OnnxModel:
        """Return the quantized model.

        Raises:
            Left: There is no training data, or nothing to quantize.
            LeptoError: A name in ``exclude`` is unknown.
            PassError: A quantized product is not run by an integer kernel.
        """
        if not context.calibration:
            raise Left("static quantization needs training data to find the ranges of the activations: give --train")
        feeds = choose_feeds(context, self.samples)
        names = self.tensors(model)
        learned = {} if context.learned is None else context.learned.of(model, names, context.threads)
        ranges = learned | self.calibrate(model, [name for name in names if name not in learned], feeds, context)
        result, counts = self.with_ranges(model, ranges)
        trained = f", {len(learned)} of {len(names)} ranges trained" if learned else ""
        context.note(
            f"{counts or check_integer_kernels(result)}; {len(feeds)} calibration samples, {self.method}{trained}"
            f"{kept_in_float(self.exclude)}"
        )
        return result

    def nodes(self, model: OnnxModel) -> tuple[str, ...]:
        """Names of the nodes that are quantized, or could be excluded from it."""
        return quantizable_qdq(model) if self.pairs(model) else quantizable(model)

    def tensors(self, model: OnnxModel) -> list[str]:
        """Names of the activations whose range is needed.

        Raises:
            Left: There is nothing to quantize.
            LeptoError: A name in ``exclude`` is unknown.
        """
        if self.pairs(model):
            return quantized_tensors(model, self.exclude)
        names = sorted({node.input[0] for node in _activations(self._dynamic(model))})
        if not names:
            raise Left("nothing to quantize: no activation meets quantized weights")
        return names

    def calibrate(
        self, model: OnnxModel, names: Sequence[str], feeds: Sequence[Feed], context: Context
    ) -> dict[str, Range]:
        """The ranges of activations on calibration data, by name."""
        return activation_ranges(
            model, names, feeds, method=self.method, percentile=self.percentile, threads=context.threads
        )

    def with_ranges(self, model: OnnxModel, ranges: Mapping[str, Range]) -> tuple[OnnxModel, str]:
        """Quantize with known ranges, of more tensors than needed if need be; and the integer kernels, if counted.

        Raises:
            Left: There is nothing to quantize.
            PassError: A quantized product is not run by an integer kernel.
        """
        if self.pairs(model):
            needed = {name: ranges[name] for name in quantized_tensors(model, self.exclude)}
            return qdq_int8(
                model, needed, reduce_range=self.reduce_range, symmetric=self.symmetric, exclude=self.exclude
            )
        return _with_constants(self._dynamic(model), ranges), ""

    def pairs(self, model: OnnxModel) -> bool:
        """Whether standard pairs are written for this graph."""
        return self.format == "qdq" or (self.format == "auto" and model.operators()["Conv"] > 0)

    def _dynamic(self, model: OnnxModel) -> OnnxModel:
        return dynamic_int8(model, per_channel=True, reduce_range=self.reduce_range, exclude=self.exclude)


def _activations(model: OnnxModel) -> list[onnx.NodeProto]:
    return [node for node in model.proto().graph.node if node.op_type == "DynamicQuantizeLinear"]


def activation_ranges(
    model: OnnxModel,
    names: Sequence[str],
    feeds: Sequence[Feed],
    *,
    method: Method,
    percentile: float = 99.99,
    threads: int = 1,
) -> dict[str, Range]:
    """The range of each tensor on calibration data, by name.

    The model is run once for the extremes and, unless they are the ranges, once more for the histograms between them.

    Raises:
        PassError: A tensor is unknown or not finite.
    """
    if not names:
        return {}
    lows, highs = np.full(len(names), np.inf), np.full(len(names), -np.inf)
    for values in observe(model, names, feeds, threads):
        for i, value in enumerate(values):
            lows[i], highs[i] = min(lows[i], value.min(initial=np.inf)), max(highs[i], value.max(initial=-np.inf))
    ends = [(float(low), float(high)) for low, high in zip(lows, highs, strict=True)]
    if method == "min-max":
        return {name: (min(low, 0.0), max(high, 0.0)) for name, (low, high) in zip(names, ends, strict=True)}
    counts = [count_values(np.empty(0, np.float32), low, high) for low, high in ends]
    for values in observe(model, names, feeds, threads):
        for i, value in enumerate(values):
            counts[i] += count_values(value, *ends[i])
    histograms = [Histogram(seen, low, high) for seen, (low, high) in zip(counts, ends, strict=True)]
    return {
        name: activation_range(histogram, method, percentile=percentile)
        for name, histogram in zip(names, histograms, strict=True)
    }


def _with_constants(model: OnnxModel, ranges: Mapping[str, Range]) -> OnnxModel:
    """Give each dynamically quantized activation a constant scale and zero point, and fuse the products with them.

    ONNX Runtime fuses an integer product with its scales at load time only while the scale is computed, so the fused
    ``MatMulIntegerToFloat`` is written here.
    """
    loaded = model.ir()
    graph = loaded.graph
    for node in [node for node in graph if node.op_type == "DynamicQuantizeLinear"]:
        source = node.inputs[0]
        assert source is not None
        assert source.name is not None
        scale, zero = quantization_parameters(*ranges[source.name])
        quantized, old_scale, old_zero = node.outputs
        stem = f"{source.name}.calibrated"
        new_scale = g.add_initializer(graph, f"{stem}.scale", np.asarray(scale))
        new_zero = g.add_initializer(graph, f"{stem}.zero_point", np.asarray(zero))
        for old, new in ((old_scale, new_scale), (old_zero, new_zero)):
            ir.convenience.replace_all_uses_with(old, new)
        made = g.insert(graph, node, "QuantizeLinear", [source, new_scale, new_zero], like=quantized)
        ir.convenience.replace_all_uses_with(quantized, made)
    for node in [node for node in graph if node.op_type == "MatMulInteger"]:
        _fuse_product(graph, node)
    return OnnxModel.from_ir(g.finish(loaded))


def _fuse_product(graph: ir.Graph, product: ir.Node) -> None:
    """``Mul(Cast(MatMulInteger(a, b, a0, b0)), Mul(sa, sb))`` and a bias become one ``MatMulIntegerToFloat``."""
    cast = g.only_user(product.outputs[0])
    scaled = None if cast is None or cast.op_type != "Cast" else g.only_user(cast.outputs[0])
    if cast is None or scaled is None or scaled.op_type != "Mul":
        return
    scales = g.producer(g.other(scaled, cast.outputs[0]), "Mul")
    if scales is None:
        return
    a, b, a_zero, b_zero = product.inputs
    # The quantizer writes the activation's scale first.
    a_scale, b_scale = scales.inputs
    inputs, out = [a, b, a_scale, b_scale, a_zero, b_zero], scaled.outputs[0]
    add = g.only_user(out)
    if add is not None and add.op_type == "Add":
        bias = g.other(add, out)
        array = g.constant(bias)
        if array is not None and array.ndim == 1:
            inputs, out = [*inputs, bias], add.outputs[0]
    last = out.producer()
    assert last is not None
    g.replace(out, g.insert(graph, last, "MatMulIntegerToFloat", inputs, domain=g.MICROSOFT, like=out))
