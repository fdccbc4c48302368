"""Tiny real packages, built from stored models: these tests run where neither `onnx` nor `torch` is installed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from lepto.runtime.manifest import Manifest, Metric, PassRecord, Preprocessing, Result, Source, Tensor, Tolerance
from lepto.runtime.package import write_package
from lepto.runtime.session import onnxruntime_session
from lepto.runtime.text import TextEncoder

DATA = Path(__file__).parent / "data"
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "order", "cancel", "refund", "where", "is", "my", "please"]
LABELS = ("place_order", "cancel_order", "get_refund")
PROBE_TEXTS = ("where is my order", "cancel", "refund please cancel my refund", "")

MakePackage = Callable[..., Path]


@pytest.fixture
def data() -> Path:
    """The folder of the stored models: text, text_v2, tensor, external (.onnx)."""
    return DATA


@pytest.fixture(scope="session")
def tiny_tokenizer() -> str:
    """The text of a word-level tokenizer.json with [CLS] and [SEP]."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return str(tokenizer.to_str())


@pytest.fixture(scope="session")
def text_parts(tiny_tokenizer: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, Any]]:
    """A function that gives the arguments of `write_package` for a tiny text classifier."""

    def parts(*, name: str = "intents", model: str = "text", labels: tuple[str, ...] = LABELS) -> dict[str, Any]:
        data = (DATA / f"{model}.onnx").read_bytes()
        preprocessing = Preprocessing(
            max_length=16, pad_id=0, pad_token="[PAD]", inputs=("input_ids", "attention_mask")
        )
        file = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
        file.write_text(tiny_tokenizer)
        inputs = TextEncoder(file, preprocessing).encode(PROBE_TEXTS)
        file.unlink()
        logits, scores = onnxruntime_session(data, threads=1).run(["logits", "scores"], inputs)
        accuracy = Metric(name="accuracy", value=0.9, low=0.85, high=0.94, n=200)
        manifest = _manifest(
            name,
            "text-classification",
            data,
            inputs=tuple(Tensor(name=n, dtype="int64", shape=("batch", "sequence")) for n in inputs),
            outputs=tuple(Tensor(name=n, dtype="float32", shape=("batch", 3)) for n in ("logits", "scores")),
            preprocessing=preprocessing,
            metric=accuracy,
        )
        return {
            "manifest": manifest,
            "model": data,
            "tokenizer": tiny_tokenizer,
            "labels": labels,
            "probe": {f"input/{n}": a for n, a in inputs.items()} | {"output/logits": logits, "output/scores": scores},
            "card": f"# {name}\n\nA tiny classifier for tests.\n",
        }

    return parts


@pytest.fixture(scope="session")
def tensor_parts() -> Callable[..., dict[str, Any]]:
    """A function that gives the arguments of `write_package` for y = x @ weight, [B, 4] -> [B, 2]."""

    def parts(*, name: str = "linear", model: str = "tensor") -> dict[str, Any]:
        data = (DATA / f"{model}.onnx").read_bytes()
        x = np.arange(12, dtype=np.float32).reshape(3, 4)
        weight = np.array([[1, 0], [0, 1], [2, 0], [0, -1]], np.float32)
        manifest = _manifest(
            name,
            "tensor",
            data,
            inputs=(Tensor(name="x", dtype="float32", shape=("batch", 4)),),
            outputs=(Tensor(name="y", dtype="float32", shape=("batch", 2)),),
        )
        return {
            "manifest": manifest,
            "model": data,
            "tokenizer": None,
            "labels": None,
            "probe": {"input/x": x, "output/y": x @ weight},
            "card": f"# {name}\n",
        }

    return parts


@pytest.fixture(scope="session")
def make_text_package(text_parts: Callable[..., dict[str, Any]]) -> MakePackage:
    """A function (folder, *, name="intents", model="text" or "text_v2", labels=…) -> folder of a text package."""

    def make(folder: Path, **options: Any) -> Path:
        return write_package(folder, **text_parts(**options)).path

    return make


@pytest.fixture(scope="session")
def make_tensor_package(tensor_parts: Callable[..., dict[str, Any]]) -> MakePackage:
    """A function (folder, *, name="linear") -> folder of a tensor package."""

    def make(folder: Path, **options: Any) -> Path:
        return write_package(folder, **tensor_parts(**options)).path

    return make


@pytest.fixture
def tiny_text_package(make_text_package: MakePackage, tmp_path: Path) -> Path:
    """The folder of a text classifier (place_order, cancel_order, get_refund) that the test may change."""
    return make_text_package(tmp_path / "packages" / "intents")


@pytest.fixture
def tiny_tensor_package(make_tensor_package: MakePackage, tmp_path: Path) -> Path:
    """The folder of a package that takes and gives tensors, which the test may change."""
    return make_tensor_package(tmp_path / "packages" / "linear")


@pytest.fixture
def edit_manifest() -> Callable[..., None]:
    """A function (package folder, change) that lets `change` edit the manifest's JSON in place."""

    def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
        path = folder / "manifest.json"
        document = json.loads(path.read_text())
        change(document)
        path.write_text(json.dumps(document))

    return edit


def _manifest(
    name: str,
    task: str,
    model: bytes,
    *,
    inputs: tuple[Tensor, ...],
    outputs: tuple[Tensor, ...],
    preprocessing: Preprocessing | None = None,
    metric: Metric | None = None,
) -> Manifest:
    return Manifest(
        name=name,
        task=task,
        target="x86-64-v3",
        threads=1,
        recipe={"model": "tiny"},
        source=Source(digest="0" * 64, parameters=33, bytes=132, metric=metric, p50_ms=1.0, description="tiny"),
        passes=(PassRecord(pass_="fuse", kept=True, reason="faster", bytes=len(model), seconds=0.1),),
        result=Result(digest=hashlib.sha256(model).hexdigest(), bytes=len(model), metric=metric, agreement=1.0),
        inputs=inputs,
        outputs=outputs,
        preprocessing=preprocessing,
        tolerance=Tolerance(atol=1e-5, rtol=1e-4),
        environment={"python": "3.11"},
    )
