"""Judge ratios that were measured in pairs: latency, throughput, load time and memory alike.

What is measured in pairs of blocks is looked at several times, after pre-declared numbers of pairs, and the levels are
spent over the looks: pass as soon as the upper confidence bound of the worsening is below the limit; regression as
soon as it is significant (one-sided Wilcoxon signed-rank test on the log-ratios) and its estimate beyond the limit. At
the last look a significant worsening beyond half the limit that could not be shown to be below it is a regression too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from lepto.benchmarks.checks.check import Check, Limit, Verdict, moved
from lepto.compiler.statistics import hodges_lehmann, log_ratios, pairs_needed, wilcoxon_greater

LOOKS: Final = (12, 24, 48, 96)
RULE: Final = "one-sided Wilcoxon signed-rank test on paired log-ratios, Hodges-Lehmann estimate"


@dataclass(frozen=True, slots=True)
class Plan:
    """How pairs are looked at, declared before anything is measured.

    Attributes:
        looks: Pairs of blocks in all at each look, rising.
        alpha: Chance that an equally good candidate is called a regression, over all looks and checks.
        beta: Chance that a candidate worse by the limit passes, over all looks.
        checks: How many checks with chance in them the gate makes; they share alpha.
    """

    looks: tuple[int, ...] = LOOKS
    alpha: float = 0.01
    beta: float = 0.05
    checks: int = 2

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            ValueError: If the looks do not rise, or the last has too few pairs for its share of the levels.
        """
        if not self.looks or self.looks[0] < 1 or any(b <= a for a, b in zip(self.looks, self.looks[1:], strict=False)):
            raise ValueError(f"looks must be rising positive numbers of pairs, got {list(self.looks)}")
        for name, level in (("alpha", self.alpha), ("beta", self.beta)):
            if not 0.0 < level < 0.5:
                raise ValueError(f"{name} must be in (0, 0.5), got {level}")
        if self.looks[0] < pairs_needed(1 - 2 * self.beta_at_a_look):
            raise ValueError(
                f"the first look must have at least {pairs_needed(1 - 2 * self.beta_at_a_look)} pairs: "
                f"with {self.looks[0]} there is no bound at the level it may spend ({self.beta_at_a_look:.2g})"
            )
        if self.looks[-1] < (least := math.ceil(-math.log2(self.alpha_at_a_look))):
            raise ValueError(
                f"the last look must have at least {least} pairs: with {self.looks[-1]} no outcome could be "
                f"significant at the level it may spend ({self.alpha_at_a_look:.2g})"
            )

    @property
    def alpha_at_a_look(self) -> float:
        """What a look may spend of alpha for each check: equal shares, which sum up by the union bound."""
        return self.alpha / len(self.looks) / self.checks

    @property
    def beta_at_a_look(self) -> float:
        """What a look may spend of beta."""
        return self.beta / len(self.looks)


def judge_blocks(
    name: str,
    baseline_blocks: npt.ArrayLike,
    candidate_blocks: npt.ArrayLike,
    limit: Limit,
    plan: Plan,
    look: int,
    quantile: float,
) -> Check:
    """Judge one quantile of times at one look.

    Args:
        name: ``p50_ms`` and the like.
        baseline_blocks: [K, R] seconds, K = ``plan.looks[look]``.
        candidate_blocks: [K, R] seconds, measured beside them.
        limit: The largest slow-down that passes, relative.
        plan: The declared looks and levels.
        look: Which of them this is, from 0.
        quantile: Which quantile of each block is compared, in (0, 1).

    Returns:
        Pass, regression, or inconclusive; before the last look the last means "measure on".

    Raises:
        ValueError: The limit is not relative, or there are not as many pairs as the look declared.
    """
    slower = -log_ratios(baseline_blocks, candidate_blocks, quantile)
    before, after = (1e3 * float(np.quantile(np.asarray(b), quantile)) for b in (baseline_blocks, candidate_blocks))
    return judge_ratios(name, slower, before, after, limit, plan, look)


def judge_ratios(
    name: str, worse: npt.NDArray[np.float64], before: float, after: float, limit: Limit, plan: Plan, look: int
) -> Check:
    """Judge log-ratios at one look.

    Args:
        name: What they are of.
        worse: [K] logarithms of candidate over baseline for costs (the other way round for gains): above 0 is worse.
        before: The baseline's value, for the message.
        after: The candidate's.
        limit: The largest worsening that passes, relative.
        plan: The declared looks and levels.
        look: Which of them this is, from 0.

    Raises:
        ValueError: The limit is not relative, or there are not as many pairs as the look declared.
    """
    if not limit.relative:
        raise ValueError(f"a limit on {name} must be relative, such as 5%, got {limit}: absolute values are not judged")
    if worse.size != plan.looks[look]:
        raise ValueError(f"look {look + 1} was declared with {plan.looks[look]} pairs, got {worse.size}")
    centre, low, high = (math.expm1(value) for value in hodges_lehmann(worse))
    worst = math.expm1(hodges_lehmann(worse, 1.0 - 2.0 * plan.beta_at_a_look)[2])
    p = wilcoxon_greater(worse)
    last = look == len(plan.looks) - 1
    verdict = Verdict.INCONCLUSIVE
    if worst < limit.value:
        verdict = Verdict.PASS
    elif p < plan.alpha_at_a_look and centre > limit.value * (0.5 if last else 1.0):
        verdict = Verdict.REGRESSION
    change = after / before - 1.0 if before else 0.0
    shown = moved(centre if (after >= before) == (centre >= 0) else change)
    story = f"{name} {shown} ({before:.3g} → {after:.3g}; 95 %: {low:+.1%} to {high:+.1%} worse), limit {limit}"
    if verdict is Verdict.REGRESSION and centre <= limit.value:
        story += f": surely worse (p = {p:.1g}), and not shown to be within the limit"
    elif verdict is Verdict.INCONCLUSIVE:
        story += f": {worse.size} pairs do not tell, it may be {worst:+.1%}; measure on a quieter machine"
    # Valid over all looks: each spends an equal share.
    p_all = min(1.0, p * len(plan.looks))
    return Check(
        name, verdict, story, before, after, centre, low, high, str(limit), limit.value, int(worse.size), p_all,
        rule=f"{RULE}, look {look + 1} of {len(plan.looks)}",
    )  # fmt: skip
