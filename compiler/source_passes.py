"""Passes on PyTorch modules, before the export: each result cached as a source of its own, scored, and recorded.

What is pruned answers badly until it is taught, so that the budget is asked for after the last of these passes only.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from rich.markup import escape

from lepto.compiler.cache import Cache
from lepto.compiler.context import Context, Left
from lepto.compiler.derived import load, save
from lepto.compiler.evaluate import Evaluator
from lepto.compiler.source import Source
from lepto.runtime.console import Output, size_text
from lepto.runtime.manifest import PassRecord


class SourcePass(Protocol):
    """A frozen dataclass that is also the function, from a source to a source."""

    @property
    def name(self) -> str:
        """As in ``--passes``."""

    def __call__(self, source: Source, context: Context) -> Source:
        """Return a new source and leave the given one alone."""


def is_source_pass(step: Any) -> bool:
    """Whether a pass runs on the PyTorch module."""
    return bool(getattr(step, "on_source", False))


def apply_source_passes(
    steps: Sequence[SourcePass],
    root: Source,
    context: Context,
    evaluator: Evaluator,
    cache: Cache,
    console: Output,
    versions: dict[str, str],
) -> tuple[Source, list[PassRecord]]:
    """Apply passes one after the other.

    Args:
        steps: In order.
        root: The original; it teaches.
        context: With training samples.
        evaluator: Scores each result on the evaluation data.
        cache: Of the results.
        console: For people.
        versions: Part of every key.

    Returns:
        What came out, and what was done.
    """
    current, records = root, []
    for step in steps:
        start = time.monotonic()
        task = evaluator.progress.add_task(step.name, total=None)

        def tell(done: int, total: int, task: Any = task) -> None:
            evaluator.progress.update(task, completed=done, total=total)

        def make(stage: Path, step: SourcePass = step, current: Source = current, tell: Any = tell) -> None:
            own = dataclasses.replace(context, notes=[], teacher=root, progress=tell)
            try:
                save(step(current, own), stage)
            except Left as declined:
                (stage / "left.json").write_text(json.dumps(str(declined)))
            (stage / "notes.json").write_text(json.dumps(own.notes))

        key = {
            "pass": step.name,
            "options": dataclasses.asdict(step),  # type: ignore[call-overload]  # every pass is a dataclass
            "source": current.digest,
            "teacher": root.digest,
            "train": context.train.digest if context.train is not None else None,
            "seed": context.seed,
            "versions": versions,
        }
        try:
            entry, cached = cache.get("source-pass", key, make)
        finally:
            evaluator.progress.remove_task(task)
        notes = json.loads((entry / "notes.json").read_text())
        left = (entry / "left.json").exists()
        metric = None
        if left:
            notes = [json.loads((entry / "left.json").read_text())]
        else:
            current = load(root, entry)
            scorer = dataclasses.replace(evaluator, current=current)
            logits, known = scorer.module_logits(step.name)
            metric, cached = scorer.metric(logits, step.name), cached and known
        seconds = time.monotonic() - start
        record = PassRecord(
            pass_=step.name,
            options=key["options"],
            kept=not left,
            reason="; ".join(notes),
            metric=metric,
            bytes=current.bytes,
            seconds=round(seconds, 3),
            cached=cached,
        )
        records.append(record)
        mark = "[yellow]left out[/yellow]" if left else "[green]kept[/green]"
        said = f", {metric.name} {metric.value:.4f} [{metric.low:.4f}, {metric.high:.4f}]" if metric else ""
        how = "cached" if cached else f"{seconds:.1f} s"
        console.print(f"[bold]{step.name}[/bold] {mark}: {size_text(current.bytes)}{escape(said)} [dim]({how})[/dim]")
        console.print(f"  [dim]{escape(record.reason)}[/dim]")
    return current, records
