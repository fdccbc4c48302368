"""Answers of a classifier as curves and tables: pure functions of labels and probabilities.

K samples, L labels. Probabilities are ``[K, L]`` and sum to 1 over the labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from lepto.benchmarks.calibration import Reliability, reliability
from lepto.compiler.proportions import wilson_interval
from lepto.runtime.evidence import Answers

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

__all__ = ["Curve", "Flip", "Reliability", "Slice", "confusion", "flips", "reliability", "roc", "slices"]

_POINTS: Final = 300


@dataclass(frozen=True)
class Curve:
    """A receiver operating characteristic.

    Attributes:
        fpr: False positive rates, rising from 0 to 1.
        tpr: True positive rates.
        auc: Area under the whole curve, before it is thinned for drawing.
        what: Which decisions are pooled.
    """

    fpr: Floats
    tpr: Floats
    auc: float
    what: str


@dataclass(frozen=True)
class Slice:
    """One part of the samples, as both sides answer it.

    Attributes:
        column: What the samples were parted by.
        value: Which part.
        n: Samples.
        source: Accuracy with its 95 % interval (value, low, high).
        result: The same of the result.
    """

    column: str
    value: str
    n: int
    source: tuple[float, float, float]
    result: tuple[float, float, float]


@dataclass(frozen=True)
class Flip:
    """A sample on which the two sides decide differently.

    Attributes:
        row: Its place among the evaluation samples.
        place: Its place among the answers.
        kind: ``broken`` (only the source is right), ``repaired`` (only the result is), ``other`` (neither).
        label: The right class.
        source: The source's class and its probability.
        result: The result's.
    """

    row: int
    place: int
    kind: str
    label: int
    source: tuple[int, float]
    result: tuple[int, float]


def confusion(labels: Ints, decisions: Ints, classes: int) -> Ints:
    """``[L, L]`` counts: right class by decision."""
    counts = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(counts, (labels, decisions), 1)
    return counts


def roc(labels: Ints, scores: npt.NDArray[Any]) -> Curve:
    """The curve of two classes, or the micro-average of more: every (sample, class) is one decision.

    Ties of the score become one step (Fawcett, "An introduction to ROC analysis", 2006, algorithm 1).

    Raises:
        ValueError: The samples hold only positives or only negatives.
    """
    if scores.shape[1] == 2:
        truth, score, what = labels == 1, scores[:, 1], "second class against first"
    else:
        truth = (np.arange(scores.shape[1]) == labels[:, None]).ravel()
        score, what = scores.ravel(), f"micro-average of {scores.shape[1]} classes"
    positives, negatives = int(truth.sum()), int((~truth).sum())
    if not positives or not negatives:
        raise ValueError(f"a curve needs both kinds of samples, got {positives} positives and {negatives} negatives")
    order = np.argsort(-score.astype(np.float64), kind="stable")
    ends = np.append(np.flatnonzero(np.diff(score[order])), score.size - 1)
    hits = np.cumsum(truth[order])[ends]
    tpr = np.concatenate([[0.0], hits / positives])
    fpr = np.concatenate([[0.0], (ends + 1 - hits) / negatives])
    area = getattr(np, "trapezoid", None) or np.trapz  # noqa: NPY201 - numpy below 2 has no other
    auc = float(area(tpr, fpr))
    keep = _thin(fpr, tpr)
    return Curve(fpr[keep], tpr[keep], auc, what)


def _thin(fpr: Floats, tpr: Floats) -> Ints:
    """Places that draw the same curve: evenly spread along its length, on a logarithmic axis too."""
    if fpr.size <= _POINTS:
        return np.arange(fpr.size)
    steps = np.abs(np.diff(fpr)) + np.abs(np.diff(tpr)) + np.abs(np.diff(np.log10(np.maximum(fpr, 1e-6)))) / 6
    along = np.concatenate([[0.0], np.cumsum(steps)])
    places: Ints = np.unique(np.searchsorted(along, np.linspace(0, along[-1], _POINTS)).clip(0, fpr.size - 1))
    return places


def slices(column: str, values: Sequence[str], labels: Ints, source: Ints, result: Ints) -> list[Slice]:
    """Accuracy of both sides for each value of a column, the worst result first."""
    parts: dict[str, list[int]] = {}
    for place, value in enumerate(values):
        parts.setdefault(value, []).append(place)
    found = [
        Slice(column, value, len(rows), _share(source[rows] == labels[rows]), _share(result[rows] == labels[rows]))
        for value, rows in parts.items()
    ]
    return sorted(found, key=lambda part: (part.result[0], part.value))


def length_slices(tokens: Ints) -> list[str]:
    """For each sample the quarter of lengths that it is in, such as ``9 to 12 tokens``."""
    edges = np.unique(np.quantile(tokens, [0.25, 0.5, 0.75], method="lower"))
    group = np.searchsorted(edges, tokens, side="left")
    names = {}
    for number in np.unique(group):
        inside = tokens[group == number]
        low, high = int(inside.min()), int(inside.max())
        names[int(number)] = f"{low} tokens" if low == high else f"{low} to {high} tokens"
    return [names[int(number)] for number in group]


def flips(labels: Ints, source: Answers, result: Answers, rows: Ints) -> list[Flip]:
    """The samples that changed their answer: what broke first, then by how sure both sides are."""
    found = []
    for place in np.flatnonzero(source.decisions != result.decisions):
        before, after, right = int(source.decisions[place]), int(result.decisions[place]), int(labels[place])
        kind = "broken" if before == right else "repaired" if after == right else "other"
        sides = [(c, float(side.scores[place, c])) for c, side in ((before, source), (after, result))]
        found.append(Flip(int(rows[place]), int(place), kind, right, sides[0], sides[1]))
    order = {"broken": 0, "repaired": 1, "other": 2}
    return sorted(found, key=lambda flip: (order[flip.kind], -(flip.source[1] + flip.result[1]), flip.row))


def divergence(source: npt.NDArray[Any], result: npt.NDArray[Any]) -> float:
    """Mean Kullback-Leibler divergence of the result's probabilities from the source's, in nats."""
    p, q = (np.clip(side.astype(np.float64), 1e-6, 1.0) for side in (source, result))
    p, q = p / p.sum(axis=1, keepdims=True), q / q.sum(axis=1, keepdims=True)
    return float((p * np.log(p / q)).sum(axis=1).mean())


def _share(right: npt.NDArray[np.bool_]) -> tuple[float, float, float]:
    low, high = wilson_interval(int(right.sum()), right.size)
    return float(right.mean()), low, high
