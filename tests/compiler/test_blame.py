from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper

from lepto.compiler.blame import blame, divergence, fewest, squared_error
from lepto.compiler.context import Context, Left
from lepto.compiler.data import Samples
from lepto.compiler.judged import Judged
from lepto.compiler.model import OnnxModel
from lepto.compiler.ort import running_operators
from lepto.compiler.passes.mixed_precision import MixedPrecision, split
from lepto.compiler.passes.quantize_dynamic import quantizable
from lepto.compiler.passes.quantize_static import QuantizeStatic
from lepto.compiler.verify import runner

K, COUNT = 32, 200


def network() -> OnnxModel:
    """Three products; what the second one reads has one channel that is a thousand times as large as the others."""
    rng = np.random.default_rng(0)
    proto = onnx.parser.parse_model(
        f"""<ir_version: 9, opset_import: ["" : 18]> g (float[batch,{K}] x) => (float[batch,4] y) {{
            one = MatMul(x, a)  two = Relu(one)  three = MatMul(two, b)  four = Relu(three)  y = MatMul(four, c) }}"""
    )
    a, b, c = rng.standard_normal((K, K)), rng.standard_normal((K, K)), rng.standard_normal((K, 4))
    a[:, 0] *= 1000
    b[0] /= 1000
    arrays = {"a": a, "b": b, "c": c}
    proto.graph.initializer.extend(numpy_helper.from_array(v.astype(np.float32) / 6, n) for n, v in arrays.items())
    for node, name in zip(proto.graph.node, ("first", "relu", "loud", "relu2", "head"), strict=True):
        node.name = name
        node.metadata_props.add(key="layer", value=f"body.{name}")
    return OnnxModel.from_proto(proto)


def context(model: OnnxModel, *, labelled: bool = True) -> Context:
    x = np.random.default_rng(1).standard_normal((COUNT, K)).astype(np.float32)
    labels = runner(model, 1)({"x": x}).argmax(1).astype(np.int64)
    feeds = [{"x": row[None]} for row in x]
    samples = Samples({"x": x}, labels, "made")
    return Context(calibration=feeds, judged=Judged.of(samples, None, training=True) if labelled else None)


def quick(**changes: Any) -> MixedPrecision:
    return MixedPrecision(**{"samples": 64, "method": "min-max", "max_drop": "3%"} | changes)


def test_the_node_that_loses_the_accuracy_stays_in_float() -> None:
    model = network()
    asked = context(model)
    before = model.digest
    plain = QuantizeStatic(method="min-max")(model, asked)
    mixed = quick()(model, asked)
    assert OnnxModel(model.data).digest == before
    run = running_operators(mixed)
    assert (run["MatMul"], run["MatMulIntegerToFloat"]) == (1, 2)
    assert "loud" in {node.name for node in mixed.proto().graph.node}
    test = {"x": np.random.default_rng(2).standard_normal((300, K)).astype(np.float32)}
    right = runner(model, 1)(test).argmax(1)
    scores = [float((runner(candidate, 1)(test).argmax(1) == right).mean()) for candidate in (plain, mixed)]
    assert scores[1] > 0.9 > scores[0]
    (note,) = asked.notes[-1:]
    assert note.startswith("1 of 3 nodes in float: loud; metric 1.0000 → ")
    assert "(136 training samples)" in note
    (table,) = asked.tables
    assert table.columns == ("node", "layer", "distance", "metric", "kept in")
    worst, *others = table.rows
    assert (worst[0], worst[1], worst[4]) == ("loud", "body.loud", "float")
    assert [row[4] for row in others] == ["int8", "int8"]


def test_plain_quantization_that_is_good_enough_is_said_with_figures() -> None:
    with pytest.raises(
        Left, match=r"plain quantization keeps the budget: metric 1\.0000 → 0\.\d+, allowed.*quantize-static"
    ):
        quick(max_drop="90%")(network(), context(network()))


def test_too_many_nodes_are_refused_with_figures() -> None:
    asked = context(network())
    with pytest.raises(Left, match=r"even with the 1 worst nodes in float the budget is not kept: metric 1.0.*alone: "):
        quick(max_drop="0", most=1)(network(), asked)
    assert all(row[4] == "int8" for row in asked.tables[0].rows)


def test_without_labels_the_distance_decides() -> None:
    asked = context(network(), labelled=False)
    mixed = quick(tolerance=0.02)(network(), asked)
    assert running_operators(mixed)["MatMul"] == 1
    assert "distance" in asked.notes[0]
    assert "tolerance 0.02" in asked.notes[0]
    assert "metric" not in asked.notes[0]


