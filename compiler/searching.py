"""A search as one step of a compile: students are found on development data; the evaluation data judges at the end."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from rich.markup import escape

from lepto.compiler.cache import Cache
from lepto.compiler.context import Context, Left
from lepto.compiler.data import Samples, load_samples
from lepto.compiler.evaluate import Evaluator
from lepto.compiler.pipeline import Budget, Candidate, Pipeline
from lepto.compiler.recipe import seconds
from lepto.compiler.search import Found, Search, Student, split_development
from lepto.compiler.source import Source
from lepto.compiler.verify import encode
from lepto.runtime.console import Output
from lepto.runtime.manifest import PassRecord

if TYPE_CHECKING:
    from lepto.compiler.compile import Prepared

_DEVELOPMENT_SHARE = 0.1
_TRIES = 2
"""How many students may see the evaluation data, in the order that the search has given them."""


def search(
    prepared: Prepared,
    evaluator: Evaluator,
    budget: Budget,
    cache: Cache,
    console: Output,
    versions: dict[str, str],
) -> tuple[Source, Pipeline, Candidate] | None:
    """Search, compile the best student, and judge it on the evaluation data.

    Returns:
        The student, the pipeline that compiled it, and the result; None where no student keeps the budget, and the
        source itself is to be compiled.
    """
    from lepto.compiler.compile import _run_passes

    recipe, source = prepared.recipe, prepared.source
    assert prepared.train is not None
    assert recipe.search_budget is not None
    train, dev = _splits(prepared)
    tasks: dict[str, object] = {}
    progress = evaluator.progress

    def tell(what: str, done: int, total: int) -> None:
        if what not in tasks:
            for old in list(tasks.values()):
                progress.remove_task(old)  # type: ignore[arg-type]
            tasks.clear()
            tasks[what] = progress.add_task(what, total=total)
        progress.update(tasks[what], completed=done)  # type: ignore[arg-type]

    try:
        found = Search(
            source, train, dev, recipe.dev is not None, recipe.allowed_drop, seconds(recipe.search_budget),
            recipe.threads, recipe.seed, cache, versions, lambda text: console.print(escape(text)), tell,
        )()  # fmt: skip
    except Left as left:
        console.print(f"[yellow]no search[/yellow]: {escape(str(left))}")
        return None
    finally:
        for task in tasks.values():
            progress.remove_task(task)  # type: ignore[arg-type]
    for note in found.notes:
        console.print(f"note: {escape(note)}")
    for attempt, student in enumerate(found.ranked[:_TRIES], 1):
        judge = dataclasses.replace(evaluator, samples=dev, current=student.source)
        logits, _ = judge.source_logits()
        steered = Budget(judge.metric(logits, "source"), 1.0)  # the search has judged already; nothing is refused here
        context = Context(
            calibration=encode(train.inputs, student.source.text),
            threads=recipe.threads,
            seed=recipe.seed,
            layers=student.source.layers,
            # Single texts have one kind of token, and padding is masked.
            constant_inputs={"token_type_ids": 0},
        )
        pipeline = Pipeline(student.source, context, judge, cache, console, steered, versions)
        pipeline.records.extend(_records(found, student))
        candidate = _run_passes(pipeline, prepared)
        last = dataclasses.replace(evaluator, current=student.source)
        candidate.logits, _ = last.logits(candidate.model, "result")
        candidate.metric = last.metric(candidate.logits, "result")
        if budget.keeps(candidate.metric):
            console.print(f"evaluation data used {attempt} time{'s' if attempt > 1 else ''}")
            return student.source, pipeline, candidate
        console.print(
            f"[yellow]{escape(str(student.shape))}[/yellow] has {candidate.metric.value:.4f} on the evaluation data, "
            f"at least {budget.minimum:.4f} is asked for"
        )
    console.print("no student keeps the budget: the source itself is compiled")
    return None


def _splits(prepared: Prepared) -> tuple[Samples, Samples]:
    recipe, source, train = prepared.recipe, prepared.source, prepared.train
    assert train is not None
    if recipe.dev is None:
        return split_development(train, _DEVELOPMENT_SHARE, recipe.seed)
    dev = load_samples(
        recipe.dev,
        split="validation",
        text_column=recipe.text_column,
        label_column=recipe.label_column,
        labels=source.labels,
    )
    return train, dev


def _records(found: Found, student: Student) -> list[PassRecord]:
    """The student's own passes, for the manifest."""
    size = student.source.bytes
    history = ", ".join(f"{accuracy:.4f} after {epochs:g} epochs" for epochs, accuracy in student.history)
    trimmed = found.base.kept_tokens is not None
    return [
        PassRecord(pass_="trim-vocabulary", kept=trimmed, reason=found.notes[0], bytes=found.base.bytes, seconds=0.0),
        PassRecord(pass_="prune", kept=True, reason=f"kept {student.shape}", bytes=size, seconds=0.0),
        PassRecord(
            pass_="distill",
            options={"epochs": student.epochs},
            kept=True,
            reason=f"development samples: {history}; {found.notes[-1]}",
            bytes=size,
            seconds=0.0,
        ),
    ]
