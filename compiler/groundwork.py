"""What a search stands on: the source with its vocabulary trimmed, its answers, and the cutter that knows the costs."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from lepto.compiler.cache import Cache
from lepto.compiler.context import Context, Left
from lepto.compiler.cut_channels import Widths, channel_cutter
from lepto.compiler.cut_encoder import encoder_cutter
from lepto.compiler.cutter import Cutter
from lepto.compiler.data import Samples
from lepto.compiler.encoder import Encoder
from lepto.compiler.halving import answerable
from lepto.compiler.latency import Curve, LatencyTable, measure_table
from lepto.compiler.passes.trim_vocabulary import TrimVocabulary
from lepto.compiler.source import Source
from lepto.compiler.spent import Spent
from lepto.compiler.split import split_development
from lepto.compiler.teaching import Tell
from lepto.compiler.training.lesson import Lesson, copies_for, own_answers, prepare_lesson
from lepto.compiler.training.team import current
from lepto.runtime.measure import FORM as TIMING_FORM

MINIMUM = 50
"""Fewer training samples than this steer nothing."""

_ANSWERS = 0.25
"""The part of the time that the source may take to answer samples."""

_QUICK_S = 2.0
"""If 64 answers take no longer, more are timed."""

_MOST_ANSWERS = 200_000
"""Answers are kept in memory: more are not asked for. No student sees more samples in its rounds."""


@dataclass(frozen=True)
class Groundwork:
    """What comes before the first candidate.

    Attributes:
        root: The source, which teaches.
        train: Training samples, without the development samples.
        threads: Intra-op threads of the measurements.
        seed: Of everything random.
        cache: Where everything is kept.
        versions: Part of every key.
        machine: What identifies this machine's speed.
        spent: The search's time.
        tell: Progress.
        trim: Trims the vocabulary of a source to the training texts of a context, and to what else it needs.
    """

    root: Source
    train: Samples
    threads: int
    seed: int
    cache: Cache
    versions: Mapping[str, str]
    machine: str
    spent: Spent
    tell: Tell
    trim: Callable[[Source, Context], Source] = field(default_factory=TrimVocabulary)

    def base(self) -> tuple[Source, Lesson, list[str]]:
        """What is cut, what students learn from, and what was decided.

        Raises:
            Left: The source cannot be cut or taught, or there are too few samples.
        """
        if len(self.train) < MINIMUM:
            raise Left(f"{len(self.train)} training samples are too few to teach a student: at least {MINIMUM}")
        if self.root.load_module is None:
            raise Left("an ONNX file cannot be taught: give the PyTorch model that it was made from")
        context = Context(threads=self.threads, seed=self.seed, train=self.train)
        notes = []
        try:
            base = self.spent.on(
                {"vocabulary": self.root.digest, "train": self.train.digest}, lambda: self.trim(self.root, context)
            )
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
        lesson = self.spent.on(
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
            teaching=True,
        )
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

        key = {
            "teacher": self.root.digest,
            "train": self.train.digest,
            "machine": self.machine,
            "processes": current().size,
        }
        entry, _ = self.cache.get("answering-rate", {**key, "versions": dict(self.versions)}, make)
        rate = float(json.loads((entry / "rate.json").read_text()))
        chosen, copies = answerable(count, copies, min(_MOST_ANSWERS, _ANSWERS * self.spent.limit * rate))
        if (chosen, copies) == (count, copies_for(count)):
            return self.train, copies
        notes.append(
            f"students learn from {chosen:,} of {count:,} training samples and {copies} augmented "
            f"{'copy' if copies == 1 else 'copies'} of each: the source answers {rate:.3g} a second (--search-budget)"
        )
        if chosen == count:
            return self.train, copies
        return split_development(self.train, chosen / count, self.seed)[1], copies

    def cutter(self, base: Source, lesson: Lesson, *, strict: bool = False) -> Cutter:
        """What proposes shapes, by what matters in the source and what it costs on this machine.

        Args:
            base: What is cut.
            lesson: What students learn from.
            strict: Whether shapes must be able to be as good as the source.

        Raises:
            Left: It is not known how to cut the source.
        """
        encoder = Encoder.of(self.root.module())
        self.tell("what matters, and what it costs", 0, 1)
        if encoder is None:
            if base.text is not None:
                raise Left(f"{self.root.architecture} is no encoder that can be cut")
            return channel_cutter(
                base, lesson.original, threads=self.threads, seed=self.seed, remember=self._remembered
            )
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
        return encoder_cutter(self.root, base, lesson.original, table, strict=strict)

    def _remembered(self, source: Source, make: Callable[[], Widths]) -> Widths:
        """What widths of a network cost, measured once on this machine."""
        key = {"network": source.digest, "threads": self.threads, "seed": self.seed, "machine": self.machine}
        key |= {"form": TIMING_FORM, "versions": dict(self.versions)}

        def write(stage: Path) -> None:
            (stage / "widths.json").write_text(json.dumps({name: [*ms.items()] for name, ms in make().items()}))

        entry, _ = self.cache.get("widths", key, write)
        stored = json.loads((entry / "widths.json").read_text())
        return {name: {int(n): float(ms) for n, ms in pairs} for name, pairs in stored.items()}
