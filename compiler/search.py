"""Find the fastest student that keeps the accuracy: candidates of many sizes, taught a little; the best, taught more.

Only training and development samples come in here. The evaluation samples are no argument of anything in this file, so
their labels cannot reach the search.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from lepto.compiler.cache import Cache
from lepto.compiler.context import Context, Left, PassError
from lepto.compiler.data import Samples
from lepto.compiler.derived import copy_module, derive, load, save
from lepto.compiler.encoder import Encoder, Selection, Sizes
from lepto.compiler.importance import Importance, measure_importance, most_important
from lepto.compiler.latency import LatencyTable, fit_to_latency, measure_table
from lepto.compiler.passes.trim_vocabulary import TrimVocabulary
from lepto.compiler.source import Source
from lepto.compiler.training.lesson import Lesson, copies_for, prepare_lesson
from lepto.compiler.training.loop import Schedule, train
from lepto.compiler.verify import logits_in_batches
from lepto.runtime.errors import LeptoError

Say = Callable[[str], None]
Tell = Callable[[str, int, int], None]
"""Told what is being done, and how many of how many steps are done."""

MINIMUM = 50
"""Fewer training samples than this steer nothing."""


@dataclass(frozen=True)
class Shape:
    """A candidate before it is taught.

    Attributes:
        layers: The source's layers that are kept.
        heads: Kept in each.
        neurons: Kept in each.
        predicted_ms: Cost of the layers by the measured table.
    """

    layers: tuple[int, ...]
    heads: tuple[int, ...]
    neurons: tuple[int, ...]
    predicted_ms: float

    def __str__(self) -> str:
        """For people."""
        each = ", ".join(f"{h} heads + {n} neurons" for h, n in zip(self.heads, self.neurons, strict=True))
        return f"layers {'+'.join(map(str, self.layers))} ({each})"


@dataclass
class Student:
    """A candidate with what is known of it.

    Attributes:
        shape: What it is cut to.
        source: The module, cut and taught so far.
        accuracy: On the development samples.
        epochs: How long it was taught.
    """

    shape: Shape
    source: Source
    accuracy: float = 0.0
    epochs: float = 0.0
    history: list[tuple[float, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        ranked: Students, the one to take first; the others are what to fall back to.
        reference: The accuracy on the development samples that the budget is counted from.
        minimum: The lowest development accuracy that was looked for.
        base: The source with its vocabulary trimmed.
        notes: What was decided, and why.
    """

    ranked: tuple[Student, ...]
    reference: float
    minimum: float
    base: Source
    notes: tuple[str, ...]


def split_development(samples: Samples, share: float, seed: int) -> tuple[Samples, Samples]:
    """Carve a development split from training samples, the same share of every label.

    Args:
        samples: N training samples.
        share: In (0, 1).
        seed: Decides which.

    Returns:
        What is left to train on, and the development samples; no sample is in both.
    """
    rng = np.random.default_rng(seed)
    chosen: list[int] = []
    for label in np.unique(samples.labels):
        rows = np.flatnonzero(samples.labels == label)
        chosen += rng.permutation(rows)[: round(share * len(rows))].tolist()
    held = np.zeros(len(samples), dtype=bool)
    held[chosen] = True
    if not held.any() or held.all():
        raise LeptoError(f"{samples.origin}: {len(samples)} samples are too few to carve from: give --dev")
    return _take(samples, np.flatnonzero(~held), "training part"), _take(samples, np.flatnonzero(held), "carved")


def _take(samples: Samples, rows: npt.NDArray[np.int64], what: str) -> Samples:
    inputs = samples.inputs
    taken = (
        tuple(inputs[i] for i in rows)
        if isinstance(inputs, tuple)
        else {name: array[rows] for name, array in inputs.items()}
    )
    return Samples(taken, samples.labels[rows], f"{samples.origin} ({what})")


def kept_layers(count: int, keep: int) -> tuple[int, ...]:
    """Which of ``count`` layers are kept: the first and the last, and others evenly between; alone, the first."""
    if not 1 <= keep <= count:
        raise ValueError(f"keep must be in [1, {count}], got {keep}")
    if keep == 1:
        return (0,)
    return tuple(int(i) for i in np.round(np.linspace(0, count - 1, keep)))


