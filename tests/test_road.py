"""The whole road on a real model: compile, verify, publish, serve, and every answer the same as the package's own."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lepto.runtime import TextClassifier
from lepto.runtime.client import TextClient
from lepto.runtime.package import Package, open_package
from lepto.runtime.repository import publish
from lepto.runtime.server import Server
from lepto.runtime.verify import verify_package

SHARED = Path(__file__).parents[2] / "shared"
MODEL, DATA = SHARED / "models" / "minilm-banking77", SHARED / "data" / "banking77"

pytestmark = [
    pytest.mark.skipif(not (MODEL.is_dir() and DATA.is_dir()), reason="needs the MiniLM model and BANKING77 beside us"),
    pytest.mark.timeout(600),
]


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    """The package that the command line makes of the real model."""
    folder = tmp_path_factory.mktemp("road")
    command = [
        str(Path(sys.executable).parent / "lepto"), "compile", "-m", str(MODEL), "--task", "text-classification",
        "--train", str(DATA / "train.csv"), "--eval", str(DATA / "test.csv"),
        "--text-column", "text", "--label-column", "category", "--target", "host", "--max-drop", "1%",
        "--threads", "2", "--passes", "fuse,quantize-dynamic", "-o", str(folder / "package"), "--json",
    ]  # fmt: skip
    environment = {**os.environ, "LEPTO_CACHE": str(folder / "cache")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["package"] == str(folder / "package")
    return open_package(document["package"])


@pytest.fixture(scope="module")
def texts() -> list[str]:
    with (DATA / "test.csv").open(newline="", encoding="utf-8") as file:
        return [row["text"] for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def own(package: Package, texts: list[str]) -> list[tuple[int, float]]:
    """The package's own predictions, in this process."""
    return [(found[0].index, found[0].score) for found in TextClassifier(package).predict(texts)]


@pytest.fixture(scope="module")
def server(package: Package, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    pytest.importorskip("pytriton", reason="needs the tritonserver wheel: pip install 'lepto[server]'")
    repository = tmp_path_factory.mktemp("models")
    publish(package, repository, name="banking77")
    with Server(repository, http_port=0, grpc_port=0, metrics_port=0) as running:
        yield running


def test_accuracy_and_size_keep_what_was_promised(package: Package) -> None:
    result, source = package.manifest.result, package.manifest.source
    assert source.metric is not None
    assert result.metric is not None
    assert source.metric.n == result.metric.n == 3080
    assert source.metric.value == pytest.approx(0.9211, abs=2e-4)
    assert result.metric.value >= 0.915
    assert sum(file.stat().st_size for file in package.path.iterdir()) <= 24_000_000


def test_every_pass_is_in_the_result(package: Package) -> None:
    assert [(record.pass_, record.kept) for record in package.manifest.passes] == [
        ("export", True),
        ("fuse", True),
        ("quantize-dynamic", True),
    ]


def test_the_metric_can_be_run_again(package: Package, own: list[tuple[int, float]]) -> None:
    with (DATA / "test.csv").open(newline="", encoding="utf-8") as file:
        labels = [row["category"] for row in csv.DictReader(file)]
    assert package.labels is not None
    right = sum(package.labels[index] == label for (index, _), label in zip(own, labels, strict=True))
    assert package.manifest.result.metric is not None
    assert right / len(labels) == pytest.approx(package.manifest.result.metric.value, abs=1e-12)


def test_verify_passes(package: Package) -> None:
    checks = verify_package(package.path)
    assert checks
    assert all(check.ok for check in checks), checks


@pytest.mark.parametrize(("protocol", "rows"), [("http", 1), ("grpc", 1), ("http", 32), ("grpc", 32)])
def test_served_answers_are_the_packages_own(
    server: Server, texts: list[str], own: list[tuple[int, float]], protocol: str, rows: int
) -> None:
    every = 3 if rows == 1 else 1  # all of them in batches
    texts, own = texts[::every], own[::every]
    url = server.http_url if protocol == "http" else server.grpc_url
    answers = []
    with TextClient(url, "banking77", protocol=protocol) as client:
        for start in range(0, len(texts), rows):
            answers += [found[0] for found in client.classify(texts[start : start + rows])]
    assert len(answers) == len(texts)
    different = [i for i, (one, (index, _)) in enumerate(zip(answers, own, strict=True)) if one.index != index]
    assert different == []
    assert max(abs(one.score - score) for one, (_, score) in zip(answers, own, strict=True)) < 1e-5
