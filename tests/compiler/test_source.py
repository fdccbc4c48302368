from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper

from lepto.compiler.source import open_source
from lepto.runtime.errors import LeptoError

from .conftest import LABELS, Toy
from .test_quantize import mlp


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


def test_a_hugging_face_folder_says_what_it_is(toy: Toy) -> None:
    source = open_source(str(toy.model))
    assert (source.kind, source.task, source.labels, source.layers) == (
        "hugging-face",
        "text-classification",
        LABELS,
        2,
    )
    assert source.parameters == sum(p.numel() for p in source.module().parameters())
    assert source.text is not None
    assert source.text.preprocessing.max_length == 32
    assert source.axes["input_ids"] == {0: "batch", 1: "sequence"}
    assert not source.module().training


def test_labels_come_in_the_order_of_the_outputs(toy: Toy, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    shutil.copytree(toy.model, folder)
    config = json.loads((folder / "config.json").read_text())
    config["id2label"] = {"2": "c", "0": "a", "1": "b"}
    (folder / "config.json").write_text(json.dumps(config))
    assert open_source(str(folder)).labels == ("a", "b", "c")
    assert open_source(str(folder)).digest != open_source(str(toy.model)).digest


def test_the_digest_counts_tokenizer_and_length(toy: Toy, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    shutil.copytree(toy.model, folder)
    assert open_source(str(folder)).digest == open_source(str(toy.model)).digest
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"model_max_length": 8}))
    shorter = open_source(str(folder))
    assert shorter.maximum == {"sequence": 8}
    assert shorter.digest != open_source(str(toy.model)).digest


def test_roberta_counts_its_positions_from_the_padding(other_architectures: dict[str, Path]) -> None:
    source = open_source(str(other_architectures["roberta"]))
    assert source.maximum == {"sequence": 18}
    ids = np.full((1, 18), 5, dtype=np.int64)
    assert source.runner(1)({"input_ids": ids, "attention_mask": np.ones_like(ids)}).shape == (1, 3)
    with pytest.raises(LeptoError, match=r"cannot run input_ids \[1, 19\]"):
        source.runner(1)({"input_ids": np.full((1, 19), 5), "attention_mask": np.ones((1, 19), dtype=np.int64)})


def test_plain_weights_in_a_bin_are_read(toy: Toy, tmp_path: Path) -> None:
    for legacy in (False, True):
        folder = tmp_path / f"m{legacy}"
        shutil.copytree(toy.model, folder)
        (folder / "model.safetensors").unlink()
        state = open_source(str(toy.model)).module().state_dict()
        torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=not legacy)
        source = open_source(str(folder))
        assert source.parameters > 0
        feed = {"input_ids": np.array([[2, 5, 3]]), "attention_mask": np.ones((1, 3), dtype=np.int64)}
        expected = open_source(str(toy.model)).runner(1)(feed)
        np.testing.assert_allclose(source.runner(1)(feed), expected, atol=1e-6)


def test_a_factory_is_told_apart_by_its_weights_attributes_and_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    import factories

    source = open_source("factories:mlp")
    assert (source.kind, source.task, source.parameters) == ("factory", "tensor", 5508)
    assert source.example["x"].shape == (2, 16)  # a batch of one would be burnt in
    assert open_source("factories:mlp").digest == source.digest
    module = factories.Mlp()
    module.scale = 2.0
    monkeypatch.setattr(factories, "mlp", lambda: (module, {"x": torch.zeros(2, 16)}))
    assert open_source("factories:mlp").digest != source.digest


@pytest.mark.parametrize(
    ("factory", "said"),
    [
        ("factories:fails", "failed: ZeroDivisionError: on purpose"),
        ("factories:not_a_pair", r"must return \(module, inputs\)"),
        ("factories:wrong_name", r"named like the arguments of Mlp\.forward, got y"),
        ("factories:nothing", "could not be imported"),
    ],
)
def test_a_factory_that_does_not_fit_is_refused(factory: str, said: str) -> None:
    with pytest.raises(LeptoError, match=said):
        open_source(factory)


def test_an_onnx_file_is_a_source(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(mlp().data)
    source = open_source(str(path))
    assert (source.kind, source.task, source.axes) == ("onnx", "tensor", {"x": {0: "batch"}})
    assert source.parameters == 64 * 64 + 64 + 64 * 8 + 8
    assert source.runner(1)(source.example).shape == (2, 8)
    with pytest.raises(LeptoError, match=r"needs tokenizer\.json"):
        open_source(str(path), "text-classification")


def test_an_onnx_file_without_a_dynamic_batch_is_refused(tmp_path: Path) -> None:
    proto = mlp().proto()
    proto.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 64]))
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(LeptoError, match="fixed at 1: export it with a dynamic batch axis"):
        open_source(str(tmp_path / "m.onnx"))


def test_what_is_no_model_is_said_to_be_none(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"x")
    for reference, said in (
        (tmp_path, "has no config.json"),
        (tmp_path / "model.bin", "is no folder and no .onnx file"),
        (tmp_path / "none.onnx", "does not exist"),
        (tmp_path / "none", "does not exist"),
    ):
        with pytest.raises(LeptoError, match=said):
            open_source(str(reference))
