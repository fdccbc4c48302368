"""What the measuring commands share: samples, inputs, progress."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.markup import escape

from lepto.benchmarks import scenarios
from lepto.benchmarks.scenarios import Feed, Subject
from lepto.compiler.data import Samples, load_samples
from lepto.runtime.console import Output
from lepto.runtime.errors import LeptoError


def read_samples(
    subject: Subject, evaluation: str | None, text_column: str = "text", label_column: str = "label"
) -> Samples | None:
    """The labelled samples, if any are given, with the package's labels.

    Raises:
        LeptoError: They cannot be read, or have a label that the package does not know.
    """
    if evaluation is None:
        return None
    return load_samples(
        evaluation, text_column=text_column, label_column=label_column, labels=subject.package.labels, split="test",
        task=subject.package.manifest.task,
    )  # fmt: skip


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


@contextmanager
def bar(output: Output, what: str, total: int) -> Iterator[Callable[[int, int], None]]:
    """A progress bar, as a function of what is done and how much there is."""
    with output.progress() as progress:
        task = progress.add_task(escape(what), total=total)
        yield lambda done, of: progress.update(task, completed=done, total=of)
