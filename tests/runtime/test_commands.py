import json

import pytest

from lepto.runtime import cli


@pytest.fixture
def lepto(capfd, monkeypatch):
    """A function that runs the command line in this process: (exit code, stdout, stderr)."""
    monkeypatch.delenv("LEPTO_DEBUG", raising=False)

    def run(*arguments) -> tuple[int, str, str]:
        code = cli.run([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        return code, out, err

    return run


@pytest.mark.parametrize("command", ["doctor", "verify"])
def test_help_has_an_example(lepto, command):
    code, out, _ = lepto(command, "--help")
    assert code == 0
    assert "Example:" in out
    assert f"lepto {command}" in out
    assert "--json" in out


def test_doctor_for_people(lepto):
    code, out, err = lepto("doctor")
    assert (code, err) == (0, "")
    for word in ("cpu", "memory", "onnxruntime", "tritonserver", "x86-64-v4", "jetson-orin", "cannot build"):
        assert word in out


def test_doctor_for_scripts(lepto):
    code, out, err = lepto("doctor", "--json")
    assert code == 0
    document = json.loads(out)
    assert document["machine"]["cpus"] >= 1
    assert document["versions"]["lepto"]
    targets = {target["name"]: target for target in document["targets"]}
    assert {"jetson-orin", "x86-64-v4"} <= set(targets)
    assert all(target[what]["ok"] or target[what]["reason"] for target in targets.values() for what in ("build", "run"))
    assert all({"what", "why", "how"} == set(missing) for missing in document["missing"])
    assert "this machine" in err


def test_verify_for_people(lepto, tiny_text_package):
    code, out, err = lepto("verify", tiny_text_package)
    assert (code, err) == (0, "")
    assert out.index("package") < out.index("digest of model.onnx")  # settings come first
    assert "checks passed" in out
    assert "FAILED" not in out


def test_verify_for_scripts(lepto, tiny_text_package):
    code, out, err = lepto("verify", tiny_text_package, "--json")
    document = json.loads(out)
    assert code == 0
    assert document["ok"] is True
    assert {"name", "ok", "detail", "values"} == set(document["checks"][0])
    assert "checks passed" in err


def test_a_failed_check_is_exit_1(lepto, tiny_text_package):
    (tiny_text_package / "README.md").write_text("other")
    code, out, err = lepto("verify", tiny_text_package)
    assert code == 1
    assert "FAILED  digest of README.md" in out
    assert err == f"error: {tiny_text_package} failed 1 of 6 checks: digest of README.md\n"


def test_a_failed_check_for_scripts(lepto, tiny_text_package):
    (tiny_text_package / "README.md").write_text("other")
    code, out, _ = lepto("verify", tiny_text_package, "--json")
    document = json.loads(out)
    assert code == 1
    assert document["ok"] is False
    assert [check["name"] for check in document["checks"] if not check["ok"]] == ["digest of README.md"]


def test_nan_outputs_are_valid_json(lepto, tiny_tensor_package, edit_manifest, monkeypatch):
    import numpy as np

    from lepto.runtime.session import Session

    monkeypatch.setattr(Session, "run", lambda self, inputs: {"y": np.full((len(inputs["x"]), 2), np.nan, np.float32)})
    code, out, _ = lepto("verify", tiny_tensor_package, "--json")
    assert code == 1
    assert json.loads(out)["ok"] is False


@pytest.mark.parametrize("name", ["nothing", "."])
def test_no_package_is_exit_2(lepto, tmp_path, name):
    code, out, err = lepto("verify", tmp_path / name, "--json")
    assert (code, out) == (2, "")
    assert err.startswith("error: no package at")
    assert "Traceback" not in err


def test_verify_with_labelled_texts(lepto, tiny_text_package, edit_manifest, tmp_path):
    file = tmp_path / "test.csv"
    file.write_text("utterance,intent\norder,place_order\nrefund,get_refund\n")
    edit_manifest(tiny_text_package, lambda d: d["result"]["metric"].update(value=1.0, high=1.0, n=2))
    options = ("--eval", file, "--text-column", "utterance", "--label-column", "intent")
    code, out, _ = lepto("verify", tiny_text_package, *options)
    assert code == 0
    assert "100.0000% on 2 texts, the manifest claims 100.0000%" in out
    code, _, err = lepto("verify", tiny_text_package, "--eval", file)
    assert code == 2
    assert "no text in the column 'text'; there are 'utterance', 'intent'" in err


@pytest.mark.parametrize("threads", ["0", "-1", "two"])
def test_threads_are_checked(lepto, tiny_text_package, threads):
    code, _, err = lepto("verify", tiny_text_package, "--threads", threads)
    assert code == 2
    assert "--threads" in err


def test_brackets_in_names_are_text(lepto, tmp_path, make_text_package):
    code, out, _ = lepto("verify", make_text_package(tmp_path / "[bold]odd[/x]"))
    assert code == 0
    assert "[bold]odd[/x]" in out
