"""What a search stands on: the source with its vocabulary trimmed, its answers, and the cutter that knows the costs."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from lepto.compiler.context import Context, Left
from lepto.compiler.cut_channels import Widths, channel_cutter
from lepto.compiler.cut_encoder import encoder_cutter
from lepto.compiler.cutter import Cutter
from lepto.compiler.data import Samples
from lepto.compiler.encoder import Encoder
from lepto.compiler.halving import answerable
from lepto.compiler.latency import Curve, LatencyTable, measure_table
from lepto.compiler.passes.trim_vocabulary import TrimVocabulary
from lepto.compiler.setting import Setting
from lepto.compiler.source import Source
from lepto.compiler.split import split_development
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
        setting: The search's.
        train: Training samples, without the development samples.
        trim: Trims the vocabulary of a source to the training texts of a context, and to what else it needs.
    """

    setting: Setting
    train: Samples
    trim: Callable[[Source, Context], Source] = field(default_factory=TrimVocabulary)

    def base(self) -> tuple[Source, Lesson, list[str]]:
        """What is cut, what students learn from, and what was decided.

        Raises:
            Left: The source cannot be cut or taught, or there are too few samples.
        """
        setting = self.setting
        if len(self.train) < MINIMUM:
            raise Left(f"{len(self.train)} training samples are too few to teach a student: at least {MINIMUM}")
        if setting.root.load_module is None:
            raise Left("an ONNX file cannot be taught: give the PyTorch model that it was made from")
        context = Context(threads=setting.threads, seed=setting.seed, train=self.train)
        notes = []
        try:
            base = setting.spent.on(
                {"vocabulary": setting.root.digest, "train": self.train.digest},
                lambda: self.trim(setting.root, context),
            )
            notes.append(f"trim-vocabulary: {'; '.join(context.notes)}")
        except Left as left:
            base = setting.root
            notes.append(f"trim-vocabulary left out: {left}")
        # Before the answers, which take minutes: whether there is anything to cut.
        if Encoder.of(setting.root.module()) is None and not any(
            isinstance(m, torch.nn.Linear | torch.nn.modules.conv._ConvNd) for m in setting.root.module().modules()
        ):
            raise Left(f"{setting.root.architecture} has no layer that is known to be cut")
        samples, copies = self._asked(notes)
        lesson = setting.spent.on(
            {"lesson": copies, "teacher": setting.root.digest, "train": samples.digest},
            lambda: prepare_lesson(
                setting.root,
                base,
                samples,
                copies=copies,
                seed=setting.seed,
                cache=setting.cache,
                versions=setting.versions,
                progress=lambda done, total: setting.tell("the source answers", done, total),
            ),
            teaching=True,
        )
        return base, lesson, notes

    def _asked(self, notes: list[str]) -> tuple[Samples, int]:
        """The training samples that the source has time to answer, and how many augmented copies of each."""
        setting = self.setting
        copies, count = copies_for(len(self.train)), len(self.train)
        few = min(count, 64)

        def make(stage: Path) -> None:
            setting.tell("how fast the source answers", 0, 1)
            own_answers(setting.root, self.train, 8)  # the first call is slower
            started = time.monotonic()
            own_answers(setting.root, self.train, few)
            asked, took = few, time.monotonic() - started
            if took < _QUICK_S and few < count:
                # One batch is padded to its longest sample; of many, sorted by length, the source answers faster.
                asked, started = min(count, 8 * few), time.monotonic()
                own_answers(setting.root, self.train, asked)
                took = time.monotonic() - started
            (stage / "rate.json").write_text(json.dumps(asked / took))

        key = {
            "teacher": setting.root.digest,
            "train": self.train.digest,
            "machine": setting.machine,
            "processes": current().size,
        }
        entry = setting.kept("answering-rate", key, make)
        rate = float(json.loads((entry / "rate.json").read_text()))
        chosen, copies = answerable(count, copies, min(_MOST_ANSWERS, _ANSWERS * setting.spent.limit * rate))
        if (chosen, copies) == (count, copies_for(count)):
            return self.train, copies
        notes.append(
            f"students learn from {chosen:,} of {count:,} training samples and {copies} augmented "
            f"{'copy' if copies == 1 else 'copies'} of each: the source answers {rate:.3g} a second (--search-budget)"
        )
        if chosen == count:
            return self.train, copies
        return split_development(self.train, chosen / count, setting.seed)[1], copies

    def cutter(self, base: Source, lesson: Lesson, *, strict: bool = False) -> Cutter:
        """What proposes shapes, by what matters in the source and what it costs on this machine.

        Args:
            base: What is cut.
            lesson: What students learn from.
            strict: Whether shapes must be able to be as good as the source.

        Raises:
            Left: It is not known how to cut the source.
        """
        setting = self.setting
        encoder = Encoder.of(setting.root.module())
        setting.tell("what matters, and what it costs", 0, 1)
        if encoder is None:
            if base.text is not None:
                raise Left(f"{setting.root.architecture} is no encoder that can be cut")
            return channel_cutter(
                base, lesson.original, threads=setting.threads, seed=setting.seed, remember=self._remembered
            )
        sizes, rows = encoder.sizes(), int(np.median(lesson.original.sizes))

        def make(stage: Path) -> None:
            table = measure_table(sizes, rows=rows, threads=setting.threads, seed=setting.seed)
            (stage / "table.json").write_text(json.dumps(dataclasses.asdict(table)))

        key = {"sizes": sizes.to_json(), "rows": rows, "threads": setting.threads, "machine": setting.machine}
        key["form"] = TIMING_FORM
        entry = setting.kept("latency-table", key, make)
        stored = json.loads((entry / "table.json").read_text())
        curves = {
            name: Curve(tuple(stored[name]["sizes"]), tuple(stored[name]["ms"]))
            for name in ("attention", "neurons", "one_row")
        }
        table = LatencyTable(**curves, rows=stored["rows"], detail=stored["detail"])
        return encoder_cutter(setting.root, base, lesson.original, table, strict=strict)

    def _remembered(self, source: Source, make: Callable[[], Widths]) -> Widths:
        """What widths of a network cost, measured once on this machine."""
        setting = self.setting
        key = {"network": source.digest, "threads": setting.threads, "seed": setting.seed, "machine": setting.machine}
        key |= {"form": TIMING_FORM}

        def write(stage: Path) -> None:
            (stage / "widths.json").write_text(json.dumps({name: [*ms.items()] for name, ms in make().items()}))

        entry = setting.kept("widths", key, write)
        stored = json.loads((entry / "widths.json").read_text())
        return {name: {int(n): float(ms) for n, ms in pairs} for name, pairs in stored.items()}
