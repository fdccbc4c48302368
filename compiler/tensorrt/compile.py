"""Compile for a GPU: prepare the graph, judge its answers, build the engine or write the kit that builds it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.markup import escape

from lepto.compiler.budget import Budget
from lepto.compiler.cache import Cache
from lepto.compiler.context import Context
from lepto.compiler.evaluate import Evaluator, agreement, real_feeds
from lepto.compiler.model import OnnxModel
from lepto.compiler.packaging import assemble, of_size
from lepto.compiler.passes.attention import Attention
from lepto.compiler.passes.tensorrt import Tensorrt
from lepto.compiler.pipeline import Pipeline, plan
from lepto.compiler.prepare import Prepared
from lepto.compiler.source import Source
from lepto.compiler.tensorrt.engine import build_engine, find_builder
from lepto.compiler.tensorrt.kit import build_spec, kit_files, kit_text
from lepto.compiler.tensorrt.profiles import profile_of
from lepto.compiler.verify import encode
from lepto.runtime.console import Output, size_text
from lepto.runtime.errors import LeptoError
from lepto.runtime.manifest import FEATURE_EXTRACTION, PassRecord, Tolerance
from lepto.runtime.package import ENGINE, ENGINE_RECORD, Package

# What 16-bit and int8 kernels of a GPU may add to what the same graph gives on a CPU.
_TOLERANCES = {
    "fp32": Tolerance(atol=1e-2, rtol=1e-2),
    "fp16": Tolerance(atol=0.05, rtol=0.05),
    "bf16": Tolerance(atol=0.25, rtol=0.05),
    "int8": Tolerance(atol=0.25, rtol=0.05),
}


def compile_for_gpu(
    prepared: Prepared,
    output: str | Path,
    *,
    subject: Source,
    records: list[PassRecord],
    force: bool,
    console: Output,
    cache: Cache,
    evaluator: Evaluator,
    budget: Budget | None,
    versions: dict[str, str],
    environment: dict[str, Any],
) -> Package:
    """Compile a source for a GPU target; see :func:`lepto.compiler.compile.compile_model`.

    The prepared graph's answers are judged with ONNX Runtime on the CPU, in the types that are written in it. Its speed
    is not: that is for the device.

    Raises:
        LeptoError: The answers are over the budget, or the builder refuses the graph.
    """
    assert budget is not None
    assert prepared.train is not None
    context = Context(
        calibration=encode(prepared.train.inputs, subject.text),
        threads=prepared.recipe.threads,
        seed=prepared.recipe.seed,
        layers=subject.layers,
    )
    pipeline = Pipeline(subject, context, evaluator, cache, console, budget, versions)
    pipeline.records.extend(records)
    exported = pipeline.export()
    steps = [step for entry in prepared.plan for step in plan(entry)]
    (step,) = (step for step in steps if isinstance(step, Tensorrt))
    for first in (step for step in steps if isinstance(step, Attention)):
        changed = pipeline.run(first, exported, timed=False)
        exported = exported if changed is None else changed.model
    candidate = pipeline.run(step, exported)
    if candidate is None and pipeline.rejected:
        metric, _, over = pipeline.rejected[0]
        raise LeptoError(
            f"{step.name} ({step.precision}) does not keep the budget: {metric.name} {metric.value:.4f} where at least "
            f"{budget.minimum:.4f} is asked for: {over}. No package was written: allow a larger --max-drop, or another "
            "precision, as in --passes 'tensorrt(precision=fp16)'",
            exit_code=1,
        )
    if candidate is None:
        raise LeptoError(f"{step.name} could not be applied: {pipeline.records[-1].reason}", exit_code=1)
    tolerance, (source_logits, _) = _TOLERANCES[step.precision], evaluator.source_logits()
    if subject.task == FEATURE_EXTRACTION:
        tolerance = of_size(tolerance, [source_logits])
    profile = profile_of(
        candidate.model,
        context.calibration,
        batch=(1, step.batch, step.max_batch),
        percentile=step.sizes,
        limits=subject.maximum,
    )
    spec = build_spec(candidate.model, prepared.target, profile, step, tolerance)
    extra = kit_files(spec)
    extra |= _engine(candidate.model, spec, prepared, console, evaluator)
    assert candidate.logits is not None
    bound, verdict = budget.claim(evaluator.outcomes(candidate.logits))
    console.print(verdict)
    same = None if subject.task == FEATURE_EXTRACTION else agreement(source_logits, candidate.logits)
    return assemble(
        prepared,
        output,
        subject=subject,
        force=force,
        model=candidate.model,
        records=pipeline.records,
        source_metric=budget.metric,
        metric=candidate.metric,
        agreement=same,
        bound=bound,
        verdict=verdict,
        speedup=None,
        p50_ms=None,
        batch_invariant=True,  # nothing in the graph is computed over rows: scales are constants
        environment={**environment, "tensorrt": {k: v for k, v in spec.items() if k != "trtexec"}},
        probe=_within(real_feeds(evaluator.feeds(), 16), profile),
        tolerance=tolerance,
        extra=extra,
        told=kit_text(spec),
    )


def _within(feeds: Any, profile: Any) -> Any:
    """The samples whose shapes the profile has."""
    fits = [
        feed
        for feed in feeds
        if all(
            low <= size <= high
            for name, array in feed.items()
            if name in profile
            for low, size, high in zip(
                profile[name].minimum[1:], array.shape[1:], profile[name].maximum[1:], strict=True
            )
        )
    ]
    if not fits:
        raise LeptoError("no evaluation sample has a shape that the profile takes: is --train like --eval?")
    return fits


def _engine(
    model: OnnxModel, spec: dict[str, Any], prepared: Prepared, console: Output, evaluator: Evaluator
) -> dict[str, bytes]:
    """The engine's files where it can be built here; else none, and what to do is said."""
    import json

    module, why = find_builder(prepared.target)
    if not module:
        console.print(
            f"[bold]engine[/bold] [yellow]not built[/yellow]: {escape(why)}. The package is a build kit: "
            "python3 build_engine.py build PACKAGE --output BUILT makes the engine on the device"
        )
        return {}
    line = evaluator.progress.add_task(f"{module}: build the engine", total=None)
    try:
        built = build_engine(model, spec, module)
    finally:
        evaluator.progress.remove_task(line)
    record = built.record
    console.print(
        f"[bold]engine[/bold] built by {record['runtime']} {record['version']} for compute capability "
        f"{record['compute_capability']}: {size_text(record['bytes'])} ({record['seconds']:.1f} s); "
        "its speed is not measured here"
    )
    document = json.dumps(dict(record), indent=2) + "\n"
    return {ENGINE: built.plan, ENGINE_RECORD: document.encode()}
