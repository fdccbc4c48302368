"""Sentence encoders: pooling as the folder names it, vectors that stay where they were, students that learn them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import AutoModel, AutoTokenizer

from lepto.compiler import Recipe, compile_model
from lepto.compiler.data import Samples, load_samples
from lepto.compiler.encoder import Encoder
from lepto.compiler.importance import measure_importance
from lepto.compiler.packaging import of_size
from lepto.compiler.sensitivity import direction_loss
from lepto.compiler.source import open_source
from lepto.compiler.training.first_row import first_row_only
from lepto.compiler.training.lesson import own_answers
from lepto.compiler.training.losses import direction_distance
from lepto.compiler.verify import logits_in_batches
from lepto.runtime import TextEmbedder
from lepto.runtime.client import AsyncTextClient, TextClient
from lepto.runtime.errors import LeptoError
from lepto.runtime.manifest import FEATURE_EXTRACTION, Tolerance
from lepto.runtime.repository import publish
from lepto.runtime.server import Server
from lepto.runtime.verify import verify_package, within

from .conftest import Lepto, Toy, toy_rows
from .models_vectors import CLS, MAX, MEAN, bert, distilbert, write_modules

TEXTS = [text for text, _ in toy_rows()[:60]]


def pooled(folder: Path, mode: str, texts: list[str]) -> torch.Tensor:
    """What sentence-transformers computes: its documented formulas on the model's tokens, one text at a time."""
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    rows = []
    for text in texts:
        with torch.inference_mode():
            tokens = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        rows.append({"mean": tokens.mean(0), "cls": tokens[0], "max": tokens.amax(0)}[mode])
    return functional.normalize(torch.stack(rows), dim=1)


def test_a_tolerance_that_other_vectors_do_not_keep() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(16, 384))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    logits = Tolerance(atol=0.25, rtol=0.05)
    assert within(vectors[::-1], vectors, logits)["ok"]  # any vector of length 1 passes for any other
    found = of_size(logits, [vectors])
    assert found.atol == pytest.approx(0.5 / 384**0.5)
    assert not within(vectors[::-1], vectors, found)["ok"]
    assert within(vectors + rng.normal(size=vectors.shape, scale=0.005), vectors, found)["ok"]  # a tenth of a value off
    assert of_size(logits, [100 * vectors]).atol == 0.25


@pytest.mark.parametrize(("mode", "pooling"), [("mean", MEAN), ("cls", CLS), ("max", MAX)])
def test_tokens_are_pooled_as_the_folder_says(tmp_path: Path, mode: str, pooling: dict[str, Any]) -> None:
    folder = distilbert(tmp_path / "encoder", pooling)
    source = open_source(str(folder))
    samples = Samples(tuple(TEXTS[:8]), np.zeros((8, 0), np.float32), "here")
    found = logits_in_batches(source.runner(1), samples, source.text, lambda _: None)  # padded, of unlike length
    np.testing.assert_allclose(found, pooled(folder, mode, TEXTS[:8]).numpy(), atol=1e-5)


def test_a_package_gives_the_vectors(tmp_path: Path, cache_folder: Path, toy: Toy) -> None:
    folder = bert(tmp_path / "encoder")
    recipe = Recipe(model=str(folder), passes="fuse", eval=str(toy.eval), threads=1)
    package = compile_model(recipe, tmp_path / "out")
    assert package.manifest.task == FEATURE_EXTRACTION
    assert package.manifest.tolerance.atol < 1e-3  # for vectors of length 1
    found, wanted = TextEmbedder(package).embed(TEXTS[:8]), pooled(folder, "mean", TEXTS[:8]).numpy()
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    np.testing.assert_allclose(TextEmbedder(package).embed(TEXTS[:8], batch_size=8), wanted, atol=1e-5)
    assert package.manifest.result.metric is not None
    assert package.manifest.result.metric.name == "cosine"
    assert package.manifest.result.metric.value == pytest.approx(1.0, abs=1e-6)
    assert all(check.ok for check in verify_package(package))


