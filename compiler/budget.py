"""What a candidate may cost: the drop that is allowed, and how sure one must be that it is kept."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lepto.compiler.difference import Difference, difference
from lepto.compiler.metrics import Outcomes
from lepto.runtime.manifest import Metric


@dataclass(frozen=True)
class Budget:
    """What a candidate may cost.

    Attributes:
        metric: The source's.
        allowed_drop: In the metric's own units.
        confidence: Level of the one-sided lower bound that must keep the drop; None asks for the point estimate only.
        source: What the source earns on each sample; needed for a bound.
    """

    metric: Metric
    allowed_drop: float
    confidence: float | None = None
    source: Outcomes | None = None

    @property
    def minimum(self) -> float:
        """The lowest metric that keeps the budget."""
        return self.metric.value - self.allowed_drop

    def keeps(self, metric: Metric, result: Outcomes | None = None) -> bool:
        """Whether a candidate keeps the budget: its point estimate (MLPerf's rule), and the bound if one is asked for.

        Args:
            metric: The candidate's; ties of rounding count as kept.
            result: What the candidate earns on each sample.
        """
        if metric.value < self.minimum - 1e-12:
            return False
        found = self._asked(result)
        return found is None or self._shows(found)

    def said(self, metric: Metric, result: Outcomes | None) -> str:
        """Why a candidate is over the budget, and where a bound decides, how many samples would."""
        found = self._asked(result)
        if found is None or metric.value < self.minimum - 1e-12:
            return f"{metric.name} {metric.value:.4f} is below {self.minimum:.4f} (source {self.metric.value:.4f})"
        return self._verdict(found)

    def would_take(self, metric: Metric) -> str:
        """The smallest drop that a candidate's point estimate keeps, as ``--max-drop`` takes it; two decimals."""
        share = (self.metric.value - metric.value) / self.metric.value
        return f"{math.ceil(share * 10_000 - 1e-9) / 100:g}%"

    def claim(self, result: Outcomes) -> tuple[Difference, str]:
        """The paired difference with its 95 % bound, and what may be claimed of it at the level asked for, or 95 %."""
        assert self.source is not None
        found = difference(self.source, result)
        return found, self._verdict(self._asked(result) or found)

    def _asked(self, result: Outcomes | None) -> Difference | None:
        if self.confidence is None or result is None or self.source is None:
            return None
        return difference(self.source, result, self.confidence)

    def _shows(self, found: Difference) -> bool:
        return found.n >= found.least(self.allowed_drop) and found.low >= -self.allowed_drop - 1e-12

    def _verdict(self, found: Difference) -> str:
        said = found.said(self.allowed_drop)
        if found.n < (least := found.least(self.allowed_drop)):
            return (
                f"insufficient data: {found.n} samples cannot show that no more than {self.allowed_drop:.4f} is lost, "
                f"even if every answer is the same: at least {least:,} could. {said}"
            )
        if self._shows(found):
            return f"not worse than the source by more than is allowed ({found.confidence:.0%}): {said}"
        enough = found.enough(self.allowed_drop + found.value)
        needed = f"; with {found.changed:.1%} of the answers changed, some {enough:,} samples would decide"
        return f"non-inferiority is not shown at {found.confidence:.0%}: {said}{needed if enough else ''}"
