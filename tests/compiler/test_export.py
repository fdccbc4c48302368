from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from lepto.compiler.context import Context, PassError
from lepto.compiler.evaluate import real_feeds
from lepto.compiler.export import onnx as export
from lepto.compiler.model import OnnxModel
from lepto.compiler.passes.fuse import Fuse
from lepto.compiler.source import Source, open_source
from lepto.compiler.verify import parity, runner

from .conftest import Toy


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


@pytest.fixture(scope="module")
def source(toy: Toy) -> Source:
    return open_source(str(toy.model))


@pytest.fixture(scope="module")
def exported(source: Source) -> export.Exported:
    return export.export_onnx(source, threads=1)


def test_shapes_from_one_to_the_largest_are_proven(exported: export.Exported) -> None:
    assert exported.exporter == "torch.onnx.export(dynamo=True)"
    assert exported.fallback == ""
    assert {"1x1", "16x1", "1x16", "1x32", "2x32"} <= set(exported.shapes)
    assert exported.proof.ok
    graph = exported.model.proto().graph
    assert [value.name for value in graph.output] == ["logits", "scores"]
    dims = [[d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in (*graph.input, *graph.output)]
    assert dims == [["batch", "sequence"]] * (len(dims) - 2) + [["batch", 3]] * 2


def test_two_exports_are_the_same_bytes(source: Source, exported: export.Exported) -> None:
    assert export.export_onnx(source, threads=1).model.digest == exported.model.digest
    assert b"/work" not in exported.model.data
    assert b".py" not in exported.model.data


@pytest.mark.parametrize(("name", "layers"), [("roberta", 2), ("distilbert", 3)])
def test_other_encoders_are_exported_and_fused(other_architectures: dict[str, Path], name: str, layers: int) -> None:
    source = open_source(str(other_architectures[name]))
    model = export.export_onnx(source, threads=1).model
    fused = Fuse()(model, Context(layers=source.layers))
    assert source.layers == layers
    assert fused.operators()["Attention"] == layers - 1  # the last one is read at one position
    assert fused.operators()["SkipSimplifiedLayerNormalization"] >= 2 * layers
    assert parity(runner(model, 1), runner(fused, 1), export.proof_feeds(source, 8)).ok


def test_a_wrong_export_names_the_first_layer(source: Source, exported: export.Exported) -> None:
    proto = exported.model.proto()
    for tensor in proto.graph.initializer:
        if "layer.1.attention.self.value.bias" in tensor.name:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + 1, tensor.name))
    feeds = export.proof_feeds(source, 8)
    said = export.first_layer_apart(source, OnnxModel.from_proto(proto), feeds, 1)
    assert "layer.1.attention" in said
    assert "no single layer" in export.first_layer_apart(source, exported.model, feeds, 1)


def test_a_burnt_in_size_is_found(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    real = export._export

    def sabotage(given: Source) -> tuple[onnx.ModelProto, str, str]:
        proto, exporter, why = real(given)
        for tensor in proto.graph.initializer:
            if tensor.name == "classifier.bias":
                tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + 1, tensor.name))
        return proto, exporter, why

    monkeypatch.setattr(export, "_export", sabotage)
    with pytest.raises(PassError, match=r"does not compute what PyTorch computes.*'classifier'"):
        export.export_onnx(source, threads=1)


def test_the_other_exporter_is_used_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    real = torch.onnx.export

    def only_old(*args: object, **kwargs: object) -> object:
        if kwargs["dynamo"]:
            raise RuntimeError("no such thing\nin this release")
        return real(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(torch.onnx, "export", only_old)
    exported = export.export_onnx(open_source("factories:mlp"), threads=1)
    assert exported.exporter == "torch.onnx.export(dynamo=False)"
    assert exported.fallback == "RuntimeError: no such thing"
    assert exported.proof.ok


def test_a_convolution_with_sizes_that_may_change() -> None:
    exported = export.export_onnx(open_source("factories:cnn"), threads=1)
    assert exported.proof.ok
    assert {"1x12x10", "16x12x10", "2x24x20"} <= set(exported.shapes)


def test_a_model_that_cannot_run_its_example_says_so() -> None:
    from lepto.runtime.errors import LeptoError

    with pytest.raises(LeptoError):
        export.export_onnx(open_source("factories:wrong_shape"), threads=1)


def test_real_feeds_hold_the_longest() -> None:
    feeds = [{"x": np.zeros((1, size))} for size in (3, 9, 1, 5, 7)]
    assert [feed["x"].size for feed in real_feeds(feeds, 3)] == [1, 5, 9]
    assert real_feeds(feeds, 9) == feeds


def test_an_onnx_source_is_proven_too(tmp_path: Path, exported: export.Exported, toy: Toy) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(exported.model.data)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((toy.model / name).read_bytes())
    source = open_source(str(folder / "model.onnx"))
    assert source.task == "text-classification"
    again = export.export_onnx(source, threads=1)
    assert again.exporter == "as given"
    assert [value.name for value in again.model.proto().graph.output] == ["logits", "scores"]
    assert Fuse()(again.model, Context()).operators()["Attention"] == 1  # the other is read at one position
    assert dataclasses.replace(again.proof, max_abs=0.0) == again.proof
