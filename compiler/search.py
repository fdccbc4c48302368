"""Find the fastest student that keeps the accuracy: candidates of many shapes, taught a little; the best, taught more.

Only training and development samples come in here. The evaluation samples are no argument of anything in this file, so
their labels cannot reach the search.

What is decided depends on scores, on measured costs and on how long each step took. All three are kept in the cache, so
that the same command on the same machine decides the same again, and a search that was broken off goes on where it was.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from lepto.compiler import halving
from lepto.compiler.cache import Cache
from lepto.compiler.context import Context, Left, PassError
from lepto.compiler.costs import FORM as COST_FORM
from lepto.compiler.costs import Cost, measure_costs, quick_int8, timing_feeds
from lepto.compiler.cutter import Cutter, Shape
from lepto.compiler.data import Samples
from lepto.compiler.enough_tokens import with_enough_tokens
from lepto.compiler.export.again import Exporter
from lepto.compiler.groundwork import Groundwork
from lepto.compiler.halving import (
    ENOUGH,
    LARGER,
    LONGER,
    MOST_CUTS,
    SMALLER,
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
from lepto.compiler.model import OnnxModel
from lepto.compiler.source import Source
from lepto.compiler.spent import Spent
from lepto.compiler.teaching import Say, Teaching, Tell
from lepto.compiler.verify import encode, logits_in_batches
from lepto.compiler.workers import Workers, cluster
from lepto.runtime.console import size_text
from lepto.runtime.errors import LeptoError
from lepto.runtime.measure import FORM as TIMING_FORM

Score = Callable[[npt.NDArray[np.float32], Samples], float]
"""From outputs and samples to the task's metric."""

_T = TypeVar("_T")


