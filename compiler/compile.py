"""One compile: from a recipe to a verified package."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import io
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape

from lepto.compiler.budget import Budget
from lepto.compiler.cache import Cache
from lepto.compiler.context import Context, PassError
from lepto.compiler.data import load_samples
from lepto.compiler.evaluate import Evaluator, Timing, agreement, real_feeds
from lepto.compiler.evidence import gather
from lepto.compiler.judged import Judged
from lepto.compiler.packaging import assemble
from lepto.compiler.pipeline import Candidate, Pipeline, plan
from lepto.compiler.prepare import Prepared, check_inputs, check_output, prepare, resolve_target
from lepto.compiler.recipe import Recipe
from lepto.compiler.searching import check_limits, search
from lepto.compiler.source import Source, Text
from lepto.compiler.source_passes import apply_source_passes, is_source_pass
from lepto.compiler.unlabelled import joined
from lepto.compiler.verify import encode
from lepto.runtime.console import Output
from lepto.runtime.errors import LeptoError
from lepto.runtime.machine import this_machine
from lepto.runtime.manifest import FEATURE_EXTRACTION, Metric, PassRecord, Speedup
from lepto.runtime.package import Package

_VERSIONS = ("lepto", "torch", "transformers", "onnx", "onnxscript", "onnx-ir", "onnxruntime", "numpy")
_FALLBACK = "mixed-precision"
_TABLES = "quantize-embeddings(per_row=false,smallest_bytes=1000000)"


def compile_model(
    recipe: Recipe,
    output: str | Path,
    *,
    force: bool = False,
    console: Output | None = None,
    cache: Cache | None = None,
) -> Package:
    """Compile a model into a verified package.

    Args:
        recipe: What is asked for.
        output: The package's folder; must not exist unless ``force``.
        force: Replace a package that is there.
        console: Where people's output goes; by default nowhere.
        cache: Where results are kept; by default the user's cache folder.

    Raises:
        LeptoError: The request cannot be met; exit code 1 if no candidate keeps the budget, 2 for bad input.
    """
    console = console or _silent()
    check_output(Path(output), force=force)
    return run_prepared(prepare(recipe), output, force=force, console=console, cache=cache)


def run_prepared(
    prepared: Prepared, output: str | Path, *, force: bool, console: Output, cache: Cache | None = None
) -> Package:
    """Run a compile that was prepared; see :func:`compile_model`."""
    recipe, source, samples = prepared.recipe, prepared.source, prepared.evaluation
    cache = cache or Cache()
    versions = {name: importlib.metadata.version(name) for name in _VERSIONS}
    machine = this_machine()
    with console.progress() as progress:
        evaluator = Evaluator(
            source=source,
            samples=samples,
            threads=recipe.threads,
            seed=recipe.seed,
            cache=cache,
            machine=f"{machine.cpu}, {machine.cpus} CPUs",
            versions=versions,
            progress=progress,
        )
        source_metric, source_logits, budget = None, None, None
        if samples is not None:
            source_logits, cached = evaluator.source_logits()
            source_metric = evaluator.metric(source_logits, "source")
            _check_source(source_metric, source_logits.shape[-1])
            budget = Budget(
                source_metric,
                recipe.allowed_drop(source_metric.value),
                recipe.confidence,
                evaluator.outcomes(source_logits),
            )
            console.print(
                f"[bold]source[/bold] {escape(_metric_text(source_metric))}, budget: at least {budget.minimum:.4f}"
                f"{' [dim](cached)[/dim]' if cached else ''}"
            )
        if prepared.target.kind == "gpu":
            from lepto.compiler.tensorrt.compile import compile_for_gpu

            before = [step for entry in prepared.plan for step in plan(entry) if is_source_pass(step)]
            first_records: list[PassRecord] = []
            subject = source
            if before:
                subject, first_records = _cut_and_taught(before, prepared, evaluator, budget, cache, console, versions)
                evaluator = dataclasses.replace(evaluator, current=subject)
            return compile_for_gpu(
                prepared,
                output,
                subject=subject,
                records=first_records,
                force=force,
                console=console,
                cache=cache,
                evaluator=evaluator,
                budget=budget,
                versions=versions,
                environment=environment(versions),
            )
        subject, searched = source, None
        if prepared.searches:
            assert budget is not None
            searched = search(prepared, evaluator, budget, cache, console, versions)
        if searched is not None:
            subject, pipeline, candidate = searched.student, searched.pipeline, searched.candidate
            evaluator = dataclasses.replace(evaluator, current=subject)
        else:
            steps = [step for entry in prepared.plan for step in plan(entry, reduce_range=prepared.reduce_range)]
            records: list[PassRecord] = []
            if first := [step for step in steps if is_source_pass(step)]:
                subject, records = _cut_and_taught(first, prepared, evaluator, budget, cache, console, versions)
                evaluator = dataclasses.replace(evaluator, current=subject)
            steps += plan(_FALLBACK) if _falls_back(prepared) else []
            read = {what for step in steps for what in step.reads}
            context = Context(
                calibration=encode(prepared.train.inputs, subject.text)
                if prepared.train and "calibration" in read
                else (),
                train=prepared.train if "labels" in read else None,
                judged=_judged(prepared, subject.text) if "labels" in read else None,
                threads=recipe.threads,
                seed=recipe.seed,
                layers=subject.layers,
                # Single texts have one kind of token; a cut model has no other user who could know better.
                constant_inputs={"token_type_ids": 0} if first else {},
                learned=subject.learned,
            )
            pipeline = Pipeline(
                subject,
                context,
                evaluator,
                cache,
                console,
                budget,
                versions,
                objective=recipe.objective,
                size=recipe.size_limit,
            )
            pipeline.records.extend(records)
            candidate = run_passes(pipeline, prepared)
            check_limits(prepared, pipeline, candidate)
        if samples is not None and candidate.logits is None:
            candidate.logits, _ = evaluator.logits(candidate.model, "result")
            candidate.metric = evaluator.metric(candidate.logits, "result")
            assert budget is not None
            outcomes = evaluator.outcomes(candidate.logits)
            if not budget.keeps(candidate.metric, outcomes):
                said = budget.said(candidate.metric, outcomes)
                pipeline.rejected.append((candidate.metric, "the float export", said))
                _refuse(pipeline.budget, pipeline.rejected)
        difference, verdict = None, ""
        if budget is not None and candidate.logits is not None:
            difference, verdict = budget.claim(evaluator.outcomes(candidate.logits))
            console.print(verdict)
        timing, speed_cached = evaluator.compare(None, candidate.model, "result")
        invariant = evaluator.batch_invariant(candidate.model)
        if speed_cached and all(record.cached for record in pipeline.records):
            console.print("[dim]every step was in the cache: nothing was computed again[/dim]")
        package = assemble(
            prepared,
            output,
            subject=subject,
            force=force,
            model=candidate.model,
            records=pipeline.records,
            source_metric=source_metric,
            metric=candidate.metric,
            agreement=None
            if source_logits is None or candidate.logits is None or source.task == FEATURE_EXTRACTION
            else agreement(source_logits, candidate.logits),
            bound=difference,
            verdict=verdict,
            speedup=_speedup(timing, prepared),
            p50_ms=(timing.baseline_ms, timing.candidate_ms),
            batch_invariant=invariant,
            environment={
                **environment(versions),
                **({"stand_in": prepared.stand_in} if prepared.stand_in is not None else {}),
                **({"search": searched.record} if searched is not None else {}),
            },
            probe=real_feeds(evaluator.feeds(), 16),
            evidence=gather(evaluator, source_logits, candidate.logits, timing, pipeline.faithful, candidate.model),
        )
    return package


def run_passes(pipeline: Pipeline, prepared: Prepared) -> Candidate:
    """Export a source and apply the plan to it."""
    current = Candidate(pipeline.export())
    prepared_for: Candidate | None = None  # what only prepares another pass is kept if that one is
    for entry in prepared.plan:
        if any(is_source_pass(step) for step in plan(entry)):
            continue  # done before the export
        best: Candidate | None = None
        rejected = len(pipeline.rejected)
        for step in plan(entry, reduce_range=prepared.reduce_range, max_drop=prepared.recipe.max_drop):
            start = current if prepared_for is None else prepared_for
            found = pipeline.run(step, start.model, current.model)
            if found is not None:
                best = found if best is None else pipeline.better(best, found)
        if best is None and len(pipeline.rejected) > rejected and pipeline.context.judged and _falls_back(prepared):
            for step in plan(_FALLBACK, reduce_range=prepared.reduce_range, max_drop=prepared.recipe.max_drop):
                best = pipeline.run(step, current.model)
        if best is None and prepared.recipe.passes is None and "quantize" in entry:
            # Small products are slower in int8; a large table costs next to nothing, and may be most of the bytes.
            for step in plan(_TABLES):
                best = pipeline.run(step, current.model)
        if best is not None and best.prepares:
            prepared_for = best
        elif best is not None:
            current, prepared_for = best, None
        elif len(pipeline.rejected) > rejected and prepared.recipe.passes is not None:
            _refuse(pipeline.budget, pipeline.rejected)  # what was asked for by name cannot be had within the budget
    if prepared_for is not None:
        pipeline.drop(prepared_for, "no pass that it prepares was kept")
    return current


def _falls_back(prepared: Prepared) -> bool:
    """Whether nodes may stay in float where the plan's own quantizations are over the budget."""
    return prepared.recipe.passes is None and any("quantize-static" in entry for entry in prepared.plan)


