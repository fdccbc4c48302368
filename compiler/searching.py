"""A search as one step of a compile: students are found on development data; the evaluation data judges at the end."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from lepto.compiler.budget import Budget
from lepto.compiler.cache import Cache
from lepto.compiler.context import Context, Left
from lepto.compiler.data import Samples, load_samples
from lepto.compiler.evaluate import Evaluator
from lepto.compiler.halving import Student, front, key_of
from lepto.compiler.memory import peak_memory
from lepto.compiler.metrics import score
from lepto.compiler.pipeline import Candidate, Pipeline
from lepto.compiler.recipe import milliseconds, seconds
from lepto.compiler.search import Found, Search
from lepto.compiler.setting import Setting
from lepto.compiler.source import Source
from lepto.compiler.split import split_development
from lepto.compiler.unlabelled import apart_from, joined
from lepto.compiler.verify import encode
from lepto.compiler.workers import Workers
from lepto.runtime.console import Output
from lepto.runtime.errors import LeptoError
from lepto.runtime.manifest import FEATURE_EXTRACTION, PassRecord

if TYPE_CHECKING:
    from lepto.compiler.prepare import Prepared

_DEVELOPMENT_SHARE, _DEVELOPMENT_MOST = 0.1, 5_000
_MOST_COMPILED = 3
"""How many students are compiled at most until one keeps the latency and size budgets. One student comes before the
evaluation data, once; nothing is taught or chosen after it."""


@dataclass(frozen=True)
class Searched:
    """What came of a search.

    Attributes:
        student: What was compiled.
        pipeline: What compiled it.
        candidate: The result, with its metric on the evaluation data.
        record: For the manifest.
    """

    student: Source
    pipeline: Pipeline
    candidate: Candidate
    record: dict[str, Any]


def search(
    prepared: Prepared,
    evaluator: Evaluator,
    budget: Budget,
    cache: Cache,
    console: Output,
    versions: dict[str, str],
) -> Searched | None:
    """Search, compile the best student, and judge it on the evaluation data.

    Returns:
        The student that keeps the budget; None where none does, and the source itself is to be compiled.
    """
    from lepto.compiler.compile import run_passes

    recipe = prepared.recipe
    try:
        train, dev = _splits(prepared)
        if prepared.source.task == FEATURE_EXTRACTION:
            dev = dataclasses.replace(dev, labels=dataclasses.replace(evaluator, samples=dev).source_logits()[0])
        more = None if prepared.unlabelled is None else apart_from(prepared.unlabelled, [dev])
        found = _find(prepared, evaluator, joined(train, more), dev, cache, console, versions)
    except Left as left:
        console.print(f"[yellow]no search[/yellow]: {escape(str(left))}; the source itself is compiled")
        return None
    key = key_of(recipe.objective)
    best = {id(s) for s in front([s for s in found.everyone if s.epochs], key)}
    _show(found, best, console)
    for note in found.notes:
        console.print(f"note: {escape(note)}")
    for student in found.ranked[:_MOST_COMPILED]:
        judge = dataclasses.replace(evaluator, samples=dev, current=student.source)
        logits, _ = judge.source_logits()
        reference = judge.metric(logits, "source")
        # The search has judged already, and nothing is refused here; but vectors move with each way of rounding.
        drop = recipe.allowed_drop(reference.value) if reference.name == "cosine" else 1.0
        steered = Budget(reference, drop)
        context = Context(
            calibration=encode(train.inputs, student.source.text),
            threads=recipe.threads,
            seed=recipe.seed,
            layers=student.source.layers,
            # Single texts have one kind of token, and padding is masked.
            constant_inputs={"token_type_ids": 0},
        )
        pipeline = Pipeline(
            student.source,
            context,
            judge,
            cache,
            console,
            steered,
            versions,
            objective=recipe.objective,
            size=recipe.size_limit,
            exporter=found.exporter,
        )
        pipeline.records.extend(_records(found, student))
        candidate = run_passes(pipeline, prepared)
        if over := over_limits(prepared, pipeline, candidate):
            console.print(f"[yellow]{escape(str(student.shape))}[/yellow] is left out: {over}")
            continue
        last = dataclasses.replace(evaluator, current=student.source)
        candidate.logits, _ = last.logits(candidate.model, "result")
        candidate.metric = last.metric(candidate.logits, "result")
        outcomes = last.outcomes(candidate.logits)
        if budget.keeps(candidate.metric, outcomes):
            record = {
                "seconds": round(found.seconds, 1),
                "teaching_seconds": round(found.teaching_s, 1),
                "peak_memory_bytes": peak_memory(),
                "objective": recipe.objective,
                "reference": found.reference,
                "minimum": found.minimum,
                "candidates": [{**s.to_json(), "front": id(s) in best} for s in found.everyone],
                "winner": student.shape.name,
                "development_samples": len(dev),
                "unlabelled_samples": 0 if more is None else len(more),
            }
            return Searched(student.source, pipeline, candidate, record)
        console.print(
            f"[yellow]{escape(str(student.shape))}[/yellow] is over the budget on the evaluation data: "
            f"{escape(budget.said(candidate.metric, outcomes))}"
        )
        if candidate.metric.value < budget.minimum and budget.confidence is None:
            # Another budget is another search: no promise, but how far it was off.
            console.print(
                f"it runs in {student.cost.p50_ms:.3f} ms; --max-drop {budget.would_take(candidate.metric)} would have "
                "let it pass"
            )
        if recipe.dev is None and prepared.source.task != FEATURE_EXTRACTION:
            console.print(
                "a tenth of the training data steered, which the source knows: give labelled data that is like the "
                "evaluation data and none of it (--dev), and the search sees how far students are behind"
            )
        break
    console.print("no student keeps the budget: the source itself is compiled")
    return None


def _find(
    prepared: Prepared,
    evaluator: Evaluator,
    train: Samples,
    dev: Samples,
    cache: Cache,
    console: Output,
    versions: dict[str, str],
) -> Found:
    recipe, progress = prepared.recipe, evaluator.progress
    tasks: dict[str, Any] = {}

    def tell(what: str, done: int, total: int) -> None:
        if what not in tasks:
            for old in tasks.values():
                progress.remove_task(old)
            tasks.clear()
            tasks[what] = progress.add_task(what, total=total)
        progress.update(tasks[what], completed=done)

    assert recipe.search_budget is not None
    try:
        setting = Setting(
            root=prepared.source,
            threads=recipe.threads,
            seed=recipe.seed,
            cache=cache,
            versions=versions,
            machine=evaluator.machine,
            seconds=seconds(recipe.search_budget),
            say=lambda text: console.print(escape(text)),
            tell=tell,
        )
        return Search(
            setting,
            train=train,
            dev=dev,
            clean=recipe.dev is not None or prepared.source.task == FEATURE_EXTRACTION,
            allowed=recipe.allowed_drop,
            score=score,
            objective=recipe.objective,
            latency_ms=None if recipe.latency_budget is None else milliseconds(recipe.latency_budget),
            size=recipe.size_limit,
            strict=recipe.confidence is not None,
            reduce_range=prepared.reduce_range,
            workers=None if recipe.workers is None else Workers.parse(recipe.workers),
        )()
    finally:
        for task in tasks.values():
            progress.remove_task(task)


def over_limits(prepared: Prepared, pipeline: Pipeline, candidate: Candidate) -> str:
    """Which of the latency and size budgets a finished model does not keep; empty if it keeps them."""
    recipe = prepared.recipe
    measured = [r.p50_ms for r in pipeline.records if r.kept and r.p50_ms is not None]
    if recipe.latency_budget is not None and measured and measured[-1] > milliseconds(recipe.latency_budget):
        return f"{measured[-1]:.3f} ms is over --latency-budget {recipe.latency_budget}"
    if recipe.size_limit is not None and candidate.model.bytes > recipe.size_limit:
        return f"{candidate.model.bytes / 1e6:.2f} MB is over --size-budget {recipe.size_budget}"
    return ""


def check_limits(prepared: Prepared, pipeline: Pipeline, candidate: Candidate) -> None:
    """Refuse what no student could replace.

    Raises:
        LeptoError: The source, compiled as it is, is over the latency or size budget (exit code 1).
    """
    if over := over_limits(prepared, pipeline, candidate):
        raise LeptoError(
            f"no candidate keeps both the accuracy and the budgets; the closest is the source itself, compiled: "
            f"{over}. No package was written: allow more, or a larger --max-drop",
            exit_code=1,
        )


def _show(found: Found, best: set[int], console: Output) -> None:
    table = Table(title="candidates, by cost (* on the front)", title_justify="left", box=None)
    table.add_column("")
    table.add_column("shape")
    for column in ("score", "epochs", "p50 ms", "p90 ms", "samples/s at 32", "MB"):
        table.add_column(column, justify="right")
    for student in found.everyone:
        cost = student.cost
        table.add_row(
            "*" if id(student) in best else "",
            escape(str(student.shape)),
            f"{student.score:.4f}" if student.epochs else "not taught",
            f"{student.epochs:g}",
            f"{cost.p50_ms:.3f}",
            f"{cost.p90_ms:.3f}",
            f"{cost.throughput:,.0f}",
            f"{cost.bytes / 1e6:.2f}",
        )
    console.print(table)


def _splits(prepared: Prepared) -> tuple[Samples, Samples]:
    recipe, source, train = prepared.recipe, prepared.source, prepared.train
    assert train is not None
    if train.one_label:
        raise Left(f"{train.origin}: all {len(train)} training samples have one label, which teaches nothing")
    if recipe.dev is None:
        return split_development(train, min(_DEVELOPMENT_SHARE, _DEVELOPMENT_MOST / len(train)), recipe.seed)
    dev = load_samples(
        recipe.dev,
        split="validation",
        text_column=recipe.text_column,
        label_column=recipe.label_column,
        labels=source.labels,
        task=source.task,
    )
    return train, dev


def _records(found: Found, student: Student) -> Sequence[PassRecord]:
    """The student's own passes, for the manifest."""
    size = student.source.bytes
    history = ", ".join(f"{score:.4f} after {epochs:g} epochs" for epochs, score in student.history)
    trimmed = found.base.kept_tokens is not None
    return (
        PassRecord(pass_="trim-vocabulary", kept=trimmed, reason=found.notes[0], bytes=found.base.bytes, seconds=0.0),
        PassRecord(
            pass_="prune",
            kept=True,
            reason=f"kept {student.shape}; timed as fused int8 before it was taught",
            p50_ms=student.cost.p50_ms,
            bytes=size,
            seconds=0.0,
        ),
        PassRecord(
            pass_="distill",
            options={"epochs": student.epochs},
            kept=True,
            reason=f"development samples: {history}; {found.notes[-1]}",
            bytes=size,
            seconds=round(found.seconds, 1),
        ),
    )
