"""Check a package again, anywhere: its digests, that it loads, and the claims that need no source model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from lepto.runtime.embedding import TextEmbedder
from lepto.runtime.errors import LeptoError
from lepto.runtime.evaluation import accuracy, read_labelled_texts, read_tagged_words, word_metric
from lepto.runtime.manifest import FEATURE_EXTRACTION, TEXT_CLASSIFICATION, TOKEN_CLASSIFICATION, Metric, Tolerance
from lepto.runtime.package import Package, file_digest, open_package
from lepto.runtime.session import Session
from lepto.runtime.tagging import TokenClassifier
from lepto.runtime.text import TextClassifier
from lepto.runtime.words import split_words

_Loaded = TypeVar("_Loaded")
_Classifier = TextClassifier | TokenClassifier

# Short, long, empty, not English, not even text: a classifier answers all of them.
_SAMPLE_TEXTS = ("where is my order?", "please " * 2000, "", "¿dónde está mi pedido? 訂單 📦", "\x00\t\n")
_SCORES_SUM_TOLERANCE = 1e-3  # float32 softmax over some hundred labels
_METRIC_TOLERANCE = 1e-9  # a fraction of counts: the same counts give the same number


@dataclass(frozen=True, slots=True)
class Check:
    """One claim, looked at again.

    Attributes:
        name: What was checked.
        ok: Whether it holds.
        detail: The numbers, for people.
        values: The numbers, for scripts.
    """

    name: str
    ok: bool
    detail: str
    values: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Labelled texts to re-run the metric on: a CSV, TSV or JSONL file and the names of its columns."""

    path: Path
    text_column: str = "text"
    label_column: str = "label"


def verify_package(
    package: Package | str | Path, *, threads: int | None = None, evaluation: Evaluation | None = None
) -> list[Check]:
    """Check a package.

    A file that was changed is not loaded: if a digest fails, the checks end there.

    Args:
        package: An opened package or its folder.
        threads: Intra-op threads; by default those of the manifest.
        evaluation: Re-run the manifest's metric on this file.

    Returns:
        The checks in the order they were made.

    Raises:
        LeptoError: The folder is no package, or the evaluation file does not fit; that is broken input, no verdict.
    """
    path = package.path if isinstance(package, Package) else Path(package)
    package = open_package(path, check_digests=False)
    checks = [*_check_digests(package), _check_result(package)]
    if not all(check.ok for check in checks):
        return checks
    session, check = _attempt("model loads", lambda: Session(package, threads=threads))
    checks.append(check)
    if session is None:
        return checks
    checks += _check_probe(session)
    manifest = package.manifest
    classifiers: dict[str, type[_Classifier]] = {
        TEXT_CLASSIFICATION: TextClassifier,
        TOKEN_CLASSIFICATION: TokenClassifier,
    }
    if manifest.task in classifiers:
        kind = classifiers[manifest.task]
        classifier, check = _attempt("tokenizer loads", lambda: kind(package, threads=threads))
        checks.append(check)
        if classifier is not None:
            checks.append(_check_texts(classifier))
            if evaluation is not None:
                checks.append(_check_metric(classifier, evaluation))
    elif evaluation is not None:
        raise LeptoError(f"--eval re-runs a classifier's metric; {path} is for task {manifest.task!r}")
    elif manifest.task == FEATURE_EXTRACTION and manifest.preprocessing is not None:
        embedder, check = _attempt("tokenizer loads", lambda: TextEmbedder(package, threads=threads))
        checks.append(check)
        if embedder is not None:
            checks.append(_check_vectors(embedder))
    return checks


def within(values: np.ndarray[Any, Any], expected: np.ndarray[Any, Any], tolerance: Tolerance) -> dict[str, Any]:
    """How far values lie from the expected ones.

    Args:
        values: An array.
        expected: An array of the same shape.
        tolerance: What is allowed: ``|values - expected| <= atol + rtol * |expected|``.

    Returns:
        ``ok``, ``max_abs`` (largest difference) and ``used`` (largest part of the tolerance that a difference uses;
        above 1 is outside). NaN agrees with nothing, not even with NaN.
    """
    a, b = values.astype(np.float64), expected.astype(np.float64)
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return {"ok": False, "max_abs": None, "used": None}
    difference, allowed = np.abs(a - b), tolerance.atol + tolerance.rtol * np.abs(b)
    used = np.divide(difference, allowed, out=np.where(difference > 0, np.inf, 0.0), where=allowed > 0)
    largest = float(used.max())
    return {
        "ok": bool((difference <= allowed).all()),
        "max_abs": float(difference.max()),
        "used": largest if np.isfinite(largest) else None,
    }


def _check_digests(package: Package) -> list[Check]:
    checks = []
    for name, expected in sorted(package.manifest.files.items()):
        found = file_digest(package.path / name)
        detail = f"SHA-256 {found[:12]}…"
        if found != expected:
            detail += f", the manifest says {expected[:12]}…: the file was changed after the package was written"
        checks.append(Check(f"digest of {name}", found == expected, detail, {"sha256": found, "expected": expected}))
    return checks


def _check_result(package: Package) -> Check:
    result = package.manifest.result
    size, digest = package.model_path.stat().st_size, file_digest(package.model_path)
    ok = (size, digest) == (result.bytes, result.digest)
    detail = f"model.onnx has {size:,} bytes"
    if not ok:
        detail += f" and digest {digest[:12]}…; the manifest claims {result.bytes:,} and {result.digest[:12]}…"
    return Check("result's size and digest", ok, detail, {"bytes": size, "claimed_bytes": result.bytes})


