from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper

from lepto.compiler.context import Context, Left
from lepto.compiler.model import OnnxModel
from lepto.compiler.ort import running_operators
from lepto.compiler.passes.options import make_pass
from lepto.compiler.passes.quantize_embeddings import QuantizeEmbeddings, quantize_blocks, quantize_rows, unpack_blocks
from lepto.compiler.verify import runner

ROWS, K = 40, 64


def network() -> OnnxModel:
    """A table, a normalization, a product for each token, the first token, and a product of its row."""
    rng = np.random.default_rng(0)
    proto = onnx.parser.parse_model(
        f"""<ir_version: 9, opset_import: ["" : 18]>
        g (int64[batch,sequence] ids) => (float[batch,4] y)
        <int64 first = {{0}}, float[batch,sequence,{K}] n, float[batch,sequence,{K}] wide, float[batch,{K}] row>
        {{
            rows = Gather (table, ids)  n = LayerNormalization <axis = -1> (rows, gamma, beta)
            product = MatMul(n, a)  wide = Add(product, b)  row = Gather <axis = 1> (wide, first)
            last = MatMul(row, c)  y = Add(last, d)
        }}"""
    )
    shapes = {"table": (ROWS, K), "gamma": (K,), "beta": (K,), "a": (K, K), "b": (K,), "c": (K, 4), "d": (4,)}
    for name, shape in shapes.items():
        values = rng.standard_normal(shape).astype(np.float32) / 4 + (name == "gamma")
        if name == "table":
            values[7] *= 100  # one loud token, which would decide a scale of the whole table
        proto.graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), name))
    for i, node in enumerate(proto.graph.node):
        node.name = node.name or f"{node.op_type}_{i}"
    return OnnxModel.from_proto(proto)


def feeds(count: int = 40) -> list[dict[str, Any]]:
    rng = np.random.default_rng(1)
    return [{"ids": rng.integers(0, ROWS, (1, 5))} for _ in range(count)]


@pytest.mark.parametrize(("bits", "error"), [(8, 0.02), (4, 0.3)])
def test_a_loud_token_costs_the_others_nothing(bits: Any, error: float) -> None:
    model, context = network(), Context()
    small = QuantizeEmbeddings(bits=bits, smallest_bytes=0)(model, context)
    assert small.bytes < model.bytes - (0.6 if bits == 8 else 0.7) * ROWS * K * 4
    a, b = runner(model, 1), runner(small, 1)
    quiet = {"ids": np.arange(8, 20).reshape(2, 6)}
    assert np.abs(a(quiet) - b(quiet)).max() < error * np.abs(a(quiet)).max()
    assert f"Gather_0 [{ROWS}, {K}]: 0.01 → 0.00 MB, relative error" in context.notes[0]


def test_one_scale_does_for_all_in_two_nodes() -> None:
    model, context = network(), Context()
    small = QuantizeEmbeddings(per_row=False, smallest_bytes=0)(model, context)
    assert small.bytes < model.bytes - 0.7 * ROWS * K * 4
    assert small.operators() == model.operators() + Counter(DequantizeLinear=1)
    # The loud token decides the scale: it keeps its values, and what is quiet beside it is lost.
    loud, quiet = {"ids": np.full((1, 5), 7)}, {"ids": np.full((1, 5), 8)}
    off = [
        np.abs(runner(model, 1)(f) - runner(small, 1)(f)).max() / np.abs(runner(model, 1)(f)).max()
        for f in (loud, quiet)
    ]
    assert off[0] < 0.02 < off[1]


ORDERS = [
    plan
    for size in (2, 3, 4)
    for plan in itertools.combinations(
        ("smooth(samples=20)", "quantize-embeddings(smallest_bytes=0)", "quantize-weights(bits=8,block_size=32)"),
        size - 1,
    )
]


# Seven-bit weights: the products of eight-bit ones saturate on CPUs without VNNI.
@pytest.mark.parametrize("last", ["quantize-dynamic(reduce_range=yes)", "quantize-static(samples=20,reduce_range=yes)"])
@pytest.mark.parametrize("before", ORDERS, ids=lambda plan: "-".join(text.partition("(")[0] for text in plan))
def test_quantizations_that_may_stand_together_do(before: tuple[str, ...], last: str) -> None:
    model = network()
    made = model
    for text in (*before, last):
        made = make_pass(text)(made, Context(calibration=feeds()))
    run = running_operators(made)
    weights = any("weights" in text for text in before)
    assert run["MatMulNBits"] == weights
    assert run["DynamicQuantizeMatMul"] + run["MatMulIntegerToFloat"] == 2 - weights
    assert run["MatMul"] == 0
    tables = [t for t in made.proto().graph.initializer if list(t.dims) == [ROWS, K]]
    assert len(tables) == 1
    assert tables[0].data_type in (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)
    a, b = runner(model, 1), runner(made, 1)
    if any("embeddings" in text for text in before):  # else the loud token has drowned the others
        for feed in feeds(5):
            assert np.abs(a(feed) - b(feed)).max() < 0.1 * np.abs(a(feed)).max()


@given(st.integers(0, 999), st.integers(1, 5), st.integers(1, 40))
def test_rows_keep_their_own_scale(seed: int, rows: int, columns: int) -> None:
    rng = np.random.default_rng(seed)
    table = (rng.standard_normal((rows, columns)) * 10.0 ** rng.integers(-6, 6, (rows, 1))).astype(np.float32)
    integers, scales = quantize_rows(table)
    assert (np.abs(integers * scales - table) <= scales * 0.501).all()
    if columns % 2 == 0:
        packed, blocks = quantize_blocks(table, 16)
        step = np.repeat(np.abs(blocks), 16, axis=1)[:, :columns]
        assert packed.shape == (rows, columns // 2)
        assert (np.abs(unpack_blocks(packed, blocks, 16) - table) <= step * 1.001).all()


def test_it_declines_with_the_reason() -> None:
    with pytest.raises(
        Left, match=r"no embedding table to quantize; Gather_0 has 10240 bytes, smallest_bytes is 65536"
    ):
        QuantizeEmbeddings()(network(), Context())
    with pytest.raises(Left, match="no embedding table"):
        QuantizeEmbeddings(smallest_bytes=0, exclude=("Gather_0",))(network(), Context())


@pytest.mark.parametrize("wrong", [{"bits": 2}, {"block_size": 8}, {"smallest_bytes": -1}])
def test_options_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        QuantizeEmbeddings(**wrong)
