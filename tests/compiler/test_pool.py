"""How samples that students learn from become batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lepto.compiler.data import NO_LABEL
from lepto.compiler.training.pool import Pool, Targets, text_collate

NAMES = ("input_ids", "attention_mask")


@pytest.mark.parametrize(
    ("lengths", "max_length", "long"),
    [((3, 2), None, 4), ((4, 1), None, 4), ((5, 4), None, 8), ((5, 4), 64, 8), ((5, 4), 6, 6), ((6, 4), 6, 6)],
)
def test_batches_have_few_lengths_and_none_beyond_the_longest(
    lengths: tuple[int, ...], max_length: int | None, long: int
) -> None:
    rows = [list(range(1, length + 1)) for length in lengths]
    batch = text_collate(rows, 0, NAMES, max_length)(range(len(rows)))
    assert batch["input_ids"].shape == (len(rows), long)
    for row, ids, mask in zip(rows, batch["input_ids"].tolist(), batch["attention_mask"].tolist(), strict=True):
        assert ids == row + [0] * (long - len(row))
        assert mask == [1] * len(row) + [0] * (long - len(row))


def test_what_a_tagger_is_told_is_as_long_as_what_it_reads() -> None:
    rows = [[1, 2, 3], [4, 5, 6, 7, 8]]
    logits = [np.full((len(row), 2), place, np.float32) for place, row in enumerate(rows)]
    features = [np.full((len(row), 7), place, np.float32) for place, row in enumerate(rows)]
    labels = [[0] * len(row) for row in rows]
    pool = Pool(text_collate(rows, 0, NAMES), [*map(len, rows)], labels, Targets(logits, features))
    inputs, told, read, wanted = pool.batch([0, 1])
    assert read is not None
    assert inputs["input_ids"].shape == told.shape[:2] == read.shape[:2] == wanted.shape == (2, 8)
    assert wanted.tolist() == [[0] * 3 + [NO_LABEL] * 5, [0] * 5 + [NO_LABEL] * 3]
    assert torch.equal(told[1, :5], torch.ones(5, 2))
