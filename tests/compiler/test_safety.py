from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file

from lepto.compiler.safety import check_safetensors, load_onnx
from lepto.runtime.errors import LeptoError

WEIGHT = np.arange(6, dtype=np.float32).reshape(2, 3)


def external_model(
    folder: Path, location: str, *, offset: int = 0, length: int = WEIGHT.nbytes, inside: str = "initializer"
) -> Path:
    """``y = x @ w`` whose w is said to lie in another file."""
    tensor = numpy_helper.from_array(WEIGHT, "w")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
        tensor.external_data.add(key=key, value=value)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    functions, initializers = [], [tensor]
    if inside == "constant":
        nodes.insert(0, helper.make_node("Constant", [], ["w"], value=tensor))
        initializers = []
    elif inside == "function":
        body = [helper.make_node("Constant", [], ["v"], value=tensor)]
        functions.append(helper.make_function("mine", "Weight", [], ["v"], body, [helper.make_opsetid("", 18)]))
        nodes.insert(0, helper.make_node("Weight", [], ["w"], domain="mine"))
        initializers = []
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])],
        initializers,
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("mine", 1)]
    model = helper.make_model(graph, opset_imports=opsets, functions=functions)
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def test_external_data_beside_the_model_is_read(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(WEIGHT.tobytes())
    model = load_onnx(external_model(tmp_path, "weights.bin"))
    np.testing.assert_array_equal(numpy_helper.to_array(model.graph.initializer[0]), WEIGHT)


@pytest.mark.parametrize("inside", ["initializer", "constant", "function"])
def test_external_data_may_not_leave_the_folder(tmp_path: Path, inside: str) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(WEIGHT.tobytes())
    folder = tmp_path / "model"
    folder.mkdir()
    for location, said in ((str(secret), "absolute path"), ("../secret", "outside"), ("a/../../secret", "outside")):
        with pytest.raises(LeptoError, match=said):
            load_onnx(external_model(folder, location, inside=inside))


@pytest.mark.parametrize("location", ["C:\\secret", "\\\\host\\secret", "..\\secret"])
def test_paths_of_other_systems_are_refused_too(tmp_path: Path, location: str) -> None:
    with pytest.raises(LeptoError, match="own folder"):
        load_onnx(external_model(tmp_path, location))


def test_links_are_refused(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(WEIGHT.tobytes())
    (tmp_path / "real").mkdir()
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "soft").symlink_to(secret)
    os.link(secret, folder / "hard")
    (folder / "way").symlink_to(tmp_path)
    for location, said in (("soft", "symbolic link"), ("hard", "hard link"), ("way/secret", "symbolic link")):
        with pytest.raises(LeptoError, match=said):
            load_onnx(external_model(folder, location))


def test_external_data_that_is_missing_or_too_short_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(LeptoError, match="no such file"):
        load_onnx(external_model(tmp_path, "none"))
    (tmp_path / "short").write_bytes(b"1234")
    with pytest.raises(LeptoError, match="only 4 bytes"):
        load_onnx(external_model(tmp_path, "short"))
    (tmp_path / "weights").write_bytes(WEIGHT.tobytes())
    with pytest.raises(LeptoError):
        load_onnx(external_model(tmp_path, "weights", offset=-8))


@pytest.mark.parametrize("content", [b"", b"no model at all", b"\x08\x07\x12\xff\xff\xff\x0fonnx"])
def test_what_is_no_onnx_is_said_to_be_none(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    with pytest.raises(LeptoError, match="is no ONNX model"):
        load_onnx(path)


def test_a_cut_off_onnx_is_refused(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(WEIGHT.tobytes())
    model = load_onnx(external_model(tmp_path, "weights.bin"))
    path = tmp_path / "whole.onnx"
    onnx.save(model, path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(LeptoError, match=r"whole\.onnx is no"):
        load_onnx(path)


def test_safetensors_are_whole_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"w": WEIGHT}, path)
    assert check_safetensors(path) == {"w": (2, 3)}
    data = path.read_bytes()
    for size in (0, 5, len(data) - 1):
        path.write_bytes(data[:size])
        with pytest.raises(LeptoError, match=f"no whole safetensors file \\({size} bytes\\)"):
            check_safetensors(path)