_LEAST = 0.05
"""The least part of the plan for a first round."""


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        ranked: Students, the one to take first; the others are what to fall back to.
        everyone: All that were taught, and those that no budget let in, by cost.
        reference: The score on the development samples that the budget is counted from.
        minimum: The lowest development score that was looked for.
        base: The source with its vocabulary trimmed.
        notes: What was decided, and why.
        seconds: What it took, or would have taken without the cache.
        teaching_s: The part of it in which the source answered and students were taught.
    """

    ranked: tuple[Student, ...]
    everyone: tuple[Student, ...]
    reference: float
    minimum: float
    base: Source
    notes: tuple[str, ...]
    seconds: float
    teaching_s: float


@dataclass(frozen=True)
class Search:
    """One search.

    Attributes:
        root: The source, which teaches.
        train: Training samples, without the development samples.
        dev: Development samples.
        clean: Whether the source has not seen the development samples in its own training.
        allowed: From the reference score to the largest drop.
        score: The task's metric.
        seconds: How long it may take.
        threads: Intra-op threads of the measurements.
        seed: Of everything random.
        cache: Where students are kept.
        versions: Part of every key.
        machine: What identifies this machine's speed.
        say: For people.
        tell: Progress.
        objective: What is to be made better.
        latency_ms: The most that the median of one sample may take; None without a limit.
        size: The most bytes; None without a limit.
        strict: Whether the winner must be as good as the reference, since a bound must keep the drop.
        reduce_range: Whether weights keep to seven bits on the target.
        workers: Where the students of a round are taught side by side; None teaches one after the other.
    """

    root: Source
    train: Samples
    dev: Samples
    clean: bool
    allowed: Callable[[float], float]
    score: Score
    seconds: float
    threads: int
    seed: int
    cache: Cache
    versions: Mapping[str, str]
    machine: str
    say: Say
    tell: Tell
    objective: Objective = "latency"
    latency_ms: float | None = None
    size: int | None = None
    strict: bool = False
    reduce_range: bool = False
    workers: Workers | None = None
    spent: Spent = field(init=False)
    _exporter: Exporter = field(init=False)
    _exports: dict[str, OnnxModel] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        """Open the account of the time."""
        key = {"seed": self.seed, "versions": dict(self.versions)}
        object.__setattr__(self, "_exporter", Exporter(self.threads))
        object.__setattr__(self, "spent", Spent(self.seconds, self.cache, key))

    def __call__(self) -> Found:
        """Run it.

        Raises:
            Left: The model cannot be cut, or there is too little data.
            LeptoError: No candidate keeps the latency or size budget (exit code 1).
        """
        torch.set_num_threads(self.threads)
        with contextlib.nullcontext() if self.workers is None else cluster(self.workers) as ray:
            return self._search(ray)

    def _search(self, ray: Any) -> Found:
        ground = Groundwork(
            self.root,
            self.train,
            self.threads,
            self.seed,
            self.cache,
            self.versions,
            self.machine,
            self.spent,
            self.tell,
            self._trimmed,
        )
        base, lesson, notes = ground.base()
        cutter = ground.cutter(base, lesson, strict=self.strict)
        shapes = cutter.shapes()
        key = key_of(self.objective)
        every = self._measured(base, [(shape, cutter.cut(shape)) for shape in shapes], notes)
        every.sort(key=lambda s: key(s.cost))
        students, kept = within(every, self.latency_ms, self.size)
        notes += [kept] if kept else []
        self.say(f"{len(students)} candidates, from {students[0].shape} to {students[-1].shape}")
        taught = tuple(students)
        unit = portion(len(lesson.original))
        teaching = Teaching(
            self.root, lesson, self.threads, self.seed, self.cache, self.versions, self.machine,
            self.workers, self.say, self.tell,
        )  # fmt: skip
        rate = teaching.rate(students[len(students) // 2])
        students = fitting(students, unit / rate, self.spent.left)
        if len(students) < len(taught):
            notes.append(f"only {len(students)} of {len(taught)} candidates are taught: the time is short")
            taught = tuple(students)
        for number, rung in enumerate(halving.RUNGS):
            if number:
                left_s = self.spent.left
                room = max(
                    (
                        n
                        for n in range(rung.most + 1)
                        if allowed_share(portions(n, number) * unit / rate, left_s) == 1.0
                    ),
                    default=0,
                )
                students = survivors(students, self.allowed, rung, key, room)
            needed = portions(len(students), number) * unit / rate
            most = LONGER if rung is halving.RUNGS[-1] and self._promising(students, rung) else 1.0
            share = allowed_share(needed, self.spent.left, most) or (0.0 if number else _LEAST)
            if share == 0.0:
                notes.append(f"round {number + 1} was left out: the time was up (--search-budget)")
                break
            if share > 1:
                notes.append(f"round {number + 1} was {share:g} times as long as planned: time was left")
            elif share < 1:
                notes.append(f"round {number + 1} was cut to {share:.0%}: the time is short (--search-budget)")
            epochs, took = round(share * rung.portions * unit / teaching.epoch, 2), 0.0
            if ray is not None:
                teaching.side_by_side(ray, students, epochs, number, rung.learning_rate)
            for student in students:
                took += self._teach(teaching, student, epochs, number, rung.learning_rate)
            rate = len(students) * epochs * teaching.epoch / max(took, 1e-3)
            self.say(f"round {number + 1}: {self._front_text(taught, key)}; {self._left()}")
        reference = self._reference(taught)
        minimum = reference - self.allowed(reference)
        margin = halving.margin(reference - minimum, len(self.dev), clean=self.clean, strict=self.strict)
        if self.clean and max(s.score for s in taught) < minimum + margin - 1e-12:
            more = self._larger(base, cutter, teaching, minimum + margin, unit / teaching.epoch, notes)
            taught, every = (*taught, *more), [*every, *more]
        less = self._smaller(base, cutter, teaching, taught, minimum, minimum + margin, unit / teaching.epoch, notes)
        taught, every = (*taught, *less), [*every, *less]
        ranked = halving.ranked(taught, minimum + margin, key)
        notes.append(f"looked for at least {minimum:.4f} (+{margin:.4f} to be safe) of {reference:.4f}")
        everyone = tuple(sorted(every, key=lambda s: key(s.cost)))
        return Found(ranked, everyone, reference, minimum, base, tuple(notes), self.spent.seconds, self.spent.teaching)

    def _promising(self, students: Sequence[Student], rung: Rung) -> bool:
        """Whether one of them is expected to become good enough: else the time is for larger ones."""
        if not self.clean:
            return True  # the best of them is what the others are measured by
        reference = self._on_dev(self.root)
        return max(1 - rung.promise * (1 - s.score) for s in students) >= reference - self.allowed(reference)

    def _larger(
        self, base: Source, cutter: Cutter, teaching: Teaching, enough: float, portion_epochs: float, notes: list[str]
    ) -> list[Student]:
        """Where no candidate has become good enough and time is left: larger ones, the cheapest first.

        They keep more of the source, so that they learn at a lower rate, and all they are given at once.
        """
        shapes = cutter.larger()
        if not shapes:
            return []
        found, taught = self._measured(base, [(shape, cutter.cut(shape)) for shape in shapes], notes), []
        try:
            found, _ = within(found, self.latency_ms, self.size)
        except LeptoError:
            return []
        found.sort(key=lambda s: s.shape.predicted_ms)
        for student in found:
            left_s = self.spent.left
            needed_s = LARGER.portions * portion_epochs * teaching.epoch / teaching.rate(student)
            share = allowed_share(needed_s, left_s)
            if share < ENOUGH:
                notes.append(f"no time is left to teach {student.shape}: {needed_s / 60:.0f} minutes (--search-budget)")
                break
            self.say(f"none is good enough yet (at least {enough:.4f} is looked for): a larger one is taught")
            epochs = round(share * LARGER.portions * portion_epochs, 2)
            self._teach(teaching, student, epochs, len(halving.RUNGS), LARGER.learning_rate)
            taught.append(student)
            if student.score >= enough - 1e-12:
                break
        return taught

    def _smaller(
        self,
        base: Source,
        cutter: Cutter,
        teaching: Teaching,
        taught: Sequence[Student],
        minimum: float,
        enough: float,
        portion_epochs: float,
        notes: list[str],
    ) -> list[Student]:
        """Where a candidate is good enough and time is left: it is cut further, as long as it stays good enough.

        It begins with what it has learned, so that little is lost at each step and soon learned again; one that comes
        near is taught a second time.
        """
        key, found = key_of(self.objective), list[Student]()
        good = [s for s in taught if s.score >= enough - 1e-12]
        while good and len(found) < MOST_CUTS:
            last = min(good, key=lambda s: key(s.cost))
            needed_s = SMALLER.portions * portion_epochs * teaching.epoch / teaching.rate(last)
            share = allowed_share(needed_s, self.spent.left)
            if share < ENOUGH:
                break
            cut = self.spent.on(
                {"smaller": last.source.digest},
                partial(cutter.smaller, last.source, last.shape, teaching.lesson.student[0]),
            )
            if cut is None:
                break
            timed = self._measured(base, [(last.shape, last.source), cut], notes)
            if len(timed) < 2:
                break
            before, now = timed
            now.cost = now.cost.beside(before.cost, last.cost)
            now.epochs, now.history = last.epochs, [*last.history]
            if key(now.cost) >= key(last.cost):
                notes.append(f"{now.shape} is not better than {last.shape}: it is left out")
                break
            notes.append(f"{last.shape} was good enough, and was cut to {now.shape}")
            self.say(f"{last.shape} is good enough (at least {enough:.4f} is looked for): it is cut to {now.shape}")
            number = len(halving.RUNGS) + 1 + len(found)
            found.append(now)
            for again in range(2):
                if again:
                    share = allowed_share(needed_s, self.spent.left)
                    if share < ENOUGH or not minimum <= now.score < enough - 1e-12:
                        break  # the time is up, or it is there, or too far from it
                epochs = round(share * SMALLER.portions * portion_epochs, 2)
                self._teach(teaching, now, epochs, number + again * MOST_CUTS, SMALLER.learning_rate)
            if now.score < enough - 1e-12:
                break
            good.append(now)
        return found

    def _measured(self, base: Source, candidates: Sequence[tuple[Shape, Source]], notes: list[str]) -> list[Student]:
        """Time all candidates side by side, before they are taught."""

        def make(stage: Path) -> None:
            models = {}
            for place, (shape, source) in enumerate(candidates):
                self.tell("candidates are timed", place, len(candidates) + 1)
                try:
                    # What it has learned since does not change what it costs.
                    kind = repr((shape.name, shape.what))
                    if kind not in self._exports:
                        self._exports[kind] = quick_int8(source, export=self._exporter, reduce_range=self.reduce_range)
                    models[str(place)] = self._exports[kind]
                except LeptoError as error:
                    notes.append(f"{shape} is left out: {error}")
            singles, batches = timing_feeds(encode(self.dev.inputs, base.text), base)
            costs = measure_costs(models, singles, batches, threads=self.threads, seed=self.seed) if models else {}
            (stage / "costs.json").write_text(json.dumps({name: cost.to_json() for name, cost in costs.items()}))

        key = {
            "candidates": [source.digest for _, source in candidates],
            "dev": self.dev.digest,
            "threads": self.threads,
            "seed": self.seed,
            "machine": self.machine,
            "reduce_range": self.reduce_range,
            "form": [COST_FORM, TIMING_FORM],
            "versions": dict(self.versions),
        }
        entry = self.spent.on({"costs": key}, lambda: self.cache.get("costs", key, make)[0])
        stored = json.loads((entry / "costs.json").read_text())
        if not stored:
            raise Left(f"no candidate could be exported: {notes[-1] if notes else ''}")
        return [Student(*candidates[int(place)], Cost(**cost)) for place, cost in stored.items()]

    def _reference(self, students: Sequence[Student]) -> float:
        """What the budget is counted from: the source where it has not seen the samples, else the best student."""
        best = max(s.score for s in students)
        if not self.clean:
            return best
        return self._on_dev(self.root)

    def _trimmed(self, root: Source, context: Context) -> Source:
        """With a vocabulary that costs half of the drop at most; four times that where the source has seen the samples.

        It is right on nearly all of these, and so has most to lose: of the answers that change on others, many were
        wrong before. On BANKING77 and HWU64 it lost 4 to 12 times as much on them as on test data.
        """

        def allowed(whole: float) -> float:
            # What the source has not seen it is asked about anyway.
            return 0.5 * self.allowed(self._on_dev(root)) if self.clean else 2.0 * self.allowed(whole)

        return with_enough_tokens(root, context, self.dev, self._score, allowed)

    def _on_dev(self, source: Source) -> float:
        return self._score(source, self.dev)

    def _score(self, source: Source, samples: Samples) -> float:
        def make(stage: Path) -> None:
            np.save(
                stage / "logits.npy",
                logits_in_batches(source.runner(self.threads), samples, source.text, lambda _: None),
            )

        key = {"dev": samples.digest, "model": source.digest, "root": self.root.digest}
        entry, _ = self.cache.get("dev-logits", {**key, "versions": dict(self.versions)}, make)
        logits = np.load(entry / "logits.npy")
        if not np.isfinite(logits).all():
            raise PassError("outputs on the development samples are not finite")
        return self.score(logits, samples)

    def _teach(self, teaching: Teaching, student: Student, epochs: float, number: int, learning_rate: float) -> float:
        """Teach one student on, and ask how good it is; returns the seconds that the teaching took."""
        learned, took, cached = teaching.teach(student, epochs, number, learning_rate)
        self.spent.add(took, teaching=True)
        score, before = self._on_dev(learned), student.score
        student.epochs = round(student.epochs + epochs, 2)
        student.history.append((student.epochs, score))
        if not number or score >= before:  # more teaching can do harm, too
            student.source, student.score = learned, score
        self.say(
            f"{student.shape}: {score:.4f} on the development samples after {student.epochs:g} epochs, "
            f"{student.cost.p50_ms:.3f} ms, {size_text(student.cost.bytes)} "
            f"({'cached' if cached else f'{took:.0f} s'})"
        )
        return took

    def _front_text(self, students: Sequence[Student], key: Callable[[Cost], float]) -> str:
        best = [f"{s.score:.4f} at {s.cost.p50_ms:.3f} ms" for s in front(students, key)]
        return f"the front is {', '.join(best)}"

    def _left(self) -> str:
        return f"{max(0.0, self.spent.left) / 60:.0f} min left"
