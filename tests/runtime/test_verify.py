import hashlib
import json

import numpy as np
import pytest

from lepto.runtime import LeptoError, open_package
from lepto.runtime.evaluation import read_labelled_texts
from lepto.runtime.manifest import Tolerance
from lepto.runtime.package import write_probe
from lepto.runtime.verify import Evaluation, verify_package, within

LABELS = ("place_order", "cancel_order", "get_refund")


def failed(checks) -> list[str]:
    return [check.name for check in checks if not check.ok]


def redigest(folder, edit_manifest, name):
    """Make a changed file look as if it had been written so."""
    digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    edit_manifest(folder, lambda d: d["files"].update({name: digest}))


def test_a_good_package_passes_everything(tiny_text_package):
    checks = verify_package(tiny_text_package)
    assert failed(checks) == []
    assert {check.name for check in checks} >= {
        "digest of model.onnx",
        "result's size and digest",
        "model loads",
        "probe output 'scores'",
        "dynamic batch",
        "text in, scores out",
    }


def test_a_tensor_package_passes(tiny_tensor_package):
    assert failed(verify_package(tiny_tensor_package)) == []
    assert failed(verify_package(open_package(tiny_tensor_package), threads=2)) == []


@pytest.mark.parametrize("name", ["model.onnx", "README.md", "probe.npz", "tokenizer.json"])
def test_a_changed_file_fails_and_is_not_loaded(tiny_text_package, name, monkeypatch):
    monkeypatch.setattr("lepto.runtime.verify.Session", None)
    with (tiny_text_package / name).open("ab") as file:
        file.write(b"\n")
    assert f"digest of {name}" in failed(verify_package(tiny_text_package))


def test_a_false_claim_about_the_result(tiny_text_package, edit_manifest):
    edit_manifest(tiny_text_package, lambda d: d["result"].update(bytes=1))
    assert failed(verify_package(tiny_text_package)) == ["result's size and digest"]


def test_outputs_that_moved(tiny_tensor_package, edit_manifest):
    inputs, outputs = open_package(tiny_tensor_package).probe()
    path = tiny_tensor_package / "probe.npz"
    path.unlink()
    write_probe(path, {"input/x": inputs["x"], "output/y": outputs["y"] + np.float32(0.01)})
    redigest(tiny_tensor_package, edit_manifest, "probe.npz")
    checks = verify_package(tiny_tensor_package)
    assert failed(checks) == ["probe output 'y'"]
    [check] = [check for check in checks if not check.ok]
    assert check.values["max_abs"] == pytest.approx(0.01, rel=1e-3)
    edit_manifest(tiny_tensor_package, lambda d: d["tolerance"].update(atol=0.02))
    assert failed(verify_package(tiny_tensor_package)) == []


def test_a_model_that_does_not_load(tiny_tensor_package, edit_manifest):
    model = (tiny_tensor_package / "model.onnx").read_bytes().replace(b"MatMul", b"MatMal")
    (tiny_tensor_package / "model.onnx").write_bytes(model)
    redigest(tiny_tensor_package, edit_manifest, "model.onnx")
    digest = hashlib.sha256(model).hexdigest()
    edit_manifest(tiny_tensor_package, lambda d: d["result"].update(digest=digest))
    assert failed(verify_package(tiny_tensor_package)) == ["model loads"]


def test_a_tokenizer_that_does_not_load(tiny_text_package, edit_manifest):
    (tiny_text_package / "tokenizer.json").write_text("{}")
    redigest(tiny_text_package, edit_manifest, "tokenizer.json")
    assert failed(verify_package(tiny_text_package)) == ["tokenizer loads"]


def test_a_tokenizer_of_another_model(tiny_text_package, edit_manifest):
    """Token ids beyond the model's vocabulary: every file is well-formed, and no text can be classified."""
    path = tiny_text_package / "tokenizer.json"
    document = json.loads(path.read_text())
    document["model"]["vocab"]["[UNK]"] = 9_999
    path.write_text(json.dumps(document))
    redigest(tiny_text_package, edit_manifest, "tokenizer.json")
    assert failed(verify_package(tiny_text_package)) == ["text in, scores out"]


def test_no_package_is_no_verdict(tmp_path):
    with pytest.raises(LeptoError, match="no package") as caught:
        verify_package(tmp_path)
    assert caught.value.exit_code == 2


# --- how far is too far -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "ok"), [(1.0, True), (1.11, True), (1.13, False), (np.nan, False), (np.inf, False), (-1.0, False)]
)
def test_within(value, ok):
    found = within(np.array([[0.0, value]]), np.array([[0.0, 1.0]]), Tolerance(atol=0.02, rtol=0.1))
    assert found["ok"] is ok


