"""Engines of attention and of a CNN, built for real by TensorRT for RTX, which needs no GPU."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from lepto.compiler.context import Context
from lepto.compiler.model import OnnxModel
from lepto.compiler.passes.tensorrt import Tensorrt
from lepto.compiler.tensorrt.engine import EngineError, build_engine
from lepto.compiler.tensorrt.kit import build_spec
from lepto.compiler.tensorrt.profiles import Shapes
from lepto.compiler.verify import parity, runner
from lepto.kernels.ship.onnx import attention_node, declare
from lepto.runtime.manifest import Tolerance
from lepto.runtime.targets import TARGETS

SHARED = Path(__file__).parents[3] / "shared"
RNG = np.random.default_rng(0)
HIDDEN = 32
value_info = helper.make_tensor_value_info


def built(model: OnnxModel, **profile: tuple[tuple[int, ...], ...]) -> dict[str, Any]:
    pytest.importorskip("tensorrt_rtx")
    shapes = {name: Shapes(*sizes) for name, sizes in profile.items()}
    spec = build_spec(model, TARGETS["rtx-ada"], shapes, Tensorrt(), Tolerance(atol=0.1, rtol=0.1))
    engine = build_engine(model, spec, "tensorrt_rtx", limit_s=240)
    assert engine.record["bytes"] == len(engine.plan) > 10_000
    return dict(engine.record)


def attention_graph(mask: str, **inputs: tuple[int, list[Any]]) -> OnnxModel:
    """A projection, attention, and a layer after it, with the function's body in the file."""
    weights = {"w": RNG.standard_normal((HIDDEN, 3 * HIDDEN)) / 6, "o": RNG.standard_normal((HIDDEN, HIDDEN)) / 6}
    extra = [name for name in inputs if name != "x"]
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="project"),
        helper.make_node("Split", ["h"], ["q", "k", "v"], axis=-1, num_outputs=3, name="split"),
        attention_node(["q", "k", "v", *extra], "a", num_heads=4, scale=0.35, mask=mask, name="attend"),
        helper.make_node("MatMul", ["a", "o"], ["y"], name="out"),
    ]
    graph = helper.make_graph(
        nodes, "g", [value_info(name, kind, shape) for name, (kind, shape) in inputs.items()],
        [value_info("y", TensorProto.FLOAT, inputs["x"][1])],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()],
    )  # fmt: skip
    opset = [helper.make_opsetid("", 18)]
    return OnnxModel.from_proto(declare(helper.make_model(graph, opset_imports=opset, ir_version=9)))


def dense() -> tuple[OnnxModel, dict[str, Any], dict[str, Any]]:
    inputs = {"x": (TensorProto.FLOAT, ["b", "s", HIDDEN]), "m": (TensorProto.BOOL, ["b", 1, 1, "s"])}
    feed = {"x": RNG.standard_normal((2, 5, HIDDEN)).astype(np.float32), "m": np.ones((2, 1, 1, 5), np.bool_)}
    feed["m"][1, ..., 2:] = False
    profile = {
        "x": ((1, 1, HIDDEN), (8, 16, HIDDEN), (32, 64, HIDDEN)),
        "m": ((1, 1, 1, 1), (8, 1, 1, 16), (32, 1, 1, 64)),
    }
    return attention_graph("bool", **inputs), feed, profile


def packed() -> tuple[OnnxModel, dict[str, Any], dict[str, Any]]:
    inputs = {
        "x": (TensorProto.FLOAT, ["t", HIDDEN]), "cu": (TensorProto.INT32, ["c"]), "places": (TensorProto.INT32, ["s"])
    }  # fmt: skip
    feed = {"x": RNG.standard_normal((7, HIDDEN)).astype(np.float32), "cu": np.array([0, 4, 7], np.int32)}
    feed["places"] = np.arange(5, dtype=np.int32)
    profile = {
        "x": ((1, HIDDEN), (64, HIDDEN), (512, HIDDEN)),
        "cu": ((2,), (9,), (33,)),
        "places": ((1,), (16,), (64,)),
    }
    return attention_graph("packed", **inputs), feed, profile


@pytest.mark.parametrize("make", [dense, packed])
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_attention_with_its_function_becomes_an_engine(make, precision):
    model, feed, profile = make()
    context = Context(calibration=[feed])
    prepared = Tensorrt(precision=precision)(model, context)
    assert [function.name for function in prepared.proto().functions] == [model.proto().functions[0].name]
    assert {entry.version for entry in prepared.proto().functions[0].opset_import} == {20}
    assert prepared.operators()["QuantizeLinear"] == (2 if precision == "int8" else 0)
    proof = parity(runner(model, 1), runner(prepared, 1), [feed])
    assert proof.max_rel < {"fp16": 5e-3, "int8": 0.1}[precision]
    assert built(prepared, **profile)["runtime"] == "tensorrt-rtx"


def test_scores_that_overflow_inside_of_attention_keep_it_in_float32():
    model, feed, _ = dense()
    loud = feed | {"x": feed["x"] * 300}
    context = Context(calibration=[loud])
    prepared = Tensorrt()(model, context)
    assert [row[1:3] for row in context.tables[0].rows] == [["AttentionMask", "the scores inside"]]
    assert parity(runner(model, 1), runner(prepared, 1), [loud]).max_rel < 1e-2
    quiet = Context(calibration=[feed])
    Tensorrt()(model, quiet)
    assert quiet.tables[0].rows == []


