"""The worst slice: compression errors gather where the data are thin (Hooker et al., arXiv 2010.03058)."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from lepto.benchmarks.checks.accuracy import needed
from lepto.benchmarks.checks.check import Check, Limit, Verdict, holm
from lepto.compiler.proportions import paired_difference

LENGTH_BINS: Final = 4


@dataclass(frozen=True, slots=True)
class Slice:
    """One part of the data.

    Attributes:
        name: ``label=refund``, ``length=9-14``, ``country=NL``.
        n: Its samples.
        baseline: The baseline's accuracy on it.
        candidate: The candidate's.
        low: One-sided lower bound of the change.
        p: One-sided p-value against "not worse", Holm-corrected over the slices.
        verdict: What was found on it.
    """

    name: str
    n: int
    baseline: float
    candidate: float
    low: float
    p: float
    verdict: str


def by_value(name: str, values: npt.ArrayLike) -> dict[str, npt.NDArray[np.bool_]]:
    """One mask for each value of a column."""
    column = np.asarray(values)
    return {f"{name}={value}": column == value for value in sorted(set(column.tolist()), key=str)}


def by_length(lengths: npt.ArrayLike) -> dict[str, npt.NDArray[np.bool_]]:
    """One mask for each quarter of the lengths, in tokens."""
    sizes = np.asarray(lengths)
    edges = np.unique(np.quantile(sizes, np.linspace(0, 1, LENGTH_BINS + 1), method="nearest"))
    if len(edges) < 2:
        return {f"length={edges[0]}": np.ones(len(sizes), dtype=bool)}
    masks = {}
    for i, (low, high) in enumerate(itertools.pairwise(edges)):
        low = low if i == 0 else low + 1
        if low <= high:
            masks[f"length={low}-{high}"] = (sizes >= low) & (sizes <= high)
    return masks


def judge_slices(
    masks: Mapping[str, npt.NDArray[np.bool_]],
    baseline_right: npt.NDArray[np.bool_],
    candidate_right: npt.NDArray[np.bool_],
    limit: Limit,
    *,
    alpha: float,
    beta: float,
    least: int = 0,
) -> Check:
    """Judge every slice like the whole, corrected together, and tell the worst.

    Args:
        masks: ``[N]`` for each slice.
        baseline_right: ``[N]``, which samples the baseline has right.
        candidate_right: ``[N]``.
        limit: The largest drop in a slice: a share of the baseline's accuracy on it, or points.
        alpha: Over all slices together.
        beta: For each slice; over all it only gets harder to pass.
        least: Slices with fewer samples are told but not judged; a choice that must be made in the gate file.

    Returns:
        Regression if any slice is one, inconclusive if any slice has too few samples.
    """
    found: list[tuple[str, Any, float, float]] = []
    for name, mask in masks.items():
        if mask.any():
            first, second = baseline_right[mask], candidate_right[mask]
            difference = paired_difference(first, second, 1.0 - beta)
            found.append((name, difference, float(first.mean()), float(second.mean())))
    judged = [item for item in found if item[1].n >= least]
    adjusted = dict(zip([item[0] for item in judged], holm([item[1].p_worse for item in judged]), strict=True))
    slices = []
    for name, difference, before, after in found:
        allowed = limit.of(before)
        if name not in adjusted:
            verdict = "too small, told only"
        elif difference.low > -allowed or (difference.n10 == 0 and before == 0.0):
            verdict = Verdict.PASS.value
        elif adjusted[name] < alpha and -difference.value > allowed / 2:
            verdict = Verdict.REGRESSION.value
        else:
            verdict = "insufficient data"
        slices.append(Slice(name, difference.n, before, after, difference.low, adjusted.get(name, 1.0), verdict))
    return _tell(slices, found, limit, beta)


def _tell(slices: list[Slice], found: list[tuple[str, Any, float, float]], limit: Limit, beta: float) -> Check:
    details = {"slices": [{key: getattr(one, key) for key in Slice.__dataclass_fields__} for one in slices]}
    judged = [one for one in slices if not one.verdict.startswith("too small")]
    if not judged:
        return Check(
            "worst_slice", Verdict.INCONCLUSIVE, "worst_slice not checked: no slice has enough samples", details=details
        )
    worst = min(judged, key=lambda one: (one.verdict == Verdict.REGRESSION, one.candidate - one.baseline))
    bad = [one for one in judged if one.verdict == Verdict.REGRESSION]
    open_ = [one for one in judged if one.verdict == "insufficient data"]
    if bad:
        worst = min(bad, key=lambda one: one.candidate - one.baseline)
    change = worst.candidate - worst.baseline
    story = (
        f"worst_slice {worst.name}: {worst.baseline:.2%} → {worst.candidate:.2%} on {worst.n:,} samples "
        f"(at worst {100 * worst.low:+.2f} points), limit {limit}; {len(judged)} slices"
    )
    verdict = Verdict.PASS
    if bad:
        verdict = Verdict.REGRESSION
        story += f", {len(bad)} surely worse (p = {worst.p:.1g} after Holm)"
    elif open_:
        verdict = Verdict.INCONCLUSIVE
        rates = {name: (one.discordant_rate, before) for name, one, before, _ in found}
        most = max(needed(rates[one.name][0], limit.of(rates[one.name][1]), beta) or 0 for one in open_)
        story += (
            f": insufficient data in {len(open_)} of them (such as {open_[0].name} with {open_[0].n}); a slice needs "
            f"about {most:,} samples, or leave small ones to the report with `least: N`"
        )
    return Check(
        "worst_slice", verdict, story, worst.baseline, worst.candidate, change, worst.low, None, str(limit),
        -limit.of(worst.baseline), worst.n, min(one.p for one in judged),
        rule="paired non-inferiority in every slice, Holm over the slices", details=details,
    )  # fmt: skip
