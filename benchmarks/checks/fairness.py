"""Fairness: how far the accuracy of groups lies apart, before and after."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from lepto.benchmarks.checks.check import Check, Limit, by_interval, not_checked, points
from lepto.benchmarks.fairness import fairness_gap


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
    cells = [str(group) for group in np.asarray(groups).tolist()]
    try:
        outer = fairness_gap(cells, baseline_right, candidate_right, confidence=1 - 2 * alpha)
        inner = fairness_gap(cells, baseline_right, candidate_right, confidence=1 - 2 * beta)
    except ValueError as error:
        return not_checked("fairness", f"column {column!r}: {error}")
    low, high, value, allowed = outer.low, inner.high, outer.change, limit.of(outer.baseline)
    story = (
        f"fairness: the gap between {len(outer.groups)} groups of {column!r} {points(value)} ({outer.baseline:.2%} → "
        f"{outer.candidate:.2%} on {len(cells):,} samples, now from {outer.worst!r} to {outer.best!r}; "
        f"{100 * low:+.2f} to {100 * high:+.2f} points), limit {limit}"
    )
    if outer.left_out:
        story += f"; {len(outer.left_out)} groups have too few samples to count"
    details = {
        "groups": [
            {"name": name, "n": n, "baseline": before, "candidate": after}
            for name, (n, before, after) in outer.groups.items()
        ],
        "left_out": dict(outer.left_out),
    }
    return by_interval(
        "fairness", value, low, high, limit, allowed, story, baseline=outer.baseline, candidate=outer.candidate,
        n=len(cells), rule="gap of accuracy between groups, basic bootstrap within groups", details=details,
    )  # fmt: skip
