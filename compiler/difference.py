"""The change of a metric from the source to a result on the same samples, with what may be claimed of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lepto.compiler.metrics import Outcomes
from lepto.compiler.proportions import paired_difference, samples_needed
from lepto.compiler.statistics import bootstrap_interval, normal_quantile

_POWER = 0.8
_RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Difference:
    """Result minus source, on the same samples.

    Attributes:
        value: The change, in the metric's own units; negative where the result is worse.
        low: Its one-sided lower bound.
        confidence: The bound's level, in (0.5, 1).
        n: Samples; for rows of words the rows.
        changed: Share of the samples whose outcome is another one.
        rule: What the bound comes from.
        lost: Samples that only the source has right; None where samples are not simply right or wrong.
        won: Samples that only the result has right.
    """

    value: float
    low: float
    confidence: float
    n: int
    changed: float
    rule: str
    lost: int | None = None
    won: int | None = None

    def least(self, allowed: float) -> int:
        """Samples below which no bound can keep the drop, even if every outcome is the same."""
        return samples_needed(0.0, _margin(allowed), 1 - self.confidence)

    def enough(self, room: float) -> int | None:
        """Samples with which the bound would lie within so much of the change, with a chance of 80 %.

        Args:
            room: The drop that is allowed, and the change itself if it is the true one.

        Returns:
            None if no number of samples could, as where there is no room.
        """
        if room <= 0:
            return None
        alpha = 1 - self.confidence
        if self.lost is not None:
            return samples_needed(self.changed, _margin(room), alpha)
        # The bound's distance shrinks with the square root of the samples.
        z = normal_quantile(self.confidence)
        spread = (self.value - self.low) / z
        found = self.n * ((z + normal_quantile(_POWER)) * spread / room) ** 2
        return max(int(np.ceil(found)), self.least(room))

    def said(self, allowed: float) -> str:
        """The change, its bound, and the drop that is allowed."""
        return (
            f"paired difference {self.value:+.4f}, one-sided {self.confidence:.0%} lower bound {self.low:+.4f} "
            f"({self.rule}), allowed -{allowed:.4f}"
        )


def difference(source: Outcomes, result: Outcomes, confidence: float = 0.95) -> Difference:
    """Compare two models' outcomes on the same samples in the same order.

    Where each sample is right or wrong the bound is Tango's score interval (:mod:`lepto.compiler.proportions`); else,
    as with F1, a paired percentile bootstrap over the samples (Efron & Tibshirani, "An Introduction to the Bootstrap",
    1993, chapter 13).

    Args:
        source: The original's.
        result: The candidate's.
        confidence: Level of the one-sided bound, in (0.5, 1).

    Raises:
        ValueError: They have another metric or another number of samples.
    """
    if source.name != result.name or len(source) != len(result):
        raise ValueError(
            f"outcomes must pair up, got {source.name} of {len(source)} samples and {result.name} of {len(result)}"
        )
    if source.decided and result.decided:
        found = paired_difference(source.earned > 0, result.earned > 0, confidence)
        rule = "Tango's score interval"
        return Difference(
            found.value, found.low, confidence, found.n, found.discordant_rate, rule, lost=found.n10, won=found.n01
        )
    columns = (source.earned, source.possible, result.earned, result.possible)
    low, _ = bootstrap_interval(_change, *columns, confidence=2 * confidence - 1, resamples=_RESAMPLES)
    value = _change(*columns)
    other = (source.earned != result.earned) | (source.possible != result.possible)
    return Difference(value, min(low, value), confidence, len(source), float(other.mean()), "paired bootstrap")


def _change(*columns: np.ndarray[tuple[int], np.dtype[np.float64]]) -> float:
    before, all_before, after, all_after = (float(column.sum()) for column in columns)
    return after / all_after - before / all_before if all_before and all_after else float("nan")


def _margin(allowed: float) -> float:
    return min(max(allowed, 1e-6), 0.999)
