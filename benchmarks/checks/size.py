"""Bytes of the model; there is no chance in them."""

from __future__ import annotations

from lepto.benchmarks.checks.check import Check, Limit, Verdict, moved


def judge_bytes(baseline: int, candidate: int, limit: Limit) -> Check:
    """Judge the size of the model.

    Args:
        baseline: Bytes of the baseline's model.
        candidate: Bytes of the candidate's model.
        limit: The largest growth that passes, as a share or in bytes.

    Raises:
        ValueError: A size is below 1.
    """
    if baseline < 1 or candidate < 1:
        raise ValueError(f"a model has at least one byte, got {baseline} and {candidate}")
    change = candidate / baseline - 1.0
    allowed = limit.of(baseline)
    verdict = Verdict.REGRESSION if candidate - baseline > allowed else Verdict.PASS
    story = f"bytes {moved(change)} ({baseline:,} → {candidate:,}), limit {limit}"
    return Check(
        "bytes", verdict, story, baseline, candidate, change, limit=str(limit), allowed=allowed / baseline, rule="exact"
    )
