"""One trace for modules that differ in their sizes alone: the same model as an export of its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import numpy_helper

from lepto.compiler.context import Context
from lepto.compiler.derived import copy_module, derive
from lepto.compiler.encoder import Encoder, Selection
from lepto.compiler.export import again
from lepto.compiler.export.onnx import export_onnx
from lepto.compiler.model import OnnxModel
from lepto.compiler.passes.fuse import Fuse
from lepto.compiler.source import Source, open_source
from lepto.compiler.verify import parity, runner

from .conftest import Toy


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which sources were really exported."""
    names: list[str] = []

    def export(source: Source, *, threads: int) -> object:
        names.append(source.digest)
        return export_onnx(source, threads=threads)

    monkeypatch.setattr(again, "export_onnx", export)
    return names


def cut(source: Source, heads: tuple[int, ...], neurons: tuple[int, ...], width: int | None = None) -> Source:
    module = copy_module(source)
    encoder = Encoder.of(module)
    assert encoder is not None
    encoder.cut(
        Selection(
            tuple(range(len(heads))),
            tuple(tuple(range(n)) for n in heads),
            tuple(tuple(range(n)) for n in neurons),
            None if width is None else tuple(range(width)),
        )
    )
    return derive(source, module)


def same(a: OnnxModel, b: OnnxModel) -> None:
    """The same but for the numbers in the names of values."""
    one, two = a.proto().graph, b.proto().graph
    assert [n.op_type for n in one.node] == [n.op_type for n in two.node]
    names = {"": ""}
    for x, y in zip((*one.input, *one.initializer), (*two.input, *two.initializer), strict=True):
        names[x.name] = y.name
    for n, m in zip(one.node, two.node, strict=True):
        assert [names[x] for x in n.input] == list(m.input)
        names.update(zip(n.output, m.output, strict=True))
    for x, y in zip(one.initializer, two.initializer, strict=True):
        np.testing.assert_array_equal(numpy_helper.to_array(x), numpy_helper.to_array(y))
    sizes = [
        {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in graph.value_info}
        for graph in (one, two)
    ]
    assert {names[name]: dims for name, dims in sizes[0].items()} == sizes[1]


def test_a_cut_encoder_takes_the_graph_of_the_first(toy: Toy, traced: list[str]) -> None:
    source = open_source(str(toy.model))
    encoder = Encoder.of(source.module())
    assert encoder is not None
    sizes = encoder.sizes()
    export = again.Exporter(1)
    first = cut(source, sizes.heads, sizes.neurons)
    export(first)
    smaller = cut(source, (1,) * sizes.layers, tuple(n // 2 for n in sizes.neurons), sizes.width // 2)
    exported = export(smaller)
    model = exported.model
    assert traced == [first.digest]
    itself = export_onnx(smaller, threads=1)
    own = itself.model
    same(model, own)
    assert exported.proof.ok
    assert (exported.proof.rows, exported.shapes) == (itself.proof.rows, itself.shapes)
    assert (exported.exporter, exported.fallback) == (f"{itself.exporter}, traced for other sizes", itself.fallback)
    fused = [Fuse()(one, Context(layers=smaller.layers)).operators() for one in (model, own)]
    assert fused[0] == fused[1]
    assert fused[0]["Attention"]
    fewer = cut(source, sizes.heads[:1], sizes.neurons[:1])
    export(fewer)
    assert traced == [first.digest, fewer.digest]  # another number of layers is another graph


def test_equal_weights_that_become_unlike_ones_are_not_guessed() -> None:
    model = OnnxModel.from_proto(_two_products())
    ones = np.ones((3, 2), np.float32)
    feed = {"x": np.ones((2, 2), np.float32)}
    assert again.with_weights(model, {"a": ones, "b": ones}, {"a": ones, "b": 2 * ones}, feed, threads=1) is None
    both = again.with_weights(model, {"a": ones, "b": ones}, {"a": 2 * ones, "b": 2 * ones}, feed, threads=1)
    assert both is not None
    assert runner(both, 1)(feed)[0, 0] == 8.0  # each product of two ones with two twos, and then their sum


def _two_products() -> object:
    from onnx import TensorProto, helper

    weights = [numpy_helper.from_array(np.ones((2, 3), np.float32), f"val_{i}") for i in range(2)]
    nodes = [helper.make_node("MatMul", ["x", f"val_{i}"], [f"y{i}"]) for i in range(2)]
    nodes.append(helper.make_node("Add", ["y0", "y1"], ["y"]))
    graph = helper.make_graph(
        nodes,
        "main",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def test_what_is_no_graph_for_other_sizes_is_traced_anew(traced: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    export = again.Exporter(1)
    sources = [open_source(f"factories:{name}") for name in ("folded_six", "folded_four")]
    for source in sources:
        model = export(source).model
        feed = {"x": np.random.default_rng(0).standard_normal((3, 1, 8, 8)).astype(np.float32)}
        assert parity(source.runner(1), runner(model, 1), [feed]).ok
    assert export(sources[1]) is not None
    assert traced == [sources[0].digest, sources[1].digest, sources[1].digest]  # and is not tried a second time


def test_a_wrong_graph_is_not_taken(toy: Toy, traced: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source(str(toy.model))
    export = again.Exporter(1)
    export(source)
    encoder = Encoder.of(source.module())
    assert encoder is not None
    other = cut(source, (1,) * encoder.sizes().layers, encoder.sizes().neurons)
    monkeypatch.setattr(again, "with_weights", lambda model, *_a, **_k: model)
    assert parity(other.runner(1), runner(export(other).model, 1), [dict(other.example)]).ok
    assert traced == [source.digest, other.digest]
