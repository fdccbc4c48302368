from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper

from lepto.compiler.context import Context, Left
from lepto.compiler.model import OnnxModel
from lepto.compiler.ort import running_operators
from lepto.compiler.passes.quantize_dynamic import QuantizeDynamic
from lepto.compiler.passes.quantize_static import QuantizeStatic, quantization_parameters
from lepto.compiler.verify import runner

RNG = np.random.default_rng(0)


def mlp(width: int = 64) -> OnnxModel:
    """``y = relu(x @ a + b) @ c + d``, x [batch, width]."""
    proto = onnx.parser.parse_model(
        f"""<ir_version: 9, opset_import: ["" : 18]>
        g (float[batch,{width}] x) => (float[batch,8] y) {{
            one = MatMul(x, a)  two = Add(one, b)  three = Relu(two)  four = MatMul(three, c)  y = Add(four, d)
        }}"""
    )
    shapes = {"a": (width, width), "b": (width,), "c": (width, 8), "d": (8,)}
    proto.graph.initializer.extend(
        numpy_helper.from_array((RNG.standard_normal(shape) / 8).astype(np.float32), name)
        for name, shape in shapes.items()
    )
    return OnnxModel.from_proto(proto)


def feeds(count: int) -> list[dict[str, np.ndarray]]:
    return [{"x": RNG.standard_normal((1, 64)).astype(np.float32)} for _ in range(count)]


# Seven-bit weights: the products of eight-bit ones saturate on CPUs without VNNI.
@pytest.mark.parametrize(
    "step",
    [
        QuantizeDynamic(reduce_range=True),
        QuantizeDynamic(granularity="per-tensor", reduce_range=True),
        QuantizeStatic(reduce_range=True),
    ],
)
def test_integer_kernels_run_and_the_answers_stay_near(step: QuantizeDynamic | QuantizeStatic) -> None:
    model, samples = mlp(), feeds(64)
    before = model.digest
    context = Context(calibration=samples)
    small = step(model, context)
    assert OnnxModel(model.data).digest == before
    assert small.bytes < 0.4 * model.bytes
    run = running_operators(small)
    assert run["DynamicQuantizeMatMul"] + run["MatMulIntegerToFloat"] == 2
    assert run["MatMul"] == 0
    assert context.notes
    a, b = runner(model, 1), runner(small, 1)
    for feed in samples[:8]:
        assert np.abs(a(feed) - b(feed)).max() < 0.1 * np.abs(a(feed)).max()


def test_static_rows_do_not_touch_each_other_and_dynamic_rows_do() -> None:
    samples = feeds(64)
    context = Context(calibration=samples)
    large = {"x": 20 * samples[1]["x"]}
    both = {"x": np.concatenate([samples[0]["x"], large["x"]])}
    static, dynamic = (runner(step(mlp(), context), 1) for step in (QuantizeStatic(), QuantizeDynamic()))
    np.testing.assert_allclose(static(both)[:1], static(samples[0]), atol=1e-6)
    assert np.abs(dynamic(both)[:1] - dynamic(samples[0])).max() > 1e-3


def test_reduced_weights_keep_to_seven_bits() -> None:
    for reduce_range, largest in ((True, 64), (False, 127)):
        proto = QuantizeDynamic(reduce_range=reduce_range)(mlp(), Context()).proto()
        weights = [numpy_helper.to_array(t) for t in proto.graph.initializer if t.data_type == onnx.TensorProto.INT8]
        weights = [w for w in weights if w.ndim == 2]
        assert len(weights) == 2
        assert max(np.abs(w.astype(int)).max() for w in weights) <= largest
        assert reduce_range or max(np.abs(w.astype(int)).max() for w in weights) > 64


@given(st.floats(-1e4, 1e4), st.floats(-1e4, 1e4))
def test_the_range_with_zero_fits_into_eight_bits(a: float, b: float) -> None:
    low, high = min(a, b), max(a, b)
    scale, zero = quantization_parameters(low, high)
    assert scale > 0
    for value in (low, 0.0, high):
        quantized = np.clip(np.round(value / scale) + int(zero), 0, 255)
        assert abs((quantized - int(zero)) * scale - value) <= scale * 1.01 + 1e-12
    assert (np.round(0.0 / scale) + int(zero) - int(zero)) * scale == 0  # zero is exact: padding stays padding


def test_known_parameters() -> None:
    assert quantization_parameters(-1.0, 254.0) == (1, 1)
    assert quantization_parameters(0.0, 255.0) == (1, 0)
    assert quantization_parameters(3.0, 255.0) == (1, 0)
    assert quantization_parameters(0.0, 0.0) == (1, 0)


def test_what_cannot_be_quantized_is_declined() -> None:
    proto = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["" : 18]> g (float[batch,4] x) => (float[batch,4] y) { y = Relu(x) }'
    )
    with pytest.raises(Left, match="nothing to quantize"):
        QuantizeDynamic()(OnnxModel.from_proto(proto), Context())
    with pytest.raises(Left, match="--train"):
        QuantizeStatic()(mlp(), Context())
    product = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["" : 18]> g (float[batch,4] x, float[4,4] w) => (float[batch,4] y)'
        " { y = MatMul(x, w) }"
    )
    with pytest.raises(Left, match="constant weights"):
        QuantizeDynamic()(OnnxModel.from_proto(product), Context())


def test_options_are_checked() -> None:
    with pytest.raises(ValueError, match="granularity"):
        QuantizeDynamic(granularity="per-row")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="samples"):
        QuantizeStatic(samples=0)
