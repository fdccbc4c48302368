"""Bring measuring and judging together: a candidate against a baseline, with progress shown."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from rich.markup import escape

from lepto.benchmarks import scenarios
from lepto.benchmarks.gate import (
    LATENCY_QUANTILES,
    Check,
    Limit,
    Plan,
    Verdict,
    judge_accuracy,
    judge_bytes,
    judge_latency,
    not_checked,
    overall,
)
from lepto.benchmarks.scenarios import Feed, Subject
from lepto.compiler.data import Samples, load_samples
from lepto.runtime.console import Output
from lepto.runtime.errors import LeptoError


def compare(
    output: Output,
    subjects: Sequence[Subject],
    feeds: Sequence[Sequence[Feed]],
    samples: Samples | None,
    wanted: Collection[str],
    limits: Mapping[str, Limit],
    plan: Plan,
    seed: int,
) -> list[Check]:
    """Make the wanted checks.

    Args:
        output: Shows progress.
        subjects: Baseline and candidate.
        feeds: The inputs of each.
        samples: What the inputs were made of, with the labels; None if they have none.
        wanted: Some of accuracy, latency, bytes.
        limits: How much worse each may get.
        plan: When latency is looked at.
        seed: Of the order of runs.

    Returns:
        One check for accuracy and bytes, one for each latency quantile.
    """
    found: list[Check] = []
    if "accuracy" in wanted:
        found.append(_check_accuracy(output, subjects, feeds, samples, limits["accuracy"], plan.beta))
    if "latency" in wanted:
        found.extend(_check_latency(output, subjects, feeds, limits["latency"], plan, seed))
    if "bytes" in wanted:
        found.append(judge_bytes(subjects[0].bytes, subjects[1].bytes, limits["bytes"]))
    return found


def read_samples(
    subject: Subject, evaluation: str | None, text_column: str = "text", label_column: str = "label"
) -> Samples | None:
    """The labelled samples, if any are given, with the package's labels.

    Raises:
        LeptoError: They cannot be read, or have a label that the package does not know.
    """
    if evaluation is None:
        return None
    labels = subject.package.labels
    return load_samples(evaluation, text_column=text_column, label_column=label_column, labels=labels, split="test")


def feeds_for(
    subjects: Sequence[Subject], samples: Samples | None, lengths: Sequence[int] | None = None
) -> list[Sequence[Feed]]:
    """The inputs of every package: samples, texts of given lengths, or the first one's stored probe.

    Raises:
        LeptoError: A package does not take them.
    """
    if samples is not None:
        return [scenarios.feeds_from_samples(subject.package, samples) for subject in subjects]
    packages = [subject.package for subject in subjects]
    if lengths is not None:
        return [scenarios.feeds_of_lengths(package, lengths) for package in packages]
    feeds = scenarios.feeds_from_probe(packages[0])
    for package in packages[1:]:
        if {tensor.name for tensor in package.manifest.inputs} != set(feeds[0]):
            raise LeptoError(
                f"{package.path} does not take the probe inputs of {packages[0].path}: give samples with --eval"
            )
    return [feeds for _ in subjects]


def print_checks(output: Output, checks: Sequence[Check]) -> None:
    """Print one line for each check and the verdict."""
    colors = {Verdict.PASS: "green", Verdict.REGRESSION: "red", Verdict.INCONCLUSIVE: "yellow"}
    for check in checks:
        output.print(f"[{colors[check.verdict]}]{check.verdict.value:<12}[/]  {escape(check.message)}")
    verdict = overall(checks)
    output.print(f"gate: [bold {colors[verdict]}]{verdict.value}[/]")


def _check_latency(
    output: Output, subjects: Sequence[Subject], feeds: Sequence[Sequence[Feed]], limit: Limit, plan: Plan, seed: int
) -> list[Check]:
    """Measure pairs of blocks until every quantile is decided or the last declared look is over."""
    decided: dict[str, Check] = {}
    times: list[list[Any]] = [[] for _ in subjects]
    with bar(output, "measuring pairs", plan.looks[-1]) as progress:
        runs = scenarios.per_block(subjects, feeds)
        done = 0
        for look, pairs in enumerate(plan.looks):
            measured = scenarios.measure(
                subjects,
                feeds,
                blocks=pairs - done,
                runs=runs,
                seed=seed + look,
                progress=_offset(progress, done, plan),
            )
            done = pairs
            for store, blocks in zip(times, measured, strict=True):
                store.append(blocks)
            before, after = (np.concatenate(store) for store in times)
            for name in LATENCY_QUANTILES:
                # What an earlier look has decided stays: looking again would spend its level twice.
                if name not in decided or decided[name].verdict is Verdict.INCONCLUSIVE:
                    decided[name] = judge_latency(name, before, after, limit, plan, look)
            if all(check.verdict is not Verdict.INCONCLUSIVE for check in decided.values()):
                break
    return list(decided.values())


def _check_accuracy(
    output: Output,
    subjects: Sequence[Subject],
    feeds: Sequence[Sequence[Feed]],
    samples: Samples | None,
    limit: Limit,
    beta: float,
) -> Check:
    if samples is None:
        return not_checked(
            "accuracy", "no labelled samples; give them with --eval, or leave accuracy out with --checks latency,bytes"
        )
    predictions = []
    for subject, own in zip(subjects, feeds, strict=True):
        with bar(output, f"answers of {subject.name}", len(own)) as progress:
            predictions.append(scenarios.predict(subject, own, progress))
    return judge_accuracy(predictions[0], predictions[1], samples.labels, limit, beta)


def _offset(progress: Callable[[int, int], None], done: int, plan: Plan) -> Callable[[int, int], None]:
    return lambda now, _: progress(done + now, plan.looks[-1])


@contextmanager
def bar(output: Output, what: str, total: int) -> Iterator[Callable[[int, int], None]]:
    """A progress bar, as a function of what is done and how much there is."""
    with output.progress() as progress:
        task = progress.add_task(escape(what), total=total)
        yield lambda done, of: progress.update(task, completed=done, total=of)
