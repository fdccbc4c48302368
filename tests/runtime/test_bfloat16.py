"""Models in bf16 on a CPU that has no kernels for them."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest

from lepto.runtime.bfloat16 import on_a_cpu
from lepto.runtime.errors import LeptoError
from lepto.runtime.session import onnxruntime_session

onnx = pytest.importorskip("onnx", reason="a device has no onnx, which makes the models of these tests")
ml_dtypes = pytest.importorskip("ml_dtypes")
helper, numpy_helper, TensorProto = onnx.helper, onnx.numpy_helper, onnx.TensorProto

RNG = np.random.default_rng(0)
W = RNG.standard_normal((8, 4)).astype(np.float32)


def rounded(array: Any) -> np.ndarray[Any, Any]:
    return np.asarray(array).astype(ml_dtypes.bfloat16).astype(np.float32)


def model(operator: str = "Tanh", kind: int = int(TensorProto.BFLOAT16)) -> bytes:
    weight = W.astype(ml_dtypes.bfloat16) if kind == TensorProto.BFLOAT16 else W
    nodes = [
        helper.make_node("Cast", ["x"], ["low"], to=kind),
        helper.make_node("MatMul", ["low", "w"], ["h"]),
        helper.make_node(operator, ["h"], ["t"]),
        helper.make_node("Cast", ["t"], ["y"], to=TensorProto.FLOAT),
    ]
    graph = helper.make_graph(
        nodes,
        "main",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(weight, "w")],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    return bytes(onnx.shape_inference.infer_shapes(made).SerializeToString())


def test_products_are_added_in_float32_and_what_is_stored_is_rounded() -> None:
    x = RNG.standard_normal((5, 8)).astype(np.float32)
    (found,) = onnxruntime_session(model(), threads=1).run(None, {"x": x})
    expected = rounded(np.tanh(rounded(rounded(x) @ rounded(W))))
    # A sum in another order may fall to the other side of where bf16 rounds: one step of 2^-8 at most.
    assert np.abs(found - expected).max() <= 2.0**-8
    assert (found == expected).mean() > 0.8
    np.testing.assert_array_equal(found, rounded(found))
    assert np.abs(found - np.tanh(x @ W)).max() > 1e-4  # no rounding was optimized away


def test_other_models_stay_as_they_are() -> None:
    data = model(kind=TensorProto.FLOAT)
    assert on_a_cpu(data) is data


def test_without_onnx_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(LeptoError, match="pip install onnx"):
        onnxruntime_session(model(), threads=1)
