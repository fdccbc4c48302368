"""Training inputs without labels: how they are read, kept apart from what judges, and learned from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lepto.compiler.data import NO_LABEL, Samples
from lepto.compiler.passes import distill
from lepto.compiler.training.lesson import prepare_lesson
from lepto.compiler.unlabelled import apart_from, joined, load_unlabelled
from lepto.runtime.errors import LeptoError
from lepto.runtime.manifest import TEXT_CLASSIFICATION, TOKEN_CLASSIFICATION

from .conftest import Lepto, Toy, toy_rows, write_csv


def plain(text: str) -> str:
    """One line, whatever the width of the console."""
    return " ".join(text.split())


def read(path: Path, task: str = TEXT_CLASSIFICATION) -> Samples:
    return load_unlabelled(str(path), text_column="text", task=task)


def test_texts_are_read_and_labels_beside_them_are_not_looked_at(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "more.csv", [("one, two", "no such label"), ("", "x")])
    samples = read(path)
    assert samples.inputs == ("one, two", "")
    assert samples.labels.tolist() == [NO_LABEL] * 2
    alone = tmp_path / "alone.jsonl"
    alone.write_text('{"text": "one"}\n{"text": "two"}\n')
    assert read(alone).inputs == ("one", "two")


def test_words_are_read_from_lists_and_from_columns(tmp_path: Path) -> None:
    path = tmp_path / "more.jsonl"
    path.write_text(json.dumps({"text": ["Ada", "sang"]}) + "\n" + json.dumps({"text": "in Bonn again"}) + "\n")
    samples = read(path, TOKEN_CLASSIFICATION)
    assert samples.inputs == (("Ada", "sang"), ("in", "Bonn", "again"))
    assert [row.tolist() for row in samples.labels] == [[NO_LABEL] * 2, [NO_LABEL] * 3]
    conll = tmp_path / "more.conll"
    conll.write_text("Ada B-PER\nsang O\n\nBonn B-LOC\n")
    assert read(conll, TOKEN_CLASSIFICATION).inputs == (("Ada", "sang"), ("Bonn",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("sentence,label\na,b\n", "has no column 'text'"),
        ("text,label\n", "has no rows"),
        ("", "is empty"),
    ],
)
def test_what_cannot_be_read_is_told(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "more.csv"
    path.write_text(content)
    with pytest.raises(LeptoError, match=message):
        read(path)


def test_what_judges_is_not_learned_from() -> None:
    more = Samples(("a", "b", "c"), np.full(3, NO_LABEL), "more")
    held = Samples(("b", "z"), np.array([0, 1]), "held")
    kept = apart_from(more, [None, held])
    assert kept is not None
    assert kept.inputs == ("a", "c")
    assert kept.origin == "more"
    assert apart_from(more, [Samples(("c", "b", "a"), np.zeros(3, int), "held")]) is None
    assert apart_from(more, [None]) is more
    arrays = Samples({"x": np.arange(6.0).reshape(3, 2)}, np.full(3, NO_LABEL), "more")
    kept = apart_from(arrays, [Samples({"x": np.array([[2.0, 3.0]])}, np.array([0]), "held")])
    assert kept is not None
    np.testing.assert_array_equal(kept.inputs["x"], [[0, 1], [4, 5]])  # type: ignore[call-overload]  # arrays, here


def test_they_stand_behind_the_labelled_ones() -> None:
    train = Samples(("a", "b"), np.array([1, 0]), "train")
    both = joined(train, Samples(("c",), np.array([NO_LABEL]), "more"))
    assert both.inputs == ("a", "b", "c")
    assert both.labels.tolist() == [1, 0, NO_LABEL]
    assert joined(train, None) is train
    with pytest.raises(LeptoError, match="more does not fit to train"):
        joined(
            Samples({"x": np.zeros((2, 3))}, np.array([0, 1]), "train"),
            Samples({"x": np.zeros((2, 4))}, np.full(2, NO_LABEL), "more"),
        )
    with pytest.raises(LeptoError, match="must both hold texts"):
        joined(train, Samples({"x": np.zeros((2, 4))}, np.full(2, NO_LABEL), "more"))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Samples]:
    """What the source was asked about, in lessons of the pass distill."""
    seen: list[Samples] = []

    def prepare(teacher: Any, base: Any, samples: Samples, **options: Any) -> Any:
        seen.append(samples)
        return prepare_lesson(teacher, base, samples, **options)

    monkeypatch.setattr(distill, "prepare_lesson", prepare)
    return seen


def test_a_student_learns_from_them_and_not_from_evaluation_data(
    toy: Toy, own_cache: Path, tmp_path: Path, lepto: Lepto, asked: list[Samples]
) -> None:
    rows = toy_rows()
    few = write_csv(tmp_path / "few.csv", rows[60:90])
    more = write_csv(tmp_path / "more.csv", [(text,) for text, _ in rows], header=("text",))  # evaluation data, too
    flags = toy.flags(train=str(few), passes="prune(layers=1),distill(epochs=30,copies=2),fuse", unlabelled=str(more))
    flags = [flag for flag in flags if flag not in ("--search-budget", "0")]
    ran = lepto("compile", *flags, "--max-drop", "99%", "-o", tmp_path / "out")
    assert ran.code == 0, ran.err
    (samples,) = asked
    assert len(samples) == 30 + 240
    assert samples.labels.tolist()[30:] == [NO_LABEL] * 240
    assert not {text for text, _ in rows[:60]} & set(samples.inputs)
    assert "60 of 300 unlabelled samples are evaluation data: left out" in plain(ran.out + ran.err)
    assert "(240 samples)" in plain(ran.out + ran.err)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda flags: [*flags, "--passes", "fuse"], "none is taught"),
        (lambda flags: [*flags, "--search-budget", "0"], "none is taught"),
        (lambda flags: flags[: flags.index("--train")] + flags[flags.index("--train") + 2 :], "give --train"),
    ],
)
def test_where_nobody_learns_from_them_they_are_refused(
    toy: Toy, tmp_path: Path, lepto: Lepto, change: Callable[[list[str]], list[str]], message: str
) -> None:
    more = write_csv(tmp_path / "more.csv", [("please track it",)], header=("text",))
    flags = [flag for flag in toy.flags(unlabelled=str(more)) if flag not in ("--search-budget", "0")]
    ran = lepto("compile", *change(flags), "-o", tmp_path / "out")
    assert ran.code == 2
    assert message in plain(ran.err)
    only = write_csv(tmp_path / "only.csv", [(toy_rows()[0][0],)], header=("text",))
    flags = [flag for flag in toy.flags(unlabelled=str(only)) if flag not in ("--search-budget", "0")]
    ran = lepto("compile", *flags, "-o", tmp_path / "out")
    assert ran.code == 2
    assert "nothing but evaluation data" in plain(ran.err)
