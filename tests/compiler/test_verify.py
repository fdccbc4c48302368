from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from onnx import numpy_helper

from lepto.compiler.data import Samples
from lepto.compiler.metrics import metric
from lepto.compiler.model import OnnxModel
from lepto.compiler.source import Text, open_source
from lepto.compiler.verify import encode, first_difference, logits_in_batches, pad, parity, runner, tokenize

from .conftest import Toy, toy_rows
from .test_quantize import feeds, mlp


def test_parity_holds_for_the_same_and_can_fail() -> None:
    samples = feeds(4)
    run = runner(mlp(), 1)
    same = parity(run, run, samples)
    assert (same.ok, same.max_abs, same.agreement, same.rows) == (True, 0.0, 1.0, 4)
    apart = parity(run, lambda feed: run(feed) + 0.1, samples)
    assert not apart.ok
    assert apart.max_abs == pytest.approx(0.1, rel=1e-3)
    assert parity(run, lambda feed: -run(feed), samples).agreement < 1


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_agrees_with_nothing(bad: float) -> None:
    samples = feeds(2)
    run = runner(mlp(), 1)
    for first, second in ((run, lambda f: run(f) * bad), (lambda f: run(f) * bad, lambda f: run(f) * bad)):
        found = parity(first, second, samples)
        assert not found.ok
        assert found.max_abs == np.inf
        assert found.agreement == 0
    with pytest.raises(ValueError, match="sample 1 is not finite"):
        metric(np.array([[0.0, 1.0], [bad, 0.0]], dtype=np.float32), Samples(("a", "b"), np.array([0, 1]), "here"))


def test_a_tie_that_rounding_decides_is_no_other_decision() -> None:
    found = parity(lambda _: np.array([[1.0, 1.0 + 1e-7]]), lambda _: np.array([[1.0 + 1e-7, 1.0]]), [{}])
    assert found.agreement == 1
    assert parity(lambda _: np.array([[1.0, 1.0001]]), lambda _: np.array([[1.0001, 1.0]]), [{}]).agreement == 0


def test_outputs_of_other_shapes_are_an_error() -> None:
    with pytest.raises(ValueError, match="shapes"):
        parity(lambda _: np.zeros((1, 2)), lambda _: np.zeros((1, 3)), [{}])


def test_the_first_layer_that_differs_is_named() -> None:
    model = mlp()
    proto = model.proto()
    for node in proto.graph.node:
        node.metadata_props.add(key="layer", value=f"layers.{node.output[0]}")
    for name in ("one", "two", "three", "four"):
        proto.graph.value_info.add(name=name).type.tensor_type.elem_type = 1
    reference = OnnxModel.from_proto(proto)
    assert first_difference(reference, reference, feeds(2), 1) is None
    for tensor in proto.graph.initializer:
        if tensor.name == "c":
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * 1.5, "c"))
    found = first_difference(reference, OnnxModel.from_proto(proto), feeds(2), 1)
    assert found is not None
    assert (found.tensor, found.layer) == ("four", "layers.four")
    assert "layer 'layers.four'" in str(found)


def test_metric_counts_and_its_interval_holds_it() -> None:
    logits = np.eye(4, dtype=np.float32)
    found = metric(logits, Samples(tuple("abcd"), np.array([0, 1, 2, 0]), "here"))
    assert (found.name, found.value, found.n) == ("accuracy", 0.75, 4)
    assert found.low < 0.75 < found.high
    with pytest.raises(ValueError, match="labels up to 4"):
        metric(logits, Samples(tuple("abcd"), np.array([0, 1, 2, 4]), "here"))


@pytest.fixture(scope="module")
def text(toy: Toy) -> Text:
    found = open_source(str(toy.model)).text
    assert found is not None
    return found


def test_batches_of_like_length_give_results_in_the_order_of_the_samples(text: Text) -> None:
    texts = tuple(t * (1 + i % 3) for i, (t, _) in enumerate(toy_rows()[:40]))
    samples = Samples(texts, np.zeros(40, dtype=np.int64), "here")
    seen: list[int] = []
    shapes: list[tuple[int, ...]] = []

    def run(feed: dict[str, np.ndarray]) -> np.ndarray:
        shapes.append(feed["input_ids"].shape)
        return (feed["input_ids"] * feed["attention_mask"]).sum(axis=1, keepdims=True).astype(np.float32)

    found = logits_in_batches(run, samples, text, seen.append, tokens=100)  # type: ignore[arg-type]
    expected = [sum(ids) for ids in tokenize(texts, text)]
    assert found[:, 0].tolist() == expected
    assert sum(seen) == 40
    assert all(rows * length <= 100 for rows, length in shapes)
    assert all((rows + 1) * after[1] > 100 for (rows, _), after in itertools.pairwise(shapes))  # no fewer
    found = logits_in_batches(run, samples, text, seen.append, tokens=1)  # type: ignore[arg-type]
    assert found[:, 0].tolist() == expected
    assert [rows for rows, _ in shapes[-40:]] == [1] * 40


def test_texts_are_encoded_as_the_runtime_does(text: Text, tmp_path: Path) -> None:
    from lepto.runtime.text import TextEncoder

    (tmp_path / "tokenizer.json").write_text(text.tokenizer)
    encoder = TextEncoder(tmp_path / "tokenizer.json", text.preprocessing)
    texts = ["", "cancel it", "please " * 100, "unheard words"]
    for one, feed in zip(texts, encode(texts, text), strict=True):
        for name, array in encoder.encode([one]).items():
            np.testing.assert_array_equal(feed[name], array)
    together = pad(tokenize(texts, text), text)
    for name, array in encoder.encode(texts).items():
        np.testing.assert_array_equal(together[name], array)
