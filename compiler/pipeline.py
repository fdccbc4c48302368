"""Run the passes: each result cached, checked, measured, and kept only if it earned its place."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from rich.markup import escape
from rich.progress import TaskID

from lepto.compiler.budget import Budget
from lepto.compiler.cache import Cache
from lepto.compiler.context import Context, Feed, Left, PassError, Table
from lepto.compiler.costs import BATCH
from lepto.compiler.evaluate import Evaluator, Logits, Timing
from lepto.compiler.export.again import Exporter
from lepto.compiler.halving import Objective
from lepto.compiler.model import OnnxModel
from lepto.compiler.passes.options import alternatives, make_pass
from lepto.compiler.source import Source
from lepto.compiler.verify import first_difference
from lepto.runtime.console import Output, size_text
from lepto.runtime.manifest import Metric, PassRecord


class Pass(Protocol):
    """A frozen dataclass that is also the function."""

    @property
    def name(self) -> str:
        """As in ``--passes``."""

    @property
    def preserves_function(self) -> bool:
        """Whether the outputs must stay the same; if not, the task metric decides."""

    @property
    def reads(self) -> tuple[str, ...]:
        """What decides the result besides the model: ``calibration``, ``labels``, ``machine`` (its speed)."""

    def __call__(self, model: OnnxModel, context: Context) -> OnnxModel:
        """Return a new model and leave the given one alone."""


@dataclass
class Candidate:
    """A model on its way, with what is known about it.

    Attributes:
        model: The model.
        metric: Its task metric.
        logits: Its outputs.
        record: Place of its record.
        prepares: Whether it is only worth something to a pass that comes after it.
    """

    model: OnnxModel
    metric: Metric | None = None
    logits: Logits | None = None
    record: int = -1
    prepares: bool = False


@dataclass
class Pipeline:
    """One compile's passes.

    Attributes:
        source: The original.
        context: For the passes.
        evaluator: Metric and speed.
        cache: Results of export and passes.
        output: For people.
        budget: None without evaluation data.
        versions: Versions of what makes models, part of every key.
        records: What was done, in order.
        rejected: The candidates over the budget: metric, pass, and why.
        faithful: The last graph that was proven to compute what the source computes.
        objective: What the passes are to make better.
        size: Bytes that the result may hold.
        exporter: May know the graph from other sources; else one of its own.
    """

    source: Source
    context: Context
    evaluator: Evaluator
    cache: Cache
    output: Output
    budget: Budget | None
    versions: dict[str, str]
    records: list[PassRecord] = field(default_factory=list)
    rejected: list[tuple[Metric, str, str]] = field(default_factory=list)
    faithful: OnnxModel | None = None
    objective: Objective = "latency"
    size: int | None = None
    exporter: Exporter | None = None

    def export(self) -> OnnxModel:
        """Export the source and prove it; records the step."""
        start = time.monotonic()

        def make(stage: Path) -> None:
            with self._status("export: torch.onnx.export, then the dynamic axes are run"):
                export = self.exporter or Exporter(self.evaluator.threads)
                exported = export(self.source)
            (stage / "model.onnx").write_bytes(exported.model.data)
            said = f"{exported.exporter}; shapes {', '.join(exported.shapes)}: {exported.proof}"
            if exported.fallback:
                said += f"; torch.onnx.export(dynamo=True) could not be used: {exported.fallback}"
            (stage / "notes.json").write_text(json.dumps([said]))

        key = {"source": self.source.digest, "task": self.source.task, "versions": self.versions}
        entry, cached = self.cache.get("export", key, make)
        model = OnnxModel((entry / "model.onnx").read_bytes())
        self.faithful = model
        self._record("export", {}, True, json.loads((entry / "notes.json").read_text())[0], model, start, cached)
        return model

    def run(
        self, step: Pass, parent: OnnxModel, baseline: OnnxModel | None = None, *, timed: bool = True
    ) -> Candidate | None:
        """Apply a pass and judge the result.

        Args:
            step: The pass.
            parent: What it is applied to.
            baseline: What it must be faster than; the parent, unless that was only prepared for this pass.
            timed: Whether this machine can tell that it is faster.

        Returns:
            The candidate, or None if the pass is left out; the reason is recorded.

        Raises:
            PassError: The pass broke its promise.
        """
        start = time.monotonic()
        options = dataclasses.asdict(step)  # type: ignore[call-overload]  # every pass is a dataclass
        made = self._apply(step, options, parent)
        if isinstance(made, tuple) and len(made) == 2:
            self._record(step.name, options, False, made[0], parent, start, made[1])
            return None
        model, notes, cached = made
        reasons = list(notes)
        metric: Metric | None = None
        logits: Logits | None = None
        if step.preserves_function:
            proof, parity_cached = self._prove(step, parent, model)
            reasons.append(proof)
            cached &= parity_cached
        else:
            logits, metric_cached = self.evaluator.logits(model, step.name)
            cached &= metric_cached
            metric = self.evaluator.metric(logits, step.name)
            assert self.budget is not None
            outcomes = self.evaluator.outcomes(logits)
            if not self.budget.keeps(metric, outcomes):
                why = self.budget.said(metric, outcomes)
                self.rejected.append((metric, step.name, why))
                reasons.append(f"over the budget: {why}")
                self._record(step.name, options, False, "; ".join(reasons), model, start, cached, metric)
                return None
        if not timed or getattr(step, "untimed", False):
            reasons.append("speed: not measured, only its target could tell")
            self._record(step.name, options, True, "; ".join(reasons), model, start, cached, metric)
            return Candidate(model, metric, logits, len(self.records) - 1)
        if getattr(step, "prepares", False):
            reasons.append("its time is judged with the pass that comes next")
            self._record(step.name, options, True, "; ".join(reasons), model, start, cached)
            return Candidate(model, record=len(self.records) - 1, prepares=True)
        baseline = baseline or parent
        timing, speed_cached = self.evaluator.compare(baseline, model, step.name)
        cached &= speed_cached
        judged = timing
        if self.objective == "throughput":
            judged, batches_cached = self._speed(baseline, model, step.name)
            cached &= batches_cached
        bytes_first = self.objective == "size" or (self.size is not None and baseline.bytes > self.size)
        keep, why = earned(judged, baseline.bytes, model.bytes, step.preserves_function, bytes_first=bytes_first)
        reasons.append(f"in batches of {BATCH} {why}" if self.objective == "throughput" else why)
        if keep and step.preserves_function:
            self.faithful = model
        self._record(step.name, options, keep, "; ".join(reasons), model, start, cached, metric, timing.candidate_ms)
        return Candidate(model, metric, logits, len(self.records) - 1) if keep else None

    def better(self, first: Candidate, second: Candidate) -> Candidate:
        """The faster of two candidates by a direct comparison, or where none is shown, the more accurate one.

        The other one's record says why it is left out.
        """
        names = [self.records[c.record].pass_ for c in (first, second)]
        timing, _ = self._speed(first.model, second.model, f"{names[0]} or {names[1]}")
        ratio = timing.ratio
        said = f"{names[1]} runs {ratio.value:.3f} x as fast as {names[0]} [{ratio.low:.3f}, {ratio.high:.3f}]"
        if ratio.low > 1 or ratio.high < 1:
            winner, loser, why = (second, first, "slower") if ratio.low > 1 else (first, second, "slower")
        else:
            values = [c.metric.value if c.metric else 0.0 for c in (first, second)]
            winner, loser = (second, first) if values[1] >= values[0] else (first, second)
            why = "not shown to be faster, and not more accurate"
        chosen, other = (self.records[c.record].pass_ for c in (winner, loser))
        self.drop(loser, f"{why}: {said}")
        self.output.print(f"[bold]{chosen}[/bold] is taken, {other} left out ({why}): {escape(said)}")
        return winner

    def _speed(self, baseline: OnnxModel, candidate: OnnxModel, label: str) -> tuple[Timing, bool]:
        """A comparison of what the objective asks for: batches, or one sample at a time; and whether it was cached."""
        return self.evaluator.compare(baseline, candidate, label, batches=self.objective == "throughput")

    def drop(self, candidate: Candidate, why: str) -> None:
        """Leave out a candidate that was kept at first; its record says why."""
        record = self.records[candidate.record]
        update = {"kept": False, "reason": f"{record.reason}; {why}"}
        self.records[candidate.record] = record.model_copy(update=update)

    def _apply(
        self, step: Pass, options: dict[str, Any], parent: OnnxModel
    ) -> tuple[OnnxModel, list[str], bool] | tuple[str, bool]:
        """The pass's model and its notes, or why it declines; and whether that was cached."""

        def make(stage: Path) -> None:
            before, shown = parent.digest, self.evaluator.progress
            model: OnnxModel | None
            with self._status(step.name) as line:

                def tell(done: int, total: int) -> None:
                    shown.update(line, completed=done, total=total)

                context = dataclasses.replace(self.context, notes=[], tables=[], progress=tell)
                try:
                    model = step(parent, context)
                except Left as left:
                    (stage / "left.json").write_text(json.dumps(str(left)))
                    model = None
            (stage / "tables.json").write_text(json.dumps([dataclasses.asdict(table) for table in context.tables]))
            if model is None:
                return
            context.expect(parent.digest == before, f"{step.name} changed its input")
            (stage / "model.onnx").write_bytes(model.data)
            (stage / "notes.json").write_text(json.dumps(context.notes))

        key = {
            "pass": step.name,
            "options": options,
            "input": parent.digest,
            "read": self._read_digest(step),
            "layers": self.context.layers,
            "seed": self.context.seed,
            "versions": self.versions,
        }
        entry, cached = self.cache.get("pass", key, make)
        if (entry / "tables.json").exists():
            for table in json.loads((entry / "tables.json").read_text()):
                self._show(Table(**table))
        if (entry / "left.json").exists():
            return str(json.loads((entry / "left.json").read_text())), cached
        return (
            OnnxModel((entry / "model.onnx").read_bytes()),
            list(json.loads((entry / "notes.json").read_text())),
            cached,
        )

    def _prove(self, step: Pass, parent: OnnxModel, model: OnnxModel) -> tuple[str, bool]:
        """Parity of a function-preserving pass with its input; and whether the cache had it."""
        proof, cached = self.evaluator.parity(parent, model, step.name)
        if not proof.ok or proof.agreement < 1 - 1e-9:
            difference = first_difference(parent, model, self.evaluator.proof_feeds(), self.evaluator.threads)
            where = f"the first that differs is {difference}" if difference else "no shared tensor differs"
            raise PassError(f"{step.name} must not change the function, but did: {proof}; {where}")
        return f"parity: {proof}", cached

    def _read_digest(self, step: Pass) -> list[str]:
        """Digests of what the pass reads besides the model."""
        parts: list[str] = []
        context = self.context
        if "calibration" in step.reads:
            parts.append(digest_of(context.calibration))
            parts.append(context.learned.digest if context.learned is not None else "")
        if "labels" in step.reads:
            parts.append(context.train.digest if context.train is not None else "")
            if context.judged is not None:
                parts += [digest_of(context.judged.feeds), context.judged.samples.digest]
        if "machine" in step.reads:
            parts += [self.evaluator.machine, str(context.threads)]
        return parts

    def _show(self, table: Table) -> None:
        from rich.table import Table as Shown

        shown = Shown(title=table.title, title_justify="left", box=None)
        for i, column in enumerate(table.columns):
            shown.add_column(column, justify="left" if i < table.names else "right")
        for row in table.rows:
            shown.add_row(*map(escape, row))
        self.output.print(shown)

    def _record(
        self,
        name: str,
        options: dict[str, Any],
        kept: bool,
        reason: str,
        model: OnnxModel,
        start: float,
        cached: bool,
        metric: Metric | None = None,
        p50_ms: float | None = None,
    ) -> None:
        seconds = time.monotonic() - start
        record = PassRecord(
            pass_=name,
            options=options,
            kept=kept,
            reason=reason,
            metric=metric,
            p50_ms=p50_ms,
            bytes=model.bytes,
            seconds=round(seconds, 3),
            cached=cached,
        )
        self.records.append(record)
        mark = "[green]kept[/green]" if kept else "[yellow]left out[/yellow]"
        said = escape(f", {metric.name} {metric.value:.4f} [{metric.low:.4f}, {metric.high:.4f}]") if metric else ""
        speed = f", p50 {p50_ms:.2f} ms" if p50_ms is not None else ""
        how = "[dim]cached[/dim]" if cached else f"{seconds:.1f} s"
        self.output.print(f"[bold]{name}[/bold] {mark}: {size_text(model.bytes)}{said}{speed} ({how})")
        self.output.print(f"  [dim]{escape(reason)}[/dim]")

    @contextlib.contextmanager
    def _status(self, label: str) -> Iterator[TaskID]:
        """A line of progress while the work runs."""
        line = self.evaluator.progress.add_task(label, total=None)
        try:
            yield line
        finally:
            self.evaluator.progress.remove_task(line)


