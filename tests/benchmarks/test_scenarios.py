from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lepto.benchmarks import scenarios
from lepto.benchmarks.scenarios import Latency
from lepto.compiler.data import Samples
from lepto.runtime.errors import LeptoError

MakePackage = Callable[..., Path]


@pytest.fixture
def pair(make_package: MakePackage, tmp_path: Path) -> list[scenarios.Subject]:
    return scenarios.load([make_package(tmp_path / "one"), make_package(tmp_path / "two", work=5)], None)


def samples(*texts: str) -> Samples:
    return Samples(texts, np.zeros(len(texts), dtype=np.int64), "texts")


def test_packages_of_one_name_are_told_apart(pair: list[scenarios.Subject]) -> None:
    assert len({subject.name for subject in pair}) == 2
    assert all(subject.session.threads == 1 for subject in pair)


def test_threads_override(make_package: MakePackage, tmp_path: Path) -> None:
    assert scenarios.load([make_package(tmp_path / "one")], 2)[0].session.threads == 2


def test_predicts_every_sample_by_itself(pair: list[scenarios.Subject]) -> None:
    feeds = scenarios.feeds_from_samples(pair[0].package, samples("order", "please person", "refund", "order"))
    assert [feed["input_ids"].shape for feed in feeds] == [(1, 3), (1, 4), (1, 3), (1, 3)]
    told: list[int] = []
    assert scenarios.predict(pair[0], feeds, lambda done, _: told.append(done)).tolist() == [0, 2, 1, 0]
    assert told == [1, 2, 3, 4]


def test_measures_in_blocks(pair: list[scenarios.Subject]) -> None:
    feeds = [scenarios.feeds_from_probe(subject.package) for subject in pair]
    assert len(feeds[0]) == 2
    assert 20 <= scenarios.per_block(pair, feeds) <= 200
    first, second = scenarios.measure(pair, feeds, blocks=3, runs=4, seed=0)
    assert first.shape == second.shape == (3, 4)
    assert (first > 0).all()


def test_lengths(pair: list[scenarios.Subject]) -> None:
    feeds = scenarios.feeds_of_lengths(pair[0].package, [1, 16])
    assert [feed["input_ids"].shape for feed in feeds] == [(1, 1), (1, 16)]
    assert all((feed["attention_mask"] == 1).all() for feed in feeds)
    assert all(feed["input_ids"].dtype == np.int64 for feed in feeds)
    pair[0].session.run(feeds[1])
    with pytest.raises(LeptoError, match=r"in \[1, 16\]"):
        scenarios.feeds_of_lengths(pair[0].package, [0])


def test_samples_of_another_kind_are_refused(pair: list[scenarios.Subject]) -> None:
    arrays = Samples({"x": np.zeros((2, 3))}, np.zeros(2, dtype=np.int64), "arrays")
    with pytest.raises(LeptoError, match=r"arrays gives \['x'\]"):
        scenarios.feeds_from_samples(pair[0].package, arrays)


def test_latency_summary() -> None:
    latency = Latency.of(np.linspace(1e-3, 2e-3, 101).reshape(1, 101))
    assert (latency.p50_ms, latency.p90_ms, latency.p99_ms) == pytest.approx((1.5, 1.9, 1.99))
    assert latency.throughput == pytest.approx(1 / 1.5e-3)
    assert latency.n == 101
