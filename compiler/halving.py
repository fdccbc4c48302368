"""Successive halving: rounds of teaching, who goes on to the next one, and what of it fits into the time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from lepto.compiler.costs import Cost
from lepto.compiler.cutter import Shape
from lepto.compiler.source import Source
from lepto.runtime.errors import LeptoError

Objective = Literal["latency", "throughput", "size"]


@dataclass(frozen=True)
class Rung:
    """One round of teaching.

    Attributes:
        portions: How much each candidate is taught, see :func:`portion`.
        most: How many go on to it.
        promise: The share of the errors after the round before that is expected to stay to the end; from the learning
            curves of a few students, which lie close together.
        slack: How far below the lowest score that is looked for the expected one may lie, in allowed drops.
        learning_rate: Peak, for a small student of width 384; one that is taught gently has less, the more it keeps.
    """

    portions: float
    most: int
    promise: float
    slack: float
    learning_rate: float


RUNGS = (Rung(1, 12, 1.0, 9.0, 1e-3), Rung(3, 4, 0.75, 1.0, 7e-4), Rung(5, 2, 0.9, 0.5, 7e-4))
"""Successive halving: all a little, four more, two to the end."""

LONGER = 2.0
"""How much longer than planned the last round may be, where time is left: a student learns on, more and more slowly."""

LARGER = Rung(3, 1, 1.0, 0.0, 7e-4)
"""Where none of them is good enough, how much a larger one is taught."""

SMALLER = Rung(4, 1, 1.0, 0.0, 7e-4)
"""Where one of them is good enough and time is left, how much it is taught after it was cut once more."""

MOST_CUTS = 6
"""How often that is done: what is left then costs less than a fifth."""


@dataclass
class Student:
    """A candidate with what is known of it.

    Attributes:
        shape: What it is cut to.
        source: The module, cut and taught so far.
        cost: Measured.
        score: What students are compared by: the metric on the development samples, or, where the source knows texts
            by heart, how near it comes to the source on copies of them that lack words.
        right: The metric on the development samples.
        epochs: How long it was taught.
        history: Epochs and score after each round.
        gently: Whether its learning rate is the lower the more it keeps of the source.
        pace: Seconds that a training sample takes it; None before it was taught.
    """

    shape: Shape
    source: Source
    cost: Cost
    score: float = 0.0
    right: float = 0.0
    epochs: float = 0.0
    history: list[tuple[float, float]] = field(default_factory=list)
    gently: bool = False
    pace: float | None = None

    def to_json(self) -> dict[str, Any]:
        """For the manifest."""
        own = {"shape": self.shape.name, "score": self.score, "development": self.right, "epochs": self.epochs}
        return {**own, **self.cost.to_json()}


def portion(count: int) -> int:
    """Samples that one portion of teaching holds: all of them and as many augmented copies, within bounds."""
    return int(np.clip(2 * count, 12_000, 40_000))


def allowed_share(needed_s: float, left_s: float, most: float = 1.0) -> float:
    """The part of a plan that fits into the time, in steps, so that noise of the clock seldom changes it.

    Args:
        needed_s: What the whole plan takes.
        left_s: What is left.
        most: The largest part; above 1 where more than the plan does good.
    """
    steps = (*(step for step in (2.0, 1.4) if step <= most), 1.0, 0.7, 0.5, 0.35, 0.25, 0.18, 0.12, 0.08, 0.05)
    return next((step for step in steps if step * needed_s <= left_s), 0.0)


def answerable(count: int, copies: int, most: float) -> tuple[int, int]:
    """How many samples the source is asked about, and how many copies of each, if it can answer so many in time.

    Copies are given up before samples, down to one: samples say more than copies of them.

    Args:
        count: Training samples.
        copies: Augmented copies of each that are wanted.
        most: Answers that there is time for.

    Returns:
        Samples and copies. Noise in ``most`` seldom changes the samples: they are a step of :func:`allowed_share`.
    """
    if count * (1 + copies) <= most:
        return count, copies
    if 2 * count <= most:
        return count, max(1, int(most // count) - 1)
    return max(min(count, 500), round(count * (allowed_share(2 * count, most) or _LEAST_SHARE))), 1


_LEAST_SHARE = 0.02


def portions(students: int, number: int) -> float:
    """Portions of teaching from a round to the end of the search.

    Args:
        students: How many take part in it.
        number: The round, from 0.
    """
    return sum(rung.portions * min(students, rung.most) for rung in RUNGS[number:])


def key_of(objective: Objective) -> Callable[[Cost], float]:
    """What is to be small."""
    if objective == "throughput":
        return lambda cost: -cost.throughput
    return (lambda cost: cost.p50_ms) if objective == "latency" else lambda cost: float(cost.bytes)


def front(students: Sequence[Student], key: Callable[[Cost], float]) -> list[Student]:
    """Those that no other one beats in both score and cost, ascending by cost."""
    ordered = sorted(students, key=lambda s: (key(s.cost), -s.score))
    return [s for i, s in enumerate(ordered) if all(s.score > other.score for other in ordered[:i])]


ENOUGH, _FEW = 0.5, 3
"""The part of the plan below which fewer candidates are taught, and the fewest."""


def fitting(students: list[Student], portion_s: float, left_s: float) -> list[Student]:
    """As many candidates as there is time to tell apart: fewer are better than many that have learned nothing.

    Args:
        students: By cost.
        portion_s: What one portion of teaching takes.
        left_s: What is left.
    """
    while len(students) > _FEW and allowed_share(portions(len(students), 0) * portion_s, left_s) < ENOUGH:
        students = students[::2] if len(students) % 2 else students[1::2]
    return students


def margin(
    allowed: float,
    samples: int,
    *,
    clean: bool,
    strict: bool,
    decided: bool = True,
    graded: bool = False,
    last: bool = True,
) -> float:
    """How far above the lowest score a student is to be, since one is judged, once, and not on these samples.

    A share of the allowed drop: samples that the source was trained on say less, and a bound asks for more than a
    point. By their labels students are two to three times as far apart as on test data, so that half of the drop is
    enough; the source's softmax on copies says what they are apart, and the best of them is behind the source, too.

    At least a standard error of a difference, or the drop where that is less: few samples hardly tell students apart,
    where each is right or wrong, and of many the one that is chosen was lucky, too. With test texts of BANKING77 and
    CLINC150 as development samples, 400 draws of 250 to 1,000 each, it kept the budget on other test texts up to 16
    times in 100 more often than half of one, never less often, and came out as fast on the whole. (Half of one on
    samples that the source has learned, and where a bound asks for more anyway: measured for neither.)

    Args:
        allowed: The largest drop.
        samples: Development samples.
        clean: Whether the source has not seen them.
        strict: Whether a bound must keep the drop.
        graded: Whether students are compared by the source's softmax on copies of samples that it was trained on.
        last: Whether one is chosen by it, and not who is taught on: who is chosen by a score has it by luck, too (half
            a standard error is a tenth of the drop where a thousand texts are held out).
        decided: Whether a sample is either right or wrong. Vectors are near or far, which a few hundred samples say to
            a thousandth, and none is right but the source's.
    """
    if not decided:
        return 0.1 * allowed
    share = 1.0 if strict else 0.25 if clean else 0.5
    if graded and not strict:
        share = 0.85 if last else 0.75
    error = math.sqrt(_CHANGED / samples)
    # No more than the drop: a student is not asked to be better than the reference, which may be impossible.
    whole = min(error, allowed) if clean and not strict else 0.0
    return max(share * allowed, whole, 0.5 * error)


_CHANGED = 0.05
"""The share of the answers in which a student typically differs from the source in right and wrong."""


def ranked(students: Sequence[Student], enough: float, key: Callable[[Cost], float]) -> tuple[Student, ...]:
    """The order in which students are to be judged: the cheapest that is good enough, then dearer ones by accuracy.

    Few development samples hardly tell students apart: those that are as accurate and cost more are safer all the same.
    Where none is good enough the most accurate comes first, of equals the cheapest.

    Args:
        students: Not empty.
        enough: The lowest score that is good enough.
        key: What is to be small.
    """
    good = [s for s in students if s.score >= enough - 1e-12]
    pick = min(good, key=lambda s: key(s.cost)) if good else max(students, key=lambda s: (s.score, -key(s.cost)))
    others = [s for s in students if s is not pick and s.score >= pick.score and key(s.cost) > key(pick.cost)]
    return (pick, *sorted(others, key=lambda s: (-s.score, key(s.cost))))


def survivors(
    students: Sequence[Student],
    allowed: Callable[[float], float],
    rung: Rung,
    key: Callable[[Cost], float],
    room: int = 0,
    margin: Callable[[float], float] = lambda _: 0.0,
) -> list[Student]:
    """Who is taught on.

    In this order, as many as there is room for: the cheapest that is expected to be good enough in the end, which is
    to be safely within the allowed drop of what the best is expected to reach; the cheapest that may yet come within
    it; the best, against whom others are measured. If there are more places, the cheapest of the front take them. After
    one round a score says little of what a student can become: where time is left, larger ones that are beaten so far
    go on as well, the best of them first.

    Args:
        students: Candidates after a round.
        allowed: From a score to the largest drop.
        rung: The round to come.
        key: What is to be small.
        room: How many there is time for.
        margin: From the largest drop to how far above it is safe. Without it one whole layer, expected at 92.82 %, went
            on in place of two small ones, expected at 93.09 %, where 92.98 % was to be asked for. It fell short, and
            three whole layers, which cost three times as much, were taken (BANKING77 on a Zen 3).

    Returns:
        Ascending by cost; those of the front first.
    """
    best = max(students, key=lambda s: (s.score, -key(s.cost)))  # of equals the cheapest
    reached = expected(best.score, rung)
    drop = allowed(reached)
    bar = reached - (1 + rung.slack) * drop
    may = [s for s in front(students, key) if expected(s.score, rung) >= bar]
    # Few samples may make the margin larger than the drop: then the best alone may do.
    likely = next((s for s in may if expected(s.score, rung) >= reached - drop + margin(drop)), best)
    chosen = list({id(s): s for s in (likely, may[0], best, *may)}.values())[: rung.most]
    others = [s for s in sorted(students, key=lambda s: -s.score) if s not in chosen and expected(s.score, rung) >= bar]
    return [*sorted(chosen, key=lambda s: key(s.cost)), *others[: max(0, min(room, rung.most) - len(chosen))]]


def rising(students: Sequence[Student], allowed: Callable[[float], float], rung: Rung) -> bool:
    """Whether the dearest student is expected to be better than all others by as much as would decide.

    Then students still gain with their size, and the best of them is no measure of what a larger one could reach. By as
    much as the slack of the round to come: early scores say less. Where copies that lack words are what they are asked
    about, the labels are to say so, too, by half of that: what the larger one knows by heart of the source helps it on
    both, but their noise is not the same. On DistilBERT's architecture three whole layers were 0.56 points ahead of two
    on copies and 0.10 by labels, on test texts 0.06; five whole layers were taken, where two were good enough.

    Args:
        students: All that were taught.
        allowed: From a score to the largest drop.
        rung: The round to come.
    """
    *others, dearest = sorted(students, key=lambda s: s.shape.predicted_ms)
    if not others:
        return False
    reached = expected(dearest.score, rung)
    decides = rung.slack * allowed(reached)
    by_labels = expected(dearest.right, rung) - max(expected(s.right, rung) for s in others)
    return reached - decides > max(expected(s.score, rung) for s in others) and by_labels > 0.5 * decides


def gains(larger: Sequence[Student], reached: float, safe: float) -> bool:
    """Whether larger students show by the metric that size pays, on samples that the source knows by heart.

    One that is a little better shows nothing, since it keeps more of the source and so of what that knows. On BANKING77
    six layers, cut, were 1.8 points ahead of two small ones on held-out texts, and 0.7 points on test texts, where one
    may lose 0.9; it was taken, and was a quarter as fast. (Asked on copies that lack words they are ahead by as much:
    they answer as the source does there, too.) So the next larger one is to be better still (as on CLINC150, TREC and
    CoNLL-2003), or one by as much as decides.

    Args:
        larger: In the order in which they were taught; each but the last was better than those before it.
        reached: What the largest of the others is expected to reach: the first is to reach it, too.
        safe: How much more decides.
    """
    if not larger or larger[0].right < reached - 1e-12:
        return False
    scores = [s.right for s in larger]
    return max(scores) > scores[0] or max(scores) >= reached + safe


def expected(score: float, rung: Rung) -> float:
    """What a student with this score is expected to score after the round to come."""
    return 1 - rung.promise * (1 - score)


def within(students: Sequence[Student], latency_ms: float | None, size: int | None) -> tuple[list[Student], str]:
    """The candidates that keep the latency and size budgets.

    Args:
        students: Candidates with their measured costs.
        latency_ms: The most that the median of one sample may take; None without a limit.
        size: The most bytes; None without a limit.

    Returns:
        Those that do, and how many of how many; no words without a limit.

    Raises:
        LeptoError: None does; the closest is named (exit code 1).
    """
    kept = [
        s
        for s in students
        if (latency_ms is None or s.cost.p50_ms <= latency_ms) and (size is None or s.cost.bytes <= size)
    ]
    limits = [
        *([f"--latency-budget {latency_ms:g} ms"] if latency_ms is not None else []),
        *([f"--size-budget {size / 1e6:g} MB"] if size is not None else []),
    ]
    if not kept:
        closest = min(students, key=lambda s: max(
            s.cost.p50_ms / latency_ms if latency_ms else 0, s.cost.bytes / size if size else 0
        ))  # fmt: skip
        rows = "\n".join(f"  {s.shape}: {s.cost.p50_ms:.3f} ms, {s.cost.bytes / 1e6:.2f} MB" for s in students)
        raise LeptoError(
            f"no candidate keeps {' and '.join(limits)}; what was measured, before any was taught:\n{rows}\n"
            f"The closest is {closest.shape}: {closest.cost.p50_ms:.3f} ms, {closest.cost.bytes / 1e6:.2f} MB. "
            "No package was written: allow more",
            exit_code=1,
        )
    return kept, f"{len(kept)} of {len(students)} candidates keep {' and '.join(limits)}" if limits else ""
