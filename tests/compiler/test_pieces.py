"""Batches of long texts in pieces: the same step, and less that is held at once."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lepto.compiler.data import NO_LABEL
from lepto.compiler.training import loop
from lepto.compiler.training.loop import Schedule, in_pieces, train
from lepto.compiler.training.pool import Pool, Targets, text_collate

CLASSES, WIDTH = 5, 32


@given(st.lists(st.integers(1, 600), min_size=1, max_size=40), st.sampled_from([64, 1024]))
def test_pieces_are_the_batch_and_hold_as_many_tokens_as_may_be(sizes: list[int], most: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "TOKENS", most)
        pieces = in_pieces(range(len(sizes)), sizes)
    assert [row for piece in pieces for row in piece] == [*range(len(sizes))]
    for piece in pieces:
        assert len(piece) == 1 or len(piece) * max(sizes[row] for row in piece) <= most + max(sizes)
    assert in_pieces([], sizes) == []
    if len(sizes) * max(sizes) <= most:
        assert len(pieces) == 1


def pool(*, tagger: bool) -> Pool:
    rng = np.random.default_rng(0)
    rows = [[1, *rng.integers(5, 90, size=rng.integers(3, 40)).tolist()] for _ in range(64)]
    ends: list[tuple[int, ...]] = [(len(row),) if tagger else () for row in rows]
    targets = Targets(
        [rng.standard_normal((*end, CLASSES)).astype(np.float32) for end in ends],
        [rng.standard_normal((*end, WIDTH)).astype(np.float32) for end in ends],
    )
    labels: Any = [rng.choice([NO_LABEL, *range(CLASSES)], size=end or None).tolist() for end in ends]
    names = ("input_ids", "attention_mask", "token_type_ids")
    return Pool(text_collate(rows, 0, names, 64), [*map(len, rows)], labels, targets)


@pytest.mark.parametrize("tagger", [False, True])
def test_pieces_take_the_step_that_the_whole_batch_takes(tagger: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import BertConfig, BertForSequenceClassification, BertForTokenClassification

    config = BertConfig(
        vocab_size=100, hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        num_labels=CLASSES, max_position_embeddings=64,
    )  # fmt: skip
    # In float32: how bfloat16 rounds a product depends on its shape.
    monkeypatch.setattr("lepto.compiler.training.pool.has_bf16", lambda: False)
    torch.manual_seed(0)
    start = (BertForTokenClassification if tagger else BertForSequenceClassification)(config).eval()
    taught, losses, most = [], [], []
    for tokens in (10**9, 100):
        monkeypatch.setattr(loop, "TOKENS", tokens)
        module, seen = copy.deepcopy(start), list[int]()
        module.register_forward_pre_hook(
            lambda _m, _a, given, seen=seen: seen.append(given["input_ids"].numel()), with_kwargs=True
        )
        losses.append(train(module, "classifier", pool(tagger=tagger), [], Schedule(epochs=3, learning_rate=1e-3)))
        taught.append(module.state_dict())
        most.append(max(seen))
    assert most[1] <= 160 < 1000 < most[0]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)
    moved = max(float((taught[0][name] - old).abs().max()) for name, old in start.state_dict().items())
    apart = max(float((taught[0][name] - taught[1][name]).abs().max()) for name in taught[0])
    assert moved > 1e-3
    assert apart < 0.01 * moved
