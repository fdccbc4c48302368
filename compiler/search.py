"""Find the fastest student that keeps the accuracy: candidates of many shapes, taught a little; the best, taught more.

Only training and development samples come in here. The evaluation samples are no argument of anything in this file, so
their labels cannot reach the search.

What is decided depends on scores, on measured costs and on how long each step took. All three are kept in the cache, so
that the same command on the same machine decides the same again, and a search that was broken off goes on where it was.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
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
from lepto.compiler.cut_channels import channel_cutter
from lepto.compiler.cut_encoder import encoder_cutter
from lepto.compiler.cutter import Cutter, Shape
from lepto.compiler.data import Samples
from lepto.compiler.encoder import Encoder
from lepto.compiler.halving import (
    ENOUGH,
    LARGER,
    LONGER,
    Objective,
    Rung,
    Student,
    allowed_share,
    answerable,
    fitting,
    front,
    key_of,
    portion,
    portions,
    survivors,
    within,
)
from lepto.compiler.latency import Curve, LatencyTable, measure_table
from lepto.compiler.passes.trim_vocabulary import TrimVocabulary
from lepto.compiler.source import Source
from lepto.compiler.split import split_development
from lepto.compiler.teaching import Say, Teaching, Tell
from lepto.compiler.training.lesson import Lesson, copies_for, own_answers, prepare_lesson
from lepto.compiler.verify import encode, logits_in_batches
from lepto.compiler.workers import Workers, cluster
from lepto.runtime.errors import LeptoError
from lepto.runtime.measure import FORM as TIMING_FORM

Score = Callable[[npt.NDArray[np.float32], Samples], float]
"""From outputs and samples to the task's metric."""

_T = TypeVar("_T")

MINIMUM = 50
"""Fewer training samples than this steer nothing."""


_LEAST = 0.05
"""The least part of the plan for a first round."""

_ANSWERS = 0.25
"""The part of the time that the source may take to answer samples."""

_QUICK_S = 2.0
"""If 64 answers take no longer, more are timed."""

