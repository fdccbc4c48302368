"""Calibration: the expected calibration error, over fixed bins, with a paired bootstrap on its change."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt

from lepto.benchmarks.calibration import BINS, calibration_change
from lepto.benchmarks.calibration import calibration_error as expected_calibration_error
from lepto.benchmarks.checks.check import Check, Limit, by_interval, least_samples, points


def judge_calibration(
    baseline: npt.NDArray[Any],
    candidate: npt.NDArray[Any],
    truth: npt.NDArray[Any],
    limit: Limit,
    *,
    alpha: float,
    beta: float,
    groups: npt.NDArray[Any] | None = None,
) -> Check:
    """Judge how much the ECE rose.

    Args:
        baseline: ``[N, C]`` probabilities.
        candidate: ``[N, C]`` probabilities.
        truth: ``[N]`` right classes.
        limit: The largest rise, in points or as a share of the baseline's.
        alpha: Level of the lower bound.
        beta: Level of the upper bound.
        groups: ``[N]`` the row that a word belongs to; resamples are then of rows.
    """
    first, second = ((scores.max(axis=1), scores.argmax(axis=1) == truth) for scores in (baseline, candidate))
    before, after = expected_calibration_error(*first), expected_calibration_error(*second)
    low = calibration_change(first, second, confidence=1 - 2 * alpha, groups=groups)[1]
    high = calibration_change(first, second, confidence=1 - 2 * beta, groups=groups)[2]
    value, allowed = after - before, limit.of(before)
    unit = "samples" if groups is None else "words"
    story = (
        f"ece {points(value)} ({before:.2%} → {after:.2%} on {len(truth):,} {unit}; "
        f"{100 * low:+.2f} to {100 * high:+.2f} points), limit {limit}"
    )
    return by_interval(
        "ece", value, low, high, limit, allowed, story, baseline=before, candidate=after, n=len(truth),
        least=least_samples(allowed, beta),
        rule=f"expected calibration error over {BINS} fixed bins, basic paired bootstrap",
    )  # fmt: skip
