"""From a finished candidate to a package: manifest, probe and model card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx

from lepto.compiler.context import Feed
from lepto.compiler.difference import Difference
from lepto.compiler.model import OnnxModel
from lepto.compiler.ort import session
from lepto.compiler.verify import pad
from lepto.runtime.console import size_text
from lepto.runtime.evidence import Evidence
from lepto.runtime.manifest import (
    FEATURE_EXTRACTION,
    Manifest,
    Metric,
    PassRecord,
    Preprocessing,
    Result,
    Speedup,
    Tensor,
    Tolerance,
)
from lepto.runtime.manifest import Source as SourceRecord
from lepto.runtime.package import Package, write_package

if TYPE_CHECKING:
    from lepto.compiler.prepare import Prepared
    from lepto.compiler.source import Source, Text

# A probe must hold on any CPU of the target: int8 kernels differ in the order of float additions around them, and a
# rounding that falls the other way moves a logit by a step of its activation's scale.
_FLOAT_TOLERANCE = Tolerance(atol=1e-3, rtol=1e-3)
_INT8_TOLERANCE = Tolerance(atol=0.25, rtol=0.05)


def assemble(
    prepared: Prepared,
    output: str | Path,
    *,
    subject: Source,
    force: bool,
    model: OnnxModel,
    records: Sequence[PassRecord],
    source_metric: Metric | None,
    metric: Metric | None,
    agreement: float | None,
    bound: Difference | None,
    verdict: str,
    speedup: Speedup | None,
    p50_ms: tuple[float, float] | None,
    batch_invariant: bool,
    environment: dict[str, Any],
    probe: Sequence[Feed],
    evidence: Evidence | None = None,
    tolerance: Tolerance | None = None,
    extra: Mapping[str, bytes] | None = None,
    told: str = "",
) -> Package:
    """Write the package; see :class:`lepto.runtime.manifest.Manifest` for what goes in.

    ``tolerance`` is that of the probe where it is not the precision's own, ``extra`` are more files of the package, and
    ``told`` ends the model card.
    """
    recipe, source = prepared.recipe, prepared.source
    quantized = any(record.kept and record.pass_.startswith("quantize-") for record in records)
    proto = model.proto()
    output = Path(output)
    environment = dict(environment)
    stored = _probe(model, subject.text, prepared.recipe.threads, probe, batch_invariant)
    if tolerance is None:
        tolerance = _INT8_TOLERANCE if quantized else _FLOAT_TOLERANCE
        if source.task == FEATURE_EXTRACTION:
            tolerance = of_size(tolerance, [array for name, array in stored.items() if name.startswith("output/")])
    if bound is not None:
        environment["paired_difference"] = {
            "value": bound.value,
            "low_95_one_sided": bound.low,
            **({} if bound.lost is None else {"only_source_right": bound.lost, "only_result_right": bound.won}),
            "n": bound.n,
            "rule": bound.rule,
            "verdict": verdict,
        }
    manifest = Manifest(
        name=recipe.name or _name(output),
        task=source.task,
        target=prepared.target.name,
        threads=recipe.threads,
        recipe=recipe.model_dump(mode="json"),
        source=SourceRecord(
            digest=source.digest,
            parameters=source.parameters,
            bytes=source.bytes,
            metric=source_metric,
            p50_ms=None if p50_ms is None else p50_ms[0],
            description=source.description,
        ),
        passes=tuple(records),
        result=Result(
            digest=model.digest,
            bytes=model.bytes,
            metric=metric,
            agreement=agreement,
            p50_ms=None if p50_ms is None else p50_ms[1],
            speedup=speedup,
            batch_invariant=batch_invariant,
        ),
        inputs=_tensors(proto.graph.input, {t.name for t in proto.graph.initializer}),
        outputs=_tensors(proto.graph.output, set()),
        preprocessing=_preprocessing(subject, proto),
        tolerance=tolerance,
        environment=environment,
    )
    return write_package(
        output,
        manifest=manifest,
        model=model.data,
        tokenizer=subject.text.tokenizer if subject.text else None,
        labels=source.labels if source.labels and source.task.endswith("classification") else None,
        probe=stored,
        card=card(manifest, bound) + told,
        evidence=evidence,
        force=force,
        extra=extra,
    )


def of_size(tolerance: Tolerance, vectors: Sequence[npt.NDArray[Any]]) -> Tolerance:
    """The same tolerance for vectors: its absolute part, meant for logits, times twice their root mean square.

    A vector of length 1 has values of some 0.05: with the tolerance of logits any other vector would pass for it.
    """
    size = max(float(np.sqrt(np.square(each.astype(np.float64)).mean())) for each in vectors)
    return tolerance.model_copy(update={"atol": min(tolerance.atol, 2 * tolerance.atol * size)})


def _tensors(values: Any, initializers: set[str]) -> tuple[Tensor, ...]:
    tensors = []
    for value in values:
        if value.name in initializers:
            continue
        kind = value.type.tensor_type
        dims = [d.dim_value or d.dim_param or f"{value.name}_{i}" for i, d in enumerate(kind.shape.dim)]
        dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)).name
        tensors.append(Tensor(name=value.name, dtype=dtype, shape=("batch", *dims[1:])))
    return tuple(tensors)


def _probe(
    model: OnnxModel, text: Text | None, threads: int, feeds: Sequence[Feed], batch_invariant: bool
) -> dict[str, npt.NDArray[np.generic]]:
    """Real samples and what the packaged model answers; the longest alone where rows of a batch touch each other."""
    rows = list(feeds if batch_invariant else feeds[-1:])
    merged: Mapping[str, npt.NDArray[np.generic]]
    if text is not None:
        merged = pad([feed["input_ids"][0].tolist() for feed in rows], text)
    else:
        merged = {name: np.concatenate([feed[name] for feed in rows]) for name in rows[0]}
    loaded = session(model, threads)
    names = [value.name for value in loaded.get_outputs()]
    outputs = loaded.run(names, {v.name: merged[v.name] for v in loaded.get_inputs()})
    return {f"input/{v.name}": merged[v.name] for v in loaded.get_inputs()} | {
        f"output/{name}": array for name, array in zip(names, outputs, strict=True)
    }


def _preprocessing(subject: Source, proto: onnx.ModelProto) -> Preprocessing | None:
    """How text becomes the inputs that the graph still has: a constant one may have been folded."""
    if subject.text is None:
        return None
    preprocessing, left = subject.text.preprocessing, {value.name for value in proto.graph.input}
    return preprocessing.model_copy(update={"inputs": tuple(n for n in preprocessing.inputs if n in left)})


def _name(output: Path) -> str:
    import re

    return re.sub(r"[^A-Za-z0-9_.-]", "_", output.resolve().name).lstrip(".-") or "model"


def card(manifest: Manifest, bound: Difference | None) -> str:
    """The model card: what was measured, for people."""
    result, source = manifest.result, manifest.source
    lines = [f"# {manifest.name}", "", f"{source.description}, compiled by Lepto for {manifest.target}.", ""]
    lines += ["| | source | result |", "|---|---|---|"]
    if source.metric and result.metric:
        a, b = source.metric, result.metric
        lines.append(
            f"| {a.name} (n = {a.n}, 95 % interval) | {a.value:.4f} [{a.low:.4f}, {a.high:.4f}] | "
            f"{b.value:.4f} [{b.low:.4f}, {b.high:.4f}] |"
        )
    lines.append(f"| size | {size_text(source.bytes)} | {size_text(result.bytes)} |")
    if source.p50_ms is not None and result.p50_ms is not None:
        lines.append(f"| p50, batch 1, {manifest.threads} threads | {source.p50_ms:.2f} ms | {result.p50_ms:.2f} ms |")
    lines.append("")
    if result.speedup:
        s = result.speedup
        lines.append(f"Speed: {s.value:.2f} times {s.against} (95 % interval {s.low:.2f} to {s.high:.2f}).")
    if result.agreement is not None:
        lines.append(f"Same decision as the source on {result.agreement:.2%} of the evaluation samples.")
    if bound is not None:
        lines.append(
            f"Change of the metric on the same samples: {bound.value:+.4f}, "
            f"one-sided 95 % lower bound {bound.low:+.4f}."
        )
    if not result.batch_invariant:
        lines.append(
            "A row's answer can depend on the rows beside it in a batch (one activation scale for the whole batch): "
            "batches are run row by row where the same answer is wanted."
        )
    lines += ["", "## Passes", "", "| pass | kept | why |", "|---|---|---|"]
    lines += [f"| {r.pass_} | {'yes' if r.kept else 'no'} | {r.reason.replace('|', '/')} |" for r in manifest.passes]
    cpu = manifest.environment.get("cpu", "unknown")
    lines += ["", f"Measured on {cpu}. All figures, versions and digests stand in `manifest.json`.", ""]
    return "\n".join(lines)