def _module(name: str, path: str = "") -> dict[str, str]:
    return {"path": path, "type": f"sentence_transformers.models.{name}"}


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda f: (f / "modules.json").write_text("{"), "is no list of sentence-transformers' modules"),
        (
            lambda f: (f / "modules.json").write_text(json.dumps([_module("Transformer"), _module("Dense", "1")])),
            "names Transformer, Dense; known are",
        ),
        (lambda f: write_modules(f, MEAN | MAX), "one pooling of mean, cls, max is supported, got mean, max"),
        (
            lambda f: write_modules(f, {"pooling_mode_lasttoken": True}),
            "one pooling of mean, cls, max is supported, got lasttoken",
        ),
        (
            lambda f: (f / "config_sentence_transformers.json").write_text('{"default_prompt_name": "query"}'),
            "puts the prompt 'query' before every text",
        ),
    ],
)
def test_a_folder_that_would_mean_other_vectors_is_refused(
    tmp_path: Path, spoil: Callable[[Path], object], said: str
) -> None:
    folder = distilbert(tmp_path / "encoder")
    spoil(folder)
    with pytest.raises(LeptoError, match=said):
        open_source(str(folder))


def test_its_parts_are_known(tmp_path: Path) -> None:
    for folder, layers in ((bert(tmp_path / "bert"), 4), (distilbert(tmp_path / "distilbert"), 3)):
        source = open_source(str(folder))
        encoder = Encoder.of(source.module())
        assert encoder is not None
        assert encoder.sizes().layers == layers
        assert encoder.reader() is None  # its width is that of the vectors


@pytest.mark.parametrize(("pooling", "first"), [(MEAN, False), (CLS, True)])
def test_rows_are_dropped_where_the_first_alone_is_read(tmp_path: Path, pooling: dict[str, Any], first: bool) -> None:
    source = open_source(str(distilbert(tmp_path / "encoder", pooling)))
    inputs = {name: torch.from_numpy(np.array(array)) for name, array in source.example.items()}
    with first_row_only(source.module(), inputs) as found:
        assert found is first


def test_a_distance_between_directions() -> None:
    ours, theirs = (
        torch.tensor([[3.0, 0.0], [0.0, 2.0], [1.0, 1.0]]),
        torch.tensor([[1.0, 0.0], [1.0, 0.0], [-2.0, -2.0]]),
    )
    part = direction_distance(ours, theirs)
    assert float(part.total) == pytest.approx(0 + 1 + 2)
    assert float(part.over) == 3


def test_random_directions_see_the_whole_derivative() -> None:
    # u(g) = normalize(x + g * h) at g = 1: the mean of the squared derivatives along random directions is |du/dg|^2.
    torch.manual_seed(0)
    x, h = torch.randn(1, 5), torch.randn(1, 5)
    moved = torch.autograd.functional.jacobian(lambda g: functional.normalize(x + g * h, dim=-1), torch.ones(()))
    wanted = float(moved.square().sum())
    found = []
    for _ in range(4000):
        gate = torch.ones((), requires_grad=True)
        torch.autograd.backward(direction_loss(x + gate * h, torch.randn(1, 5)))
        assert gate.grad is not None
        found.append(float(gate.grad) ** 2)
    error = np.std(found) / len(found) ** 0.5
    assert abs(np.mean(found) - wanted) < 4 * error


