"""Token classification end to end: words in, a label for each, searched, quantized and judged by entity F1."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForTokenClassification, PreTrainedTokenizerFast

from lepto.compiler import Recipe, compile_model
from lepto.compiler.cut_encoder import encoder_cutter
from lepto.compiler.data import Samples
from lepto.compiler.latency import Curve, LatencyTable
from lepto.compiler.source import open_source
from lepto.compiler.training.lesson import own_answers
from lepto.runtime import TokenClassifier
from lepto.runtime.client import AsyncTextClient, TextClient
from lepto.runtime.errors import LeptoError
from lepto.runtime.repository import publish
from lepto.runtime.server import Server
from lepto.runtime.tagging import Tag
from lepto.runtime.verify import verify_package

from .conftest import _MIDDLES, LABELS, SIZES, Toy, toy_rows

pytestmark = pytest.mark.usefixtures("short_search")

Row = tuple[list[str], list[str]]
NAMES = ("O", *(f"{kind}-{label.split()[0]}" for label in LABELS for kind in "BI"))


def tagged() -> list[Row]:
    """The toy's texts, in which the words that say what is wanted are entities."""
    rows = []
    for text, label in toy_rows():
        words, name = text.split(), label.split()[0]
        labels = ["O"] * len(words)
        for middle in _MIDDLES[LABELS.index(label)]:
            wanted = middle.split()
            for at in range(len(words)):
                if words[at : at + len(wanted)] == wanted:
                    labels[at : at + len(wanted)] = [f"B-{name}", *[f"I-{name}"] * (len(wanted) - 1)]
        rows.append((words, labels))
    return rows


def write(file: Path, rows: list[Row]) -> str:
    file.write_text("".join(json.dumps({"words": words, "labels": labels}) + "\n" for words, labels in rows))
    return str(file)


@pytest.fixture(scope="module")
def tagger(toy: Toy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("tagger")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(toy.model)
    model = BertForTokenClassification(
        BertConfig(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
            max_position_embeddings=32, hidden_dropout_prob=0.0,
            **{**SIZES, "num_labels": len(NAMES), "id2label": dict(enumerate(NAMES)),
               "label2id": {name: i for i, name in enumerate(NAMES)}},
        )
    )  # fmt: skip
    rows = tagged()[60:]
    encoded = tokenizer([words for words, _ in rows], is_split_into_words=True, padding=True, return_tensors="pt")
    targets = torch.tensor(
        [
            [-100 if word is None else NAMES.index(rows[at][1][word]) for word in encoded.word_ids(at)]
            for at in range(len(rows))
        ]
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(12):
        for part in torch.randperm(len(rows)).split(32):
            logits = model(encoded["input_ids"][part], encoded["attention_mask"][part]).logits
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets[part].flatten(), ignore_index=-100)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_tagger_is_searched(tagger: Path, tmp_path: Path) -> None:
    rows = tagged()
    recipe = Recipe(
        model=str(tagger), task="token-classification", train=write(tmp_path / "train.jsonl", rows[160:]),
        eval=write(tmp_path / "eval.jsonl", rows[:60]), dev=write(tmp_path / "dev.jsonl", rows[60:160]),
        text_column="words", label_column="labels", max_drop="10%", threads=1,
    )  # fmt: skip
    package = compile_model(recipe, tmp_path / "out")
    manifest = package.manifest
    assert manifest.task == "token-classification"
    assert manifest.source.metric is not None
    assert manifest.result.metric is not None
    assert manifest.source.metric.value > 0.9
    assert manifest.result.metric.value >= 0.9 * manifest.source.metric.value
    assert manifest.result.bytes < manifest.source.bytes
    assert manifest.environment["search"]["winner"]
    difference = manifest.environment["paired_difference"]
    assert difference["rule"] == "paired bootstrap"
    assert (
        difference["low_95_one_sided"]
        <= difference["value"]
        == pytest.approx(manifest.result.metric.value - manifest.source.metric.value)
    )
    assert all(check.ok for check in verify_package(package))


def test_a_taggers_last_layer_is_priced_by_all_its_rows(tagger: Path, toy: Toy) -> None:
    curve = Curve((1, 64), (0.1, 6.4))
    table = LatencyTable(curve, curve, Curve((1, 64), (0.01, 0.64)), rows=8)
    words = tuple(tuple(row) for row, _ in tagged()[:32])
    none = np.empty(32, dtype=object)
    none[:] = [np.zeros(len(row), np.int64) for row in words]
    cases = [
        (tagger, "token-classification", Samples(words, none, "here"), 6.4),
        (toy.model, "text-classification", Samples(tuple(map(" ".join, words)), np.zeros(32, np.int64), "here"), 0.64),
    ]
    for model, task, samples, last_ms in cases:
        source = open_source(str(model), task)
        cutter = encoder_cutter(source, source, own_answers(source, samples, 32), table)
        assert cutter.cuts_width
        whole = next(shape for shape in cutter.shapes() if shape.what.layers == (0,))
        assert whole.predicted_ms == pytest.approx(curve(4) + last_ms)


def test_served_words_are_labelled_as_by_the_package(tagger: Path, tmp_path: Path, cache_folder: Path) -> None:
    pytest.importorskip("pytriton", reason="needs the tritonserver wheel: pip install 'lepto[server]'")
    recipe = Recipe(
        model=str(tagger), task="token-classification", eval=write(tmp_path / "eval.jsonl", tagged()[:60]),
        text_column="words", label_column="labels", passes="fuse", threads=1,
    )  # fmt: skip
    package = compile_model(recipe, tmp_path / "out")
    publish(package, tmp_path / "repository", name="tags")
    texts = [" ".join(words) for words, _ in tagged()[:6]]
    own = TokenClassifier(package).tag(texts)
    assert {tag.label for row in own for tag in row} > {"O"}

    def said(rows: list[list[Tag]]) -> list[list[tuple[str, str | None]]]:
        return [[(tag.word, tag.label) for tag in row] for row in rows]

    async def ask(url: str, protocol: Any) -> list[list[Tag]]:
        async with AsyncTextClient(url, "tags", protocol=protocol) as client:
            with pytest.raises(LeptoError, match="no embeddings: use classify or infer"):
                await client.embed(texts[:1])
            return await client.tag(texts, batch_size=4)

    with Server(tmp_path / "repository", http_port=0, grpc_port=0, metrics_port=0, grace_s=3) as running:
        protocols: list[tuple[Any, str]] = [("http", running.http_url), ("grpc", running.grpc_url)]
        for protocol, url in protocols:
            with TextClient(url, "tags", protocol=protocol) as client:
                assert not client.gives_vectors()
                assert said(client.tag(texts, batch_size=4)) == said(own)
            assert said(asyncio.run(ask(url, protocol))) == said(own)