def test_development_data_judges_where_it_is_given() -> None:
    model = network()
    asked = context(model)
    assert asked.judged is not None
    few = asked.judged.take(range(50))
    # The float model is always wrong on these: nothing can be lost.
    wrong = dataclasses.replace(few.samples, labels=(few.samples.labels + 1) % 4)
    development = dataclasses.replace(few, samples=wrong, training=False)
    with pytest.raises(Left, match=r"metric 0\.0000 → 0\.\d+, allowed -0\.0000 \(50 development samples\)"):
        quick()(model, dataclasses.replace(asked, judged=development))


def test_vectors_are_judged_by_how_close_they_come() -> None:
    model = network()
    asked = context(model)
    assert asked.judged is not None
    vectors = dataclasses.replace(asked.judged.samples, labels=np.zeros((COUNT, 0), np.float32))
    asked = dataclasses.replace(asked, judged=dataclasses.replace(asked.judged, samples=vectors))
    quick(max_drop="1%")(model, asked)
    assert "metric 1.0000 → 0.99" in asked.notes[0]


def test_words_are_judged_at_their_first_tokens() -> None:
    labels = np.empty(2, dtype=object)
    labels[:] = [np.array([1, 0]), np.array([1])]
    outputs = [np.eye(3, dtype=np.float32)[[[0, 1, 2, 0]]], np.eye(3, dtype=np.float32)[[[0, 1]]]]
    judged = Judged([{}, {}], Samples(((), ()), labels, "made"), [[1, 3], [0]])
    assert judged.score(outputs, outputs) == pytest.approx(2 / 3)
    assert judged.take([0]).score(outputs[:1], outputs[:1]) == 1


def test_dynamic_ranges_and_a_lookup_can_be_blamed_too() -> None:
    model = network()
    with pytest.raises(Left, match=r"plain quantization keeps the budget.*quantize-dynamic does"):
        quick(activations="dynamic", max_drop="99%")(model, context(model))
    proto = model.proto()
    table = np.random.default_rng(0).standard_normal((9, K)).astype(np.float32)
    proto.graph.initializer.append(numpy_helper.from_array(table, "table"))
    proto.graph.input.append(onnx.helper.make_tensor_value_info("ids", onnx.TensorProto.INT64, ["batch"]))
    proto.graph.node[0].input[0] = "sum"
    proto.graph.node.insert(0, onnx.helper.make_node("Add", ["x", "rows"], ["sum"], "sum"))
    proto.graph.node.insert(0, onnx.helper.make_node("Gather", ["table", "ids"], ["rows"], "lookup"))
    model = OnnxModel.from_proto(proto)
    assert "lookup" in quantizable(model)
    asked = context(network(), labelled=False)
    feeds = [{**feed, "ids": np.array([i % 9])} for i, feed in enumerate(asked.calibration)]
    asked = dataclasses.replace(asked, calibration=feeds)
    quick(tolerance=0.02)(model, asked)
    assert {row[0] for row in asked.tables[0].rows} == {"first", "loud", "head", "lookup"}


def test_the_smallest_number_that_is_enough() -> None:
    cost = {"a": 0.5, "b": 0.3, "c": 0.0}

    def proxy(kept: Any) -> float:
        return sum(value for name, value in cost.items() if name not in kept)

    ranked = blame("cab", {"a": "layer"}, proxy, None, worst=2)
    assert [(item.node, item.layer) for item in ranked] == [("a", "layer"), ("b", ""), ("c", "")]
    chosen = fewest(ranked, lambda kept: proxy(kept) <= 0.3, most=3)
    assert chosen is not None
    assert [item.kept for item in chosen] == [True, False, False]
    assert fewest(ranked, lambda kept: proxy(kept) <= 0.0, most=1) is None
    # The metric has the last word about the worst few: here it is b that costs.
    judged = blame("abc", {}, proxy, lambda kept: 1.0 if "b" in kept else 0.2, worst=2)
    assert [item.node for item in judged] == ["b", "a", "c"]
    assert judged[2].metric is None


@given(st.integers(0, 99), st.floats(-50, 50))
def test_a_divergence_is_zero_for_the_same_decision_rule_and_positive_else(seed: int, shift: float) -> None:
    logits = np.random.default_rng(seed).standard_normal((3, 5)).astype(np.float32)
    assert divergence(logits, (logits + np.float32(shift))) == pytest.approx(0, abs=1e-4)
    assert divergence(logits, -logits) > 1e-3
    assert squared_error(logits, 2 * logits) == pytest.approx(1)


def test_judging_samples_calibrate_nothing() -> None:
    for count in (2, 3, 10, 1000):
        calibrating, judging = split(count, 256, 0)
        assert not set(calibrating) & set(judging)
        assert sorted([*calibrating, *judging]) == list(range(count))
        assert calibrating
        assert judging


@pytest.mark.parametrize(
    "wrong",
    [{"activations": "some"}, {"max_drop": "x"}, {"tolerance": -1}, {"method": "x"}, {"samples": 0}, {"most": 0}],
)
def test_options_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        MixedPrecision(**wrong)