def _cut_and_taught(
    steps: list[Any],
    prepared: Prepared,
    evaluator: Evaluator,
    budget: Budget | None,
    cache: Cache,
    console: Output,
    versions: dict[str, str],
) -> tuple[Source, list[PassRecord]]:
    """The source after the passes that run before the export; what they leave must keep the budget."""
    recipe, source = prepared.recipe, prepared.source
    train = None if prepared.train is None else joined(prepared.train, prepared.unlabelled)
    context = Context(train=train, threads=recipe.threads, seed=recipe.seed, layers=source.layers)
    subject, records = apply_source_passes(steps, source, context, evaluator, cache, console, versions)
    kept = [record for record in records if record.metric is not None]
    if kept and budget is not None:
        scorer = dataclasses.replace(evaluator, current=subject)
        outcomes = scorer.outcomes(scorer.module_logits("result")[0])
        metric = kept[-1].metric
        assert metric is not None
        if not budget.keeps(metric, outcomes):
            names = ", ".join(record.pass_ for record in kept)
            _refuse(budget, [(metric, names, budget.said(metric, outcomes))])
    return subject, records


def _judged(prepared: Prepared, text: Text | None) -> Judged | None:
    """The development data of a request, else its training data, for passes that judge candidates themselves."""
    recipe = prepared.recipe
    if recipe.dev is None:
        return None if prepared.train is None else Judged.of(prepared.train, text, training=True)
    samples = load_samples(
        recipe.dev,
        split="validation",
        text_column=recipe.text_column,
        label_column=recipe.label_column,
        labels=prepared.source.labels,
        task=prepared.source.task,
    )
    check_inputs(samples, prepared.source)
    return Judged.of(samples, text)


