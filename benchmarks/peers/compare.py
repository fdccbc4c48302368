"""One comparison from start to end: models, workers, measurement, table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from rich.markup import escape

from lepto.benchmarks.peers import table
from lepto.benchmarks.peers.client import Worker
from lepto.benchmarks.peers.entries import (
    EAGER,
    Entry,
    Settings,
    eager_entry,
    package_entries,
    peer_entries,
    without_paths,
)
from lepto.benchmarks.peers.interleave import Batch, interleave, single_blocks, sorted_batches, spread_blocks
from lepto.benchmarks.peers.table import Measured
from lepto.compiler.data import load_samples
from lepto.compiler.source import open_source
from lepto.compiler.verify import tokenize
from lepto.runtime.console import Output
from lepto.runtime.errors import LeptoError
from lepto.runtime.machine import this_machine
from lepto.runtime.measure import machine_load

_BATCH: Final = 32
_SETTLE_S: Final = 0.1  # longer than any runtime's threads were seen to spin for: ONNX Runtime's for 60 ms
_CHUNK: Final = 250


@dataclass(frozen=True, slots=True)
class _Ready:
    """A model that is loaded in its worker and has the samples."""

    entry: Entry
    worker: Worker
    versions: Mapping[str, str]

    def time(self, batches: Sequence[Batch]) -> list[float]:
        seconds: list[float] = self.worker.ask("time", batches=list(batches))["seconds"]
        return seconds

    def classes(self, batches: Sequence[Batch]) -> list[int]:
        classes: list[int] = self.worker.ask("answers", batches=list(batches))["classes"]
        return classes


def compare(settings: Settings, output: Output) -> dict[str, Any]:
    """Make, measure, judge and print.

    Returns:
        What is stored.

    Raises:
        LeptoError: The source, the data or a package cannot be read, or the source itself cannot be measured.
    """
    for path in (settings.source, settings.train, settings.evaluation, *settings.packages):
        if not path.exists():
            raise LeptoError(f"{path} does not exist: name it with --source, --train, --eval or --package")
    source = open_source(str(settings.source))
    if source.text is None or source.labels is None:
        raise LeptoError(f"{settings.source} is no text classifier with names for its labels")
    read = partial(
        load_samples, text_column=settings.text_column, label_column=settings.label_column, labels=source.labels
    )
    train, samples = read(str(settings.train), split="train"), read(str(settings.evaluation), split="test")
    train_texts, texts = _texts(train.inputs), _texts(samples.inputs)
    packages = package_entries(settings, source)
    output.settings(
        "peers",
        {
            "source": settings.source,
            "evaluation": f"{settings.evaluation} ({len(samples):,} samples)",
            "peers": ", ".join(settings.peers),
            "packages": ", ".join(map(str, settings.packages)) or None,
            "threads": settings.threads,
            "blocks": settings.blocks,
        },
    )
    made, failed = peer_entries(settings, source, source.text, train_texts, output)
    load = machine_load()
    with ExitStack() as stack:
        entries = [eager_entry(settings, source, source.text), *made, *packages]
        ready = _start(entries, settings, texts, failed, stack, output)
        lengths = [len(row) for row in tokenize(texts, source.text)]
        measured = _measure(ready, lengths, samples.labels, settings, failed, output)
    if EAGER in failed:
        raise LeptoError(f"the source itself could not be measured: {failed[EAGER]}")
    judged = table.judge(measured)
    _print(judged, failed, output)
    about = {name: {**one.entry.about, "versions": one.versions} for name, one in ready.items() if name in measured}
    return {
        "source": settings.source.name,
        "evaluation": {"name": "/".join(settings.evaluation.parts[-2:]), "samples": len(samples)},
        "settings": {"blocks": settings.blocks, "threads": settings.threads, "seed": settings.seed, "batch": _BATCH},
        "machine": asdict(this_machine()),
        "load_before": load.average_1min,
        "models": about,
        "failed": failed,
        **judged.as_json(),
    }


def _start(
    entries: Sequence[Entry],
    settings: Settings,
    texts: Sequence[str],
    failed: dict[str, str],
    stack: ExitStack,
    output: Output,
) -> dict[str, _Ready]:
    """Start a worker for each model and give it the samples; the errors of those that fail are noted."""
    ready = {}
    with _bar(output, "loading models", len(entries)) as progress:
        for number, entry in enumerate(entries):
            command = [entry.python, "-P", "-m", "lepto.benchmarks.peers.worker"]
            log = settings.work.absolute() / "logs" / f"{number}.log"
            try:
                worker = stack.enter_context(Worker(entry.name, command, log=log, variables=entry.variables))
                versions = worker.ask("load", **entry.load, threads=settings.threads)["versions"]
                rows = tokenize(texts, entry.text)
                worker.ask("rows", rows=rows, pad_id=entry.text.preprocessing.pad_id)
                ready[entry.name] = _Ready(entry, worker, versions)
            except LeptoError as error:
                failed[entry.name] = without_paths(str(error), settings)
            progress(number + 1, len(entries))
    return ready


def _measure(
    ready: Mapping[str, _Ready],
    lengths: Sequence[int],
    labels: npt.NDArray[np.int64],
    settings: Settings,
    failed: dict[str, str],
    output: Output,
) -> dict[str, Measured]:
    """Answers first, which warm up every length, then the times."""
    batches = sorted_batches(lengths, _BATCH)
    right = {}
    with _bar(output, "answers, each sample alone", len(ready)) as progress:
        for number, (name, one) in enumerate(ready.items()):
            try:
                classes: list[int] = []
                for start in range(0, len(lengths), _CHUNK):
                    classes += one.classes([[i] for i in range(start, min(start + _CHUNK, len(lengths)))])
                right[name] = np.array(classes) == labels
                # Some runtimes compile for each new shape.
                one.time(list({max(lengths[i] for i in batch): batch for batch in batches}.values()))
            except LeptoError as error:
                failed[name] = without_paths(str(error), settings)
            progress(number + 1, len(ready))
    timers = {name: ready[name].time for name in right}
    interleaved = partial(interleave, seed=settings.seed, settle_s=_SETTLE_S)
    single = single_blocks(len(lengths), settings.blocks, settings.seed)
    with _bar(output, "blocks at batch 1", len(single)) as progress:
        single_s, lost = interleaved(timers, single, progress=progress)
    spread = spread_blocks(batches, settings.blocks, settings.seed)
    with _bar(output, f"blocks at batch {_BATCH}", len(spread)) as progress:
        timers = {name: timer for name, timer in timers.items() if name not in lost}
        batches_s, lost_too = interleaved(timers, spread, progress=progress)
    failed |= {name: without_paths(error, settings) for name, error in {**lost, **lost_too}.items()}
    samples = sum(len(batch) for block in spread for batch in block)
    return {
        name: Measured(
            role=ready[name].entry.role,
            bytes=ready[name].entry.bytes,
            right=right[name],
            single_s=single_s[name],
            batches_s=batches_s[name],
            batch_samples=samples,
        )
        for name in batches_s
    }


def _print(judged: table.Table, failed: Mapping[str, str], output: Output) -> None:
    output.table(
        "batch 1, real lengths; accuracy with its difference from eager in points, and the 95 % lower bound of that",
        table.LATENCY_COLUMNS,
        table.latency_rows(judged, failed),
    )
    output.table(f"batch {_BATCH}, sorted by length", table.THROUGHPUT_COLUMNS, table.throughput_rows(judged, failed))
    for name, error in failed.items():
        output.print(f"[red]failed[/]  {escape(name)}: {escape(error)}")


def _texts(inputs: Any) -> tuple[str, ...]:
    if not isinstance(inputs, tuple):
        raise LeptoError("the data gives arrays; the peers are compared on texts")
    return inputs


@contextmanager
def _bar(output: Output, what: str, total: int) -> Iterator[Callable[[int, int], None]]:
    with output.progress() as progress:
        task = progress.add_task(escape(what), total=total)
        yield lambda done, of: progress.update(task, completed=done, total=of)
