"""Instructions of an inference: counted and not timed, so that chance has no part in it."""

from __future__ import annotations

from typing import Final

from lepto.benchmarks.checks.check import Check, Limit, Verdict, moved
from lepto.benchmarks.instructions import PROCESSOR, Instructions

# Two counts of one model differ by a hundredth of this (benchmarks/README.md); where code lies in memory may add to it.
RESOLUTION: Final = 0.001


def judge_instructions(before: Instructions, after: Instructions, limit: Limit) -> Check:
    """Judge how many more instructions an inference takes.

    Args:
        before: The baseline's.
        after: The candidate's, of the same inputs.
        limit: The largest growth, relative, at least ``RESOLUTION``.

    Returns:
        Pass or regression; inconclusive where the change lies closer to the limit than a count can tell.
    """
    change = after.per_inference / before.per_inference - 1.0
    story = (
        f"instructions {moved(change)} ({before.per_inference:,.0f} → {after.per_inference:,.0f} for an inference; "
        f"{PROCESSOR}), limit {limit}"
    )
    verdict = Verdict.PASS if change <= limit.value else Verdict.REGRESSION
    if abs(change - limit.value) < RESOLUTION:
        verdict = Verdict.INCONCLUSIVE
        story += f": closer to the limit than a count can tell ({RESOLUTION:.1%}); choose another limit, or time it"
    return Check(
        "instructions", verdict, story, before.per_inference, after.per_inference, change, None, None, str(limit),
        limit.value, before.runs, rule="counted by callgrind, the difference of N and 2 N inferences",
    )  # fmt: skip
