from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest

from lepto.runtime import LeptoError, open_package, write_package
from lepto.runtime.evidence import Answers, Evidence


@pytest.fixture
def evidence() -> Evidence:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(20, 3)).astype(np.float32)
    return Evidence(
        data="d" * 64,
        rows=np.arange(20),
        labels=rng.integers(0, 3, 20),
        source=Answers.of(logits),
        result=Answers.of(logits + 0.1),
        tokens=rng.integers(3, 9, 20),
        source_seconds=rng.random((4, 5)),
        result_seconds=rng.random((4, 5)),
        layers=("encoder.0", "encoder.1"),
        layer_error=np.array([0.01, 0.02]),
    )


def read(data: bytes) -> Evidence:
    with np.load(io.BytesIO(data), allow_pickle=False) as stored:
        return Evidence.from_arrays({name: stored[name] for name in stored.files})


def test_what_is_written_is_read(evidence: Evidence) -> None:
    again = read(evidence.to_bytes())
    assert again.judged
    assert (again.data, again.layers) == (evidence.data, evidence.layers)
    for side in ("source", "result"):
        before, after = getattr(evidence, side), getattr(again, side)
        np.testing.assert_array_equal(before.decisions, after.decisions)
        np.testing.assert_allclose(before.scores, after.scores, atol=0.5 / 4_095 + 1e-7)
        np.testing.assert_allclose(before.scores.sum(axis=1), 1.0, rtol=1e-2)
    np.testing.assert_allclose(again.source_seconds, evidence.source_seconds, rtol=1e-6)
    assert evidence.to_bytes() == evidence.to_bytes()


def test_what_was_not_measured_stays_out() -> None:
    again = read(Evidence(source_seconds=np.ones((2, 2))).to_bytes())
    assert not again.judged
    assert again.labels is None
    assert again.layer_error is None


def test_an_even_selection_of_many_samples(evidence: Evidence) -> None:
    few = evidence.thinned(most=15)
    assert few.rows is not None
    assert few.rows.tolist() == [0, 4, 9, 14, 19]
    assert few.labels is not None
    assert evidence.labels is not None
    assert few.labels.tolist() == evidence.labels[few.rows].tolist()
    assert evidence.thinned() is evidence


def test_it_travels_with_the_package(text_parts, tmp_path, evidence: Evidence) -> None:
    package = write_package(tmp_path / "p", **text_parts(), evidence=evidence)
    assert "evidence.npz" in package.manifest.files
    found = open_package(package.path).evidence()
    assert found is not None
    assert found.judged
    assert write_package(tmp_path / "old", **text_parts()).evidence() is None
    changed = package.path / "evidence.npz"
    changed.write_bytes(changed.read_bytes()[:-1])
    with pytest.raises(LeptoError, match=r"evidence\.npz was changed"):
        open_package(package.path)


def test_broken_evidence_says_so(evidence: Evidence) -> None:
    with np.load(io.BytesIO(evidence.to_bytes())) as stored:
        arrays = {name: stored[name] for name in stored.files}
    with pytest.raises(ValueError, match="unknown arrays"):
        Evidence.from_arrays(arrays | {"more": np.ones(1)})
    with pytest.raises(ValueError, match="every sample needs every column"):
        Evidence.from_arrays(arrays | {"labels": arrays["labels"][:3]})
    assert replace(evidence, source=None).judged is False