def _refuse(budget: Budget | None, rejected: Sequence[tuple[Metric, str, str]]) -> None:
    assert budget is not None
    metric, name, why = max(rejected, key=lambda item: item[0].value)
    raise LeptoError(
        f"no candidate keeps the budget: the closest is {name} with {_metric_text(metric)}, "
        f"but at least {budget.minimum:.4f} is asked for (source {budget.metric.value:.4f}, "
        f"--max-drop {budget.allowed_drop:.4f}): {why}. No package was written: allow a larger "
        "--max-drop, or leave --passes out",
        exit_code=1,
    )


def _check_source(metric: Metric, classes: int) -> None:
    if metric.name == "f1" and metric.value == 0:
        raise LeptoError("the source itself finds no entity of the evaluation data. Is it the right data?")
    if metric.name == "accuracy" and metric.high <= 1 / classes:
        raise LeptoError(
            f"the source itself is worse than chance on the evaluation data: {_metric_text(metric)}, chance is "
            f"{1 / classes:.4f}. Is it the right data, or is the order of labels another?"
        )


def environment(versions: dict[str, str]) -> dict[str, Any]:
    """Versions and hardware, for the manifest."""
    machine = this_machine()
    return {
        "versions": versions,
        "python": platform.python_version(),
        "system": platform.system(),
        "cpu": machine.cpu,
        "cpus": machine.cpus,
        "memory_bytes": machine.memory_bytes,
    }


def _speedup(timing: Timing, prepared: Prepared) -> Speedup:
    how = "onnxruntime, as given" if prepared.source.load_onnx is not None else "PyTorch eager"
    where = "" if prepared.stand_in is None else f", on {prepared.stand_in} in place of {prepared.target.name}"
    ratio = timing.ratio
    against = f"{how}, {prepared.recipe.threads} threads, batch 1{where}"
    return Speedup(value=ratio.value, low=ratio.low, high=ratio.high, against=against)


def _metric_text(metric: Metric) -> str:
    return f"{metric.name} {metric.value:.4f} [{metric.low:.4f}, {metric.high:.4f}] (n={metric.n})"


def _silent() -> Output:
    output = Output()
    output.console.file = io.StringIO()
    return output


__all__ = ["PassError", "Prepared", "check_output", "compile_model", "prepare", "resolve_target", "run_prepared"]
