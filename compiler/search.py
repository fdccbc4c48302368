"""Find the fastest student that keeps the accuracy: candidates of many shapes, taught a little; the best, taught more.

Only training and development samples come in here. The evaluation samples are no argument of anything in this file, so
their labels cannot reach the search.

What is decided depends on scores, on measured costs and on how long each step took. All three are kept in the cache, so
that the same command on the same machine decides the same again, and a search that was broken off goes on where it was.
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch

from lepto.compiler import halving
from lepto.compiler.afterwards import Afterwards
from lepto.compiler.by_heart import lacking_words
from lepto.compiler.context import Context
from lepto.compiler.costs import Cost
from lepto.compiler.data import Samples
from lepto.compiler.derived import made_anew
from lepto.compiler.enough_tokens import strange_share, with_enough_tokens
from lepto.compiler.export.again import Exporter
from lepto.compiler.groundwork import Groundwork
from lepto.compiler.halving import (
    LONGER,
    Objective,
    Rung,
    Student,
    allowed_share,
    fitting,
    front,
    key_of,
    portion,
    portions,
    survivors,
    within,
)
from lepto.compiler.memory import set_aside
from lepto.compiler.setting import Setting
from lepto.compiler.source import Source
from lepto.compiler.teaching import Teaching
from lepto.compiler.trials import Score, Trials
from lepto.compiler.workers import Workers, cluster
from lepto.runtime.manifest import TEXT_CLASSIFICATION, TOKEN_CLASSIFICATION

_LEAST = 0.05
"""The least part of the plan for a first round."""

_STRANGE = 0.2
"""From this share of the held-out texts with tokens that no training text has, a larger student is tried in any case.

Below it (3 to 18 %: ATIS, BANKING77, CLINC150, HWU64) the scores of students told by themselves whether size pays. At
22, 38 and 52 % (CoNLL-2003, AG News, TREC) no small one was good enough on test texts, and on the last two three
layers were no better than two on held-out texts; but on TREC five, cut to half, had 98.53 % after 3.7 epochs, and two
95.79 % after 17. Where it is tried in vain (Snips, 27 %: one small layer is enough) it costs three minutes.
"""


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        ranked: Students, the one to take first; the others are what to fall back to.
        everyone: All that were taught, and those that no budget let in, by cost.
        reference: The score that the budget is counted from.
        minimum: The lowest score that was looked for.
        base: The source with its vocabulary trimmed.
        notes: What was decided, and why.
        seconds: What it took, or would have taken without the cache.
        teaching_s: The part of it in which the source answered and students were taught.
        exporter: Knows the graphs of the candidates.
    """

    ranked: tuple[Student, ...]
    everyone: tuple[Student, ...]
    reference: float
    minimum: float
    base: Source
    notes: tuple[str, ...]
    seconds: float
    teaching_s: float
    exporter: Exporter


