"""What a candidate may cost: the drop that is allowed, and how sure one must be that it is kept."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lepto.compiler.proportions import paired_difference, samples_needed
from lepto.runtime.manifest import Metric


@dataclass(frozen=True)
class Budget:
    """What a candidate may cost.

    Attributes:
        metric: The source's.
        allowed_drop: In the metric's own units.
        confidence: Level of the one-sided lower bound that must keep the drop; None asks for the point estimate only.
        right: ``[N]``, which samples the source has right; needed for a bound.
    """

    metric: Metric
    allowed_drop: float
    confidence: float | None = None
    right: npt.NDArray[np.bool_] | None = None

    @property
    def minimum(self) -> float:
        """The lowest metric that keeps the budget."""
        return self.metric.value - self.allowed_drop

    def keeps(self, metric: Metric, right: npt.NDArray[np.bool_] | None = None) -> bool:
        """Whether a candidate keeps the budget: its point estimate (MLPerf's rule), and the bound if one is asked for.

        Args:
            metric: The candidate's; ties of rounding count as kept.
            right: ``[N]``, which samples the candidate has right.
        """
        if metric.value < self.minimum - 1e-12:
            return False
        if self.insufficient(right):
            return False
        bound = self.bound(right)
        return bound is None or bound >= -self.allowed_drop - 1e-12

    def insufficient(self, right: npt.NDArray[np.bool_] | None) -> int:
        """How many samples a bound needs, where there are fewer; 0 where they suffice or no bound is asked for."""
        if self.confidence is None or right is None:
            return 0
        least = samples_needed(0.0, min(max(self.allowed_drop, 1e-6), 0.999), 1 - self.confidence)
        return least if len(right) < least else 0

    def bound(self, right: npt.NDArray[np.bool_] | None) -> float | None:
        """The one-sided lower bound of the paired difference at the level asked for; None where none is asked for."""
        if self.confidence is None or right is None or self.right is None:
            return None
        return paired_difference(self.right, right, self.confidence).low

    def said(self, metric: Metric, right: npt.NDArray[np.bool_] | None) -> str:
        """Why a candidate is over the budget, and where a bound decides, how many samples would."""
        bound = self.bound(right)
        if bound is None or metric.value < self.minimum - 1e-12:
            return f"{metric.name} {metric.value:.4f} is below {self.minimum:.4f} (source {self.metric.value:.4f})"
        assert right is not None
        assert self.right is not None
        assert self.confidence is not None
        if least := self.insufficient(right):
            return (
                f"insufficient data: {len(right)} samples cannot decide, even if every answer is the same: at least "
                f"{least:,} could"
            )
        difference = paired_difference(self.right, right, self.confidence)
        room = self.allowed_drop + difference.value
        needed = samples_needed(difference.discordant_rate, room, 1 - self.confidence) if room > 0 else None
        return (
            f"{metric.name} {metric.value:.4f} is {difference.value:+.4f} from the source with a one-sided "
            f"{self.confidence:.0%} lower bound of {bound:+.4f}, below -{self.allowed_drop:.4f}"
            + (
                f"; with {difference.discordant_rate:.1%} of the answers changed, some {needed:,} samples would decide"
                if needed
                else ""
            )
        )
