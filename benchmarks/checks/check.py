"""What a check is: a small frozen value that explains its own verdict.

There are three verdicts. *Pass* must be shown by the data, *regression* too; whatever shows neither is *inconclusive*.
A check that was asked for and could not be made is inconclusive, so that a gate never passes by leaving something out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Final

_LIMIT = re.compile(r"([+-]?(?:\d+(?:\.\d*)?|\.\d+))\s*([a-zA-Z%]*)")
# Unit as written -> (unit, factor to what is stored).
_UNITS: Final = {
    "%": ("%", 0.01),
    "point": ("points", 0.01),
    "points": ("points", 0.01),
    "ms": ("ms", 1.0),
    "s": ("ms", 1e3),
    "b": ("bytes", 1.0),
    "bytes": ("bytes", 1.0),
    "kb": ("bytes", 1e3),
    "mb": ("bytes", 1e6),
    "gb": ("bytes", 1e9),
    "nats": ("nats", 1.0),
    "rank": ("rank", 1.0),
}


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
        value: In the unit; shares and points as fractions.
        unit: ``%`` (of the baseline's value), ``points`` (hundredths, absolute), ``ms``, ``bytes``, ``nats`` or
            ``rank`` (a rank correlation).
    """

    value: float
    unit: str

    @classmethod
    def parse(cls, text: object, units: Sequence[str] = ()) -> Limit:
        """Read a number with its unit: ``5%``, ``1 point``, ``20 ms``, ``4 MB``, ``0.01 nats``.

        Args:
            text: What was written.
            units: The units that make sense here; all if empty.

        Raises:
            ValueError: There is no number, no unit, or another unit than asked for.
        """
        match = _LIMIT.fullmatch(str(text).strip())
        wanted = ", ".join(_EXAMPLES[unit] for unit in units or _EXAMPLES)
        if match is None:
            raise ValueError(f"a limit must be a number with its unit ({wanted}), got {str(text)!r}")
        if not match[2]:
            raise ValueError(f"the limit {str(text)!r} has no unit: write one of {wanted}")
        if match[2].lower() not in _UNITS:
            raise ValueError(f"the limit {str(text)!r} has an unknown unit {match[2]!r}: write one of {wanted}")
        unit, factor = _UNITS[match[2].lower()]
        if units and unit not in units:
            raise ValueError(f"the limit {str(text)!r} is in {unit}, which does not fit here: write one of {wanted}")
        value = float(match[1]) * factor
        if value < 0:
            raise ValueError(f"a limit must not be negative, got {str(text)!r}")
        return cls(value, unit)

    @property
    def relative(self) -> bool:
        """Whether it is a share of the baseline's value."""
        return self.unit == "%"

    def of(self, baseline: float) -> float:
        """The limit in the value's own unit."""
        return self.value * baseline if self.relative else self.value

    def __str__(self) -> str:
        """As it is written in a gate file."""
        if self.unit == "%":
            return f"{100 * self.value:.4g}%"
        if self.unit == "points":
            return f"{100 * self.value:.4g} points"
        return f"{self.value:,.0f} bytes" if self.unit == "bytes" else f"{self.value:.4g} {self.unit}"


_EXAMPLES: Final = {
    "%": "5%",
    "points": "1 point",
    "ms": "20 ms",
    "bytes": "4 MB",
    "nats": "0.01 nats",
    "rank": "0.1 rank",
}


