"""The two python models that run in Triton's stub, against a stand-in for Triton's module."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lepto.runtime import triton_config
from lepto.runtime.package import open_package
from lepto.runtime.session import Session
from lepto.runtime.text import TextClassifier

BACKENDS = Path(triton_config.__file__).parent / "backends"


@dataclass
class Tensor:
    name: str
    value: np.ndarray

    def as_numpy(self) -> np.ndarray:
        return self.value


@dataclass
class TritonError:
    message: str
    code: str = "INTERNAL"
    INVALID_ARG = "INVALID_ARG"
    INTERNAL = "INTERNAL"


@dataclass
class Response:
    output_tensors: list[Tensor] = field(default_factory=list)
    error: TritonError | None = None

    def arrays(self) -> dict[str, np.ndarray]:
        assert self.error is None, self.error
        return {tensor.name: tensor.value for tensor in self.output_tensors}


class Request:
    def __init__(self, inputs: dict[str, np.ndarray], outputs: list[str]) -> None:
        self.inputs, self.outputs = inputs, outputs

    def requested_output_names(self) -> list[str]:
        return self.outputs


class TritonModelException(Exception):  # noqa: N818  # Triton's name
    pass


def _get(request: Request, name: str) -> Tensor | None:
    return Tensor(name, request.inputs[name]) if name in request.inputs else None


Load = Callable[[str], Any]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Load:
    """Load a backend's model.py as the stub would."""
    fake = ModuleType("triton_python_backend_utils")
    fake.__dict__.update(
        Tensor=Tensor,
        TritonError=TritonError,
        InferenceResponse=Response,
        TritonModelException=TritonModelException,
        get_input_tensor_by_name=_get,
    )
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", fake)

    def load_model(backend: str) -> Any:
        spec = importlib.util.spec_from_file_location(f"triton_{backend}", BACKENDS / backend / "model.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        # dataclasses look their module up while they are made
        monkeypatch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        return module

    return load_model


def _config(config: Any) -> dict[str, Any]:
    from google.protobuf import json_format

    return json_format.MessageToDict(config, preserving_proto_field_name=True)


@pytest.fixture
def text_model(load: Load, tiny_text_package: Path) -> Callable[..., Any]:
    """Start the onnxruntime backend on the text model, with changes to its configuration."""
    package = open_package(tiny_text_package)

    def start(**changes: Any) -> Any:
        config = _config(
            triton_config.text_configs("intents", 1, package.manifest, labels=package.labels)["intents.model"]
        )
        # Triton's proto has string maps of messages and the stub sees them as JSON: the same here.
        config["parameters"].update({key: {"string_value": v} for key, v in changes.pop("parameters", {}).items()})
        config.update(changes)
        folder = tiny_text_package.parent / "intents.model"
        if not folder.exists():
            (folder / "1").mkdir(parents=True)
            (folder / "1" / "model.onnx").write_bytes(package.model_path.read_bytes())
        model = load("onnxruntime").TritonPythonModel()
        model.initialize(
            {
                "model_config": json.dumps(config),
                "model_repository": str(folder),
                "model_version": "1",
                "model_name": "intents.model",
            }
        )
        return model

    return start


def text_request(rows: list[list[int]], outputs: tuple[str, ...] = ("scores", "logits")) -> Request:
    length = max(map(len, rows))
    ids = np.array([row + [0] * (length - len(row)) for row in rows], np.int64)
    mask = np.array([[1] * len(row) + [0] * (length - len(row)) for row in rows], np.int64)
    return Request({"input_ids": ids, "attention_mask": mask}, list(outputs))


@pytest.mark.parametrize("mode", ["together", "separate"])
def test_answers_what_the_session_answers_to_each_request_alone(
    text_model: Callable[..., Any], tiny_text_package: Path, mode: str
) -> None:
    session = Session(tiny_text_package)
    model = text_model(parameters={"batch_rows": mode})
    requests = [text_request([[2, 5, 3]]), text_request([[2, 6, 9, 4, 3], [2, 3]]), text_request([[2, 4, 9, 5, 3]])]

    responses = model.execute(requests)

    assert len(responses) == len(requests)
    for request, response in zip(requests, responses, strict=True):
        expected = session.run(request.inputs)
        for name, array in response.arrays().items():
            np.testing.assert_allclose(array, expected[name], rtol=0, atol=1e-6)
        assert set(response.arrays()) == {"scores", "logits"}


def test_bad_requests_get_their_own_error_and_neighbours_are_answered(text_model: Callable[..., Any]) -> None:
    good = text_request([[2, 5, 3]])
    wrong_type = text_request([[2, 5, 3]])
    wrong_type.inputs["input_ids"] = wrong_type.inputs["input_ids"].astype(np.int32)
    missing = text_request([[2, 5, 3]])
    del missing.inputs["attention_mask"]
    rank = text_request([[2, 5, 3]])
    rank.inputs["input_ids"] = rank.inputs["input_ids"][0]
    uneven = text_request([[2, 5, 3]])
    uneven.inputs["attention_mask"] = uneven.inputs["attention_mask"][:, :1]
    rows = text_request([[2, 5, 3]])
    rows.inputs["input_ids"] = np.repeat(rows.inputs["input_ids"], 2, axis=0)
    empty = text_request([[2, 5, 3]])
    empty.inputs = {name: array[:, :0] for name, array in empty.inputs.items()}
    many = text_request([[2, 3]] * 33)
    vocabulary = text_request([[2, 999, 3]])

    responses = text_model().execute([good, wrong_type, missing, rank, uneven, rows, empty, many, vocabulary, good])

    words = ["must be int64, got int32", "'attention_mask' is missing", "must have shape", "must agree on axis"]
    words += ["one batch size", "is empty", "1 to 32, got 33", "failed on this request"]
    assert responses[0].arrays()["scores"].shape == (1, 3)
    assert responses[9].arrays()["scores"].shape == (1, 3)
    for response, word in zip(responses[1:9], words, strict=True):
        assert response.error is not None
        assert word in response.error.message
        assert response.error.code == "INVALID_ARG"


def test_requests_run_once_together(text_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model = text_model()
    runs: list[int] = []
    original = model._model._run
    monkeypatch.setattr(model._model, "_run", lambda feed: runs.append(len(feed["input_ids"])) or original(feed))

    model.execute([text_request([[2, 5, 3]]), text_request([[2, 3], [2, 4, 4, 3]])])

    assert runs == [3]


def test_separate_runs_rows_alone_and_without_padding(
    text_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = text_model(parameters={"batch_rows": "separate"})
    shapes: list[tuple[int, ...]] = []
    original = model._model._run
    monkeypatch.setattr(model._model, "_run", lambda feed: shapes.append(feed["input_ids"].shape) or original(feed))

    model.execute([text_request([[2, 3], [2, 4, 4, 3]])])

    assert shapes == [(1, 2), (1, 4)]


def test_only_requested_outputs_come_back(text_model: Callable[..., Any]) -> None:
    (response,) = text_model().execute([text_request([[2, 3]], outputs=("scores",))])

    assert set(response.arrays()) == {"scores"}


def test_parameters_are_honoured(text_model: Callable[..., Any]) -> None:
    parameters = {"intra_op_thread_count": "2", "execution_mode": "1", "enable_mem_arena": "0"}
    options = text_model(parameters=parameters)._model.settings.options

    assert options.intra_op_num_threads == 2
    assert options.execution_mode.name == "ORT_PARALLEL"
    assert options.enable_cpu_mem_arena is False


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"parameters": {"gpu_mem_limit": "1"}}, "'gpu_mem_limit'"),
        ({"parameters": {"intra_op_thread_count": "many"}}, "'many'"),
        ({"parameters": {"batch_rows": "sideways"}}, "'sideways'"),
        ({"parameters": {"pad_value.nothing": "1"}}, "'nothing'"),
        (
            {"optimization": {"execution_accelerators": {"gpu_execution_accelerator": [{"name": "tensorrt"}]}}},
            "'tensorrt'",
        ),
        ({"optimization": {"graph": {"level": 7}}}, "got 7"),
        ({"instance_group": [{"kind": "KIND_GPU"}]}, "KIND_GPU"),
        ({"output": [{"name": "nope", "data_type": "TYPE_FP32", "dims": [3]}]}, "'nope'"),
        ({"input": [{"name": "input_ids", "data_type": "TYPE_STRING", "dims": [-1]}]}, "TYPE_STRING"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(
    text_model: Callable[..., Any], changes: dict[str, Any], word: str
) -> None:
    with pytest.raises(TritonModelException, match=r"cannot load 'intents.model'") as error:
        text_model(**changes)
    assert word in str(error.value)


@pytest.fixture
def tokenizer(load: Load, tiny_text_package: Path) -> Any:
    package = open_package(tiny_text_package)
    folder = tiny_text_package.parent / "tokenizer" / "1"
    folder.mkdir(parents=True)
    assert package.tokenizer_path is not None
    assert package.manifest.preprocessing is not None
    (folder / "tokenizer.json").write_bytes(package.tokenizer_path.read_bytes())
    (folder / "preprocessing.json").write_text(json.dumps(package.manifest.preprocessing.model_dump(mode="json")))
    model = load("tokenizer").TritonPythonModel()
    model.initialize({"model_repository": str(folder.parent), "model_version": "1"})
    return model


def strings(*texts: str | bytes) -> Request:
    values = [[text.encode() if isinstance(text, str) else text] for text in texts]
    return Request({"TEXT": np.array(values, dtype=np.object_)}, ["input_ids", "attention_mask"])


def test_tokenizer_gives_what_the_encoder_gives(tokenizer: Any, tiny_text_package: Path) -> None:
    encoder = TextClassifier(tiny_text_package).encoder
    batches = [["where is my order"], ["", "cancel"], ["refund " * 40], ["ünïcödé 你好 🎉", " "]]

    responses = tokenizer.execute([strings(*batch) for batch in batches])

    for batch, response in zip(batches, responses, strict=True):
        for name, expected in encoder.encode(batch).items():
            np.testing.assert_array_equal(response.arrays()[name], expected)
            assert response.arrays()[name].dtype == np.int64


def test_tokenizer_answers_bad_requests_alone(tokenizer: Any) -> None:
    shaped = SimpleNamespace(inputs={"TEXT": np.array([b"x"], dtype=np.object_)}, requested_output_names=list)
    nothing = SimpleNamespace(inputs={}, requested_output_names=list)

    responses = tokenizer.execute([strings("cancel"), strings("ok", b"\xff\xfe"), shaped, nothing, strings("refund")])

    assert responses[0].arrays()["input_ids"].tolist() == [[2, 5, 3]]
    assert responses[4].arrays()["input_ids"].tolist() == [[2, 6, 3]]
    for response, word in zip(
        responses[1:4], ["TEXT[1] is not valid UTF-8", "must have shape", "missing"], strict=True
    ):
        assert word in response.error.message
        assert response.error.code == "INVALID_ARG"
