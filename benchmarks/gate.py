"""Judge a candidate against a baseline: pure functions over measured values, which fail closed.

There are three verdicts. *Pass* must be shown by the data, *regression* too; whatever shows neither is *inconclusive*.
A check that was asked for and could not be made is inconclusive, so that a gate never passes by leaving something out.

Latency is looked at several times, after pre-declared numbers of pairs, and the levels are spent over the looks: pass
as soon as the upper confidence bound of the slow-down is below the limit; regression as soon as the slow-down is
significant and its estimate beyond the limit. At the last look a significant slow-down beyond half the limit that
could not be shown to be below it is a regression too.

Accuracy follows MLPerf's rule: the candidate must reach a share of the baseline's accuracy (99 % unless told
otherwise). The point estimate decides between regression and the rest; a pass also needs the lower confidence bound of
the paired difference to be inside the limit, so that too few samples never pass.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from lepto.compiler.proportions import paired_difference, samples_needed
from lepto.compiler.statistics import hodges_lehmann, log_ratios, spend_alpha, wilcoxon_greater

LATENCY_QUANTILES: Final = {"p50_ms": 0.5, "p90_ms": 0.9}
_LIMIT = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*(%?)")


class Verdict(StrEnum):
    """What a check, or the whole gate, has found."""

    PASS = "pass"
    REGRESSION = "regression"
    INCONCLUSIVE = "inconclusive"

    @property
    def exit_code(self) -> int:
        """What the command exits with."""
        return {Verdict.PASS: 0, Verdict.REGRESSION: 1, Verdict.INCONCLUSIVE: 3}[self]


@dataclass(frozen=True, slots=True)
class Limit:
    """How much worse a value may get.

    Attributes:
        value: As a share of the baseline's value, or in the value's own unit.
        relative: Which of the two.
    """

    value: float
    relative: bool

    @classmethod
    def parse(cls, text: str) -> Limit:
        """Read ``5%`` (a share of the baseline) or ``0.05`` (absolute).

        Raises:
            ValueError: The text is neither.
        """
        match = _LIMIT.fullmatch(text.strip())
        if match is None:
            raise ValueError(f"a limit must be a share like 5% or a number like 0.01, got {text!r}")
        return cls(float(match[1]) / (100.0 if match[2] else 1.0), bool(match[2]))

    def of(self, baseline: float) -> float:
        """The limit in the value's own unit."""
        return self.value * baseline if self.relative else self.value

    def __str__(self) -> str:
        """As it is written on the command line."""
        return f"{100 * self.value:.4g}%" if self.relative else f"{self.value:.4g}"


@dataclass(frozen=True, slots=True)
class Check:
    """One thing the gate has looked at; it explains itself.

    Attributes:
        name: ``p50_ms``, ``p90_ms``, ``accuracy`` or ``bytes``.
        verdict: What was found.
        message: The whole story on one line, with the values and the limit.
        baseline: The baseline's value.
        candidate: The candidate's value.
        change: Relative change for times and bytes, difference for accuracy; positive is more.
        low: Lower end of the change's interval, where there is one.
        high: Upper end of it.
        limit: What was allowed, as on the command line.
        n: Pairs of blocks, or samples.
        p: One-sided p-value against "not worse".
    """

    name: str
    verdict: Verdict
    message: str
    baseline: float | None = None
    candidate: float | None = None
    change: float | None = None
    low: float | None = None
    high: float | None = None
    limit: str | None = None
    n: int | None = None
    p: float | None = None

    def __str__(self) -> str:
        """The message."""
        return self.message


