"""What a compile keeps of its answers."""

from __future__ import annotations

import numpy as np

from lepto.compiler.data import Samples
from lepto.compiler.evidence import with_answers
from lepto.runtime.evidence import Evidence


def rows_of_words(*labels: list[int]) -> Samples:
    own = np.empty(len(labels), dtype=object)
    own[:] = [np.array(row, dtype=np.int64) for row in labels]
    return Samples(tuple(tuple("word" for _ in row) for row in labels), own, "a test", ("O", "B-X", "I-X"))


def test_words_are_samples_of_their_own_and_those_without_an_answer_are_left_out() -> None:
    samples = rows_of_words([0, 1, 2], [2])
    source = np.zeros((2, 3, 3), dtype=np.float32)
    source[0, 0], source[0, 1], source[1, 0] = [5, 0, 0], [0, 5, 0], [0, 0, 5]  # the third word has no token
    result = source.copy()
    result[1, 0] = [0, 5, 0]
    found = with_answers(Evidence(), samples, source, result, None)
    assert found.rows is not None
    assert found.labels is not None
    assert found.source is not None
    assert found.result is not None
    assert found.rows.tolist() == [0, 0, 1]
    assert found.labels.tolist() == [0, 1, 2]
    assert found.source.decisions.tolist() == [0, 1, 2]
    assert found.result.decisions.tolist() == [0, 1, 1]
    assert found.data == samples.digest


def test_one_side_alone_is_no_pair_of_answers() -> None:
    samples = rows_of_words([0, 1])
    found = with_answers(Evidence(), samples, None, np.ones((1, 2, 3), dtype=np.float32), None)
    assert found.source is None
    assert not found.judged