_MOST_ANSWERS = 200_000
"""Answers are kept in memory: more are not asked for. No student sees more samples in its rounds."""


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
    _spent: list[float] = field(default_factory=list)
    _teaching: list[float] = field(default_factory=list)

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
        base, lesson, notes = self._base()
        cutter = self._cutter(base, lesson)
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
        students = fitting(students, unit / rate, self.seconds - sum(self._spent))
        if len(students) < len(taught):
            notes.append(f"only {len(students)} of {len(taught)} candidates are taught: the time is short")
            taught = tuple(students)
        for number, rung in enumerate(halving.RUNGS):
            if number:
                left_s = self.seconds - sum(self._spent)
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
            share = allowed_share(needed, self.seconds - sum(self._spent), most) or (0.0 if number else _LEAST)
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
        if self.clean and max(s.score for s in taught) < minimum:
            more = self._larger(base, cutter, teaching, minimum, unit / teaching.epoch, notes)
            taught, every = (*taught, *more), [*every, *more]
        # Samples that the source was trained on say less, and a bound asks for more than a point.
        margin = (reference - minimum) * (1.0 if self.strict else 0.25 if self.clean else 0.5)
        ranked = halving.ranked(taught, minimum + margin, key)
        notes.append(f"looked for at least {minimum:.4f} (+{margin:.4f} to be safe) of {reference:.4f}")
        everyone = tuple(sorted(every, key=lambda s: key(s.cost)))
        return Found(ranked, everyone, reference, minimum, base, tuple(notes), sum(self._spent), sum(self._teaching))

    def _promising(self, students: Sequence[Student], rung: Rung) -> bool:
        """Whether one of them is expected to become good enough: else the time is for larger ones."""
        if not self.clean:
            return True  # the best of them is what the others are measured by
        reference = self._on_dev(self.root)
        return max(1 - rung.promise * (1 - s.score) for s in students) >= reference - self.allowed(reference)

    def _larger(
        self, base: Source, cutter: Cutter, teaching: Teaching, minimum: float, portion_epochs: float, notes: list[str]
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
            left_s = self.seconds - sum(self._spent)
            needed_s = LARGER.portions * portion_epochs * teaching.epoch / teaching.rate(student)
            share = allowed_share(needed_s, left_s)
            if share < ENOUGH:
                notes.append(f"no time is left to teach {student.shape}: {needed_s / 60:.0f} minutes (--search-budget)")
                break
            self.say(f"none is good enough yet (at least {minimum:.4f} is looked for): a larger one is taught")
            epochs = round(share * LARGER.portions * portion_epochs, 2)
            self._teach(teaching, student, epochs, len(halving.RUNGS), LARGER.learning_rate)
            taught.append(student)
            if student.score >= minimum:
                break
        return taught

    def _base(self) -> tuple[Source, Lesson, list[str]]:
        if len(self.train) < MINIMUM:
            raise Left(f"{len(self.train)} training samples are too few to teach a student: at least {MINIMUM}")
        if self.root.load_module is None:
            raise Left("an ONNX file cannot be taught: give the PyTorch model that it was made from")
        context = Context(threads=self.threads, seed=self.seed, train=self.train)
        notes = []
        try:
            base = TrimVocabulary()(self.root, context)
            notes.append(f"trim-vocabulary: {'; '.join(context.notes)}")
        except Left as left:
            base = self.root
            notes.append(f"trim-vocabulary left out: {left}")
        # Before the answers, which take minutes: whether there is anything to cut.
        if Encoder.of(self.root.module()) is None and not any(
            isinstance(m, torch.nn.Linear | torch.nn.modules.conv._ConvNd) for m in self.root.module().modules()
        ):
            raise Left(f"{self.root.architecture} has no layer that is known to be cut")
        samples, copies = self._asked(notes)
        lesson = self._timed(
            {"lesson": copies, "teacher": self.root.digest, "train": samples.digest},
            lambda: prepare_lesson(
                self.root,
                base,
                samples,
                copies=copies,
                seed=self.seed,
                cache=self.cache,
                versions=self.versions,
                progress=lambda done, total: self.tell("the source answers", done, total),
            ),
        )
        self._teaching.append(self._spent[-1])
        return base, lesson, notes

    def _asked(self, notes: list[str]) -> tuple[Samples, int]:
        """The training samples that the source has time to answer, and how many augmented copies of each."""
        copies, count = copies_for(len(self.train)), len(self.train)
        few = min(count, 64)

        def make(stage: Path) -> None:
            self.tell("how fast the source answers", 0, 1)
            own_answers(self.root, self.train, 8)  # the first call is slower
            started = time.monotonic()
            own_answers(self.root, self.train, few)
            asked, took = few, time.monotonic() - started
            if took < _QUICK_S and few < count:
                # One batch is padded to its longest sample; of many, sorted by length, the source answers faster.
                asked, started = min(count, 8 * few), time.monotonic()
                own_answers(self.root, self.train, asked)
                took = time.monotonic() - started
            (stage / "rate.json").write_text(json.dumps(asked / took))

        key = {"teacher": self.root.digest, "train": self.train.digest, "machine": self.machine}
        entry, _ = self.cache.get("answering-rate", {**key, "versions": dict(self.versions)}, make)
        rate = float(json.loads((entry / "rate.json").read_text()))
        chosen, copies = answerable(count, copies, min(_MOST_ANSWERS, _ANSWERS * self.seconds * rate))
        if (chosen, copies) == (count, copies_for(count)):
            return self.train, copies
        notes.append(
            f"students learn from {chosen:,} of {count:,} training samples and {copies} augmented "
            f"{'copy' if copies == 1 else 'copies'} of each: the source answers {rate:.3g} a second (--search-budget)"
        )
        if chosen == count:
            return self.train, copies
        return split_development(self.train, chosen / count, self.seed)[1], copies

    def _cutter(self, base: Source, lesson: Lesson) -> Cutter:
        encoder = Encoder.of(self.root.module())
        self.tell("what matters, and what it costs", 0, 1)
        if encoder is None:
            if base.text is not None:
                raise Left(f"{self.root.architecture} is no encoder that can be cut")
            return channel_cutter(base, lesson.original, threads=self.threads, seed=self.seed)
        sizes, rows = encoder.sizes(), int(np.median(lesson.original.sizes))

        def make(stage: Path) -> None:
            table = measure_table(sizes, rows=rows, threads=self.threads, seed=self.seed)
            (stage / "table.json").write_text(json.dumps(dataclasses.asdict(table)))

        key = {"sizes": sizes.to_json(), "rows": rows, "threads": self.threads, "machine": self.machine}
        key["form"] = TIMING_FORM
        entry, _ = self.cache.get("latency-table", {**key, "versions": dict(self.versions)}, make)
        stored = json.loads((entry / "table.json").read_text())
        curves = {
            name: Curve(tuple(stored[name]["sizes"]), tuple(stored[name]["ms"]))
            for name in ("attention", "neurons", "one_row")
        }
        table = LatencyTable(**curves, rows=stored["rows"], detail=stored["detail"])
        return encoder_cutter(self.root, base, lesson.original, table, strict=self.strict)

    def _measured(self, base: Source, candidates: Sequence[tuple[Shape, Source]], notes: list[str]) -> list[Student]:
        """Time all candidates side by side, before they are taught."""

        def make(stage: Path) -> None:
            models = {}
            for place, (shape, source) in enumerate(candidates):
                self.tell("candidates are timed", place, len(candidates) + 1)
                try:
                    models[str(place)] = quick_int8(source, threads=self.threads, reduce_range=self.reduce_range)
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
        entry = self._timed({"costs": key}, lambda: self.cache.get("costs", key, make)[0])
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

    def _on_dev(self, source: Source) -> float:
        def make(stage: Path) -> None:
            np.save(
                stage / "logits.npy",
                logits_in_batches(source.runner(self.threads), self.dev, source.text, lambda _: None),
            )

        key = {"dev": self.dev.digest, "model": source.digest, "root": self.root.digest}
        entry, _ = self.cache.get("dev-logits", {**key, "versions": dict(self.versions)}, make)
        logits = np.load(entry / "logits.npy")
        if not np.isfinite(logits).all():
            raise PassError("outputs on the development samples are not finite")
        return self.score(logits, self.dev)

    def _teach(self, teaching: Teaching, student: Student, epochs: float, number: int, learning_rate: float) -> float:
        """Teach one student on, and ask how good it is; returns the seconds that the teaching took."""
        learned, took, cached = teaching.teach(student, epochs, number, learning_rate)
        self._spent.append(took)
        self._teaching.append(took)
        score, before = self._on_dev(learned), student.score
        student.epochs = round(student.epochs + epochs, 2)
        student.history.append((student.epochs, score))
        if not number or score >= before:  # more teaching can do harm, too
            student.source, student.score = learned, score
        self.say(
            f"{student.shape}: {score:.4f} on the development samples after {student.epochs:g} epochs, "
            f"{student.cost.p50_ms:.3f} ms, {student.cost.bytes / 1e6:.1f} MB "
            f"({'cached' if cached else f'{took:.0f} s'})"
        )
        return took

    def _timed(self, key: Mapping[str, Any], work: Callable[[], _T]) -> _T:
        """Run something and remember how long it took the first time."""
        started = time.monotonic()
        result = work()
        took = time.monotonic() - started

        def make(stage: Path) -> None:
            (stage / "seconds.json").write_text(json.dumps(took))

        entry, _ = self.cache.get("took", {**key, "seed": self.seed, "versions": dict(self.versions)}, make)
        self._spent.append(float(json.loads((entry / "seconds.json").read_text())))
        return result

    def _front_text(self, students: Sequence[Student], key: Callable[[Cost], float]) -> str:
        best = [f"{s.score:.4f} at {s.cost.p50_ms:.3f} ms" for s in front(students, key)]
        return f"the front is {', '.join(best)}"

    def _left(self) -> str:
        return f"{max(0.0, self.seconds - sum(self._spent)) / 60:.0f} min left"
