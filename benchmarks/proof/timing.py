"""Comparisons of a model with itself, slowed by a known share: live, and replayed from recorded timings."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from lepto.benchmarks.checks.check import Limit, Verdict, corrected, overall
from lepto.benchmarks.checks.pairs import Plan, judge_blocks
from lepto.benchmarks.checks.registry import QUANTILES, REGISTRY, Setting
from lepto.benchmarks.evidence import Evidence
from lepto.benchmarks.sides import Side
from lepto.benchmarks.workers import others_busy
from lepto.compiler.data import Samples
from lepto.runtime.console import Output
from lepto.runtime.package import Package

LIMIT: Final = Limit.parse(REGISTRY["latency"].default)
SETTING: Final = Setting("latency", {"limit": LIMIT})
Recorded = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Outcome:
    """One comparison.

    Attributes:
        slow: The injected slow-down, as a share.
        live: Measured now, or replayed.
        verdict: What the gate said.
        pairs: Pairs of blocks it took.
        seconds: What it took; None if replayed.
        busy: Share of the CPUs that other work had just before; None if replayed or unknown.
    """

    slow: float
    live: bool
    verdict: str
    pairs: int
    seconds: float | None = None
    busy: float | None = None


def compare_live(package: Package, samples: Samples, slow: float, seed: int, output: Output) -> Outcome:
    """The gate's own latency check of a package against itself, the candidate slowed in its process."""
    busy = others_busy(0.2)
    start = time.monotonic()
    sides = [Side("baseline", package), Side("candidate", package)]
    evidence = Evidence(sides, samples, plan=Plan(), output=output, seed=seed, slow=slow)
    checks = corrected(REGISTRY["latency"].make(evidence, SETTING), evidence.plan.alpha)
    pairs = max(check.n or 0 for check in checks)
    return Outcome(slow, True, overall(checks).value, pairs, round(time.monotonic() - start, 3), busy)


def record(package: Package, samples: Samples, pairs: int, seed: int, output: Output) -> Recorded:
    """Timings of a package against itself, ``[pairs, side, quantile]`` seconds."""
    sides = [Side("baseline", package), Side("candidate", package)]
    evidence = Evidence(sides, samples, plan=Plan(), output=output, seed=seed)
    with evidence.bar("recording pairs", pairs) as progress:
        blocks = evidence.pairs().measure(pairs, progress)
    quantiles = [quantile for _, quantile in QUANTILES.values()]
    return np.stack([np.quantile(side, quantiles, axis=1).T for side in blocks], axis=1)


def replay(recorded: Sequence[Recorded], slow: float, order: random.Random) -> Outcome:
    """The gate on a random stretch of recorded pairs, one of the two sides slowed.

    A stretch is taken whole, in the order it was measured and with the sides as they were or swapped, so that drift and
    a lasting difference between the sides stay in it.
    """
    plan = Plan()
    series = order.choice(list(recorded))
    start = order.randrange(len(series))
    window = np.take(series, range(start, start + plan.looks[-1]), axis=0, mode="wrap")
    if order.random() < 0.5:
        window = window[:, ::-1]
    before, after = window[:, 0], window[:, 1] * (1.0 + slow)
    decided: dict[str, Any] = {}
    pairs = 0
    for look, pairs in enumerate(plan.looks):
        for i, (name, _) in enumerate(QUANTILES.values()):
            if name not in decided or decided[name].verdict is Verdict.INCONCLUSIVE:
                own = [values[:pairs, i : i + 1] for values in (before, after)]
                decided[name] = judge_blocks(name, own[0], own[1], LIMIT, plan, look, 0.5)
        verdicts = {check.verdict for check in decided.values()}
        if Verdict.REGRESSION in verdicts or Verdict.INCONCLUSIVE not in verdicts:
            break
    return Outcome(slow, False, overall(corrected(list(decided.values()), plan.alpha)).value, pairs)
