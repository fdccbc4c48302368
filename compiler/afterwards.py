"""What a search does with the time that its rounds leave: larger students where none is good enough, or smaller."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from lepto.compiler.costs import Cost
from lepto.compiler.cutter import Cutter
from lepto.compiler.derived import made_anew
from lepto.compiler.halving import (
    ENOUGH,
    LARGER,
    MOST_CUTS,
    RUNGS,
    SMALLER,
    Student,
    allowed_share,
    within,
)
from lepto.compiler.source import Source
from lepto.compiler.teaching import Teaching
from lepto.compiler.trials import Trials
from lepto.runtime.errors import LeptoError


@dataclass(frozen=True)
class Afterwards:
    """What comes after the rounds of one search.

    Attributes:
        trials: The search's.
        teaching: The search's.
        cutter: Proposes and cuts.
        base: What is cut.
        portion: Epochs of one portion of teaching.
        key: What is to be small.
        latency_ms: The most that the median of one sample may take; None without a limit.
        size: The most bytes; None without a limit.
        notes: Told what was decided, and why.
    """

    trials: Trials
    teaching: Teaching
    cutter: Cutter
    base: Source
    portion: float
    key: Callable[[Cost], float]
    latency_ms: float | None
    size: int | None
    notes: list[str]

    def _needed_s(self, portions: float, student: Student) -> float:
        return portions * self.portion * self.teaching.epoch * self.teaching.pace(student)

    def larger(self, taught: Sequence[Student], enough: float, *, seek: bool = True) -> list[Student]:
        """Where no candidate has become good enough and time is left: larger ones, the cheapest first.

        They keep more of the source, so that they are taught gently, and all they are given at once.

        Args:
            taught: All that were.
            enough: What is looked for on the development samples; or the least that the first must have to show that
                students gain with their size.
            seek: Whether it is looked for, and the first that has it is the last. Else it is not known what is enough:
                after the first, larger ones are taught as long as each is better than those before.

        Returns:
            Those that were taught.
        """
        trials, setting, larger = self.trials, self.trials.setting, list[Student]()
        best = max(s.right for s in taught)
        shapes = self.cutter.larger()
        if not shapes:
            return []
        candidates = [(shape, made_anew(partial(self.cutter.cut, shape))) for shape in shapes]
        found = trials.measured(self.base, candidates, self.notes)
        try:
            found, _ = within(found, self.latency_ms, self.size)
        except LeptoError:
            return []
        found.sort(key=lambda s: s.shape.predicted_ms)
        for student in found:
            needed_s = self._needed_s(LARGER.portions, student)
            share = allowed_share(needed_s, setting.spent.left)
            if share < ENOUGH:
                self.notes.append(
                    f"no time is left to teach {student.shape}: {needed_s / 60:.0f} minutes (--search-budget)"
                )
                break
            setting.say(
                f"none is good enough yet (at least {enough:.4f} is looked for): a larger one is taught"
                if seek
                else "students may still gain with their size: a larger one is taught"
            )
            epochs = round(share * LARGER.portions * self.portion, 2)
            student.gently = True
            trials.teach(self.teaching, student, epochs, len(RUNGS), LARGER.learning_rate)
            larger.append(student)
            if seek:
                last = student.right >= enough - 1e-12
            else:
                last = student.right <= best or larger[0].right < enough - 1e-12
            if last:
                break
            best = max(best, student.right)
        return larger

    def smaller(self, taught: Sequence[Student], minimum: float, enough: float) -> list[Student]:
        """Where a candidate is good enough and time is left: it is cut further, as long as it stays good enough.

        It begins with what it has learned, so that little is lost at each step and soon learned again; one that comes
        near is taught a second time, and on as long as it would be there if it gained as much as the last time.

        Args:
            taught: All that were.
            minimum: The lowest development score that is looked for.
            enough: The one that is safe.
        """
        trials, setting, found = self.trials, self.trials.setting, list[Student]()
        good = [s for s in taught if _reaches(s, enough)]
        while good and len(found) < MOST_CUTS:
            last = min(good, key=lambda s: self.key(s.cost))
            needed_s = self._needed_s(SMALLER.portions, last)
            share = allowed_share(needed_s, setting.spent.left)
            if share < ENOUGH:
                break
            cut = setting.spent.on(
                {"smaller": last.source.digest},
                partial(self.cutter.smaller, last.source, last.shape, self.teaching.lesson.student[0]),
            )
            if cut is None:
                break
            timed = trials.measured(self.base, [(last.shape, last.source), cut], self.notes)
            if len(timed) < 2:
                break
            before, now = timed
            now.cost = now.cost.beside(before.cost, last.cost)
            now.epochs, now.history, now.gently, now.pace = last.epochs, [*last.history], last.gently, last.pace
            if self.key(now.cost) >= self.key(last.cost):
                self.notes.append(f"{now.shape} is not better than {last.shape}: it is left out")
                break
            self.notes.append(f"{last.shape} was good enough, and was cut to {now.shape}")
            setting.say(f"{last.shape} is good enough (at least {enough:.4f} is looked for): it is cut to {now.shape}")
            number = len(RUNGS) + 1 + len(found)
            found.append(now)
            for again in itertools.count():
                was, epochs = now.score, round(share * SMALLER.portions * self.portion, 2)
                trials.teach(self.teaching, now, epochs, number + again * MOST_CUTS, SMALLER.learning_rate)
                share = allowed_share(needed_s, setting.spent.left)
                near = now.score - was >= enough - now.score if again else now.score >= minimum
                if share < ENOUGH or _reaches(now, enough) or not near:
                    break
            if not _reaches(now, enough):
                break
            good.append(now)
        return found


def _reaches(student: Student, enough: float) -> bool:
    return student.score >= enough - 1e-12
