"""A teacher that runs beside its student."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from lepto.compiler.encoder import Encoder, Selection
from lepto.compiler.training.guide import Guide, matched_layers
from lepto.compiler.training.loop import Schedule, train
from lepto.compiler.training.pool import Pool, Targets, text_collate

NAMES = ("input_ids", "attention_mask")


def _models(width: int | None) -> tuple[torch.nn.Module, torch.nn.Module]:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=40, hidden_size=32, num_hidden_layers=4, num_attention_heads=4, intermediate_size=64, num_labels=3
    )
    teacher = BertForSequenceClassification(config).eval()
    student = copy.deepcopy(teacher)
    encoder = Encoder.of(student)
    assert encoder is not None
    kept = None if width is None else tuple(range(width))
    encoder.cut(Selection((0, 3), ((0, 1), (0, 1)), (tuple(range(32)),) * 2, kept))
    return teacher, student


def _pool(rows: list[list[int]]) -> Pool:
    logits = np.random.default_rng(0).standard_normal((len(rows), 3)).astype(np.float32)
    return Pool(text_collate(rows, 0, NAMES), [len(r) for r in rows], [0] * len(rows), Targets(list(logits), []))


def _hidden_distance(teacher: torch.nn.Module, student: torch.nn.Module, pool: Pool) -> float:
    inputs = pool.collate(range(len(pool)))
    with torch.inference_mode():
        ours = student(**inputs, output_hidden_states=True).hidden_states[-1]
        theirs = teacher(**inputs, output_hidden_states=True).hidden_states[-1]
    real = inputs["attention_mask"].bool()
    return float((ours[real] - theirs[real]).square().mean())


@pytest.mark.parametrize(
    ("student", "teacher", "layers"), [(1, 6, (5,)), (2, 6, (2, 5)), (3, 6, (1, 3, 5)), (2, 2, (0, 1))]
)
def test_layers_are_matched_evenly_and_the_last_to_the_last(
    student: int, teacher: int, layers: tuple[int, ...]
) -> None:
    assert matched_layers(student, teacher) == layers


def test_a_student_has_no_more_layers_than_its_teacher() -> None:
    with pytest.raises(ValueError, match="between 1 and 2"):
        matched_layers(3, 2)


@pytest.mark.parametrize("width", [None, 16])
def test_hidden_states_and_relations_come_nearer(width: int | None) -> None:
    teacher, student = _models(width)
    pool = _pool([list(np.random.default_rng(i).integers(3, 40, 4 + i % 5)) for i in range(64)])
    encoders = Encoder.of(teacher), Encoder.of(student)
    assert encoders[0] is not None
    assert encoders[1] is not None
    guide = Guide(encoders[0], encoders[1], [pool], hidden=1.0, relations=1.0, relation_heads=2)
    before = {name: p.clone() for name, p in teacher.named_parameters()}
    distance = _hidden_distance(teacher, student, pool) if width is None else 0.0
    # Everything else is off: what falls is the guide's own loss.
    schedule = Schedule(epochs=12, batch_size=16, learning_rate=3e-3, logits=0, features=0, labels=0)
    losses = train(student, None, pool, [], schedule, guide=guide)
    assert losses[-1] < 0.7 * losses[0]
    assert all(torch.equal(before[name], p) for name, p in teacher.named_parameters())
    if width is None:
        assert _hidden_distance(teacher, student, pool) < 0.8 * distance
    else:
        assert len(guide.parameters()) == 2
    guide.clear()
    student(**pool.collate([0]))
    assert [watch.hidden for watch in guide._watches] == [[], []]