@dataclass(frozen=True, slots=True)
class Plan:
    """How latency is looked at, declared before anything is measured.

    Attributes:
        looks: Pairs of blocks in all at each look, rising.
        alpha: Chance that an equally fast candidate is called a regression, over all looks and quantiles.
        beta: Chance that a candidate slower by the limit passes, over all looks.
    """

    looks: tuple[int, ...] = (12, 24, 48)
    alpha: float = 0.01
    beta: float = 0.05

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            ValueError: If the looks do not rise, or the first has too few pairs for its share of the levels.
        """
        levels = (*self.alpha_at_looks, *self.beta_at_looks)
        least = math.ceil(-math.log2(min(levels)))
        if self.looks[0] < least:
            raise ValueError(
                f"the first look must have at least {least} pairs: with {self.looks[0]} no outcome could be "
                f"significant at the level it may spend ({min(levels):.2g})"
            )

    @property
    def alpha_at_looks(self) -> tuple[float, ...]:
        """What each look may spend of alpha, for each quantile."""
        return spend_alpha(self.looks, self.alpha / len(LATENCY_QUANTILES))

    @property
    def beta_at_looks(self) -> tuple[float, ...]:
        """What each look may spend of beta."""
        return spend_alpha(self.looks, self.beta)


def judge_latency(
    name: str, baseline_blocks: npt.ArrayLike, candidate_blocks: npt.ArrayLike, limit: Limit, plan: Plan, look: int
) -> Check:
    """Judge one quantile of the latency at one look.

    Args:
        name: ``p50_ms`` or ``p90_ms``.
        baseline_blocks: [K, R] seconds, K = ``plan.looks[look]``.
        candidate_blocks: [K, R] seconds, measured beside them.
        limit: The largest slow-down that passes, relative.
        plan: The declared looks and levels.
        look: Which of them this is, from 0.

    Returns:
        Pass, regression, or inconclusive; before the last look the last means "measure on".

    Raises:
        ValueError: The limit is not relative, or there are not as many pairs as the look declared.
    """
    if not limit.relative:
        raise ValueError(f"a limit on {name} must be relative, such as 5%, got {limit}: absolute times are not judged")
    quantile = LATENCY_QUANTILES[name]
    slower = -log_ratios(baseline_blocks, candidate_blocks, quantile)
    if slower.size != plan.looks[look]:
        raise ValueError(f"look {look + 1} was declared with {plan.looks[look]} pairs, got {slower.size}")
    alpha, beta = plan.alpha_at_looks[look], plan.beta_at_looks[look]
    centre, low, high = (math.expm1(value) for value in hodges_lehmann(slower))
    worst = math.expm1(hodges_lehmann(slower, 1.0 - 2.0 * beta)[2])
    p = wilcoxon_greater(slower)
    last = look == len(plan.looks) - 1
    verdict = Verdict.INCONCLUSIVE
    if worst < limit.value:
        verdict = Verdict.PASS
    elif p < alpha and centre > limit.value * (0.5 if last else 1.0):
        verdict = Verdict.REGRESSION
    before, after = (1e3 * float(np.quantile(np.asarray(b), quantile)) for b in (baseline_blocks, candidate_blocks))
    story = f"{name} {_moved(centre)} ({before:.3g} → {after:.3g}; 95 %: {low:+.1%} to {high:+.1%}), limit {limit}"
    if verdict is Verdict.REGRESSION and centre <= limit.value:
        story += f": surely slower (p = {p:.1g}), and not shown to be within the limit"
    elif verdict is Verdict.INCONCLUSIVE:
        story += f": {slower.size} pairs do not tell, it may be {worst:+.1%}; measure on a quieter machine"
    return Check(name, verdict, story, before, after, centre, low, high, str(limit), int(slower.size), p)


def judge_accuracy(
    baseline: npt.ArrayLike, candidate: npt.ArrayLike, truth: npt.ArrayLike, limit: Limit, beta: float = 0.05
) -> Check:
    """Judge accuracy on paired predictions.

    Args:
        baseline: [N] predicted classes of the baseline.
        candidate: [N] predicted classes of the candidate, for the same samples.
        truth: [N] right classes.
        limit: The largest drop that passes, as a share of the baseline's accuracy or absolute.
        beta: Chance that a candidate worse by the limit passes.

    Returns:
        Pass, regression or inconclusive (too few samples).

    Raises:
        ValueError: The vectors differ in length or are empty.
    """
    first, second, right = (np.asarray(one) for one in (baseline, candidate, truth))
    if not first.shape == second.shape == right.shape:
        raise ValueError(
            f"predictions and labels must be of one length, got {first.shape}, {second.shape}, {right.shape}"
        )
    difference = paired_difference(first == right, second == right, confidence=1.0 - beta)
    before, after = float(np.mean(first == right)), float(np.mean(second == right))
    allowed = limit.of(before)
    flips = float(np.mean(first != second))
    samples = f"{difference.n:,} samples"
    story = (
        f"accuracy {_points(difference.value)} ({before:.2%} → {after:.2%} on {samples}; at worst "
        f"{100 * difference.low:+.2f} points at {1 - beta:.0%}), limit {limit}"
        f"{f' = {100 * allowed:.2f} points' if limit.relative else ''}; {flips:.1%} of the answers changed"
    )
    if -difference.value > allowed + 1e-12:
        verdict = Verdict.REGRESSION
    elif difference.low > -allowed:
        verdict = Verdict.PASS
    else:
        verdict = Verdict.INCONCLUSIVE
        story += f": insufficient data, {_enough(difference.discordant_rate, allowed, beta)}"
    return Check(
        "accuracy", verdict, story, before, after, difference.value, difference.low, None, str(limit), difference.n,
        difference.p_worse,
    )  # fmt: skip


def judge_bytes(baseline: int, candidate: int, limit: Limit) -> Check:
    """Judge the size of the model; there is no chance in it.

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
    verdict = Verdict.REGRESSION if candidate - baseline > limit.of(baseline) else Verdict.PASS
    story = f"bytes {_moved(change)} ({baseline:,} → {candidate:,}), limit {limit}"
    return Check("bytes", verdict, story, baseline, candidate, change, None, None, str(limit))


def not_checked(name: str, why: str) -> Check:
    """A check that was wanted and could not be made: inconclusive, never a pass."""
    return Check(name, Verdict.INCONCLUSIVE, f"{name} not checked: {why}")


def overall(checks: Sequence[Check]) -> Verdict:
    """The gate's verdict: a regression anywhere is one, else anything inconclusive is, and nothing checked is too."""
    found = {check.verdict for check in checks}
    if Verdict.REGRESSION in found:
        return Verdict.REGRESSION
    return Verdict.PASS if found == {Verdict.PASS} else Verdict.INCONCLUSIVE


def as_document(checks: Sequence[Check]) -> dict[str, Any]:
    """The verdict and the checks for ``--json``."""
    return {
        "verdict": overall(checks).value,
        "checks": [{field: getattr(check, field) for field in Check.__dataclass_fields__} for check in checks],
    }


def _moved(change: float) -> str:
    return f"{'rose' if change >= 0 else 'fell'} {abs(change):.1%}"


def _points(change: float) -> str:
    return "did not change" if change == 0 else f"{'rose' if change > 0 else 'fell'} {100 * abs(change):.2f} points"


def _enough(discordant_rate: float, allowed: float, beta: float) -> str:
    if not 0.0 < allowed < 1.0:
        return f"and no number of samples can show a drop of at most {100 * allowed:.2f} points"
    return f"about {samples_needed(discordant_rate, allowed, beta):,} samples are needed"
