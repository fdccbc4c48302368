"""Gather what a compile has measured sample by sample, for the package."""

from __future__ import annotations

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
    """Add what both sides answered, where answers are classes of samples; else leave the evidence as it is."""
    from dataclasses import replace

    if samples is None or samples.labels.ndim != 1 or samples.labels.dtype == object:
        return evidence
    sides = [None if one is None or one.ndim != 2 else Answers.of(one) for one in (source_logits, logits)]
    texts = isinstance(samples.inputs, tuple) and text is not None
    return replace(
        evidence,
        data=samples.digest,
        rows=np.arange(len(samples), dtype=np.int64),
        labels=samples.labels.astype(np.int64),
        source=sides[0],
        result=sides[1],
        tokens=np.array([len(row) for row in tokenize(samples.inputs, text)], np.int64) if texts else None,  # type: ignore[arg-type]
    ).thinned()
