"""Static int8 quantization: activation ranges from training data instead of from each request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime

from lepto.compiler.context import Context, Feed, Left, PassError
from lepto.compiler.model import OnnxModel
from lepto.compiler.passes.fusions import graph as g
from lepto.compiler.passes.quantize_dynamic import check_integer_kernels, dynamic_int8


def quantization_parameters(low: float, high: float) -> tuple[np.float32, np.uint8]:
    """Scale and zero point of asymmetric uint8 for a range that includes 0.

    ONNX operator ``DynamicQuantizeLinear`` (opset 11) gives the formula; here the range is known beforehand.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    # A range of denormals has a scale that rounds to zero.
    scale = np.float32(max((high - low) / 255, float(np.finfo(np.float32).tiny))) if high > low else np.float32(1)
    return scale, np.uint8(np.clip(np.round(-low / scale), 0, 255))


@dataclass(frozen=True, slots=True)
class QuantizeStatic:
    """Weights to int8, activations to uint8 with ranges found on training data.

    The integer products are those of dynamic quantization; only the ranges are constants, so that nothing is searched
    at run time and no row depends on the rows beside it.

    Attributes:
        samples: How many calibration samples are run at most.
        reduce_range: Seven-bit weights, for CPUs without VNNI.
    """

    name: ClassVar[str] = "quantize-static"
    preserves_function: ClassVar[bool] = False

    samples: int = 256
    reduce_range: bool = False

    def __post_init__(self) -> None:
        """Check the options."""
        if self.samples < 1:
            raise ValueError(f"samples must be at least 1, got {self.samples}")

    def __call__(self, model: OnnxModel, context: Context) -> OnnxModel:
        """Return the quantized model.

        Raises:
            Left: There is no training data, or nothing to quantize.
            PassError: A quantized product is not run by an integer kernel.
        """
        if not context.calibration:
            raise Left("static quantization needs training data to find the ranges of the activations: give --train")
        dynamic = dynamic_int8(model, per_channel=True, reduce_range=self.reduce_range)
        nodes = [node for node in dynamic.proto().graph.node if node.op_type == "DynamicQuantizeLinear"]
        if not nodes:
            raise Left("nothing to quantize: no activation meets quantized weights")
        names = sorted({node.input[0] for node in nodes})
        rng = np.random.default_rng(context.seed)
        count = min(self.samples, len(context.calibration))
        chosen = sorted(rng.choice(len(context.calibration), count, replace=False))
        graph = model.proto().graph
        made = {output for node in graph.node for output in node.output} | {value.name for value in graph.input}
        if missing := [name for name in names if name not in made]:
            raise PassError(f"calibration: the float graph has no tensor {missing[0]!r}")
        ranges = _min_max(model, names, [context.calibration[i] for i in chosen])
        result = _with_constants(dynamic, ranges)
        context.note(f"{check_integer_kernels(result)}; {count} calibration samples, min-max")
        return result


def _min_max(model: OnnxModel, names: Sequence[str], feeds: Sequence[Feed]) -> dict[str, tuple[float, float]]:
    """Smallest and largest value of each tensor: the reductions are added to the graph, so that nothing is kept."""
    proto = model.proto()
    del proto.graph.output[:]
    outputs = []
    for i, name in enumerate(names):
        for op_type in ("ReduceMin", "ReduceMax"):
            proto.graph.node.append(onnx.helper.make_node(op_type, [name], [f"{op_type}_{i}"], keepdims=0))
            proto.graph.output.append(
                onnx.helper.make_tensor_value_info(f"{op_type}_{i}", onnx.TensorProto.FLOAT, None)
            )
            outputs.append(f"{op_type}_{i}")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    inputs = {value.name for value in session.get_inputs()}
    seen = np.array([session.run(outputs, {k: v for k, v in feed.items() if k in inputs}) for feed in feeds])
    if not np.isfinite(seen).all():
        raise PassError("calibration: an activation is not finite on the training data")
    lows, highs = seen[:, 0::2].min(axis=0), seen[:, 1::2].max(axis=0)
    return {name: (float(low), float(high)) for name, low, high in zip(names, lows, highs, strict=True)}


def _with_constants(model: OnnxModel, ranges: Mapping[str, tuple[float, float]]) -> OnnxModel:
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
