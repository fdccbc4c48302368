"""Accuracy, on paired predictions: by bound (non-inferiority), or by MLPerf's rule on the point estimate."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from lepto.benchmarks.checks.check import Check, Limit, Verdict, points
from lepto.compiler.proportions import EXACT_BELOW, PairedDifference, paired_difference, samples_needed

NON_INFERIORITY, MLPERF = "non-inferiority", "mlperf"
RULES: Final = (NON_INFERIORITY, MLPERF)


def judge_accuracy(
    baseline: npt.ArrayLike,
    candidate: npt.ArrayLike,
    truth: npt.ArrayLike,
    limit: Limit,
    *,
    rule: str = NON_INFERIORITY,
    alpha: float = 0.01,
    beta: float = 0.05,
    name: str = "accuracy",
) -> Check:
    """Judge accuracy on paired predictions.

    *non-inferiority*: passes if the one-sided lower bound of the paired change (Tango's score interval) is within the
    limit; a regression if the candidate is significantly worse (exact McNemar test below 25 discordant pairs, else the
    score test) by more than half the limit, or significantly worse than the limit itself.

    *mlperf*: the point estimate must reach its share of the baseline's, as MLPerf Inference has it (99 % with a limit
    of 1 %). It passes only with at least the samples with which full agreement would show it.

    Args:
        baseline: [N] predicted classes of the baseline.
        candidate: [N] predicted classes of the candidate, for the same samples.
        truth: [N] right classes.
        limit: The largest drop that passes: a share of the baseline's accuracy, or points.
        rule: Which of the two.
        alpha: Chance that an equally good candidate is called a regression.
        beta: Chance that a candidate worse by the limit passes.
        name: Of the check.

    Returns:
        Pass, regression or inconclusive (too few samples).

    Raises:
        ValueError: The vectors differ in length or are empty, or there is no such rule.
    """
    first, second, right = (np.asarray(one) for one in (baseline, candidate, truth))
    if not first.shape == second.shape == right.shape:
        raise ValueError(
            f"predictions and labels must be of one length, got {first.shape}, {second.shape}, {right.shape}"
        )
    if rule not in RULES:
        raise ValueError(f"rule must be one of {', '.join(RULES)}, got {rule!r}")
    difference = paired_difference(first == right, second == right, confidence=1.0 - beta)
    before, after = float(np.mean(first == right)), float(np.mean(second == right))
    allowed = limit.of(before)
    flips = float(np.mean(first != second))
    discordant = difference.n10 + difference.n01
    test = "exact McNemar test" if discordant < EXACT_BELOW else "score test"
    story = (
        f"{name} {points(difference.value)} ({before:.2%} → {after:.2%} on {difference.n:,} samples; at worst "
        f"{100 * difference.low:+.2f} points at {1 - beta:.0%}), limit {limit}"
        f"{f' = {100 * allowed:.2f} points' if limit.relative else ''}; {flips:.1%} of the answers changed"
    )
    verdict, why = _by(rule, difference, allowed, alpha, beta)
    return Check(
        name,
        verdict,
        story + why,
        before,
        after,
        difference.value,
        difference.low,
        None,
        str(limit),
        -allowed,
        difference.n,
        # MLPerf's rule leaves nothing to chance: the share is reached on these samples, or it is not.
        difference.p_worse if rule == NON_INFERIORITY else None,
        rule=f"non-inferiority by Tango's interval, {test}" if rule == NON_INFERIORITY else "MLPerf: point estimate",
        details={
            "only_baseline_right": difference.n10,
            "only_candidate_right": difference.n01,
            "flip_rate": flips,
            "samples_that_would_decide": needed(difference.discordant_rate, allowed, beta),
        },
    )


def _by(rule: str, found: PairedDifference, allowed: float, alpha: float, beta: float) -> tuple[Verdict, str]:
    tiny = 1e-12
    enough = needed(found.discordant_rate, allowed, beta)
    ask = (
        f"and no number of samples can show a drop of at most {100 * allowed:.2f} points"
        if enough is None
        else f"about {enough:,} samples are needed"
    )
    if rule == MLPERF:
        if -found.value > allowed + tiny:
            return Verdict.REGRESSION, ""
        floor = needed(0.0, allowed, beta)
        if floor is None or found.n < floor:
            return Verdict.INCONCLUSIVE, f": insufficient data, {ask}"
        shown = found.low > -allowed
        return Verdict.PASS, "" if shown else f"; the bound does not show it, {ask} for that"
    if found.low > -allowed:
        return Verdict.PASS, ""
    if found.p_worse < alpha and -found.value > allowed / 2 + tiny:
        return Verdict.REGRESSION, f" (surely worse: p = {found.p_worse:.1g})"
    return Verdict.INCONCLUSIVE, f": insufficient data, {ask}"


def needed(discordant_rate: float, allowed: float, beta: float) -> int | None:
    """Samples that would decide; None if no number of them could."""
    return samples_needed(discordant_rate, allowed, beta) if 0.0 < allowed < 1.0 else None