def cnn() -> OnnxModel:
    """Convolutions with a residual, a mean and a classifier, as networks for images have them."""
    weights = {
        "stem": RNG.standard_normal((16, 3, 3, 3)) / 5,
        "first": RNG.standard_normal((16, 16, 3, 3)) / 12,
        "second": RNG.standard_normal((16, 16, 1, 1)) / 4,
        "head": RNG.standard_normal((10, 16)) / 4,
        "bias": RNG.standard_normal(10),
    }
    proto = onnx.parser.parse_model(
        """<ir_version: 9, opset_import: ["" : 18]> g (float[batch,3,32,32] x) => (float[batch,10] y) {
        a = Conv <pads = [1,1,1,1], strides = [2,2]> (x, stem)  b = Relu(a)
        c = Conv <pads = [1,1,1,1]> (b, first)  d = Relu(c)
        e = Conv(d, second)  f = Add(e, b)  h = Relu(f)
        i = GlobalAveragePool(h)  j = Flatten(i)  y = Gemm <transB = 1> (j, head, bias) }"""
    )
    proto.graph.initializer.extend(numpy_helper.from_array(a.astype(np.float32), n) for n, a in weights.items())
    return OnnxModel.from_proto(proto)


def test_a_cnn_becomes_an_int8_engine():
    model = cnn()
    samples = [{"x": RNG.standard_normal((1, 3, 32, 32)).astype(np.float32)} for _ in range(8)]
    prepared = Tensorrt(precision="int8")(model, Context(calibration=samples))
    operators = prepared.operators()
    # Each convolution's and the classifier's input; that of the residual is the first convolution's as well.
    assert (operators["QuantizeLinear"], operators["DequantizeLinear"]) == (4, 8)
    assert parity(runner(model, 1), runner(prepared, 1), samples).max_rel < 0.1
    record = built(prepared, x=((1, 3, 32, 32), (8, 3, 32, 32), (32, 3, 32, 32)))
    assert record["compute_capability"] == "8.9"


def test_queries_keys_and_values_that_are_one_tensor_crash_the_builder_and_the_node_is_named():
    rtx = pytest.importorskip("tensorrt_rtx")
    if not rtx.__version__.startswith("1.7."):
        pytest.skip(f"TensorRT for RTX 1.7 ends in a segmentation fault here, this is {rtx.__version__}")
    shape = ["b", 4, "s", 64]
    nodes = [
        helper.make_node("Relu", ["x"], ["r"], name="before"),
        helper.make_node("Attention", ["r", "r", "r"], ["y"], name="one_tensor", scale=0.125),
    ]
    graph = helper.make_graph(
        nodes, "g", [value_info("x", TensorProto.FLOAT16, shape)], [value_info("y", TensorProto.FLOAT16, shape)]
    )
    model = OnnxModel.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10))
    said = (
        r"tensorrt_rtx crashed at node 'one_tensor' \(Attention\): signal SIGSEGV. Write Attention in other operators"
    )
    with pytest.raises(EngineError, match=said) as caught:
        built(model, x=((1, 4, 1, 64), (2, 4, 16, 64), (8, 4, 64, 64)))
    assert caught.value.node == "one_tensor"


@pytest.mark.thorough
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not SHARED.exists(), reason="the shared MiniLM and its data are not here")
@pytest.mark.parametrize("plan", ["tensorrt", "tensorrt(precision=int8)", "attention,tensorrt"])
def test_minilm_becomes_a_package_with_an_engine(plan, tmp_path):
    """fp16, int8 calibrated and judged on real sentences, and with attention's function bodies."""
    pytest.importorskip("tensorrt_rtx")
    from lepto.compiler import Recipe, compile_model

    for name, count in (("train", 64), ("test", 200)):
        with (SHARED / "data" / "banking77" / f"{name}.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        picked = [rows[i] for i in sorted(np.random.default_rng(0).choice(len(rows), count, replace=False))]
        with (tmp_path / f"{name}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, ["text", "category"])
            writer.writeheader()
            writer.writerows(picked)
    recipe = Recipe(
        model=str(SHARED / "models" / "minilm-banking77"), train=str(tmp_path / "train.csv"), target="rtx-ada",
        eval=str(tmp_path / "test.csv"), text_column="text", label_column="category", max_drop="3%", threads=2,
        passes=tuple(plan.split(",")),
    )  # fmt: skip
    package = compile_model(recipe, tmp_path / "package")
    record = json.loads((tmp_path / "package" / "engine.json").read_text())
    assert record["bytes"] > 20_000_000
    assert record["profile"]["input_ids"]["max"] == [32, 512]
    metric = package.manifest.passes[-1].metric
    assert metric is not None
    assert (metric.n, metric.name) == (200, "accuracy")
    assert metric.value > 0.85
    operators = OnnxModel((tmp_path / "package" / "model.onnx").read_bytes()).operators()
    assert operators["AttentionMask"] == (6 if "attention" in plan else 0)
    assert (operators["QuantizeLinear"] > 20) == ("int8" in plan)
