"""Entities in rows of tags, and their exact F1: what the compiler measures and ``lepto verify`` measures again."""

from __future__ import annotations

import re
from collections.abc import Sequence

Entity = tuple[str, int, int]
"""Kind, first word, and the word after the last."""

OUTSIDE = "O"


def are_spans(labels: Sequence[str]) -> bool:
    """Whether labels are tags of entities: ``O`` and ``B-KIND`` or ``I-KIND`` (IOB1, IOB2)."""
    others = [label for label in labels if label != OUTSIDE]
    return bool(others) and all(re.fullmatch(r"[BI]-.+", label) for label in others)


def entities(tags: Sequence[str | None]) -> set[Entity]:
    """The entities of one sentence.

    An entity begins at ``B-``, and at an ``I-`` that continues no entity of its kind (the reading of conlleval.pl of
    the CoNLL shared tasks); it ends where the next tag does not continue it. None, a word without an answer, is
    outside.
    """
    found: set[Entity] = set()
    kind, start = "", 0
    for place, tag in enumerate([*tags, OUTSIDE]):
        prefix, _, this = (tag or OUTSIDE).partition("-")
        if kind and (prefix != "I" or this != kind):
            found.add((kind, start, place))
            kind = ""
        if not kind and prefix in ("B", "I"):
            kind, start = this, place
    return found


def span_counts(expected: Sequence[str | None], predicted: Sequence[str | None]) -> tuple[int, int, int]:
    """Of one sentence: entities that are found exactly, entities predicted, entities expected.

    Raises:
        ValueError: The rows differ in length.
    """
    if len(expected) != len(predicted):
        raise ValueError(f"tags must pair up, got {len(expected)} expected and {len(predicted)} predicted")
    truth, answer = entities(expected), entities(predicted)
    return len(truth & answer), len(answer), len(truth)


def f1(found: float, predicted: float, expected: float) -> float:
    """Harmonic mean of precision and recall, from counts over all sentences; NaN where there is no entity at all."""
    return 2 * found / (predicted + expected) if predicted + expected else float("nan")
