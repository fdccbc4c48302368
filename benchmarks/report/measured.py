"""What a page needs of one package: what it stores, and what is measured now because data or the source are at hand."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lepto.benchmarks.attributions import Features, Score, attribute, features_of, score_of, softmax
from lepto.benchmarks.report.quality import Flip, flips
from lepto.compiler.data import Samples, load_samples
from lepto.compiler.files import file_rows, no_column
from lepto.compiler.words import are_words
from lepto.runtime.errors import LeptoError
from lepto.runtime.evidence import Answers, Evidence
from lepto.runtime.measure import interleave
from lepto.runtime.package import Package
from lepto.runtime.session import Session

Progress = Callable[[str, int, int], None]
_BLOCKS, _RUNS = 24, 20


@dataclass(frozen=True)
class Explained:
    """A flip, with the sample itself and what both answers hang on.

    Attributes:
        flip: What changed.
        features: The sample in parts, of a word its row's words; None where the data is not at hand.
        source: ``[F]`` attributions of the source to its answer; None without the source.
        result: ``[F]`` attributions of the result to its answer.
    """

    flip: Flip
    features: Features | None = None
    source: Any = None
    result: Any = None


@dataclass(frozen=True)
class Known:
    """Everything a page shows of one package.

    Attributes:
        package: The package.
        evidence: Stored or measured now.
        origin: Where the answers come from, for people.
        names: Names of the classes.
        columns: Other columns of the evaluation data, one value for each answer.
        flips: Samples that changed their answer.
        changed: How many there are in all.
    """

    package: Package
    evidence: Evidence
    origin: str
    names: tuple[str, ...]
    columns: Mapping[str, Sequence[str]] = field(default_factory=dict)
    flips: tuple[Explained, ...] = ()
    changed: int = 0


@dataclass(frozen=True)
class Request:
    """What may be measured.

    Attributes:
        evaluation: Labelled samples, as in ``lepto compile --eval``.
        source: The source model, as in ``lepto compile --model``.
        text_column: Column of the text.
        label_column: Column of the label.
        slices: Columns to part the samples by.
        most: How many flips are shown of each package.
    """

    evaluation: str | None
    source: str | None
    text_column: str
    label_column: str
    slices: tuple[str, ...]
    most: int


def know(package: Package, request: Request, progress: Progress) -> Known:
    """Read what the package stores, and measure what is missing and can be measured.

    Raises:
        LeptoError: Data or source cannot be read, or do not fit the package.
    """
    stored = package.evidence() or Evidence()
    samples = _samples(package, request)
    evidence, origin = stored, "stored in the package when it was compiled"
    if samples is None or stored.data != samples.digest:
        origin = "not measured: the package stores no answers, and --eval and --source are not both given"
    if stored.judged and (samples is None or not _classes(samples)):
        origin = "stored in the package when it was compiled"
    source = None
    if request.source is not None:
        from lepto.compiler.source import open_source

        source = open_source(request.source, package.manifest.task)
        if source.digest != package.manifest.source.digest:
            raise LeptoError(
                f"{request.source} is not what {package.path} was compiled from: its digest is "
                f"{source.digest[:12]}…, the manifest says {package.manifest.source.digest[:12]}…; give that model"
            )
    score, threads = score_of(package), package.manifest.threads
    if samples is not None and stored.data != samples.digest and _classes(samples):
        result = _answers(score, samples, lambda i, n: progress("answers of the package", i, n))
        before = None
        if source is not None:
            before = _answers(
                _source_score(source, threads), samples, lambda i, n: progress("answers of the source", i, n)
            )
        evidence = dataclasses.replace(
            stored,
            data=samples.digest,
            rows=np.arange(len(samples), dtype=np.int64),
            labels=samples.labels.astype(np.int64),
            source=before,
            result=result,
            tokens=_tokens(package, samples),
        )
        origin = f"measured now on {samples.origin}"
    if source is not None and evidence.source_seconds is None:
        evidence = _timed(evidence, package, source, samples, progress)
    labels = evidence.labels
    classes = evidence.result.scores.shape[1] if evidence.result is not None else 0
    names = package.labels or tuple(f"class {i}" for i in range(classes))
    known = Known(package, evidence, origin, tuple(names))
    if labels is None or evidence.source is None or evidence.result is None or evidence.rows is None:
        return known
    changed = flips(labels, evidence.source, evidence.result, evidence.rows)
    same = samples if samples is not None and evidence.data == samples.digest else None
    shown = _explained(changed[: request.most], same, score, source, threads, progress)
    columns = {}
    if request.slices and request.evaluation is not None:
        values = read_columns(request.evaluation, request.slices)
        columns = {name: [values[name][row] for row in evidence.rows] for name in request.slices}
    return dataclasses.replace(known, columns=columns, flips=tuple(shown), changed=len(changed))


def read_columns(reference: str, columns: Sequence[str]) -> dict[str, list[str]]:
    """Further columns of a file of samples, as text.

    Raises:
        LeptoError: The data is no file, or has no such column.
    """
    from pathlib import Path

    if not Path(reference).is_file():
        raise LeptoError(f"slices are columns of a file, and {reference} is none: leave --slice out")
    found: dict[str, list[str]] = {name: [] for name in columns}
    for where, row in file_rows(Path(reference), columns):
        for name in columns:
            if row.get(name) is None:
                no_column(reference, where, name, row)
            found[name].append(str(row[name]))
    return found


def _samples(package: Package, request: Request) -> Samples | None:
    if request.evaluation is None:
        return None
    return load_samples(
        request.evaluation,
        text_column=request.text_column,
        label_column=request.label_column,
        labels=package.labels,
        split="test",
        task=package.manifest.task,
    )


def _classes(samples: Samples) -> bool:
    return samples.labels.ndim == 1 and samples.labels.dtype != object


def _source_score(source: Any, threads: int) -> Score:
    from lepto.compiler.verify import logits_in_batches

    run = source.runner(threads)

    def score(samples: Any) -> Any:
        if isinstance(samples, Mapping):
            return softmax(run(samples))
        texts = Samples(tuple(samples), np.zeros(len(samples), np.int64), "texts")
        return softmax(logits_in_batches(run, texts, source.text, lambda _: None))

    return score


def _answers(score: Score, samples: Samples, progress: Callable[[int, int], None]) -> Answers:
    step, parts = 32, []
    for start in range(0, len(samples), step):
        inputs = samples.inputs
        part = (
            {name: array[start : start + step] for name, array in inputs.items()}
            if isinstance(inputs, Mapping)
            else list(inputs[start : start + step])
        )
        parts.append(score(part))
        progress(min(start + step, len(samples)), len(samples))
    scores = np.concatenate(parts)
    if not np.isfinite(scores).all():
        row = int(np.flatnonzero(~np.isfinite(scores).all(axis=1))[0])
        raise LeptoError(f"the answer to sample {row} of {samples.origin} is not finite", exit_code=1)
    return Answers.of(scores, logits=False)


def _tokens(package: Package, samples: Samples) -> Any:
    preprocessing, tokenizer = package.manifest.preprocessing, package.tokenizer_path
    if preprocessing is None or tokenizer is None or isinstance(samples.inputs, Mapping):
        return None
    from lepto.runtime.text import TextEncoder

    encoder = TextEncoder(tokenizer, preprocessing)
    return np.array([encoder.encode([str(text)])["input_ids"].shape[1] for text in samples.inputs], np.int64)


def _timed(evidence: Evidence, package: Package, source: Any, samples: Samples | None, progress: Progress) -> Evidence:
    from lepto.benchmarks.scenarios import feeds_from_probe, feeds_from_samples
    from lepto.compiler.verify import encode

    if samples is None:
        own: list[Any] = feeds_from_probe(package)
        before: list[Any] = own
        if source.text is not None:
            return evidence  # the probe holds the package's tokens, which need not be the source's
    else:
        own, before = feeds_from_samples(package, samples), encode(samples.inputs, source.text)
    session, run = Session(package), source.runner(package.manifest.threads)
    seconds = interleave(
        {"source": lambda pair: run(pair[0]), "result": lambda pair: session.run(pair[1])},
        list(zip(before, own, strict=True)),
        blocks=_BLOCKS,
        per_block=_RUNS,
        warmup=5,
        seed=0,
        progress=lambda i, n: progress("speed", i, n),
    )
    return dataclasses.replace(evidence, source_seconds=seconds["source"], result_seconds=seconds["result"])


def _explained(
    changed: Sequence[Flip], samples: Samples | None, score: Score, source: Any, threads: int, progress: Progress
) -> list[Explained]:
    if samples is None:
        return [Explained(flip) for flip in changed]
    before = None if source is None else _source_score(source, threads)
    found = []
    for done, flip in enumerate(changed, 1):
        if not isinstance(samples.inputs, Mapping) and are_words(samples.inputs):
            # The row is shown; a word's answer is not attributed to its parts, so that none is ever left out.
            found.append(Explained(flip, Features(tuple(samples.inputs[flip.row]), lambda _masks: [])))
            continue
        features = features_of(samples, flip.row)
        if features is None or not features.count:
            found.append(Explained(flip))
            continue
        own = attribute(score, features, flip.result[0])
        other = None if before is None else attribute(before, features, flip.source[0])
        found.append(Explained(flip, features, other, own))
        progress("what changed answers hang on", done, len(changed))
    return found
