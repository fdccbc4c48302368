"""Measure packages: load them, feed them the same inputs in interleaved pairs, return plain values."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from lepto.compiler.data import Samples
from lepto.runtime.errors import LeptoError
from lepto.runtime.manifest import TOKEN_CLASSIFICATION
from lepto.runtime.measure import interleave
from lepto.runtime.package import Package, open_package
from lepto.runtime.session import Session
from lepto.runtime.text import TextEncoder

Feed = dict[str, npt.NDArray[Any]]
Seconds = npt.NDArray[np.float64]
Progress = Callable[[int, int], None]

LOADS: Final = 3
WARMUP: Final = 10
# A block must be long against the clock and the scheduler's tick, and have enough runs for a 90th percentile.
BLOCK_S: Final = 0.05
LEAST_PER_BLOCK, MOST_PER_BLOCK = 20, 200


@dataclass(frozen=True)
class Subject:
    """A package that is loaded and ready to be measured.

    Attributes:
        name: As shown; unique among the packages of one run.
        package: What was opened; its digests were checked.
        session: What runs.
        load_ms: Median of several loads, files in the page cache.
        bytes: Size of ``model.onnx``.
    """

    name: str
    package: Package
    session: Session
    load_ms: float
    bytes: int


@dataclass(frozen=True, slots=True)
class Latency:
    """Times of one package at batch 1.

    Attributes:
        p50_ms: Median.
        p90_ms: 90th percentile.
        p99_ms: 99th percentile; with n runs its rank is uncertain by about ``2 * sqrt(n * 0.01 * 0.99)`` places.
        throughput: Samples a second, one after the other.
        n: Runs.
    """

    p50_ms: float
    p90_ms: float
    p99_ms: float
    throughput: float
    n: int

    @classmethod
    def of(cls, seconds: Seconds) -> Latency:
        """Summarise measured seconds of any shape."""
        p50, p90, p99 = (1e3 * float(value) for value in np.quantile(seconds, (0.5, 0.9, 0.99)))
        return cls(p50, p90, p99, 1.0 / float(np.mean(seconds)), int(seconds.size))


def load(paths: Sequence[Path], threads: int | None) -> list[Subject]:
    """Open and load packages, all with the same number of threads.

    Args:
        paths: The packages' folders.
        threads: Intra-op threads; those of the first package's manifest unless given.

    Raises:
        LeptoError: A package is broken or cannot be loaded.
    """
    packages = [open_package(path) for path in paths]
    threads = packages[0].manifest.threads if threads is None else threads
    names = [package.manifest.name for package in packages]
    importlib.import_module("onnxruntime")  # its import is no part of the load time
    subjects = []
    for path, package, name in zip(paths, packages, names, strict=True):
        seconds = []
        for _ in range(LOADS):
            start = time.perf_counter()
            session = Session(package, threads=threads)
            seconds.append(time.perf_counter() - start)
        shown = name if names.count(name) == 1 else str(path)
        subjects.append(
            Subject(shown, package, session, 1e3 * float(np.median(seconds)), package.model_path.stat().st_size)
        )
    return subjects


def check_comparable(baseline: Package, candidate: Package) -> None:
    """Refuse packages that do not answer the same question.

    Raises:
        LeptoError: Task, labels or inputs differ.
    """
    first, second = baseline.manifest, candidate.manifest
    if first.task != second.task:
        raise LeptoError(
            f"{baseline.path} is for task {first.task!r}, {candidate.path} for {second.task!r}: they cannot be compared"
        )
    if baseline.labels != candidate.labels:
        raise LeptoError(
            f"{baseline.path} and {candidate.path} differ in their labels: {_labels_differ(baseline, candidate)}"
        )
    # A text goes in either way; which tensors a tokenizer makes of it may differ.
    if first.preprocessing is None or second.preprocessing is None:
        if (first.preprocessing is None) != (second.preprocessing is None):
            raise LeptoError(f"one of {baseline.path} and {candidate.path} takes text, the other tensors")
        if first.inputs != second.inputs:
            raise LeptoError(
                f"{baseline.path} takes {_tensors(first.inputs)}, {candidate.path} takes {_tensors(second.inputs)}: "
                "they cannot be given the same inputs"
            )


def _labels_differ(baseline: Package, candidate: Package) -> str:
    first, second = baseline.labels or (), candidate.labels or ()
    if len(first) != len(second):
        return f"{len(first)} and {len(second)} of them"
    place = next(i for i, (a, b) in enumerate(zip(first, second, strict=True)) if a != b)
    return f"number {place} is {first[place]!r} in one and {second[place]!r} in the other"


def _tensors(tensors: Sequence[Any]) -> str:
    return ", ".join(f"{one.name} {one.dtype} {list(one.shape)}" for one in tensors)


def feeds_from_probe(package: Package) -> list[Feed]:
    """The stored probe inputs, row by row."""
    inputs, _ = package.probe()
    rows = min(len(array) for array in inputs.values())
    return [{name: array[row : row + 1] for name, array in inputs.items()} for row in range(rows)]


def feeds_of_lengths(package: Package, lengths: Sequence[int]) -> list[Feed]:
    """Inputs of given lengths in tokens, made of the tokens of the stored probe.

    Raises:
        LeptoError: The package takes no text, or a length is out of its range.
    """
    preprocessing = package.manifest.preprocessing
    if preprocessing is None:
        raise LeptoError(f"--lengths needs a package that takes text: {package.path} takes tensors; leave it out")
    for length in lengths:
        if not 1 <= length <= preprocessing.max_length:
            raise LeptoError(f"a length must be in [1, {preprocessing.max_length}] for {package.path}, got {length}")
    inputs, _ = package.probe()
    tokens = inputs["input_ids"][inputs["input_ids"] != preprocessing.pad_id]
    values = {"input_ids": tokens if tokens.size else np.array([preprocessing.pad_id])}
    constant = {"attention_mask": 1, "token_type_ids": preprocessing.pad_type_id}
    return [
        {
            name: np.resize(values.get(name, np.array([constant.get(name, 0)])), (1, length)).astype(np.int64)
            for name in preprocessing.inputs
        }
        for length in lengths
    ]


def feeds_from_samples(package: Package, samples: Samples) -> list[Feed]:
    """Evaluation samples as inputs of batch 1, at their real lengths.

    Raises:
        LeptoError: The samples are not what the package takes.
    """
    preprocessing, tokenizer = package.manifest.preprocessing, package.tokenizer_path
    if isinstance(samples.inputs, tuple):
        if preprocessing is None or tokenizer is None:
            raise LeptoError(f"{samples.origin} has texts, but {package.path} takes tensors: give a data factory")
        encoder = TextEncoder(tokenizer, preprocessing)
        return [
            dict(encoder.encode([text]) if isinstance(text, str) else encoder.encode_words([text])[0])
            for text in samples.inputs
        ]
    expected = {tensor.name for tensor in package.manifest.inputs}
    if samples.inputs.keys() != expected:
        raise LeptoError(
            f"{samples.origin} gives {sorted(samples.inputs)}, but {package.path} takes {sorted(expected)}"
        )
    return [{name: array[row : row + 1] for name, array in samples.inputs.items()} for row in range(len(samples))]


def scores_output(session: Session) -> str:
    """The output whose largest value is the answer.

    Raises:
        LeptoError: The package does not classify.
    """
    outputs = {tensor.name: tensor for tensor in session.outputs}
    name = "logits" if "logits" in outputs else next(iter(outputs))
    rank = 3 if session.package.manifest.task == TOKEN_CLASSIFICATION else 2
    if ("logits" not in outputs and len(outputs) > 1) or len(outputs[name].shape) != rank:
        raise LeptoError(
            f"accuracy needs one output [batch, classes] or one named 'logits': {session.package.path} gives "
            f"{_tensors(session.outputs)}; judge it with --checks latency,bytes"
        )
    return name


def predict(subject: Subject, feeds: Sequence[Feed], progress: Progress | None = None) -> npt.NDArray[np.int64]:
    """[N] predicted classes, every sample run by itself.

    Raises:
        LeptoError: The package does not classify.
    """
    name = scores_output(subject.session)
    classes = np.empty(len(feeds), dtype=np.int64)
    for i, feed in enumerate(feeds):
        classes[i] = int(subject.session.run(feed)[name][0].argmax())
        if progress is not None:
            progress(i + 1, len(feeds))
    return classes


def batches(package: Package, feeds: Sequence[Mapping[str, npt.NDArray[Any]]], rows: int) -> list[Feed]:
    """Inputs of batch 1 put together to batches of ``rows``, padded to the longest; repeated if there are too few."""
    preprocessing = package.manifest.preprocessing
    padding = {} if preprocessing is None else {
        "input_ids": preprocessing.pad_id, "token_type_ids": preprocessing.pad_type_id
    }  # fmt: skip
    count = max(1, min(32, len(feeds) // rows))
    found = []
    for start in range(count):
        part = [feeds[(start * rows + i) % len(feeds)] for i in range(rows)]
        batch: dict[str, Any] = {}
        for name in part[0]:
            shape = np.max([feed[name].shape for feed in part], axis=0)
            whole = np.full((rows, *shape[1:]), padding.get(name, 0), part[0][name].dtype)
            for row, feed in enumerate(part):
                whole[(row, *(slice(size) for size in feed[name].shape[1:]))] = feed[name][0]
            batch[name] = whole
        found.append(batch)
    return found


def per_block(subjects: Sequence[Subject], feeds: Sequence[Sequence[Feed]]) -> int:
    """Runs in a block, from a quick look at how long the fastest takes."""
    fastest = np.inf
    for subject, own in zip(subjects, feeds, strict=True):
        chosen = [own[i % len(own)] for i in range(WARMUP)]
        for feed in chosen[:3]:
            subject.session.run(feed)
        start = time.perf_counter()
        for feed in chosen:
            subject.session.run(feed)
        fastest = min(fastest, (time.perf_counter() - start) / len(chosen))
    return int(np.clip(BLOCK_S / fastest, LEAST_PER_BLOCK, MOST_PER_BLOCK))


def measure(
    subjects: Sequence[Subject],
    feeds: Sequence[Sequence[Feed]],
    *,
    blocks: int,
    runs: int,
    seed: int,
    progress: Progress | None = None,
) -> list[Seconds]:
    """Time packages in interleaved blocks on the same inputs.

    Args:
        subjects: The packages.
        feeds: For each package the inputs; place i stands for the same sample in all.
        blocks: How many blocks.
        runs: Runs of each package in a block.
        seed: Of the order.
        progress: Told after each block.

    Returns:
        For each package [blocks, runs] seconds.
    """

    def runner(subject: Subject, own: Sequence[Feed]) -> Callable[[int], Any]:
        return lambda i: subject.session.run(own[i])

    runners = {str(i): runner(*pair) for i, pair in enumerate(zip(subjects, feeds, strict=True))}
    seconds = interleave(
        runners, range(len(feeds[0])), blocks=blocks, per_block=runs, warmup=WARMUP, seed=seed, progress=progress
    )
    return [seconds[name] for name in runners]
