"""Students of a source that knows the held-out texts by heart."""

from __future__ import annotations

import numpy as np
import pytest

from lepto.compiler.by_heart import lacking_words, nearness
from lepto.compiler.data import Samples

TEXTS = tuple(" ".join(f"word{i}.{j}" for j in range(1 + i % 20)) for i in range(200))


def test_copies_lack_some_words_and_no_label_is_read() -> None:
    copies = lacking_words(Samples(TEXTS, np.arange(200), "here"), seed=0)
    assert isinstance(copies.inputs, tuple)
    assert len(copies) == len(copies.inputs) == 600
    assert not copies.labels.any()
    assert copies.origin == "here, lacking words"
    words, left = 0, 0
    for place, copy in enumerate(copies.inputs):
        assert isinstance(copy, str)
        kept = copy.split()
        whole = TEXTS[place % 200].split()
        assert kept
        assert [word for word in whole if word in kept] == kept  # in their order
        words, left = words + len(whole), left + len(kept)
    assert left / words == pytest.approx(0.85, abs=0.02)
    # Another copy of a text lacks other words.
    assert copies.inputs[190] != copies.inputs[390]


def test_copies_are_the_same_for_the_same_seed() -> None:
    samples = Samples(TEXTS, np.arange(200), "here")
    assert lacking_words(samples, 0).digest == lacking_words(samples, 0).digest != lacking_words(samples, 1).digest
    assert lacking_words(Samples(("one",) * 50, np.zeros(50), "here"), 0).inputs == ("one",) * 150


def test_nearness_is_how_much_less_often_a_student_is_right_by_the_sources_own_probabilities() -> None:
    says = np.array([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.1, 0.1, 0.8], [0.4, 0.35, 0.25]])
    source = np.log(says).astype(np.float32)
    answers = np.eye(3, dtype=np.float32)
    assert nearness(source, 7 * source) == 1.0
    # Right, the first for the second, right, the last for the first.
    student = answers[[0, 0, 2, 2]]
    assert nearness(source, student) == pytest.approx(1 - (0.5 - 0.2 + 0.4 - 0.25) / 4, abs=1e-6)
    # The same whatever is added to a row of logits.
    assert nearness(source + 1000, student) == pytest.approx(nearness(source, student), abs=1e-4)
