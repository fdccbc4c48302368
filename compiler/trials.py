"""Candidates on trial: timed side by side, taught, and asked about the development samples; all of it is kept."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lepto.compiler.by_heart import nearness
from lepto.compiler.context import Left, PassError
from lepto.compiler.costs import FORM as COST_FORM
from lepto.compiler.costs import Cost, measure_costs, quick_int8, timing_feeds
from lepto.compiler.cutter import Shape
from lepto.compiler.data import Samples
from lepto.compiler.derived import held
from lepto.compiler.export.again import Exporter
from lepto.compiler.halving import Student
from lepto.compiler.memory import give_back
from lepto.compiler.model import OnnxModel
from lepto.compiler.module_outputs import module_outputs
from lepto.compiler.setting import Setting
from lepto.compiler.source import Source
from lepto.compiler.teaching import Teaching
from lepto.compiler.unlabelled import joined
from lepto.compiler.verify import encode, logits_one_by_one, runner
from lepto.runtime.console import size_text
from lepto.runtime.errors import LeptoError
from lepto.runtime.measure import FORM as TIMING_FORM

Score = Callable[[npt.NDArray[np.float32], Samples], float]
"""From outputs and samples to the task's metric."""


@dataclass(frozen=True)
class Trials:
    """What all trials of one search have in common.

    Attributes:
        setting: The search's.
        dev: Development samples.
        metric: The task's.
        reduce_range: Whether weights keep to seven bits on the target.
        copies: On which students are measured by how near they come to the source, in place of the metric on the
            development samples; None where that says enough.
        exporter: Traces candidates of one graph once.
    """

    setting: Setting
    dev: Samples
    metric: Score
    reduce_range: bool
    copies: Samples | None = None
    exporter: Exporter = field(init=False)
    _exports: dict[str, OnnxModel] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        """Open an exporter for all of them."""
        object.__setattr__(self, "exporter", Exporter(self.setting.threads))

    def measured(self, base: Source, candidates: Sequence[tuple[Shape, Source]], notes: list[str]) -> list[Student]:
        """Time all candidates side by side, before they are taught."""
        setting = self.setting

        def make(stage: Path) -> None:
            models = {}
            for place, (shape, source) in enumerate(candidates):
                setting.tell("candidates are timed", place, len(candidates) + 1)
                try:
                    # What it has learned since does not change what it costs.
                    kind = repr((shape.name, shape.what))
                    if kind not in self._exports:
                        self._exports[kind] = self._quick_int8(source)
                    models[str(place)] = self._exports[kind]
                except LeptoError as error:
                    notes.append(f"{shape} is left out: {error}")
            singles, batches = timing_feeds(encode(self.dev.inputs, base.text), base)
            timing = {"threads": setting.threads, "seed": setting.seed}
            costs = measure_costs(models, singles, batches, **timing) if models else {}
            (stage / "costs.json").write_text(json.dumps({name: cost.to_json() for name, cost in costs.items()}))

        key = {
            "candidates": [source.digest for _, source in candidates],
            "dev": self.dev.digest,
            "threads": setting.threads,
            "seed": setting.seed,
            "machine": setting.machine,
            "reduce_range": self.reduce_range,
            "form": [COST_FORM, TIMING_FORM],
        }
        entry = setting.kept("costs", key, make)
        stored = json.loads((entry / "costs.json").read_text())
        if not stored:
            raise Left(f"no candidate could be exported: {notes[-1] if notes else ''}")
        return [Student(*candidates[int(place)], Cost(**cost)) for place, cost in stored.items()]

    def _quick_int8(self, source: Source) -> OnnxModel:
        # Its module is asked for several times.
        return quick_int8(held(source), export=self.exporter, reduce_range=self.reduce_range)

    def on_dev(self, source: Source) -> float:
        """The metric of a source on the development samples."""
        return self.score(source, self.dev)

    def judged(self, student: Source) -> tuple[float, float]:
        """What students are compared by, and the metric on the development samples."""
        if self.copies is None:
            right = self.on_dev(student)
            return right, right
        own = self._outputs(self.setting.root, self.copies)
        outputs = self._outputs(student, joined(self.dev, self.copies))
        return nearness(own, outputs[len(self.dev) :]), self.metric(outputs[: len(self.dev)], self.dev)

    def near(self, source: Source, samples: Samples) -> float:
        """How near a source comes to the root on samples: see :func:`.by_heart.nearness`."""
        return nearness(self._outputs(self.setting.root, samples), self._outputs(source, samples))

    def score(self, source: Source, samples: Samples) -> float:
        """The metric of a source on samples.

        Raises:
            PassError: Its outputs are not finite.
        """
        return self.metric(self._outputs(source, samples), samples)

    def _outputs(self, source: Source, samples: Samples) -> npt.NDArray[np.float32]:
        """What a source answers, as it is, in float32; vectors as it will be, in int8.

        What rounding costs hardly ever changes a decision, but every vector, by as much as may be lost in all.
        """
        threads = self.setting.threads
        rounded = self.setting.vectors and source.digest != self.setting.root.digest

        done = 0

        def answered(count: int) -> None:
            nonlocal done
            done += count
            self.setting.tell("held-out samples are answered", done, len(samples))

        def make(stage: Path) -> None:
            if rounded:
                run = runner(self._quick_int8(source), threads)
                # One by one: in a batch the largest value of all decides how each is rounded.
                outputs = logits_one_by_one(run, encode(samples.inputs, source.text), answered)
            else:
                outputs = module_outputs(source, samples, threads, answered)
            np.save(stage / "logits.npy", outputs)

        key = {"dev": samples.digest, "model": source.digest, "root": self.setting.root.digest}
        if rounded:
            key["rounded"] = f"int8, seven bits: {self.reduce_range}"
        entry = self.setting.kept("dev-logits", key, make)
        logits: npt.NDArray[np.float32] = np.load(entry / "logits.npy")
        if not np.isfinite(logits).all():
            raise PassError("outputs on the development samples are not finite")
        return logits

    def teach(self, teaching: Teaching, student: Student, epochs: float, number: int, learning_rate: float) -> None:
        """Teach one student on, and ask how good it is."""
        learned, took, cached = teaching.teach(student, epochs, number, learning_rate)
        give_back()
        self.setting.spent.add(took, teaching=True)
        student.pace = took / (epochs * teaching.epoch)
        (score, right), before = self.judged(learned), student.score
        student.epochs = round(student.epochs + epochs, 2)
        student.history.append((student.epochs, score))
        if not number or score >= before:  # more teaching can do harm, too
            student.source, student.score, student.right = learned, score, right
        near = "" if self.copies is None else f", {score:.4f} of the source"
        self.setting.say(
            f"{student.shape}: {right:.4f} on the development samples{near} after {student.epochs:g} epochs, "
            f"{student.cost.p50_ms:.3f} ms, {size_text(student.cost.bytes)} "
            f"({'cached' if cached else f'{took:.0f} s'})"
        )
