import hashlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from lepto.runtime import LeptoError, Session, open_package, write_package
from lepto.runtime.session import onnxruntime_session

X = np.arange(8, dtype=np.float32).reshape(2, 4)
WEIGHT = np.array([[1, 0], [0, 1], [2, 0], [0, -1]], np.float32)


@pytest.fixture
def session(tiny_tensor_package) -> Session:
    return Session(tiny_tensor_package)


def test_runs(session):
    np.testing.assert_allclose(session.run({"x": X})["y"], X @ WEIGHT)


def test_takes_a_path_a_string_or_an_opened_package(tiny_tensor_package):
    for package in (tiny_tensor_package, str(tiny_tensor_package), open_package(tiny_tensor_package)):
        assert list(Session(package).run({"x": X})) == ["y"]


@pytest.mark.parametrize("batch", [1, 2, 33])
def test_batch_is_dynamic(session, batch):
    assert session.run({"x": np.zeros((batch, 4), np.float32)})["y"].shape == (batch, 2)


def test_stored_probe_is_reproduced(tiny_text_package):
    session = Session(tiny_text_package)
    inputs, expected = session.package.probe()
    outputs = session.run(inputs)
    for name in expected:
        np.testing.assert_allclose(outputs[name], expected[name], atol=1e-6)


def test_input_is_untouched_and_may_be_a_view(session):
    wide = np.arange(16, dtype=np.float32).reshape(2, 8)
    before = wide.copy()
    np.testing.assert_allclose(session.run({"x": wide[:, ::2]})["y"], wide[:, ::2] @ WEIGHT)
    np.testing.assert_array_equal(wide, before)


def test_threads_default_to_the_manifest(tiny_tensor_package):
    assert Session(tiny_tensor_package).threads == 1
    assert Session(tiny_tensor_package, threads=2).threads == 2


@pytest.mark.parametrize("threads", [0, -1])
def test_threads_must_be_positive(tiny_tensor_package, threads):
    with pytest.raises(ValueError, match=f"threads must be at least 1, got {threads}"):
        Session(tiny_tensor_package, threads=threads)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, r"missing \['x'\]"),
        ({"x": X, "z": X}, r"unknown \['z'\]"),
        ({"x": X.astype(np.float64)}, "must be float32, got float64"),
        ({"x": X.astype(">f4")}, "must be float32, got >f4"),
        ({"x": X[0]}, r"must have 2 dimensions \[batch, 4\], got \(4,\)"),
        ({"x": X[None]}, r"must have 2 dimensions"),
        ({"x": X[:, :3]}, r"dimension 1 is 4, got 3"),
        ({"x": X[:0]}, r"is empty: its axis 'batch' must be at least 1"),
    ],
)
def test_wrong_inputs_are_named(session, inputs, message):
    with pytest.raises(ValueError, match=message):
        session.run(inputs)


def test_inputs_must_be_arrays(session):
    with pytest.raises(TypeError, match="input 'x' must be a NumPy array, got list"):
        session.run({"x": [[1.0, 2.0, 3.0, 4.0]]})


def test_one_axis_has_one_size(tiny_text_package):
    ids, mask = np.ones((2, 3), np.int64), np.ones((2, 4), np.int64)
    with pytest.raises(ValueError, match=r"axis 'sequence' must be the same everywhere: .* has 3, .* has 4"):
        Session(tiny_text_package).run({"input_ids": ids, "attention_mask": mask})


def test_values_that_the_model_refuses(tiny_text_package, capfd):
    ids = np.full((1, 2), 10_000, np.int64)
    with pytest.raises(ValueError, match="intents refused its input"):
        Session(tiny_text_package).run({"input_ids": ids, "attention_mask": np.ones_like(ids)})


def test_threads_may_share_a_session(session):
    feeds = [np.full((1, 4), i, np.float32) for i in range(64)]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda x: session.run({"x": x})["y"], feeds))
    for feed, result in zip(feeds, results, strict=True):
        np.testing.assert_allclose(result, feed @ WEIGHT)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["outputs"][0].update(name="z"), r"names the outputs \['z'\], the model has \['y'\]"),
        (lambda d: d["inputs"][0].update(dtype="float64"), "'x' is float64 .* the model has float32"),
        (lambda d: d["inputs"][0].update(shape=["batch", 5]), r"\['batch', 5\], the model has float32 \['batch', 4\]"),
        (lambda d: d["inputs"][0].update(shape=["batch"]), r"the model has float32 \['batch', 4\]"),
    ],
)
def test_a_manifest_of_another_graph_is_refused(tiny_tensor_package, edit_manifest, change, message):
    edit_manifest(tiny_tensor_package, change)
    with pytest.raises(LeptoError, match=message):
        Session(tiny_tensor_package)


@pytest.mark.parametrize("model", [b"", b"junk", b"PK\x03\x04"])
def test_what_onnxruntime_cannot_load(model):
    with pytest.raises(LeptoError, match="cannot load the model"):
        onnxruntime_session(model, threads=1)


def test_a_package_with_external_weights_is_not_loaded(tiny_tensor_package, edit_manifest, data):
    """A package by hand, digests right: the weights of another file must not be read."""
    model = (data / "external.onnx").read_bytes()
    (tiny_tensor_package / "model.onnx").write_bytes(model)
    (tiny_tensor_package.parent / "weights.bin").write_bytes(b"\0" * 32)
    digest = hashlib.sha256(model).hexdigest()
    edit_manifest(tiny_tensor_package, lambda d: d["files"].update({"model.onnx": digest}))
    with pytest.raises(LeptoError, match="in another file"):
        Session(tiny_tensor_package)


def test_it_is_quiet(tiny_text_package, capfd):
    session = Session(tiny_text_package)
    session.run(session.package.probe()[0])
    assert capfd.readouterr() == ("", "")


def test_session_of_a_freshly_written_package(text_parts, tmp_path):
    package = write_package(tmp_path / "new", **text_parts())
    assert [tensor.name for tensor in Session(package).outputs] == ["logits", "scores"]
