import json
from typing import Any

import pytest

from lepto.runtime.manifest import SCHEMA, Manifest, Metric, Preprocessing, Speedup, Tensor
from lepto.runtime.package import open_package


@pytest.fixture
def document(tiny_text_package) -> dict[str, Any]:
    return json.loads((tiny_text_package / "manifest.json").read_text())


def test_written_and_read_is_the_same(tiny_text_package):
    manifest = open_package(tiny_text_package).manifest
    assert Manifest.from_json(manifest.to_json()) == manifest


def test_json_has_the_documented_names(document):
    assert document["schema"] == SCHEMA
    assert document["passes"][0]["pass"] == "fuse"
    assert {"name", "task", "target", "recipe", "source", "passes", "result", "environment", "files"} <= set(document)
    assert set(document["source"]["metric"]) == {"name", "value", "low", "high", "n"}
    assert set(document["files"]) == {"model.onnx", "tokenizer.json", "labels.txt", "probe.npz", "README.md"}


def test_is_frozen(tiny_text_package):
    with pytest.raises(ValueError, match="frozen"):
        open_package(tiny_text_package).manifest.name = "other"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(extra=1), r"extra: unknown key"),
        (lambda d: d.pop("target"), r"target: missing"),
        (lambda d: d["source"].pop("digest"), r"source\.digest: missing"),
        (lambda d: d["passes"][0].update(seconds=-1), r"passes\[0\]\.seconds: .*greater than or equal to 0"),
        (lambda d: d["passes"][0].update(speed=1), r"passes\[0\]\.speed: unknown key"),
        (lambda d: d.update(schema="lepto.package/9"), r"schema must be 'lepto.package/1', got 'lepto.package/9'"),
        (lambda d: d.update(name="../evil"), r"name: .*pattern"),
        (lambda d: d.update(name=".hidden"), r"name: .*pattern"),
        (lambda d: d.update(name="a b"), r"name: .*pattern"),
        (lambda d: d.update(threads=0), r"threads: .*1"),
        (lambda d: d["files"].update({"model.onnx": "abc"}), r"files\.model\.onnx: .*pattern"),
        (lambda d: d["inputs"][0].update(dtype="object"), r"inputs\[0\]\.dtype"),
        (lambda d: d["inputs"][0].update(shape=["rows", "sequence"]), r"first axis of tensor 'input_ids'"),
        (lambda d: d["inputs"][0].update(shape=["batch", 7]), r"must be int64 \['batch', 'sequence'\]"),
        (lambda d: d["inputs"].pop(), r"preprocessing gives .* but the model takes \['input_ids'\]"),
        (lambda d: d["inputs"].append(d["inputs"][0]), r"the name 'input_ids' stands twice"),
        (lambda d: d.update(preprocessing=None), r"'text-classification' needs preprocessing"),
        (lambda d: d["outputs"].pop(), r"needs an output 'scores'"),
        (lambda d: d["outputs"][1].update(shape=["batch", 4]), r"logits and scores must have one shape"),
        (lambda d: d["source"]["metric"].update(low=0.99), r"low must not be above high"),
        (lambda d: d["result"].update(agreement=1.5), r"result\.agreement"),
    ],
)
def test_what_is_wrong_is_named(document, change, message):
    change(document)
    with pytest.raises(ValueError, match=message):
        Manifest.from_json(json.dumps(document))


def test_every_fault_has_its_line(document):
    document["nonsense"] = 1
    del document["threads"]
    with pytest.raises(ValueError, match="threads: missing\nnonsense: unknown key"):
        Manifest.from_json(json.dumps(document))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"schema":', "\x00", "[" * 100_000, b"\xff\xfe"])
def test_what_is_no_manifest_is_refused(text):
    with pytest.raises(ValueError, match=r"JSON|object|dictionary"):
        Manifest.from_json(text)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_measurements_are_finite(value):
    with pytest.raises(ValueError, match="finite"):
        Metric(name="accuracy", value=value, low=0, high=1, n=1)
    with pytest.raises(ValueError, match="finite"):
        Speedup(value=value, low=1, high=1, against="torch")


@pytest.mark.parametrize("inputs", [(), ("attention_mask",), ("input_ids", "input_ids"), ("input_ids", "pixels")])
def test_preprocessing_gives_input_ids_and_each_input_once(inputs):
    with pytest.raises(ValueError, match="input"):
        Preprocessing(max_length=8, pad_id=0, pad_token="[PAD]", inputs=inputs)


@pytest.mark.parametrize("shape", [(), ("batch", 0), ("batch", ""), ("batch", 1.5), (4, "batch")])
def test_shapes_start_with_batch_and_have_sizes_or_names(shape):
    with pytest.raises(ValueError, match="shape"):
        Tensor(name="x", dtype="float32", shape=shape)


def test_label_count(tiny_text_package, tiny_tensor_package):
    assert open_package(tiny_text_package).manifest.label_count == 3
    assert open_package(tiny_tensor_package).manifest.label_count is None
