"""What importing costs, and what it does not drag in: a device has neither the time nor torch."""

import json
import os
import resource
import subprocess
import sys

import pytest

LIMIT_S = 0.5


def cpu_seconds(code: str) -> float:
    """CPU time of a fresh interpreter, the best of three (the first may have to write byte code)."""
    times = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", code], check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
    return min(times)


def modules_after(code: str) -> set[str]:
    code += "\nimport sys, json\njson.dump([name for name in sys.modules], sys.stdout)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return {name.partition(".")[0] for name in json.loads(done.stdout)}


@pytest.mark.parametrize(
    "code",
    [
        "import lepto.runtime",
        "from lepto.runtime import Session, TextClassifier, open_package",
    ],
)
def test_importing_is_cheap(code):
    assert cpu_seconds(code) < LIMIT_S


def test_import_is_lazy():
    loaded = modules_after("import lepto.runtime")
    assert not {"numpy", "pydantic", "onnxruntime", "typer"} & loaded
    loaded = modules_after("from lepto.runtime import Session, TextClassifier")
    assert not {"numpy", "onnxruntime", "tokenizers", "tritonclient", "rich", "typer"} & loaded


def test_classifying_needs_no_torch(tiny_text_package):
    code = f"from lepto.runtime import TextClassifier; TextClassifier({str(tiny_text_package)!r})('order')"
    assert not {"torch", "transformers", "onnx", "pandas", "scipy"} & modules_after(code)


def test_every_public_name_is_there():
    import lepto.runtime

    for name in lepto.runtime.__all__:
        assert getattr(lepto.runtime, name) is not None
        assert name in dir(lepto.runtime)
    with pytest.raises(AttributeError, match="no attribute 'Sesion'"):
        _ = lepto.runtime.Sesion


def test_running_a_package_reports_nothing_and_leaves_no_file(tiny_text_package, tmp_path):
    folder = tmp_path / "temporary"
    folder.mkdir()
    # onnxruntime takes continuous integration for a reason not to report, too.
    kept = {name: value for name, value in os.environ.items() if name not in ("ORT_DISABLE_TELEMETRY", "CI")}
    code = f"from lepto.runtime import TextClassifier; TextClassifier({str(tiny_text_package)!r})('order')"
    subprocess.run([sys.executable, "-c", code], check=True, env={**kept, "TMPDIR": str(folder)})
    assert list(folder.iterdir()) == []