def earned(
    timing: Timing, parent_bytes: int, bytes_: int, preserves_function: bool, *, bytes_first: bool = False
) -> tuple[bool, str]:
    """Whether a candidate earned its place.

    One that is shown to be slower than its parent does only where it is a tenth smaller and bytes come first. One that
    may change answers must be shown to be faster, or be a tenth smaller; one that keeps the function costs nothing and
    prepares the next pass.
    """
    ratio = timing.ratio
    said = (
        f"{ratio.value:.2f} x as fast as its input [{ratio.low:.2f}, {ratio.high:.2f}] "
        f"({timing.baseline_ms:.2f} → {timing.candidate_ms:.2f} ms)"
    )
    if ratio.low > 1:
        return True, said
    if ratio.high < 1 and bytes_first and bytes_ <= 0.9 * parent_bytes:
        return True, f"slower, but {1 - bytes_ / parent_bytes:.0%} smaller, and bytes come first: {said}"
    if ratio.high < 1:
        return False, f"slower than its input: {said}"
    if preserves_function:
        return True, f"the same function, not slower: {said}"
    if bytes_ <= 0.9 * parent_bytes:
        return True, f"not shown to be faster, but {1 - bytes_ / parent_bytes:.0%} smaller: {said}"
    return False, f"not shown to be faster than its input, nor a tenth smaller: {said}"


def digest_of(feeds: Sequence[Feed]) -> str:
    """Sha256 over inputs, in hex."""
    digest = hashlib.sha256()
    for feed in feeds:
        for name in sorted(feed):
            digest.update(f"{name}{feed[name].dtype}{feed[name].shape}".encode())
            digest.update(np.ascontiguousarray(feed[name]).tobytes())
    return digest.hexdigest()


def plan(entry: str, *, reduce_range: bool = False, max_drop: str = "1%") -> list[Pass]:
    """The alternatives of one step of a plan, with the options that fit the target where the text names none.

    Raises:
        ValueError: A pass or an option is unknown, or a value is wrong.
    """
    defaults = {"reduce_range": reduce_range, "max_drop": max_drop}
    return [make_pass(text, defaults) for text in alternatives(entry)]
