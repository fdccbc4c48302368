"""Fairness: how far the accuracy of groups lies apart, before and after."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from lepto.benchmarks.checks.check import Check, Limit, by_interval, not_checked, points
from lepto.compiler.statistics import bootstrap_interval


def gap(groups: npt.NDArray[Any], right: npt.NDArray[Any], count: int) -> float:
    """Largest less smallest accuracy over the groups (indices ``0 … count - 1``) that have a sample; NaN below two."""
    sizes = np.bincount(groups, minlength=count)
    rates = np.bincount(groups, right, minlength=count)[sizes > 0] / sizes[sizes > 0]
    return float(rates.max() - rates.min()) if len(rates) > 1 else float("nan")


def judge_fairness(
    column: str,
    groups: npt.ArrayLike,
    baseline_right: npt.NDArray[Any],
    candidate_right: npt.NDArray[Any],
    limit: Limit,
    *,
    alpha: float,
    beta: float,
) -> Check:
    """Judge how much the gap between groups grew.

    Args:
        column: Where the groups come from.
        groups: ``[N]`` values of it.
        baseline_right: ``[N]``.
        candidate_right: ``[N]``.
        limit: The largest growth, in points or as a share of the baseline's gap.
        alpha: Level of the lower bound.
        beta: Level of the upper bound.
    """
    names, index = np.unique(np.asarray(groups).astype(str), return_inverse=True)
    if len(names) < 2:
        return not_checked("fairness", f"the column {column!r} has one group only: name one with two or more")
    first, second = baseline_right.astype(float), candidate_right.astype(float)
    count = len(names)
    before, after = gap(index, first, count), gap(index, second, count)

    def growth(g: Any, a: Any, b: Any) -> float:
        return gap(g, b, count) - gap(g, a, count)

    low = bootstrap_interval(growth, index, first, second, confidence=1 - 2 * alpha)[0]
    high = bootstrap_interval(growth, index, first, second, confidence=1 - 2 * beta)[1]
    value, allowed = after - before, limit.of(before)
    story = (
        f"fairness: the gap between {count} groups of {column!r} {points(value)} ({before:.2%} → {after:.2%} on "
        f"{len(index):,} samples; {100 * low:+.2f} to {100 * high:+.2f} points), limit {limit}"
    )
    details = {
        "groups": [
            {
                "name": str(name),
                "n": int((index == i).sum()),
                "baseline": float(first[index == i].mean()),
                "candidate": float(second[index == i].mean()),
            }
            for i, name in enumerate(names)
        ]
    }
    return by_interval(
        "fairness", value, low, high, limit, allowed, story, baseline=before, candidate=after, n=len(index),
        rule="gap of accuracy between groups, paired bootstrap", details=details,
    )  # fmt: skip