def shapes(sizes: Sizes, importance: Importance, table: LatencyTable, *, last_row_only: bool) -> list[Shape]:
    """Candidates from one layer to half of them, whole and cut to shares of their cost; ascending by cost."""
    found: dict[tuple[object, ...], Shape] = {}
    half = max(1, (sizes.layers + 1) // 2)
    for keep in sorted({1, min(2, sizes.layers), min(3, sizes.layers), half}):
        layers = kept_layers(sizes.layers, keep)
        heads = [importance.heads[i].double().numpy() for i in layers]
        neurons = [importance.neurons[i].double().numpy() for i in layers]
        whole = sum(
            table.layer_ms(len(h), len(n), last_row_only=last_row_only and i == len(layers) - 1)
            for i, (h, n) in enumerate(zip(heads, neurons, strict=True))
        )
        for share in (1.0, 0.7, 0.45) if keep < half or half <= 2 else (1.0,):
            kept_heads, kept_neurons = fit_to_latency(
                table, heads, neurons, share * whole, last_row_only=last_row_only, least_heads=2
            )
            cost = sum(
                table.layer_ms(h, n, last_row_only=last_row_only and i == len(layers) - 1)
                for i, (h, n) in enumerate(zip(kept_heads, kept_neurons, strict=True))
            )
            found[(layers, kept_heads, kept_neurons)] = Shape(layers, kept_heads, kept_neurons, cost)
    return sorted(found.values(), key=lambda shape: shape.predicted_ms)


def survivors(students: Sequence[Student], minimum: float, slack: float, most: int) -> list[Student]:
    """Who is taught on: the fastest that may still reach the minimum, and the most accurate one.

    Args:
        students: Candidates after one rung.
        minimum: The accuracy that is looked for.
        slack: How far below it one may be and still be taught on.
        most: At most so many.
    """
    ordered = sorted(students, key=lambda s: s.shape.predicted_ms)
    best = max(ordered, key=lambda s: s.accuracy)
    hopeful = [s for s in ordered if s.accuracy >= minimum - slack]
    # One that is slower and no better than another has no use.
    front = [s for i, s in enumerate(hopeful) if all(s.accuracy > faster.accuracy for faster in hopeful[:i])]
    chosen = front[:most]
    if best not in chosen:
        chosen = [*chosen[: most - 1], best]
    return chosen


@dataclass(frozen=True)
class Search:
    """One search.

    Attributes:
        root: The source, which teaches.
        train: Training samples, without the development samples.
        dev: Development samples.
        clean: Whether the source has not seen the development samples in its own training.
        allowed: From the reference accuracy to the largest drop.
        seconds: How long it may take.
        threads: Intra-op threads of the measurements.
        seed: Of everything random.
        cache: Where students are kept.
        versions: Part of every key.
        say: For people.
        tell: Progress.
    """

    root: Source
    train: Samples
    dev: Samples
    clean: bool
    allowed: Callable[[float], float]
    seconds: float
    threads: int
    seed: int
    cache: Cache
    versions: Mapping[str, str]
    say: Say
    tell: Tell

    def __call__(self) -> Found:
        """Run it.

        Raises:
            Left: The model cannot be cut, or there is too little data.
        """
        start = time.monotonic()
        torch.set_num_threads(self.threads)
        base, lesson, notes = self._base()
        encoder = Encoder.of(self.root.module())
        assert encoder is not None
        rows = int(np.median(lesson.original.sizes))
        table = measure_table(encoder.sizes(), rows=rows, threads=self.threads, seed=self.seed)
        importance = measure_importance(encoder, lesson.original)
        students = [
            Student(shape, self._cut(base, shape, importance))
            for shape in shapes(encoder.sizes(), importance, table, last_row_only=encoder.reader() is not None)
        ]
        self.say(f"{len(students)} candidates, from {students[0].shape} to {students[-1].shape}")
        samples_a_second: list[float] = []
        epoch = len(lesson.original) * (2 if lesson.augmented else 1)
        every, reference, minimum = tuple(students), 0.0, 0.0
        for rung, (share, most, slack) in enumerate(((0.3, 3, 3.0), (0.45, 2, 1.0), (0.9, 1, 0.5))):
            left = share * self.seconds - (time.monotonic() - start)
            rate = float(np.mean(samples_a_second)) if samples_a_second else 400.0
            epochs = float(np.clip(left * rate / epoch / len(students), 1.0 if rung == 0 else 0.0, (3, 8, 40)[rung]))
            if epochs < 0.5:
                notes.append(f"rung {rung + 1} was left out: the time was up")
                break
            for student in list(students):
                began = time.monotonic()
                if rung and began - start > self.seconds:
                    break
                self._teach(student, lesson, round(epochs, 1), rung)
                samples_a_second.append(epoch * round(epochs, 1) / max(time.monotonic() - began, 1e-3))
            reference = self._reference(every)
            minimum = reference - self.allowed(reference)
            if rung < 2:
                students = survivors(students, minimum, slack * (reference - minimum), most)
        margin = 0.25 * (reference - minimum)
        enough = [s for s in every if s.accuracy >= minimum + margin]
        others = sorted((s for s in every if s not in enough), key=lambda s: -s.accuracy)
        ranked = (*sorted(enough, key=lambda s: s.shape.predicted_ms), *others)
        notes.append(f"looked for at least {minimum:.4f} (+{margin:.4f} to be safe) of {reference:.4f}")
        return Found(ranked, reference, minimum, base, tuple(notes))

    def _base(self) -> tuple[Source, Lesson, list[str]]:
        if len(self.train) < MINIMUM:
            raise Left(f"{len(self.train)} training samples are too few to teach a student: at least {MINIMUM}")
        if Encoder.of(self.root.module()) is None:
            raise Left(f"{self.root.architecture} is no encoder that can be cut")
        context = Context(threads=self.threads, seed=self.seed, train=self.train)
        notes = []
        try:
            base = TrimVocabulary()(self.root, context)
            notes.append(f"trim-vocabulary: {'; '.join(context.notes)}")
        except Left as left:
            base = self.root
            notes.append(f"trim-vocabulary left out: {left}")
        lesson = prepare_lesson(
            self.root,
            base,
            self.train,
            copies=copies_for(len(self.train)),
            seed=self.seed,
            cache=self.cache,
            versions=self.versions,
            progress=lambda done, total: self.tell("the source answers", done, total),
        )
        return base, lesson, notes

    def _reference(self, students: Sequence[Student]) -> float:
        """What the budget is counted from: the source where it has not seen the samples, else the best student."""
        best = max(s.accuracy for s in students)
        if not self.clean:
            return best
        logits = logits_in_batches(self.root.runner(self.threads), self.dev, self.root.text, lambda _: None)
        return float((logits.argmax(1) == self.dev.labels).mean())

    def _cut(self, base: Source, shape: Shape, importance: Importance) -> Source:
        module = copy_module(base)
        encoder = Encoder.of(module)
        assert encoder is not None
        encoder.cut(
            Selection(
                shape.layers,
                tuple(most_important(importance.heads[i], n) for i, n in zip(shape.layers, shape.heads, strict=True)),
                tuple(
                    most_important(importance.neurons[i], n) for i, n in zip(shape.layers, shape.neurons, strict=True)
                ),
            )
        )
        return derive(base, module)

    def _teach(self, student: Student, lesson: Lesson, epochs: float, rung: int) -> None:
        def make(stage: Path) -> None:
            module = copy_module(student.source)
            schedule = Schedule(epochs=epochs, learning_rate=1e-3 if rung == 0 else 7e-4, seed=self.seed + rung)
            train(
                module,
                lesson.path,
                lesson.student[0],
                lesson.student[1:],
                schedule,
                name=str(student.shape),
                progress=lambda done, total: self.tell(f"teaching {student.shape}", done, total),
            )
            save(derive(student.source, module), stage)

        key = {
            "student": student.source.digest,
            "teacher": self.root.digest,
            "train": self.train.digest,
            "epochs": epochs,
            "rung": rung,
            "seed": self.seed,
            "versions": dict(self.versions),
        }
        entry, cached = self.cache.get("student", key, make)
        student.source = load(self.root, entry)
        student.epochs += epochs
        run = student.source.runner(self.threads)
        logits = logits_in_batches(run, self.dev, student.source.text, lambda _: None)
        if not np.isfinite(logits).all():
            raise PassError(f"{student.shape}: its outputs are not finite")
        student.accuracy = float((logits.argmax(1) == self.dev.labels).mean())
        student.history.append((student.epochs, student.accuracy))
        self.say(
            f"{student.shape}: {student.accuracy:.4f} on the development samples after {student.epochs:g} epochs"
            f"{' (cached)' if cached else ''}"
        )