@dataclass(frozen=True, slots=True)
class Check:
    """One thing the gate has looked at; it explains itself.

    Attributes:
        name: What was looked at: ``p50_ms``, ``accuracy``, ``bytes``, ….
        verdict: What was found.
        message: The whole story on one line, with the values and the limit.
        baseline: The baseline's value.
        candidate: The candidate's value.
        change: Relative change for times and bytes, difference for rates; positive is more.
        low: Lower end of the change's interval, where there is one.
        high: Upper end of it.
        limit: What was allowed, as in the gate file.
        allowed: The same as a number on the scale of ``change``: beyond it the candidate is worse than allowed.
        n: Pairs of blocks, or samples.
        p: One-sided p-value against "not worse", for all looks together; None where chance has no part.
        p_adjusted: The same after Holm's correction over all checks of the gate.
        rule: Which rule decided, in the field's words.
        details: More, for a report: slices, bins, quantiles.
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
    allowed: float | None = None
    n: int | None = None
    p: float | None = None
    p_adjusted: float | None = None
    rule: str = ""
    details: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        """The message."""
        return self.message


def not_checked(name: str, why: str) -> Check:
    """A check that was wanted and could not be made: inconclusive, never a pass."""
    return Check(name, Verdict.INCONCLUSIVE, f"{name} not checked: {why}")


def broken(name: str, why: str) -> Check:
    """A candidate that does not answer, or answers what is no number, is a regression whatever the limit."""
    return Check(name, Verdict.REGRESSION, f"{name}: {why}", rule="every request must be answered with numbers")


def overall(checks: Sequence[Check]) -> Verdict:
    """The gate's verdict: a regression anywhere is one, else anything inconclusive is, and nothing checked is too."""
    found = {check.verdict for check in checks}
    if Verdict.REGRESSION in found:
        return Verdict.REGRESSION
    return Verdict.PASS if found == {Verdict.PASS} else Verdict.INCONCLUSIVE


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values, which keep the family-wise error of all together.

    Source: S. Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6
    (1979), 65-70.
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, largest = [1.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def corrected(checks: Sequence[Check], alpha: float) -> list[Check]:
    """Correct the checks together: a regression that chance may explain among so many looks is inconclusive.

    A pass needs no correction: the gate passes only where every check passes (an intersection-union test).

    Args:
        checks: All checks of the gate.
        alpha: The chance of any false alarm, over all of them.
    """
    with_p = [i for i, check in enumerate(checks) if check.p is not None]
    adjusted = dict(zip(with_p, holm([float(checks[i].p or 0.0) for i in with_p]), strict=True))
    found = []
    for i, check in enumerate(checks):
        if i in adjusted:
            check = replace(check, p_adjusted=adjusted[i])
            if check.verdict is Verdict.REGRESSION and adjusted[i] >= alpha:
                story = f"{check.message}: not significant among {len(with_p)} checks (Holm: p = {adjusted[i]:.2g})"
                check = replace(check, verdict=Verdict.INCONCLUSIVE, message=story)
        found.append(check)
    return found


def moved(change: float) -> str:
    """A relative change in words."""
    return "did not change" if change == 0 else f"{'rose' if change >= 0 else 'fell'} {abs(change):.1%}"


def points(change: float) -> str:
    """A difference of rates in words."""
    return "did not change" if change == 0 else f"{'rose' if change > 0 else 'fell'} {100 * abs(change):.2f} points"


def least_samples(allowed: float, beta: float) -> int:
    """Samples among which a change of so large a share of them is seen at all, with a chance of 1 - beta.

    A bootstrap draws from what was seen: where nothing differs its interval is a point, however few samples there are.
    """
    return math.ceil(math.log(beta) / math.log1p(-allowed)) if 0.0 < allowed < 1.0 else 1


def by_interval(
    name: str,
    value: float,
    low: float,
    high: float,
    limit: Limit,
    allowed: float,
    story: str,
    *,
    n: int,
    least: int = 0,
    **more: Any,
) -> Check:
    """Judge a value by its interval: all of it within what is allowed passes, all of it beyond is a regression.

    With fewer than ``least`` of ``n`` samples nothing passes.
    """
    verdict = Verdict.INCONCLUSIVE
    if high <= allowed and n < least:
        story += f": insufficient data, at least {least:,} samples are needed"
    elif high <= allowed:
        verdict = Verdict.PASS
    elif low > allowed:
        verdict = Verdict.REGRESSION
    else:
        story += ": insufficient data, the interval reaches across the limit; give more samples"
    return Check(name, verdict, story, change=value, low=low, high=high, limit=str(limit), allowed=allowed, n=n, **more)