def test_within_zero_tolerance():
    exact = Tolerance(atol=0, rtol=0)
    assert within(np.zeros(3), np.zeros(3), exact) == {"ok": True, "max_abs": 0.0, "used": 0.0}
    assert within(np.full(3, 1e-9), np.zeros(3), exact) == {"ok": False, "max_abs": 1e-9, "used": None}


def test_nan_agrees_with_nothing():
    assert not within(np.array([np.nan]), np.array([np.nan]), Tolerance(atol=1, rtol=1))["ok"]


# --- the metric again ---------------------------------------------------------------------------------------------


@pytest.fixture
def labelled(tmp_path):
    path = tmp_path / "test.csv"
    path.write_text(
        'text,label\norder,place_order\n"cancel,\nplease",cancel_order\nrefund,get_refund\norder,get_refund\n'
    )
    return path


def claim(edit_manifest, folder, **changes):
    edit_manifest(folder, lambda d: d["result"]["metric"].update(changes))


def test_metric_is_measured_again(tiny_text_package, edit_manifest, labelled):
    claim(edit_manifest, tiny_text_package, value=0.75, n=4)
    checks = verify_package(tiny_text_package, evaluation=Evaluation(labelled))
    assert failed(checks) == []
    assert checks[-1].values == {"value": 0.75, "claimed": 0.75, "n": 4}


def test_a_claimed_metric_that_is_too_good(tiny_text_package, edit_manifest, labelled):
    claim(edit_manifest, tiny_text_package, value=1.0, high=1.0, n=4)
    assert failed(verify_package(tiny_text_package, evaluation=Evaluation(labelled))) == ["accuracy"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"n": 5}, "has 4 rows, the manifest's metric is over 5"), ({"name": "f1", "n": 4}, "metric is 'f1'")],
)
def test_a_metric_that_cannot_be_compared(tiny_text_package, edit_manifest, labelled, changes, message):
    claim(edit_manifest, tiny_text_package, **changes)
    with pytest.raises(LeptoError, match=message):
        verify_package(tiny_text_package, evaluation=Evaluation(labelled))


def test_no_metric_to_compare_with(tiny_text_package, tiny_tensor_package, edit_manifest, labelled):
    edit_manifest(tiny_text_package, lambda d: d["result"].update(metric=None))
    with pytest.raises(LeptoError, match="has no metric"):
        verify_package(tiny_text_package, evaluation=Evaluation(labelled))
    with pytest.raises(LeptoError, match="task 'tensor'"):
        verify_package(tiny_tensor_package, evaluation=Evaluation(labelled))


def read(path, text_column="text", label_column="label"):
    return read_labelled_texts(path, text_column=text_column, label_column=label_column, labels=LABELS)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "text,label\norder,place_order\nrefund it,get_refund\n"),
        ("a.csv", "\ufeffid,label,text\n1,place_order,order\n2,get_refund,refund it\n"),
        ("a.CSV", "text,label\r\norder,place_order\r\nrefund it,get_refund\r\n"),
        ("a.tsv", "text\tlabel\norder\tplace_order\nrefund it\tget_refund\n"),
        ("a.jsonl", '{"text":"order","label":"place_order"}\n\n{"text":"refund it","label":"get_refund","x":1}\n'),
    ],
)
def test_formats(tmp_path, name, content):
    (tmp_path / name).write_text(content, newline="")
    assert read(tmp_path / name) == (["order", "refund it"], [0, 2])


def test_quoted_newline(tmp_path):
    (tmp_path / "a.csv").write_text('text,label\n"order\n""now"", please",place_order\n')
    assert read(tmp_path / "a.csv") == (['order\n"now", please'], [0])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"", "has no rows"),
        ("a.csv", b"text,label\n", "has no rows"),
        (
            "a.csv",
            b"text,category\norder,place_order\n",
            "row 1: no text in the column 'label'; there are 'text', 'cat",
        ),
        ("a.csv", b"text,label\norder\n", "row 1: no text in the column 'label'"),
        ("a.csv", b"text,label\norder,place_oder\n", "row 1: .* no label 'place_oder'; did you mean 'place_order'"),
        ("a.csv", b'text,label\n"order,place_order\n', "cannot be read as CSV"),
        ("a.csv", b"text,label\n\xff\xfe,place_order\n", "cannot be read as CSV"),
        ("a.jsonl", b'{"text": 1, "label": "place_order"}\n', "row 1: no text in the column 'text'"),
        ("a.jsonl", b"[1]\n", "must be a JSON object"),
        ("a.jsonl", b'{"text"\n', "cannot be read as JSONL"),
        ("a.xlsx", b"PK", r"must be \.csv, \.tsv or \.jsonl"),
    ],
)
def test_files_that_do_not_fit(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(LeptoError, match=message):
        read(tmp_path / name)


def test_no_file(tmp_path):
    with pytest.raises(LeptoError, match="there is no file"):
        read(tmp_path / "nothing.csv")