@dataclass(frozen=True)
class Search:
    """One search.

    Attributes:
        setting: What its parts share.
        train: Training samples, without the development samples.
        dev: Development samples.
        clean: Whether the source has not seen the development samples in its own training, or gives vectors, which are
            right by themselves.
        allowed: From the reference score to the largest drop.
        score: The task's metric.
        objective: What is to be made better.
        latency_ms: The most that the median of one sample may take; None without a limit.
        size: The most bytes; None without a limit.
        strict: Whether the winner must be as good as the reference, since a bound must keep the drop.
        reduce_range: Whether weights keep to seven bits on the target.
        workers: Where the students of a round are taught side by side; None teaches one after the other.
    """

    setting: Setting
    train: Samples
    dev: Samples
    clean: bool
    allowed: Callable[[float], float]
    score: Score
    objective: Objective = "latency"
    latency_ms: float | None = None
    size: int | None = None
    strict: bool = False
    reduce_range: bool = False
    workers: Workers | None = None
    trials: Trials = field(init=False)

    def __post_init__(self) -> None:
        """Open the trials."""
        copies = lacking_words(self.dev, self.setting.seed) if self._by_heart else None
        object.__setattr__(self, "trials", Trials(self.setting, self.dev, self.score, self.reduce_range, copies))

    def __call__(self) -> Found:
        """Run it.

        Raises:
            Left: The model cannot be cut, or there is too little data.
            LeptoError: No candidate keeps the latency or size budget (exit code 1).
        """
        torch.set_num_threads(self.setting.threads)
        with set_aside(), contextlib.nullcontext() if self.workers is None else cluster(self.workers) as ray:
            return self._search(ray)

    def _search(self, ray: Any) -> Found:
        spent, say = self.setting.spent, self.setting.say
        ground = Groundwork(self.setting, self.train, self._trimmed)
        base, lesson, notes = ground.base()
        if self.trials.copies is not None:
            notes.append("the source has learned the held-out texts: students are compared on copies that lack words")
        # A vector in which one layer of six has had a say is far from the source's.
        strict = self.strict or self.setting.vectors
        cutter = spent.on(
            {"what matters": base.digest, "train": lesson.digest, "strict": strict},
            partial(ground.cutter, base, lesson, strict=strict),
        )
        shapes = cutter.shapes()
        key = key_of(self.objective)
        every = self.trials.measured(base, [(shape, made_anew(partial(cutter.cut, shape))) for shape in shapes], notes)
        every.sort(key=lambda s: key(s.cost))
        for student in every:
            student.gently = self._gently
        students, kept = within(every, self.latency_ms, self.size)
        notes += [kept] if kept else []
        say(f"{len(students)} candidates, from {students[0].shape} to {students[-1].shape}")
        taught = tuple(students)
        unit = portion(len(lesson.original))
        teaching = Teaching(self.setting, lesson, self.workers)
        pace = teaching.pace(students[len(students) // 2])
        students = fitting(students, unit * pace, spent.left)
        if len(students) < len(taught):
            notes.append(f"only {len(students)} of {len(taught)} candidates are taught: the time is short")
            taught = tuple(students)
        after = Afterwards(
            self.trials, teaching, cutter, base, unit / teaching.epoch, key, self.latency_ms, self.size, notes
        )
        larger: list[Student] = []
        gained = False
        for number, rung in enumerate(halving.RUNGS):
            if number and not larger and self._size_may_pay(taught, rung):
                # The dearest of them is expected to become so good by itself.
                reached = halving.expected(max(taught, key=lambda s: s.shape.predicted_ms).right, rung)
                larger = after.larger(taught, reached, seek=False)
                gained = halving.gains(larger, reached, 0.5 * self.allowed(reached))
                if gained:
                    notes.append("students still gained with their size, so that the most accurate is taken")
                    break
                if larger:
                    notes.append(f"{larger[0].shape} gained too little by its size ({reached:.4f} were expected)")
            if number:
                left_s = spent.left
                room = max(
                    (
                        n
                        for n in range(rung.most + 1)
                        if allowed_share(portions(n, number) * unit * pace, left_s) == 1.0
                    ),
                    default=0,
                )
                students = survivors(students, self.allowed, rung, key, room, partial(self._margin, last=False))
                # Those that go on are seldom the fastest to teach.
                pace = statistics.mean(map(teaching.pace, students))
            needed = portions(len(students), number) * unit * pace
            most = LONGER if rung is halving.RUNGS[-1] and self._promising(students, rung) else 1.0
            share = allowed_share(needed, spent.left, most) or (0.0 if number else _LEAST)
            if share == 0.0:
                notes.append(f"round {number + 1} was left out: the time was up (--search-budget)")
                break
            if share > 1:
                notes.append(f"round {number + 1} was {share:g} times as long as planned: time was left")
            elif share < 1:
                notes.append(f"round {number + 1} was cut to {share:.0%}: the time is short (--search-budget)")
            epochs = round(share * rung.portions * unit / teaching.epoch, 2)
            if ray is not None:
                teaching.side_by_side(ray, students, epochs, number, rung.learning_rate)
            for student in students:
                self.trials.teach(teaching, student, epochs, number, rung.learning_rate)
            pace = statistics.mean(map(teaching.pace, students))
            say(f"round {number + 1}: {self._front_text(taught, key)}; {self._left()}")
        # Those that gained too little are no measure: what they keep of the source knows these samples by heart.
        reference = self._reference((*taught, *larger) if gained else taught)
        taught, every = (*taught, *larger), [*every, *larger]
        minimum = reference - self.allowed(reference)
        margin = self._margin(reference - minimum, gained=gained)
        if self.clean and max(s.score for s in taught) < minimum + margin - 1e-12:
            more = after.larger(taught, minimum + margin)
            taught, every = (*taught, *more), [*every, *more]
        less = after.smaller(taught, minimum, minimum + margin)
        taught, every = (*taught, *less), [*every, *less]
        ranked = halving.ranked(taught, minimum + margin, key)
        notes.append(f"looked for at least {minimum:.4f} (+{margin:.4f} to be safe) of {reference:.4f}")
        everyone = tuple(sorted(every, key=lambda s: key(s.cost)))
        return Found(
            ranked,
            everyone,
            reference,
            minimum,
            base,
            tuple(notes),
            spent.seconds,
            spent.teaching,
            self.trials.exporter,
        )

    def _promising(self, students: Sequence[Student], rung: Rung) -> bool:
        """Whether one of them is expected to become good enough: else the time is for larger ones."""
        if not self.clean:
            return True  # the best of them is what the others are measured by
        reference = self.trials.on_dev(self.setting.root)
        drop = self.allowed(reference)
        return max(halving.expected(s.score, rung) for s in students) >= reference - drop + self._margin(drop)

    def _size_may_pay(self, students: Sequence[Student], rung: Rung) -> bool:
        """Whether a larger student is to be tried before the rounds go on: the best of these may be no measure."""
        if self.clean:
            return False
        return halving.rising(students, self.allowed, rung) or self._strange >= _STRANGE

    @property
    def _by_heart(self) -> bool:
        """Whether the source has learned the development samples: then students are compared on copies of them."""
        return self.setting.root.task == TEXT_CLASSIFICATION and not self.clean

    @cached_property
    def _strange(self) -> float:
        return strange_share(self.setting.root, self.train, self.dev)

    @property
    def _gently(self) -> bool:
        """Whether students keep as much as they can of what they have from the source.

        Not where the best of them is the yardstick: on BANKING77 it is then better than the source itself, and smaller
        ones that would keep the budget are passed over. But where a bound must keep the drop the best alone will do:
        three layers taught otherwise were 0.7 points behind the source there, and refused. For vectors it was not
        measured.
        """
        return (self.clean or self.strict) and not self.setting.vectors

    def _margin(self, drop: float, *, gained: bool = False, last: bool = True) -> float:
        return halving.margin(
            drop,
            len(self.dev),
            clean=self.clean,
            strict=self.strict or gained,
            decided=not self.setting.vectors,
            graded=self._by_heart,
            last=last,
        )

    def _reference(self, students: Sequence[Student]) -> float:
        """What the budget is counted from: the source where it has not seen the samples, else the best student."""
        return self.trials.on_dev(self.setting.root) if self.clean else max(s.score for s in students)

    def _trimmed(self, root: Source, context: Context) -> Source:
        """With a vocabulary that costs half of the drop at most: on copies, where the source has learned the samples.

        By their labels it is right on nearly all of these, and so has most to lose: BANKING77's training tokens alone
        cost it 0.80 points there and 0.13 on test texts, HWU64's with 4,000 besides 0.99 and 0.84. On copies its
        softmax said 0.47 and 1.04. (By their labels the whole drop was allowed, and five of HWU64's six layers refused:
        reading alone had cost what they might lose.)

        A tagger's costs a quarter. It is asked about the very words that its texts have not, names above all: on
        CoNLL-2003 2,000 tokens besides cost 1.2 points of F1 on the held-out tenth, 1.7 on test data, 12,000 cost 0.3
        and 0.1.
        """
        trials = self.trials
        if trials.copies is not None:
            return with_enough_tokens(root, context, trials.copies, trials.near, lambda near: 0.5 * self.allowed(near))

        def allowed(whole: float) -> float:
            if root.task == TOKEN_CLASSIFICATION:
                return 0.25 * self.allowed(whole)
            # What the source has not seen it is asked about anyway.
            return 0.5 * self.allowed(trials.on_dev(root))

        return with_enough_tokens(root, context, self.dev, trials.score, allowed)

    def _front_text(self, students: Sequence[Student], key: Callable[[Cost], float]) -> str:
        best = [f"{s.score:.4f} at {s.cost.p50_ms:.3f} ms" for s in front(students, key)]
        return f"the front is {', '.join(best)}"

    def _left(self) -> str:
        return f"{max(0.0, self.setting.spent.left) / 60:.0f} min left"
