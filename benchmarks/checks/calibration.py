"""Calibration: the expected calibration error, over fixed bins, with a paired bootstrap on its change."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from lepto.benchmarks.checks.check import Check, Limit, by_interval, points
from lepto.compiler.statistics import bootstrap_interval

BINS: Final = 15


def expected_calibration_error(confidence: npt.NDArray[Any], right: npt.NDArray[Any], bins: int = BINS) -> float:
    """ECE: mean gap between confidence and accuracy over bins of equal width, weighted by their samples.

    Source: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017.

    Args:
        confidence: ``[N]`` largest probabilities.
        right: ``[N]``, whether that class was right.
        bins: Number of bins over [0, 1].
    """
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = np.bincount(place, confidence - right, minlength=bins)
    return float(np.abs(gaps).sum() / len(confidence))


def judge_calibration(
    baseline: npt.NDArray[Any],
    candidate: npt.NDArray[Any],
    truth: npt.NDArray[Any],
    limit: Limit,
    *,
    alpha: float,
    beta: float,
) -> Check:
    """Judge how much the ECE rose.

    Args:
        baseline: ``[N, C]`` probabilities.
        candidate: ``[N, C]`` probabilities.
        truth: ``[N]`` right classes.
        limit: The largest rise, in points or as a share of the baseline's.
        alpha: Level of the lower bound.
        beta: Level of the upper bound.
    """
    columns = []
    for scores in (baseline, candidate):
        columns += [scores.max(axis=1), (scores.argmax(axis=1) == truth).astype(float)]
    before = expected_calibration_error(columns[0], columns[1])
    after = expected_calibration_error(columns[2], columns[3])

    def rise(a: Any, b: Any, c: Any, d: Any) -> float:
        return expected_calibration_error(c, d) - expected_calibration_error(a, b)

    low = bootstrap_interval(rise, *columns, confidence=1 - 2 * alpha)[0]
    high = bootstrap_interval(rise, *columns, confidence=1 - 2 * beta)[1]
    value, allowed = after - before, limit.of(before)
    story = (
        f"ece {points(value)} ({before:.2%} → {after:.2%} on {len(truth):,} samples; "
        f"{100 * low:+.2f} to {100 * high:+.2f} points), limit {limit}"
    )
    return by_interval(
        "ece", value, low, high, limit, allowed, story, baseline=before, candidate=after, n=len(truth),
        rule=f"expected calibration error over {BINS} fixed bins, paired bootstrap",
    )  # fmt: skip
