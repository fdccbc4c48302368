"""Metric and speed of the source and of each candidate, kept in the cache."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.progress import Progress

from lepto.compiler.cache import Cache
from lepto.compiler.context import Feed, PassError
from lepto.compiler.costs import BATCH, timing_feeds
from lepto.compiler.data import Samples
from lepto.compiler.export.onnx import proof_feeds
from lepto.compiler.metrics import Outcomes, decisions, metric, outcomes
from lepto.compiler.model import OnnxModel
from lepto.compiler.module_outputs import module_outputs
from lepto.compiler.source import Source
from lepto.compiler.statistics import Ratio, ratio_interval
from lepto.compiler.verify import (
    PARITY_ATOL,
    PARITY_RTOL,
    Parity,
    encode,
    first_places,
    logits_one_by_one,
    pad,
    parity,
    runner,
)
from lepto.runtime.manifest import FEATURE_EXTRACTION, Metric
from lepto.runtime.measure import FORM as TIMING_FORM
from lepto.runtime.measure import interleave

Logits = npt.NDArray[np.float32]

BLOCKS, PER_BLOCK = 24, 20
"""Pairs of blocks in a comparison, and inputs in each: 24 pairs show a difference of some 3 % on a noisy machine."""


@dataclass(frozen=True)
class Timing:
    """Candidate against baseline, interleaved on the same inputs.

    Attributes:
        baseline_ms: Median of the baseline.
        candidate_ms: Median of the candidate.
        ratio: Baseline over candidate, with its 95 % interval.
        seconds: ``[blocks, runs]`` of both; None where they are not kept.
    """

    baseline_ms: float
    candidate_ms: float
    ratio: Ratio
    seconds: tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]] | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Evaluator:
    """Evaluates models on one set of samples, on this machine.

    Attributes:
        source: The original.
        current: What the candidates were exported from, where it was cut; it may have another tokenizer.
        samples: The evaluation split; None if there is none.
        threads: Intra-op threads.
        seed: Seed of the order of runs.
        cache: Where results are kept.
        machine: What identifies this machine's speed, part of the key of timings.
        versions: Versions of what runs the models, part of every key.
        progress: Where progress is shown.
    """

    source: Source
    samples: Samples | None
    threads: int
    seed: int
    cache: Cache
    machine: str
    versions: dict[str, str]
    progress: Progress
    current: Source | None = None

    @property
    def subject(self) -> Source:
        """What the candidates were exported from."""
        return self.current or self.source

    def feeds(self) -> list[Feed]:
        """The evaluation samples as single requests; without samples, the traced example's rows."""
        return self._feeds(self.subject)

    def _feeds(self, source: Source) -> list[Feed]:
        if self.samples is not None:
            return encode(self.samples.inputs, source.text)
        count = len(next(iter(source.example.values())))
        return [{name: array[i : i + 1] for name, array in source.example.items()} for i in range(count)]

    def source_logits(self) -> tuple[Logits, bool]:
        """[N, L] of the source, for rows of words [N, W, L]; and whether the cache had them."""
        samples = self._samples()

        def make(stage: Path) -> None:
            with _task(self.progress, "source: metric", len(samples)) as advance:
                np.save(stage / "logits.npy", module_outputs(self.source, samples, self.threads, advance))

        return self._logits("source-metric", self.source.digest, make)

    def module_logits(self, label: str) -> tuple[Logits, bool]:
        """What the subject's own PyTorch module says; and whether the cache had it."""
        samples, subject = self._samples(), self.subject

        def make(stage: Path) -> None:
            with _task(self.progress, f"{label}: metric", len(samples)) as advance:
                np.save(stage / "logits.npy", module_outputs(subject, samples, self.threads, advance))

        return self._logits("module-metric", subject.digest, make)

    def logits(self, model: OnnxModel, label: str) -> tuple[Logits, bool]:
        """[N, L] of a candidate, each sample run alone; and whether the cache had them."""
        samples = self._samples()

        def make(stage: Path) -> None:
            run = runner(model, self.threads)
            with _task(self.progress, f"{label}: metric", len(samples)) as advance:
                first = first_places(samples.inputs, self.subject.text)
                np.save(stage / "logits.npy", logits_one_by_one(run, self.feeds(), advance, first))

        return self._logits("metric", model.digest, make)

    def metric(self, logits: Logits, what: str) -> Metric:
        """The task metric of outputs; for vectors how close they come to the source's.

        Raises:
            PassError: Outputs are not finite or do not fit the labels.
        """
        try:
            return metric(logits, self._truth())
        except ValueError as error:
            raise PassError(f"{what}: {error}") from error

    def outcomes(self, logits: Logits) -> Outcomes:
        """What outputs earn on each sample, where :meth:`metric` has found no fault with them."""
        return outcomes(logits, self._truth())

    def _truth(self) -> Samples:
        """The samples with what is right for each: their labels, or the source's vectors."""
        samples = self._samples()
        return dataclasses.replace(samples, labels=self.source_logits()[0]) if samples.labels.ndim == 2 else samples

    def compare(
        self, baseline: OnnxModel | None, candidate: OnnxModel, label: str, *, batches: bool = False
    ) -> tuple[Timing, bool]:
        """Time a candidate against a baseline (None is the source as the user runs it today).

        Args:
            baseline: What it is compared with.
            candidate: What is timed.
            label: For the line of progress.
            batches: Time batches of 32 samples of like length, instead of one sample at a time. Not of the source.
        """

        def make(stage: Path) -> None:
            first = self.source.runner(self.threads) if baseline is None else runner(baseline, self.threads)
            second = runner(candidate, self.threads)
            runs: dict[str, Callable[[tuple[Feed, Feed]], object]] = {
                "baseline": lambda pair: first(pair[0]),
                "candidate": lambda pair: second(pair[1]),
            }
            # The same text for both, each as its own tokenizer reads it.
            own = self.feeds()
            if batches:
                _, own = timing_feeds(own, self.subject)
            before = own if baseline is not None or self.current is None else self._feeds(self.source)
            with _task(self.progress, f"{label}: speed", BLOCKS) as advance:
                seconds = interleave(
                    runs,
                    list(zip(before, own, strict=True)),
                    blocks=BLOCKS,
                    per_block=len(own) if batches else PER_BLOCK,
                    warmup=5,
                    seed=self.seed,
                    progress=lambda _done, _all: advance(1),
                )
            np.savez(stage / "seconds.npz", **seconds)

        key = {
            "baseline": self.source.digest if baseline is None else baseline.digest,
            "candidate": candidate.digest,
            "threads": self.threads,
            "seed": self.seed,
            "form": TIMING_FORM,
            **({"batches": BATCH} if batches else {}),
            **self._key(),
        }
        entry, cached = self.cache.get("speed", key, make)
        seconds = np.load(entry / "seconds.npz")
        a, b = seconds["baseline"], seconds["candidate"]
        return Timing(float(np.median(a)) * 1e3, float(np.median(b)) * 1e3, ratio_interval(a, b), (a, b)), cached

    def parity(self, parent: OnnxModel, model: OnnxModel, label: str) -> tuple[Parity, bool]:
        """Compare a rewritten graph with the one before, on the shapes of the proof and on real samples."""

        def make(stage: Path) -> None:
            feeds = self.proof_feeds()
            with _task(self.progress, f"{label}: parity", 1):
                decides = self.source.task != FEATURE_EXTRACTION
                proof = parity(runner(parent, self.threads), runner(model, self.threads), feeds, decides=decides)
            (stage / "parity.json").write_text(json.dumps(asdict(proof)))  # Python reads back the infinity it writes

        entry, cached = self.cache.get("parity", {"parent": parent.digest, "model": model.digest, **self._key()}, make)
        return Parity(**json.loads((entry / "parity.json").read_text())), cached

    def proof_feeds(self) -> list[Feed]:
        """Inputs for parity: minimal and typical shapes, and up to 64 real samples."""
        return [*proof_feeds(self.subject, 16)[:6], *real_feeds(self.feeds(), 64)]

    def batch_invariant(self, model: OnnxModel) -> bool:
        """Whether rows keep their outputs beside other rows and padding, tried on batches of unlike samples."""
        if self.subject.text is None and self.samples is None:
            return True

        def make(stage: Path) -> None:
            run, feeds = runner(model, self.threads), self.feeds()[:64]
            alone = [row for feed in feeds for row in run(feed)]
            together: list[Logits] = []
            for start in range(0, len(feeds), 8):
                group = feeds[start : start + 8]
                if self.subject.text is not None:
                    together.extend(run(pad([feed["input_ids"][0].tolist() for feed in group], self.subject.text)))
                else:
                    together.extend(run({name: np.concatenate([f[name] for f in group]) for name in group[0]}))
            size = max(float(np.abs(a).max(initial=0.0)) for a in alone)
            # Where every token has an output, those of the padding are nobody's.
            apart = max(float(np.abs(a - b[: len(a)]).max()) for a, b in zip(alone, together, strict=True))
            same = apart <= PARITY_ATOL + PARITY_RTOL * size
            (stage / "invariant.json").write_text(json.dumps({"same": same, "max_abs": apart}))

        key = {"model": model.digest, **self._key()}
        entry, _ = self.cache.get("invariance", key, make)
        return bool(json.loads((entry / "invariant.json").read_text())["same"])

    def _logits(self, step: str, digest: str, make: Callable[[Path], None]) -> tuple[Logits, bool]:
        key = {"model": digest, **self._key()}
        entry, cached = self.cache.get(step, key, make)
        loaded: Logits = np.load(entry / "logits.npy")
        return loaded, cached

    def _key(self) -> dict[str, Any]:
        """What decides every result here besides the model: the inputs, and what runs them."""
        return {
            "subject": self.subject.digest,
            "source": self.source.digest,  # it holds the tokenizer too, which the graph does not
            "data": self.samples.digest if self.samples else None,
            "machine": self.machine,
            "versions": self.versions,
        }

    def _samples(self) -> Samples:
        if self.samples is None:
            raise PassError("there is no evaluation data: give --eval")
        return self.samples


class _task:  # noqa: N801  (used like a function)
    """A line of progress while the work runs."""

    def __init__(self, progress: Progress, label: str, total: int) -> None:
        self.progress, self.label, self.total = progress, label, total

    def __enter__(self) -> Callable[[int], None]:
        self.id = self.progress.add_task(self.label, total=self.total)
        return lambda count: self.progress.advance(self.id, count)

    def __exit__(self, *_: object) -> None:
        self.progress.remove_task(self.id)


def agreement(a: Logits, b: Logits) -> float:
    """Fraction of samples, or of their words, with the same arg max, in [0, 1]."""
    same = decisions(a) == decisions(b)
    return float(same.mean() if a.ndim == 2 else same[a.any(axis=-1) | b.any(axis=-1)].mean())


def real_feeds(feeds: Sequence[Feed], count: int) -> list[Feed]:
    """Up to ``count`` samples spread over the data, the longest among them."""
    if len(feeds) <= count:
        return list(feeds)
    sizes = [max(array.size for array in feed.values()) for feed in feeds]
    order = np.argsort(sizes, kind="stable")
    return [feeds[i] for i in order[np.linspace(0, len(feeds) - 1, count).astype(int)]]
