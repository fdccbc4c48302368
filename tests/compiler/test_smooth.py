from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hn
from onnx import numpy_helper

from lepto.compiler.context import Context, Left
from lepto.compiler.model import OnnxModel
from lepto.compiler.passes.quantize_static import QuantizeStatic
from lepto.compiler.passes.smooth import Smooth, migration_scales
from lepto.compiler.verify import parity, runner

RNG = np.random.default_rng(0)
K = 32


def network(body: str, shapes: dict[str, tuple[int, ...]], **constants: Any) -> OnnxModel:
    proto = onnx.parser.parse_model(
        f'<ir_version: 9, opset_import: ["" : 18]> g (float[batch,{K}] x) => (float[batch,{K}] y) {{ {body} }}'
    )
    arrays = {name: RNG.standard_normal(shape) / 4 for name, shape in shapes.items()} | constants
    proto.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(array, np.float32), name) for name, array in arrays.items()
    )
    return OnnxModel.from_proto(proto)


def outliers() -> np.ndarray[Any, Any]:
    gamma = np.ones(K)
    gamma[:3] = 60
    return gamma


NORMALIZED = "n = LayerNormalization <axis = -1> (x, gamma, beta)  m = MatMul(n, w)  y = Add(m, b)"
RELU = "m = MatMul(x, v)  a = Add(m, c)  r = Relu(a)  y = Gemm <transB = 1> (r, w, b)"
RESIDUAL = "n = LayerNormalization <axis = -1> (x, gamma, beta)  m = MatMul(n, w)  y = Add(m, n)"


def normalized(body: str = NORMALIZED) -> OnnxModel:
    # Weights of the loud channels are small, as training makes them.
    w = RNG.standard_normal((K, K)) / 4 / outliers()[:, None]
    shapes = {"b": (K,)} if "b)" in body else {}
    return network(body, shapes, gamma=outliers(), beta=RNG.standard_normal(K), w=w)


def feeds(count: int = 64) -> list[dict[str, Any]]:
    rng = np.random.default_rng(1)
    return [{"x": rng.standard_normal((1, K)).astype(np.float32)} for _ in range(count)]


@pytest.mark.parametrize("body", [NORMALIZED, RELU])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_the_function_stays_and_nothing_is_computed_more(body: str, alpha: float) -> None:
    model = normalized() if body == NORMALIZED else network(body, {"v": (K, K), "c": (K,), "w": (K, K), "b": (K,)})
    before = model.digest
    context = Context(calibration=feeds())
    smooth = Smooth(alpha=alpha)(model, context)
    assert OnnxModel(model.data).digest == before != smooth.digest
    assert smooth.operators() == model.operators()
    assert parity(runner(model, 1), runner(smooth, 1), feeds(8)).ok
    assert "1 activations" in context.notes[0]


def test_static_quantization_loses_less_after_it() -> None:
    model, context = normalized(), Context(calibration=feeds())
    want = runner(model, 1)

    def error(candidate: OnnxModel) -> float:
        quantized = runner(QuantizeStatic(method="min-max")(candidate, context), 1)
        return float(np.mean([np.abs(want(feed) - quantized(feed)).mean() for feed in feeds(32)]))

    assert error(Smooth()(model, context)) < 0.5 * error(model)


def test_a_residual_is_multiplied_back_only_where_it_is_asked_for() -> None:
    model, context = normalized(RESIDUAL), Context(calibration=feeds())
    with pytest.raises(Left, match=r"1 are read by residual connections too \(residuals=True\)"):
        Smooth()(model, context)
    smooth = Smooth(residuals=True)(model, context)
    assert smooth.operators()["Mul"] == 1
    assert parity(runner(model, 1), runner(smooth, 1), feeds(8)).ok


def test_it_declines_without_data_or_without_a_place_for_the_scales() -> None:
    with pytest.raises(Left, match="--train"):
        Smooth()(normalized(), Context())
    plain = network("y = MatMul(x, w)", {"w": (K, K)})
    with pytest.raises(Left, match="no activation whose scales can move into weights: none fits"):
        Smooth()(plain, Context(calibration=feeds()))
    gelu = network("m = MatMul(x, v)  t = Tanh(m)  y = MatMul(t, w)", {"v": (K, K), "w": (K, K)})
    with pytest.raises(Left, match="none fits"):  # tanh(x / s) is not tanh(x) / s
        Smooth()(gelu, Context(calibration=feeds()))


@given(
    hn.arrays(np.float64, 7, elements=st.floats(0, 1e6)),
    hn.arrays(np.float64, 7, elements=st.floats(0, 1e6)),
    st.floats(0, 1),
)
def test_scales_are_positive_and_leave_dead_channels_alone(
    activations: np.ndarray[Any, Any], weights: np.ndarray[Any, Any], alpha: float
) -> None:
    scales = migration_scales(activations, weights, alpha)
    assert (scales > 0).all()
    assert np.isfinite(scales).all()
    assert (scales[(activations == 0) | (weights == 0)] == 1).all()


def test_alpha_moves_the_difficulty_from_one_side_to_the_other() -> None:
    activations, weights = np.array([1.0, 10, 100]), np.array([2.0, 1, 0.5])
    for alpha, even in ((1.0, activations), (0.0, 1 / weights)):
        np.testing.assert_allclose(
            even / migration_scales(activations, weights, alpha), np.full(3, np.exp(np.log(even).mean()))
        )
    scales = migration_scales(activations, weights, 0.5)
    np.testing.assert_allclose(activations / scales, weights * scales * (activations / weights / scales**2)[0])


@pytest.mark.parametrize("wrong", [{"alpha": -0.1}, {"alpha": 1.1}, {"samples": 0}])
def test_options_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Smooth(**wrong)