def _attempt(name: str, load: Callable[[], _Loaded]) -> tuple[_Loaded | None, Check]:
    try:
        return load(), Check(name, True, "loaded")
    except LeptoError as error:
        return None, Check(name, False, str(error))


def _check_probe(session: Session) -> list[Check]:
    tolerance = session.package.manifest.tolerance
    try:
        inputs, stored = session.package.probe()
        outputs = session.run(inputs)
    except (LeptoError, ValueError) as error:
        return [Check("stored probe", False, str(error))]
    rows = len(next(iter(inputs.values())))
    checks = []
    for name, expected in stored.items():
        output = outputs[name]
        if output.shape != expected.shape or output.dtype != expected.dtype:
            detail = f"{output.dtype} {output.shape}, stored was {expected.dtype} {expected.shape}"
            checks.append(Check(f"probe output {name!r}", False, detail))
            continue
        found = within(output, expected, tolerance)
        if found["max_abs"] is None:
            detail = "it holds NaN or infinity"
        else:
            detail = (
                f"{rows} rows, largest difference {found['max_abs']:.2g}, "
                f"tolerance {tolerance.atol:g} + {tolerance.rtol:g} x |stored|"
            )
        values = {"max_abs": found["max_abs"], "tolerance_used": found["used"], "rows": rows}
        checks.append(Check(f"probe output {name!r}", found["ok"], detail, values))
    return [*checks, _check_other_batch(session, inputs, outputs)]


def _check_other_batch(session: Session, inputs: dict[str, Any], answers: dict[str, Any]) -> Check:
    """Run the probe's first row in a batch of another size: alone, or beside itself, which moves no scale."""
    name = "dynamic batch"
    count = 1 if len(next(iter(inputs.values()))) > 1 else 2
    told = "a batch of 1 row" if count == 1 else "a batch of the same row twice"
    try:
        outputs = session.run({key: np.repeat(array[:1], count, axis=0) for key, array in inputs.items()})
    except ValueError as error:
        return Check(name, False, f"{told}: {error}")
    shapes = {key: list(array.shape) for key, array in outputs.items()}
    tolerance = session.package.manifest.tolerance
    ok = all(
        array.shape == (count, *answers[key].shape[1:])
        and within(array, np.repeat(answers[key][:1], count, axis=0), tolerance)["ok"]
        for key, array in outputs.items()
    )
    said = f"{told} gives " + ", ".join(f"{key} {shape}" for key, shape in shapes.items())
    return Check(name, ok, said if ok else f"{said}, other answers than in the probe's own batch")


def _check_vectors(embedder: TextEmbedder) -> Check:
    name = "text in, vectors out"
    try:
        vectors = embedder.embed(_SAMPLE_TEXTS)
    except (LeptoError, ValueError) as error:
        return Check(name, False, str(error))
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1)
    detail = f"{len(vectors)} texts, {vectors.shape[1]} dimensions, lengths {lengths.min():.3g} to {lengths.max():.3g}"
    return Check(name, bool(np.isfinite(vectors).all()), detail, {"texts": len(vectors), "width": vectors.shape[1]})


def _check_texts(classifier: _Classifier) -> Check:
    name = "text in, scores out"
    try:
        if isinstance(classifier, TextClassifier):
            scores = classifier.scores(_SAMPLE_TEXTS)
        else:  # every word that has a token; those beyond the maximum length have zeros
            words = [[text[start:end] for start, end in split_words(text)] for text in _SAMPLE_TEXTS]
            scores = np.concatenate(classifier.scores(words))
            scores = scores[scores.any(axis=1)]
    except (LeptoError, ValueError) as error:
        return Check(name, False, str(error))
    error_of_sum = float(np.abs(scores.sum(axis=1, dtype=np.float64) - 1).max())
    ok = bool(np.isfinite(scores).all() and (scores >= 0).all()) and error_of_sum <= _SCORES_SUM_TOLERANCE
    detail = f"{len(_SAMPLE_TEXTS)} texts, {scores.shape[1]} labels, scores sum to 1 within {error_of_sum:.1g}"
    return Check(name, ok, detail, {"texts": len(_SAMPLE_TEXTS), "sum_error": error_of_sum if ok else None})


def _check_metric(classifier: _Classifier, evaluation: Evaluation) -> Check:
    claimed = classifier.package.manifest.result.metric
    if claimed is None:
        raise LeptoError("--eval: the manifest has no metric of the result to compare with")
    known = ("accuracy",) if isinstance(classifier, TextClassifier) else ("accuracy", "f1")
    if claimed.name not in known:
        raise LeptoError(f"--eval re-runs {' or '.join(map(repr, known))}; the manifest's metric is {claimed.name!r}")
    columns = {"text_column": evaluation.text_column, "label_column": evaluation.label_column}
    if isinstance(classifier, TextClassifier):
        texts, indices = read_labelled_texts(evaluation.path, labels=classifier.labels, **columns)
        _check_count(evaluation, len(texts), claimed)
        value = accuracy(classifier, texts, indices)
    else:
        rows, tags = read_tagged_words(evaluation.path, labels=classifier.labels, **columns)
        _check_count(evaluation, len(rows), claimed)
        value = word_metric(classifier, rows, tags, claimed.name)
    detail = f"{value:.4%} on {claimed.n:,} texts, the manifest claims {claimed.value:.4%}"
    values = {"value": value, "claimed": claimed.value, "n": claimed.n}
    return Check(claimed.name, abs(value - claimed.value) <= _METRIC_TOLERANCE, detail, values)


def _check_count(evaluation: Evaluation, count: int, claimed: Metric) -> None:
    if count != claimed.n:
        raise LeptoError(
            f"{evaluation.path} has {count} rows, the manifest's metric is over {claimed.n}: "
            "give the file that the package was compiled with (--eval)"
        )
