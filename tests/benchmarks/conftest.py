"""Tiny packages whose speed, size and answers the test chooses."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from lepto.runtime.manifest import Manifest, Preprocessing, Result, Source, Tensor, Tolerance
from lepto.runtime.package import write_package
from lepto.runtime.session import onnxruntime_session

LABELS = ("order", "refund", "person")
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *LABELS, "please"]
WIDTH = 192

MakePackage = Callable[..., Path]


@pytest.fixture(scope="session")
def make_package() -> MakePackage:
    """A function (folder, *, work=0, swap=False, padding=0, labels=…) -> folder of a text classifier.

    It answers with the label that stands in the text. ``work`` matrix products make it slower, ``swap`` exchanges two
    answers, ``padding`` bytes make it bigger.
    """

    def make(
        folder: Path,
        *,
        work: int = 0,
        swap: bool = False,
        padding: int = 0,
        labels: Sequence[str] = LABELS,
        name: str = "t",
        nan: bool = False,
        rows: int = len(VOCABULARY),
    ) -> Path:
        data = _model(work, swap, padding, nan, rows)
        inputs = {
            "input_ids": np.array([[2, 4, 3], [2, 5, 3]], np.int64),
            "attention_mask": np.ones((2, 3), np.int64),
        }
        logits, scores = onnxruntime_session(data, threads=1).run(["logits", "scores"], inputs)
        manifest = Manifest(
            name=name,
            task="text-classification",
            target="x86-64-v3",
            threads=1,
            source=Source(digest="0" * 64, parameters=24, bytes=96),
            result=Result(digest=hashlib.sha256(data).hexdigest(), bytes=len(data)),
            inputs=tuple(Tensor(name=n, dtype="int64", shape=("batch", "sequence")) for n in inputs),
            outputs=tuple(Tensor(name=n, dtype="float32", shape=("batch", 3)) for n in ("logits", "scores")),
            preprocessing=Preprocessing(
                max_length=16, pad_id=0, pad_token="[PAD]", inputs=("input_ids", "attention_mask")
            ),
            tolerance=Tolerance(atol=1e-5, rtol=1e-4),
        )
        probe = {f"input/{n}": a for n, a in inputs.items()} | {"output/logits": logits, "output/scores": scores}
        package = write_package(
            folder, manifest=manifest, model=data, tokenizer=_tokenizer(), labels=labels, probe=probe, card="# t\n"
        )
        return package.path

    return make


@pytest.fixture
def evaluation(tmp_path: Path) -> Path:
    """600 labelled texts that the package answers rightly."""
    path = tmp_path / "eval.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for i in range(600):
            label = LABELS[i % 3]
            writer.writerow([f"please {label}", label])
    return path


def _tokenizer() -> str:
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return str(tokenizer.to_str())


def _model(work: int, swap: bool, padding: int, nan: bool = False, rows: int = 8) -> bytes:
    table = np.zeros((len(VOCABULARY), 3), np.float32)
    table[4:7] = 5 * np.eye(3, dtype=np.float32)[[1, 0, 2] if swap else [0, 1, 2]]
    if nan:  # only for one word, which the probe does not have
        table[6] = np.nan
    weights: dict[str, Any] = {
        "table": table[:rows],  # a word beyond them is an error
        "axis_1": np.array([1], np.int64),
        "axis_2": np.array([2], np.int64),
        "spread": np.zeros((3, WIDTH), np.float32),
        "gather": np.zeros((WIDTH, 3), np.float32),
        "square": np.full((WIDTH, WIDTH), 1e-3, np.float32),
        "pad": np.zeros(padding // 4 + 1, np.float32),
        "zero": np.array([0.0], np.float32),
    }
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "axis_2"], ["mask_3"]),
        helper.make_node("Mul", ["rows", "mask_3"], ["seen"]),
        helper.make_node("MatMul", ["seen", "spread"], ["work_0"]),
        *(helper.make_node("MatMul", [f"work_{i}", "square"], [f"work_{i + 1}"]) for i in range(work)),
        helper.make_node("MatMul", [f"work_{work}", "gather"], ["nothing"]),
        helper.make_node("Add", ["seen", "nothing"], ["all"]),
        helper.make_node("ReduceSum", ["all", "axis_1"], ["sum"], keepdims=0),
        # Something must read the padding, or the loader would drop it.
        helper.make_node("ReduceSum", ["pad", ""], ["pad_sum"], keepdims=0),
        helper.make_node("Mul", ["pad_sum", "zero"], ["pad_zero"]),
        helper.make_node("Add", ["sum", "pad_zero"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["scores"], axis=-1),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [
            helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "sequence"])
            for name in ("input_ids", "attention_mask")
        ],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3]) for name in ("logits", "scores")],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    data: bytes = model.SerializeToString()
    return data


TAGS = ("O", "B-thing", "I-thing")


@pytest.fixture(scope="session")
def make_tagger() -> MakePackage:
    """A function (folder, *, swap=False) -> folder of a token classifier.

    ``order`` begins a thing, ``refund`` goes on with one, other words are outside; ``swap`` exchanges the first two.
    """

    def make(folder: Path, *, swap: bool = False) -> Path:
        table = np.zeros((len(VOCABULARY), 3), np.float32)
        table[:, 0], table[4:6] = 2.0, 5 * np.eye(3, dtype=np.float32)[[2, 1] if swap else [1, 2]]
        nodes = [
            helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
            helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["mask", "last"], ["mask_3"]),
            helper.make_node("Mul", ["rows", "mask_3"], ["logits"]),
            helper.make_node("Softmax", ["logits"], ["scores"], axis=-1),
        ]
        graph = helper.make_graph(
            nodes,
            "tagger",
            [
                helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "sequence"])
                for name in ("input_ids", "attention_mask")
            ],
            [
                helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", "sequence", 3])
                for name in ("logits", "scores")
            ],
            [numpy_helper.from_array(table, "table"), numpy_helper.from_array(np.array([2], np.int64), "last")],
        )
        data = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8
        ).SerializeToString()  # fmt: skip
        inputs = {"input_ids": np.array([[2, 4, 3], [2, 7, 3]], np.int64), "attention_mask": np.ones((2, 3), np.int64)}
        logits, scores = onnxruntime_session(data, threads=1).run(["logits", "scores"], inputs)
        manifest = Manifest(
            name="tags",
            task="token-classification",
            target="x86-64-v3",
            threads=1,
            source=Source(digest="0" * 64, parameters=24, bytes=96),
            result=Result(digest=hashlib.sha256(data).hexdigest(), bytes=len(data)),
            inputs=tuple(Tensor(name=n, dtype="int64", shape=("batch", "sequence")) for n in inputs),
            outputs=tuple(
                Tensor(name=n, dtype="float32", shape=("batch", "sequence", 3)) for n in ("logits", "scores")
            ),
            preprocessing=Preprocessing(
                kind="words", max_length=16, pad_id=0, pad_token="[PAD]", inputs=("input_ids", "attention_mask")
            ),
            tolerance=Tolerance(atol=1e-5, rtol=1e-4),
        )
        probe = {f"input/{n}": a for n, a in inputs.items()} | {"output/logits": logits, "output/scores": scores}
        package = write_package(
            folder, manifest=manifest, model=data, tokenizer=_tokenizer(), labels=TAGS, probe=probe, card="# t\n"
        )
        return package.path

    return make


@pytest.fixture
def tagged(tmp_path: Path) -> Path:
    """500 rows of words, whose labels the tagger knows, from two countries."""
    path = tmp_path / "tagged.jsonl"
    with path.open("w") as file:
        for i in range(500):
            words = ["please", "order", "refund"] if i % 2 else ["please", "person"]
            labels = ["O", "B-thing", "I-thing"] if i % 2 else ["O", "O"]
            file.write(json.dumps({"words": words, "labels": labels, "country": "NL" if i % 4 < 2 else "BE"}) + "\n")
    return path
