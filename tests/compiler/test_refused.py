"""A student that keeps the budget on development data, and not on evaluation data that is otherwise."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from lepto.compiler import cut_encoder
from lepto.compiler.data import Samples
from lepto.compiler.source import open_source
from lepto.compiler.verify import logits_in_batches
from lepto.runtime.package import open_package

from .conftest import Lepto, Toy, toy_rows, write_csv

pytestmark = pytest.mark.usefixtures("short_search")


def test_a_student_that_the_evaluation_data_refuses_is_not_taken(
    toy: Toy, own_cache: Path, tmp_path: Path, known_costs: None, lepto: Lepto, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Words in an order that no training text has: what the source says of them no student has learned."""
    every = cut_encoder.EncoderCutter.shapes
    monkeypatch.setattr(cut_encoder.EncoderCutter, "shapes", lambda self: every(self)[:1])
    rng = np.random.default_rng(0)
    words = sorted({word for text, _ in toy_rows() for word in text.split()})
    texts = [" ".join(rng.permutation(words)[:6]) for _ in range(200)]
    source = open_source(str(toy.model))
    assert source.labels is not None
    unlabelled = Samples(tuple(texts), np.zeros(len(texts), dtype=np.int64), "none")
    answers = logits_in_batches(source.runner(1), unlabelled, source.text, lambda _: None).argmax(-1)
    other = tmp_path / "other.csv"
    write_csv(other, [(text, source.labels[answer]) for text, answer in zip(texts, answers, strict=True)])
    flags = [flag for flag in toy.flags(eval=str(other)) if flag not in ("--search-budget", "0")]
    ran = lepto("compile", *flags, "--max-drop", "1%", "-o", tmp_path / "out")
    assert ran.code == 0, ran.err
    told = " ".join(ran.out.split())
    assert "is over the budget on the evaluation data: accuracy" in told
    drop = re.search(r"--max-drop ([0-9.]+)% would have let it pass", told)
    assert drop is not None
    assert float(drop[1]) > 1
    assert "a tenth of the training data steered" in told
    assert "no student keeps the budget: the source itself is compiled" in told
    result = open_package(tmp_path / "out").manifest.result.metric
    assert result is not None
    assert result.value >= 0.99