def test_a_head_that_nothing_depends_on_does_not_matter(tmp_path: Path, toy: Toy) -> None:
    source = open_source(str(bert(tmp_path / "encoder")))
    encoder = Encoder.of(source.module())
    assert encoder is not None
    out = encoder.layers()[1].get_submodule(encoder.family.out)
    with torch.no_grad():
        out.weight[:, 8:16] = 0.0  # what the second head says is not read
    samples = load_samples(
        str(toy.train), text_column="text", label_column="label", labels=None, split="train", task=FEATURE_EXTRACTION
    )
    scores = measure_importance(encoder, own_answers(source, samples, 64), samples=64)
    assert float(scores.heads[1][1]) == 0.0
    assert all(float(score) > 0 for layer in scores.heads for score in layer if layer is not scores.heads[1])
    assert [float(score) > 0 for score in scores.heads[1]] == [True, False, True, True]


def test_passes_by_name_prune_and_teach_it(tmp_path: Path, own_cache: Path, toy: Toy, lepto: Lepto) -> None:
    folder = bert(tmp_path / "encoder")
    ran = lepto(
        "compile", "-m", folder, "--train", toy.train, "--eval", toy.eval, "--threads", "1", "--max-drop", "20%",
        "--passes", "prune(layers=2),distill(epochs=20,copies=2),fuse,quantize-dynamic", "-o", tmp_path / "out",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    found, wanted = TextEmbedder(tmp_path / "out").embed(TEXTS), pooled(folder, "mean", TEXTS).numpy()
    assert float((found * wanted).sum(1).mean()) > 0.8


def test_served_vectors_are_the_packages_own(tmp_path: Path, cache_folder: Path, toy: Toy, lepto: Lepto) -> None:
    pytest.importorskip("pytriton", reason="needs the tritonserver wheel: pip install 'lepto[server]'")
    folder = bert(tmp_path / "encoder")
    package = compile_model(Recipe(model=str(folder), passes="fuse", eval=str(toy.eval), threads=1), tmp_path / "out")
    publish(package, tmp_path / "repository", name="vectors")
    own = TextEmbedder(package).embed(TEXTS[:5])

    async def ask(url: str, protocol: Any) -> Any:
        async with AsyncTextClient(url, "vectors", protocol=protocol) as client:
            with pytest.raises(LeptoError, match="one answer for each text, not for its words: use classify"):
                await client.tag(TEXTS[:1])
            return await client.embed(TEXTS[:5], batch_size=3)

    with Server(tmp_path / "repository", http_port=0, grpc_port=0, metrics_port=0, grace_s=3) as running:
        for protocol, url in (("http", running.http_url), ("grpc", running.grpc_url)):
            with TextClient(url, "vectors", protocol=protocol) as client:  # type: ignore[arg-type]  # one of the two
                assert client.gives_vectors()
                np.testing.assert_allclose(client.embed(TEXTS[:5], batch_size=3), own, atol=1e-6)
            np.testing.assert_allclose(asyncio.run(ask(url, protocol)), own, atol=1e-6)
        ran = lepto("infer", "vectors", *TEXTS[:2], "--url", running.http_url)
        assert ran.code == 0, ran.err
        assert f"32 values, length 1.0000, cosine to the first {float(own[0] @ own[1]):.4f}" in " ".join(
            ran.out.split()
        )
        ran = lepto("infer", "vectors", TEXTS[0], "--url", running.http_url, "--json")
        np.testing.assert_allclose(json.loads(ran.out)["answers"][0]["vector"], own[0], atol=1e-6)


def test_a_kit_for_a_gpu_checks_vectors_by_their_size(tmp_path: Path, cache_folder: Path, toy: Toy) -> None:
    recipe = Recipe(
        model=str(bert(tmp_path / "encoder")), train=str(toy.train), eval=str(toy.eval), target="l4", threads=1
    )
    package = compile_model(recipe, tmp_path / "out")
    assert package.manifest.task == FEATURE_EXTRACTION
    tolerance = package.manifest.tolerance
    assert tolerance.atol == pytest.approx(2 * 0.05 / 32**0.5)  # fp16: 0.05 for logits; 32 values, length 1
    assert package.manifest.environment["tensorrt"]["tolerance"]["atol"] == tolerance.atol
