from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from lepto.compiler.context import Context, Left
from lepto.compiler.model import OnnxModel
from lepto.compiler.ort import running_operators
from lepto.compiler.passes.quantize_dynamic import QuantizeDynamic
from lepto.compiler.passes.quantize_weights import QuantizeWeights
from lepto.compiler.verify import runner
from lepto.runtime.errors import LeptoError

RNG = np.random.default_rng(0)
K = 64


def network() -> OnnxModel:
    """A product with S rows for each sample, a pick of the first row, a product and a Gemm of that row."""
    proto = onnx.parser.parse_model(
        f"""<ir_version: 9, opset_import: ["" : 18]>
        g (float[batch,sequence,{K}] x) => (float[batch,8] y)
        <int64 first = {{0}}, float[batch,sequence,{K}] many, float[batch,{K}] row, float[batch,{K}] one,
         float[batch,{K}] two>
        {{
            many = MatMul(x, a)  row = Gather <axis = 1> (many, first)
            one = MatMul(row, b)  two = Add(one, c)  y = Gemm <transB = 1> (two, d, e)
        }}"""
    )
    shapes = {"a": (K, K), "b": (K, K), "c": (K,), "d": (8, K), "e": (8,)}
    proto.graph.initializer.extend(
        numpy_helper.from_array((RNG.standard_normal(shape) / 8).astype(np.float32), name)
        for name, shape in shapes.items()
    )
    for node, name in zip(proto.graph.node, ("wide", "pick", "narrow", "bias", "head"), strict=True):
        node.name = name
    return OnnxModel.from_proto(proto)


def feed(rows: int = 5, batch: int = 2) -> dict[str, Any]:
    return {"x": np.random.default_rng(3).standard_normal((batch, rows, K)).astype(np.float32)}


@pytest.mark.parametrize(("bits", "error"), [(8, 0.02), (4, 0.25)])
@pytest.mark.parametrize("block_size", [16, 32, 64])
def test_answers_stay_near_and_weights_shrink(bits: Any, error: float, block_size: int) -> None:
    model, context = network(), Context()
    before = model.digest
    small = QuantizeWeights(bits=bits, block_size=block_size, rows="all")(model, context)
    assert OnnxModel(model.data).digest == before
    run = running_operators(small)
    assert run["MatMulNBits"] == 3
    assert run["MatMul"] + run["Gemm"] == 0
    assert run["Add"] == 0  # the biases went into the products
    assert small.bytes < (0.55 if bits == 8 else 0.5) * model.bytes
    a, b = runner(model, 1)(feed()), runner(small, 1)(feed())
    assert np.abs(a - b).max() < error * np.abs(a).max()
    assert "3 of 3 products: weights 0.03 → 0.0" in context.notes[0]


def test_only_products_of_one_row_are_changed_by_default() -> None:
    small = QuantizeWeights(bits=8, block_size=32)(network(), Context())
    counts = small.operators()
    assert (counts["MatMulNBits"], counts["MatMul"]) == (2, 1)
    assert small.proto().graph.node[0].op_type == "MatMul"


def test_rows_do_not_touch_each_other() -> None:
    run = runner(QuantizeWeights(bits=8, block_size=32, rows="all")(network(), Context()), 1)
    both = feed()
    both["x"][1] *= 30
    np.testing.assert_allclose(run(both)[:1], run({"x": both["x"][:1]}), atol=1e-5)


def test_dynamic_quantization_takes_the_rest() -> None:
    mixed = QuantizeDynamic()(QuantizeWeights(bits=8, block_size=32)(network(), Context()), Context())
    run = running_operators(mixed)
    assert run["MatMulNBits"] == 2
    assert run["DynamicQuantizeMatMul"] == 1
    a, b = runner(network(), 1), runner(mixed, 1)
    assert a(feed()).shape == b(feed()).shape


def test_excluded_nodes_stay_and_unknown_ones_are_named() -> None:
    small = QuantizeWeights(bits=8, block_size=32, exclude=("narrow",))(network(), Context())
    assert (small.operators()["MatMulNBits"], small.operators()["MatMul"]) == (1, 2)
    with pytest.raises(LeptoError, match="no node 'naro' can be quantized in this graph; did you mean 'narrow'"):
        QuantizeWeights(exclude=("naro",))(network(), Context())


def test_it_declines_with_the_reason() -> None:
    wide = onnx.parser.parse_model(
        f'<ir_version: 9, opset_import: ["" : 18]> g (float[batch,sequence,{K}] x) => (float[batch,sequence,{K}] y)'
        " { y = MatMul(x, a) }"
    )
    wide.graph.initializer.append(numpy_helper.from_array(np.ones((K, K), np.float32), "a"))
    with pytest.raises(Left, match="none of the 1 products is known to have one row"):
        QuantizeWeights()(OnnxModel.from_proto(wide), Context())
    nothing = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["" : 18]> g (float[batch,4] x) => (float[batch,4] y) { y = Relu(x) }'
    )
    with pytest.raises(Left, match="no MatMul or Gemm with constant weights"):
        QuantizeWeights()(OnnxModel.from_proto(nothing), Context())


@pytest.mark.parametrize("wrong", [{"bits": 3}, {"block_size": 24}, {"block_size": 8}, {"rows": "some"}])
def test_options_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        QuantizeWeights(**wrong)
