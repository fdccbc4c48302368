"""Gather what a compile has measured sample by sample, for the package."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from lepto.compiler.data import Samples
from lepto.compiler.evaluate import Evaluator, Logits, Timing, real_feeds
from lepto.compiler.layer_errors import layer_errors
from lepto.compiler.model import OnnxModel
from lepto.compiler.source import Text
from lepto.compiler.verify import tokenize
from lepto.runtime.evidence import Answers, Evidence

_LAYER_FEEDS = 16


def gather(
    evaluator: Evaluator,
    source_logits: Logits | None,
    logits: Logits | None,
    timing: Timing,
    faithful: OnnxModel | None,
    model: OnnxModel,
) -> Evidence:
    """Answers, times and errors by layer of one compile.

    Args:
        evaluator: With the evaluation samples.
        source_logits: The source's outputs.
        logits: The result's.
        timing: Of both, interleaved.
        faithful: The last graph that was proven to compute what the source computes; None if it is unknown.
        model: The result.
    """
    errors = []
    if faithful is not None and faithful.digest != model.digest:
        errors = layer_errors(faithful, model, real_feeds(evaluator.feeds(), _LAYER_FEEDS), evaluator.threads)
    finite = [item for item in errors if np.isfinite(item.error)]
    evidence = Evidence(
        source_seconds=timing.seconds[0] if timing.seconds is not None else None,
        result_seconds=timing.seconds[1] if timing.seconds is not None else None,
        layers=tuple(item.layer for item in finite),
        layer_error=np.array([item.error for item in finite]) if finite else None,
    )
    return with_answers(evidence, evaluator.samples, source_logits, logits, evaluator.subject.text)


def with_answers(
    evidence: Evidence,
    samples: Samples | None,
    source_logits: npt.NDArray[np.float32] | None,
    logits: npt.NDArray[np.float32] | None,
    text: Text | None,
) -> Evidence:
    """Add what both sides answered, where answers are classes of samples or words; else leave the evidence as it is.

    Words that lie beyond the maximum length have no answer, and no place in the evidence.
    """
    if samples is None or samples.labels.ndim != 1:
        return evidence
    rows, labels = np.arange(len(samples), dtype=np.int64), samples.labels
    sides: list[Logits | None] = [source_logits, logits]
    if labels.dtype == object:
        rows, labels, sides = _words(samples, [one for one in sides if one is not None and one.ndim == 3])
    answers = [None if one is None or one.ndim != 2 else Answers.of(one) for one in sides]
    tokens = None
    if text is not None and not isinstance(samples.inputs, Mapping):
        tokens = np.array([len(row) for row in tokenize(samples.inputs, text)], np.int64)[rows]
    return dataclasses.replace(
        evidence,
        data=samples.digest,
        rows=rows,
        labels=labels.astype(np.int64),
        source=answers[0],
        result=answers[1],
        tokens=tokens,
    ).thinned()


def _words(
    samples: Samples, sides: list[Logits]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], list[Logits | None]]:
    """Words as samples of their own: the row of each, its label, and the ``[W, L]`` logits of both sides."""
    counts = [len(own) for own in samples.labels]
    rows = np.repeat(np.arange(len(samples), dtype=np.int64), counts)
    places = np.concatenate([np.arange(count) for count in counts])
    labels = np.concatenate(list(samples.labels))
    found = [one[rows, places] for one in sides]
    answered = np.ones(len(rows), dtype=bool)
    for one in found:
        answered &= one.any(axis=1)
    kept: list[Logits | None] = [one[answered] for one in found]
    return rows[answered], labels[answered], kept if len(kept) == 2 else [None, None]
