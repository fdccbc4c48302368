"""Rounds of teaching: one student after the other, or side by side; every round's result is kept in the cache."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lepto.compiler.derived import copy_module, derive, held, load, save
from lepto.compiler.encoder import Encoder, Sizes
from lepto.compiler.halving import Student
from lepto.compiler.setting import Say, Setting, Tell
from lepto.compiler.source import Source
from lepto.compiler.training.lesson import Lesson
from lepto.compiler.training.loop import Schedule, train
from lepto.compiler.training.team import current
from lepto.compiler.workers import Workers, run_all

_ANEW = 0.25
"""A student with no more of the source's weights than this learns nearly anew."""


def gentleness(student: Sizes, whole: Sizes) -> float:
    """By how much a student's learning rate is lower than that of a small and narrow one.

    What a student keeps of the source is worth keeping, and a high rate destroys it. Three of six whole layers, taught
    CLINC150 for three epochs, came to 94.78 % at 4e-4 and to 95.22 % at 2e-4; five, cut to 70 %, to 94.40 % at 1e-3 and
    to 95.33 % at 2e-4; two learned the same at 2e-4 and 7e-4, and smaller ones need 1e-3. The square of the share goes
    through these; beyond them nothing was measured.

    Args:
        student: What was kept.
        whole: Of what.

    Returns:
        At most 1, and at least a quarter.
    """
    return float(np.clip((_ANEW / student.share_of(whole)) ** 2, 0.25, 1.0))


@dataclass(frozen=True)
class Teaching:
    """What all rounds have in common.

    Attributes:
        setting: The search's.
        lesson: Samples with the source's answers.
        workers: Where the students of a round are taught side by side; None teaches one after the other.
    """

    setting: Setting
    lesson: Lesson
    workers: Workers | None

    @property
    def epoch(self) -> int:
        """Samples of one epoch: each once as it is, and once as an augmented copy."""
        return len(self.lesson.original) * (2 if self.lesson.augmented else 1)

    @property
    def train_tables(self) -> bool:
        """Whether embeddings learn too: not where some tokens are kept that the samples have not.

        These stay what they are in the source, and mean something to a student only for as long as the others do, too.
        """
        return not self.lesson.beyond

    def pace(self, student: Student) -> float:
        """Seconds that a training sample takes a candidate: what it took so far, or tried on a copy.

        The faster of two tries: what else ran for a moment would make the whole plan small.
        """
        if student.pace is not None:
            return student.pace

        def make(stage: Path) -> None:
            self.setting.tell("how fast this machine teaches", 0, 1)
            samples = min(512, len(self.lesson.original))
            module = copy_module(student.source)
            schedule = Schedule(epochs=samples / self.epoch, train_tables=self.train_tables, seed=self.setting.seed)

            def attempt() -> float:
                started = time.monotonic()
                train(
                    module,
                    self.lesson.path,
                    self.lesson.student[0],
                    self.lesson.student[1:],
                    schedule,
                    name=str(student.shape),
                )
                return samples / (time.monotonic() - started)

            (stage / "rate.json").write_text(json.dumps(max(attempt(), attempt())))

        key = {
            "student": student.source.digest,
            "train": self.lesson.digest,
            "machine": self.setting.machine,
            "processes": current().size,
            "tables": self.train_tables,
        }
        entry = self.setting.kept("teaching-rate", key, make)
        return 1 / float(json.loads((entry / "rate.json").read_text()))

    def teach(self, student: Student, epochs: float, number: int, learning_rate: float) -> tuple[Source, float, bool]:
        """One round of one student.

        Returns:
            What it has become, the seconds it took (or took when it was done), and whether it came from the cache.
        """
        key, work = self.round_of(student, epochs, number, learning_rate, self.setting.say, self.setting.tell)
        entry, cached = self.setting.cache.get("student", key, lambda stage: work(self.lesson, stage))
        return load(self.setting.root, entry), float(json.loads((entry / "seconds.json").read_text())), cached

    def round_of(
        self, student: Student, epochs: float, number: int, learning_rate: float, say: Say, tell: Tell
    ) -> tuple[dict[str, Any], Callable[[Lesson, Path], None]]:
        """The key of a student's next round, and the work."""
        source = held(student.source)
        encoder, whole = Encoder.of(source.module()), Encoder.of(self.setting.root.module())
        if encoder is not None:
            learning_rate *= (384 / max(encoder.sizes().width, 384)) ** 0.5
            if student.gently and whole is not None:
                learning_rate *= gentleness(encoder.sizes(), whole.sizes())
        schedule = Schedule(
            epochs=epochs,
            learning_rate=learning_rate,
            train_tables=self.train_tables,
            seed=self.setting.seed + number,
        )
        what, name = f"round {number + 1}: {student.shape}", str(student.shape)

        def work(lesson: Lesson, stage: Path) -> None:
            from accelerate.utils import memory  # type: ignore[import-untyped]  # it ships no types

            def attempt(batch_size: int) -> None:
                if batch_size < schedule.batch_size:
                    say(f"memory ran out: batches of {batch_size}")
                module = copy_module(source)
                train(
                    module,
                    lesson.path,
                    lesson.student[0],
                    lesson.student[1:],
                    dataclasses.replace(schedule, batch_size=batch_size),
                    name=name,
                    progress=lambda done, total: tell(what, done, total),
                )
                save(derive(source, module), stage)

            started = time.monotonic()
            try:
                attempt(schedule.batch_size)
            except Exception as error:  # whatever says that memory ran out
                if not memory.should_reduce_batch_size(error):
                    raise
                # Not at once: it walks all objects first, half a second.
                memory.find_executable_batch_size(attempt, starting_batch_size=max(1, schedule.batch_size * 9 // 10))()
            (stage / "seconds.json").write_text(json.dumps(time.monotonic() - started))

        key = {
            "student": student.source.digest,
            "teacher": self.setting.root.digest,
            "train": self.lesson.digest,
            "schedule": dataclasses.asdict(schedule),
            "versions": dict(self.setting.versions),
        }
        return key, work

    def side_by_side(
        self, ray: Any, students: Sequence[Student], epochs: float, number: int, learning_rate: float
    ) -> None:
        """Teach the students of one round as tasks, into the cache, where :meth:`teach` finds them.

        So many at once take an equal part of the time each: a search's time is what a clock on the wall shows.
        """
        assert self.workers is not None
        keys: dict[str, dict[str, Any]] = {}
        works: dict[str, Callable[[Lesson, Path], None]] = {}
        for student in students:
            key, work = self.round_of(student, epochs, number, learning_rate, lambda _: None, lambda *_: None)
            if not self.setting.cache.has("student", key):
                keys[str(student.shape)], works[str(student.shape)] = key, work
        if not works:
            return
        count = self.workers.count or len(works)
        at_once = max(1, min(len(works), self.workers.count or int(ray.cluster_resources().get("CPU", 1))))
        finished: list[str] = []

        def done(name: str, files: dict[str, bytes]) -> None:
            def write(stage: Path) -> None:
                for file, data in files.items():
                    (stage / file).write_bytes(data)
                took = json.loads((stage / "seconds.json").read_text())
                (stage / "seconds.json").write_text(json.dumps(took / at_once))

            self.setting.cache.get("student", keys[name], write)
            finished.append(name)
            self.setting.tell(f"round {number + 1}: {count} side by side", len(finished), len(works))

        self.setting.tell(f"round {number + 1}: {count} side by side", 0, len(works))
        run_all(ray, works, self.lesson, threads=max(1, self.setting.threads // count), done=done)
