"""The metric of rows of words: exact F1 of entities, or the share of right words; compared on the same rows.

The words of a row depend on each other, and F1 is no mean of right answers: so the bound is a paired bootstrap over
rows (Efron & Tibshirani, "An Introduction to the Bootstrap", 1993), and the p-value an approximate randomization test,
which swaps the sides of random rows (Noreen, "Computer-Intensive Methods for Testing Hypotheses", 1989; Yeh, COLING
2000).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from lepto.benchmarks.checks.accuracy import MLPERF, NON_INFERIORITY, needed
from lepto.benchmarks.checks.check import Check, Limit, Verdict, points
from lepto.compiler.difference import difference
from lepto.compiler.metrics import Outcomes
from lepto.runtime.spans import are_spans, span_counts

Rows = Sequence[npt.NDArray[np.int64]]
Counts = npt.NDArray[np.float64]
SWAPS: Final = 9999
_CHUNK: Final = 250


def judge_words(
    truth: Rows,
    baseline: Rows,
    candidate: Rows,
    names: Sequence[str],
    limit: Limit,
    *,
    rule: str = NON_INFERIORITY,
    alpha: float = 0.01,
    beta: float = 0.05,
    seed: int = 0,
) -> Check:
    """Judge the metric of two sides on the same rows.

    Args:
        truth: ``[N]`` rows of right labels, as indices into ``names``.
        baseline: ``[N]`` rows of the baseline's labels; -1 is a word without an answer.
        candidate: ``[N]`` rows of the candidate's.
        names: The labels; ``O``, ``B-…`` and ``I-…`` ask for F1 of entities, others for the share of right words.
        limit: The largest drop: a share of the baseline's value, or points.
        rule: ``non-inferiority`` (by the bootstrap's bound) or ``mlperf`` (the point estimate).
        alpha: Chance that an equally good candidate is called a regression.
        beta: Chance that a candidate worse by the limit passes.
        seed: Of the swaps.

    Returns:
        Pass, regression, or inconclusive: also where there are fewer rows than would show the limit if all agreed.

    Raises:
        ValueError: The sides have another number of rows than there are, or there is none.
    """
    if not truth or not len(truth) == len(baseline) == len(candidate):
        raise ValueError(f"rows must pair up, got {len(truth)}, {len(baseline)} and {len(candidate)}")
    spans = are_spans(names)
    name = "f1" if spans else "word_accuracy"
    first, second = (_counts(truth, side, names, spans) for side in (baseline, candidate))
    before, after = float(_value(first.sum(axis=0))), float(_value(second.sum(axis=0)))
    what = f"{int(first[:, 2].sum()):,} entities" if spans else f"{int(first[:, 1].sum()):,} words"
    if not np.isfinite(before) or not np.isfinite(after):
        return Check(name, Verdict.INCONCLUSIVE, f"{name} not checked: the data have no entity; give some that have")
    change, allowed = after - before, limit.of(before)
    source, result = (Outcomes(name, 2 * c[:, 0], c[:, 1] + c[:, 2]) for c in (first, second))
    found = difference(source, result, 1 - beta)
    low = found.low
    p = _p_worse(first, second, change, seed)
    n = len(truth)
    enough = found.enough(allowed) if 0.0 < allowed < 1.0 else None
    ask = "no number of rows can show it" if enough is None else f"about {enough:,} rows are needed"
    floor = needed(0.0, allowed, beta)
    verdict, why = Verdict.INCONCLUSIVE, f": insufficient data, {ask}"
    if rule == MLPERF and -change > allowed + 1e-12:
        verdict, why = Verdict.REGRESSION, ""
    elif rule == NON_INFERIORITY and p < alpha and -change > allowed / 2 and low <= -allowed:
        verdict, why = Verdict.REGRESSION, f" (surely worse: p = {p:.1g})"
    elif floor is not None and n >= floor and (rule == MLPERF or low > -allowed):
        verdict = Verdict.PASS
        why = "" if low > -allowed else f"; the bound does not show it, {ask} for that"
    changed = float(np.mean([not np.array_equal(a, b) for a, b in zip(baseline, candidate, strict=True)]))
    shown = f"{limit}{f' = {100 * allowed:.2f} points' if limit.relative else ''}"
    return Check(
        name,
        verdict,
        f"{name} {points(change)} ({before:.2%} → {after:.2%} on {n:,} rows with {what}; at worst {100 * low:+.2f} "
        f"points at {1 - beta:.0%}), limit {shown}; the answers to {changed:.1%} of the rows changed{why}",
        before,
        after,
        change,
        low,
        None,
        str(limit),
        -allowed,
        n,
        p if rule == NON_INFERIORITY else None,
        rule="MLPerf: point estimate"
        if rule == MLPERF
        else "non-inferiority by a paired bootstrap over rows, approximate randomization test",
        details={"flip_rate": changed, "samples_that_would_decide": enough},
    )


def _counts(truth: Rows, side: Rows, names: Sequence[str], spans: bool) -> Counts:
    """``[N, 3]`` found, predicted and expected entities; or right words, words, words."""
    if not spans:
        return np.array([[(a == b).sum(), a.size, a.size] for a, b in zip(truth, side, strict=True)], np.float64)
    tags = [[[None if i < 0 else names[i] for i in row] for row in pair] for pair in zip(truth, side, strict=True)]
    return np.array([span_counts(*pair) for pair in tags], np.float64)


def _value(sums: Counts) -> Any:
    """F1 from ``[..., 3]`` sums of counts; with words it is their accuracy."""
    with np.errstate(invalid="ignore"):
        return 2 * sums[..., 0] / (sums[..., 1] + sums[..., 2])


def _p_worse(first: Counts, second: Counts, change: float, seed: int) -> float:
    """How often a change as bad comes from swapping the sides of random rows; only rows that differ matter."""
    differ = np.flatnonzero((first != second).any(axis=1))
    if not differ.size or change >= 0:
        return 1.0
    step = (second - first)[differ]
    before, after = first.sum(axis=0), second.sum(axis=0)
    generator, as_bad = np.random.default_rng(seed), 0
    for start in range(0, SWAPS, _CHUNK):
        swaps = generator.random((min(_CHUNK, SWAPS - start), differ.size)) < 0.5
        moved = swaps @ step
        as_bad += int((_value(after - moved) - _value(before + moved) <= change + 1e-12).sum())
    return (1 + as_bad) / (1 + SWAPS)
