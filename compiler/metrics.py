"""The task's metric: which one is told by the samples alone.

======================  ==============================  =========================================================
samples                 labels                          metric
======================  ==============================  =========================================================
texts, arrays           ``[N]`` integers                ``accuracy``, Wilson's interval
rows of words           ``[N]`` rows of integers        ``f1`` of exact entities if the labels are ``O``, ``B-…``
                                                        and ``I-…``, else ``accuracy`` of words; bootstrap over rows
texts without labels    ``[N, W]``, source's vectors    mean ``cosine`` similarity, bootstrap
======================  ==============================  =========================================================
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lepto.compiler.data import Samples
from lepto.compiler.proportions import wilson_interval
from lepto.compiler.statistics import bootstrap_interval
from lepto.runtime.manifest import Metric
from lepto.runtime.spans import are_spans, span_counts

Outputs = npt.NDArray[np.float32]
Column = npt.NDArray[np.float64]

_RESAMPLES = 1000


@dataclass(frozen=True, eq=False)
class Outcomes:
    """What a model earned, sample by sample: the metric is the sum of ``earned`` over the sum of ``possible``.

    ======================  ==============================  ================================
    metric                  earned                          possible
    ======================  ==============================  ================================
    accuracy                1 if right, else 0              1
    accuracy of words       right words                     words
    F1 of entities          twice the entities found        entities predicted and expected
    cosine                  the similarity                  1
    ======================  ==============================  ================================

    Attributes:
        name: The metric's.
        earned: ``[N]``.
        possible: ``[N]``.
        decided: Whether every sample is either right or wrong.
    """

    name: str
    earned: Column
    possible: Column
    decided: bool = False

    def __len__(self) -> int:
        """N."""
        return len(self.earned)

    @property
    def value(self) -> float:
        """The metric; NaN where nothing could be earned."""
        return _ratio(self.earned, self.possible)


def metric(outputs: Outputs, samples: Samples) -> Metric:
    """The metric of a model's outputs, with its 95 % interval.

    Args:
        outputs: ``[N, L]`` logits, ``[N, W, L]`` logits of words (zeros where a word has no answer), or ``[N, W]``
            vectors.
        samples: What they are judged by, see above.

    Raises:
        ValueError: An output is NaN or infinite, the shapes do not fit the labels, or the metric is not defined.
    """
    found = outcomes(outputs, samples)
    value, n = found.value, len(samples)
    if not np.isfinite(value):
        raise ValueError(f"{found.name} is not defined: {samples.origin} has no entity, and none was found")
    if found.decided:
        low, high = wilson_interval(int(found.earned.sum()), n)
    else:
        low, high = bootstrap_interval(_ratio, found.earned, found.possible, resamples=_RESAMPLES)
    return Metric(name=found.name, value=value, low=min(low, value), high=max(high, value), n=n)


def score(outputs: Outputs, samples: Samples) -> float:
    """The value of :func:`metric` alone, without its interval: what a search asks of development samples."""
    return outcomes(outputs, samples).value


def decisions(outputs: Outputs) -> npt.NDArray[np.int64]:
    """The best label for each sample or word; -1 for a word without an answer."""
    best: npt.NDArray[np.int64] = outputs.argmax(axis=-1)
    return best if outputs.ndim == 2 else np.where(outputs.any(axis=-1), best, -1)


def outcomes(outputs: Outputs, samples: Samples) -> Outcomes:
    """What a model's outputs earn on each sample; arguments and errors are those of :func:`metric`."""
    labels = samples.labels
    if not np.isfinite(outputs).all():
        bad = int(np.flatnonzero(~np.isfinite(outputs).reshape(len(outputs), -1).all(axis=1))[0])
        raise ValueError(f"the model's output for sample {bad} is not finite")
    if len(outputs) != len(labels):
        raise ValueError(f"{len(labels)} samples need as many outputs, got {len(outputs)}")
    if labels.dtype == object:
        return _of_words(outputs, samples)
    if labels.ndim == 2:
        return Outcomes("cosine", cosines(outputs, labels), np.ones(len(labels)))
    if outputs.ndim != 2 or labels.max(initial=0) >= outputs.shape[1]:
        raise ValueError(f"labels up to {labels.max(initial=0)} need [N, L] outputs, got {list(outputs.shape)}")
    right = (decisions(outputs) == labels).astype(np.float64)
    return Outcomes("accuracy", right, np.ones(len(labels)), decided=True)


def _of_words(outputs: Outputs, samples: Samples) -> Outcomes:
    if outputs.ndim != 3 or outputs.shape[1] < max(map(len, samples.labels)):
        raise ValueError(f"rows of words need [N, W, L] outputs, got {list(outputs.shape)}")
    best, names = decisions(outputs), samples.names
    rows = [(own, best[i, : len(own)]) for i, own in enumerate(samples.labels)]
    if names is not None and are_spans(names):
        tags = [[[None if i < 0 else names[i] for i in part] for part in pair] for pair in rows]
        found, predicted, expected = np.array([span_counts(*pair) for pair in tags], dtype=np.float64).T
        return Outcomes("f1", 2 * found, predicted + expected)
    right = np.array([(a == b).sum() for a, b in rows], dtype=np.float64)
    words = np.array([len(a) for a, _ in rows], dtype=np.float64)
    return Outcomes("accuracy", right, words)


def _ratio(earned: Column, possible: Column) -> float:
    total = float(possible.sum())
    return float(earned.sum()) / total if total else float("nan")


def cosines(first: npt.NDArray[Any], second: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Cosine similarity of each pair of rows ``[N, W]``, in [-1, 1]; 0 for a vector without length.

    Raises:
        ValueError: The shapes differ.
    """
    if first.shape != second.shape or first.ndim != 2:
        raise ValueError(f"vectors must pair up as [N, W], got {list(first.shape)} and {list(second.shape)}")
    a, b = first.astype(np.float64), second.astype(np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    products = (a * b).sum(axis=1)
    found: npt.NDArray[np.float64] = np.divide(products, lengths, out=np.zeros(len(a)), where=lengths > 0)
    return np.clip(found, -1.0, 1.0)
