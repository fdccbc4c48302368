"""A small real model for the proof of the gate: an intent classifier that is trained in seconds and answers in 0.3 ms.

Word embeddings, two dense layers over the words, their mean, and a dense layer over the 18 intents of the embedded
workload; trained with PyTorch on its training split. Small enough that one comparison takes seconds.
"""

from __future__ import annotations

import hashlib
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from lepto.benchmarks.workloads.shop_intents import workload as intents
from lepto.runtime.manifest import Manifest, Preprocessing, Result, Source, Tensor, Tolerance
from lepto.runtime.package import Package, write_package
from lepto.runtime.session import onnxruntime_session
from lepto.runtime.text import TextEncoder

WIDTH, HIDDEN, LAYERS, WORDS = 192, 384, 4, 4000
INPUTS = ("input_ids", "attention_mask")


def make_package(folder: Path, *, epochs: int = 10, seed: int = 0) -> Package:
    """Train the model and write its package."""
    import csv

    rows = list(csv.DictReader(intents.data_file("train").open(encoding="utf-8")))
    labels = tuple(sorted({row["label"] for row in rows}))
    texts = [row["text"] for row in rows]
    tokenizer = _tokenizer(texts)
    preprocessing = Preprocessing(max_length=64, pad_id=0, pad_token="[PAD]", inputs=INPUTS)
    folder.parent.mkdir(parents=True, exist_ok=True)
    file = folder.parent / f"{folder.name}.tokenizer.json"
    file.write_text(tokenizer)
    try:
        encoder = TextEncoder(file, preprocessing)
        encoded = encoder.encode(texts)
        targets = np.array([labels.index(row["label"]) for row in rows])
        weights = _train(encoded, targets, len(labels), epochs, seed)
        probe = encoder.encode(texts[:4])
    finally:
        file.unlink()
    data = _graph(weights, len(labels))
    logits, scores = onnxruntime_session(data, threads=1).run(["logits", "scores"], dict(probe))
    manifest = Manifest(
        name="proof",
        task="text-classification",
        target="x86-64-v3",
        threads=1,
        source=Source(
            digest=hashlib.sha256(data).hexdigest(),
            parameters=sum(w.size for w in weights.values()),
            bytes=sum(w.nbytes for w in weights.values()),
        ),
        result=Result(digest=hashlib.sha256(data).hexdigest(), bytes=len(data)),
        inputs=tuple(Tensor(name=name, dtype="int64", shape=("batch", "sequence")) for name in INPUTS),
        outputs=tuple(
            Tensor(name=name, dtype="float32", shape=("batch", len(labels))) for name in ("logits", "scores")
        ),
        preprocessing=preprocessing,
        tolerance=Tolerance(atol=1e-4, rtol=1e-3),
    )
    stored = {f"input/{name}": array for name, array in probe.items()}
    return write_package(
        folder,
        manifest=manifest,
        model=data,
        tokenizer=tokenizer,
        labels=labels,
        probe=stored | {"output/logits": logits, "output/scores": scores},
        card="# proof\n\nThe model of `make prove-gate`.\n",
    )


def _tokenizer(texts: list[str]) -> str:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    tokenizer.train_from_iterator(texts, trainers.WordLevelTrainer(vocab_size=WORDS, special_tokens=special))
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return str(tokenizer.to_str())


def _train(encoded: Any, targets: np.ndarray[Any, Any], labels: int, epochs: int, seed: int) -> dict[str, Any]:
    import torch
    from torch import nn

    torch.manual_seed(seed)
    ids, mask = torch.from_numpy(encoded["input_ids"]), torch.from_numpy(encoded["attention_mask"]).float()[..., None]
    right = torch.from_numpy(targets)
    table = nn.Embedding(WORDS, WIDTH)
    sizes = [WIDTH, *[HIDDEN] * LAYERS]
    dense = nn.ModuleList([nn.Linear(a, b) for a, b in itertools.pairwise(sizes)])
    head = nn.Linear(HIDDEN, labels)
    optimizer = torch.optim.Adam([*table.parameters(), *dense.parameters(), *head.parameters()], 2e-3)
    for _ in range(epochs):
        for rows in torch.split(torch.randperm(len(ids)), 64):
            # Words that nobody has seen come too: one in five is hidden.
            hidden = (torch.rand(ids[rows].shape) < 0.2) & (ids[rows] > 3)
            x = nn.functional.dropout(table(ids[rows].masked_fill(hidden, 1)), 0.3)
            for layer in dense:
                x = torch.relu(layer(x))
            mean = (x * mask[rows]).sum(1) / mask[rows].sum(1)
            loss = nn.functional.cross_entropy(head(mean), right[rows])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch gives it no types
            optimizer.step()
    weights: dict[str, Any] = {"table": table.weight, "head": head.weight.T, "head_bias": head.bias}
    for i, layer in enumerate(dense):
        weights |= {f"dense_{i}": layer.weight.T, f"bias_{i}": layer.bias}
    return {name: np.ascontiguousarray(value.detach().numpy()) for name, value in weights.items()}


def _graph(weights: dict[str, Any], labels: int) -> bytes:
    layers = sum(name.startswith("dense_") for name in weights)
    constants = {"axis_1": np.array([1], np.int64), "axis_2": np.array([2], np.int64)}
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["x_0"]),
        helper.make_node("Cast", ["attention_mask"], ["mask_2"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask_2", "axis_2"], ["mask"]),
    ]
    for i in range(layers):
        nodes += [
            helper.make_node("MatMul", [f"x_{i}", f"dense_{i}"], [f"a_{i}"]),
            helper.make_node("Add", [f"a_{i}", f"bias_{i}"], [f"b_{i}"]),
            helper.make_node("Relu", [f"b_{i}"], [f"x_{i + 1}"]),
        ]
    nodes += [
        helper.make_node("Mul", [f"x_{layers}", "mask"], ["seen"]),
        helper.make_node("ReduceSum", ["seen", "axis_1"], ["sum"], keepdims=0),
        helper.make_node("ReduceSum", ["mask", "axis_1"], ["count"], keepdims=0),
        helper.make_node("Div", ["sum", "count"], ["mean"]),
        helper.make_node("MatMul", ["mean", "head"], ["raw"]),
        helper.make_node("Add", ["raw", "head_bias"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["scores"], axis=-1),
    ]
    graph = helper.make_graph(
        nodes,
        "proof",
        [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "sequence"]) for name in INPUTS],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", labels]) for name in ("logits", "scores")],
        [numpy_helper.from_array(value, name) for name, value in (weights | constants).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    data: bytes = model.SerializeToString()
    return data
