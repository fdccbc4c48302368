"""What the checks judge from: measured when the first check asks, kept for the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from rich.markup import escape

from lepto.benchmarks import scenarios, words
from lepto.benchmarks.checks.pairs import Plan
from lepto.benchmarks.instructions import Instructions, count_package
from lepto.benchmarks.sides import Side
from lepto.benchmarks.workers import Feed, Loaded, Pairs, Subject, spread
from lepto.compiler.data import Samples, read_column
from lepto.runtime.console import Output
from lepto.runtime.errors import LeptoError
from lepto.runtime.package import Package
from lepto.runtime.session import Session
from lepto.runtime.tagging import at_words

BATCH: Final = 32
Classes = npt.NDArray[np.int64]


class MissingError(Exception):
    """Something that a check needs is not there; the message says what to give."""


class BrokenError(Exception):
    """The candidate does not answer, or what it answers is no number."""


class Evidence:
    """Measurements of a baseline and a candidate.

    Args:
        sides: Baseline and candidate.
        samples: What they are asked, with labels; None for their stored probe.
        reference: Where the samples came from, for other columns.
        source: What the answers are compared with; by default the baseline.
        threads: Intra-op threads of both.
        seed: Of all random orders.
        plan: When pairs are looked at.
        output: Shows progress.
        slow: For the proof: added to every run of the candidate, as a share.
    """

    def __init__(
        self,
        sides: Sequence[Side],
        samples: Samples | None,
        *,
        plan: Plan,
        output: Output,
        reference: str | None = None,
        source: Side | None = None,
        threads: int | None = None,
        seed: int = 0,
        slow: float = 0.0,
    ) -> None:
        self.sides, self.samples, self.plan, self.output = list(sides), samples, plan, output
        self.reference, self.seed = reference, seed
        self.source = source or sides[0]
        packages = [side.package for side in sides if side.package is not None]
        self.threads = threads or (packages[0].manifest.threads if packages else 1)
        self.labels = sides[0].labels
        self._slow = slow
        self._rows: dict[int, list[npt.NDArray[Any]]] = {}
        self._feeds: dict[int, Sequence[Feed]] = {}
        self.batch_rows = BATCH

    @property
    def slowed(self) -> bool:
        """Whether the candidate is slowed down on purpose."""
        return self._slow > 0

    def package(self, side: int) -> Package:
        """What can be run.

        Raises:
            MissingError: The side is a stored result.
        """
        package = self.sides[side].package
        if package is None:
            raise MissingError(
                f"{self.sides[side].name} is a stored result, and this must be measured on one machine: "
                "give a package or REPOSITORY/MODEL/VERSION"
            )
        return package

    def need_labels(self, what: str) -> None:
        """Make sure that there are labelled samples.

        Raises:
            MissingError: There are none.
        """
        if self.samples is None:
            raise MissingError(
                "no labelled samples; give them with --eval (eval: in a gate file), or leave the check out"
            )
        if self.samples.labels.ndim != 1:
            raise MissingError(f"{what} needs one label for each sample")

    @property
    def has_words(self) -> bool:
        """Whether the samples are rows of words, each with a label."""
        return words.has_words(self.samples)

    def truth(self) -> Classes:
        """[N] right classes; for rows of words a number for each row of labels."""
        if self.has_words:
            return words.row_ids(self.true_rows())
        labels: Classes = self._labels()
        return labels

    def true_rows(self) -> Sequence[Classes]:
        """[N] rows of right labels of words."""
        return list(self._labels())

    def _labels(self) -> Any:
        self.need_labels("this check")
        assert self.samples is not None
        return self.samples.labels

    def feeds(self, side: int) -> Sequence[Feed]:
        """The inputs, one sample each; the same place means the same sample on both sides."""
        if side not in self._feeds:
            package = self.package(side)
            if self.samples is not None:
                self._feeds[side] = scenarios.feeds_from_samples(package, self.samples)
            else:
                self._feeds[side] = self._probes(package)
        return self._feeds[side]

    def _probes(self, package: Package) -> Sequence[Feed]:
        """The stored probe of the first side that has one."""
        owners = [one.package for one in self.sides if one.package and (one.package.path / "probe.npz").exists()]
        if not owners:
            raise MissingError("a published version has no stored probe: give samples with --eval")
        feeds = scenarios.feeds_from_probe(owners[0])
        if {tensor.name for tensor in package.manifest.inputs} != set(feeds[0]):
            raise LeptoError(
                f"{package.path} does not take the probe inputs of {owners[0].path}: give samples with --eval"
            )
        return feeds

    def logits(self, side: int) -> npt.NDArray[Any]:
        """[N, C] of every sample, each run by itself; for rows of words those of all their words, row after row.

        Raises:
            BrokenError: The candidate answers an error, NaN or infinity.
            LeptoError: The baseline does.
        """
        return self._together(self._answers(side))

    def _together(self, rows: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
        return np.concatenate(rows) if self.has_words else np.stack(rows)

    def _answers(self, side: int) -> list[npt.NDArray[Any]]:
        if side not in self._rows:
            self._rows[side] = self._ask(self.package(side), self.feeds(side), self.sides[side].name, side == 1)
        return self._rows[side]

    def row_of_words(self) -> Classes | None:
        """The row of each word that :meth:`logits` has; None if samples have one answer each."""
        if not self.has_words:
            return None
        sizes = [len(row) for row in self.true_rows()]
        return np.repeat(np.arange(len(sizes)), sizes)

    def _ask(self, package: Package, feeds: Sequence[Feed], name: str, candidate: bool) -> list[npt.NDArray[Any]]:
        session = Session(package, threads=self.threads)
        output = scenarios.scores_output(session)
        rows: list[npt.NDArray[Any]] = []
        places = words.first_places(package, self.samples) if self.samples and self.has_words else None

        def fail(why: str) -> Exception:
            if candidate:
                return BrokenError(f"{name} {why}: compile it again, or run `lepto verify` on it")
            return LeptoError(f"the baseline {name} {why}: it cannot be compared with; run `lepto verify` on it")

        with self.bar(f"answers of {name}", len(feeds)) as progress:
            for i, feed in enumerate(feeds):
                try:
                    row = session.run(feed)[output][0]
                except ValueError as error:
                    raise fail(f"answers an error for sample {i} ({error})") from error
                if not np.isfinite(row).all():
                    raise fail(f"answers NaN or infinity for sample {i}")
                rows.append(row if places is None else at_words(row, places[i]))
                progress(i + 1, len(feeds))
        return rows

    def classes(self, side: int) -> Classes:
        """[N] predicted classes, run or stored; for rows of words a number for each row of labels.

        Raises: See :meth:`decided`.
        """
        found = self.decided(side)
        return words.row_ids(found) if self.has_words else np.asarray(found, dtype=np.int64)

    def decided(self, side: int) -> Sequence[Any]:
        """[N] predicted classes, or rows of labels of words, run or stored.

        Raises:
            MissingError: A stored result has none.
            LeptoError: It has those of other samples.
        """
        stored = self.sides[side].stored
        if stored is None:
            return self._decide(self._answers(side))
        if stored.classes is None:
            raise MissingError(f"{stored.path} has no answers: store it with `lepto bench PACKAGE --eval DATA --store`")
        if self.samples is None:
            raise MissingError("no labelled samples; give those that the stored result was made with (--eval)")
        if stored.data_digest != self.samples.digest:
            raise LeptoError(
                f"{stored.path} was stored with other samples than {self.samples.origin} has now (digests "
                f"{str(stored.data_digest)[:12]}… and {self.samples.digest[:12]}…): give the same file, or store the "
                "baseline again with `lepto bench PACKAGE --eval DATA --store`"
            )
        return list(stored.classes)

    def _decide(self, rows: Sequence[npt.NDArray[Any]]) -> Sequence[Any]:
        return [words.decide(row) for row in rows] if self.has_words else [int(row.argmax()) for row in rows]

    @cached_property
    def _source_answers(self) -> list[npt.NDArray[Any]]:
        if self.source is self.sides[0]:
            return self._answers(0)
        package = self.source.package
        if package is None:
            raise MissingError(f"the source {self.source.name} is a stored result: give a package")
        feeds = scenarios.feeds_from_samples(package, self.samples) if self.samples else self._probes(package)
        return self._ask(package, feeds, self.source.name, False)

    def source_logits(self) -> npt.NDArray[Any]:
        """Of the source; see :meth:`logits`."""
        return self._together(self._source_answers)

    def source_classes(self) -> Classes:
        """[N] of the source; see :meth:`classes`."""
        if self.source is self.sides[0]:
            return self.classes(0)
        found = self._decide(self._source_answers)
        return words.row_ids(found) if self.has_words else np.asarray(found, dtype=np.int64)

    def lengths(self) -> npt.NDArray[np.int64]:
        """[N] lengths in tokens, or elements of the first input."""
        side = next(i for i, one in enumerate(self.sides) if one.package is not None)
        return np.array([next(iter(feed.values())).size for feed in self.feeds(side)], dtype=np.int64)

    def column(self, name: str) -> list[Any]:
        """[N] values of a column of the data.

        Raises:
            LeptoError: There is no such column.
            MissingError: There are no samples.
        """
        if self.reference is None or self.samples is None:
            raise MissingError(f"the column {name!r} needs samples: give them with --eval")
        return read_column(self.reference, name, split="test")

    def bytes(self, side: int) -> int:
        """Size of the model."""
        return self.sides[side].bytes

    def _subjects(self, feeds: Sequence[Sequence[Feed]]) -> list[Subject]:
        packages = [self.package(0), self.package(1)]
        slow = (0.0, self._slow)
        return [Subject(p, f, self.threads, s) for p, f, s in zip(packages, feeds, slow, strict=True)]

    @cached_property
    def _pairs(self) -> Pairs:
        self.package(0), self.package(1)
        chosen = spread(self.feeds(0))
        return Pairs(self._subjects([[self.feeds(side)[i] for i in chosen] for side in (0, 1)]), seed=self.seed)

    def pairs(self) -> Pairs:
        """Batch 1, in pairs."""
        return self._pairs

    @cached_property
    def _batches(self) -> Pairs:
        feeds = [scenarios.batches(self.package(side), self.feeds(side), self.batch_rows) for side in (0, 1)]
        return Pairs(self._subjects(feeds), seed=self.seed, runs=max(4, min(16, len(feeds[0]))))

    def batches(self) -> Pairs:
        """Batches of 32, in pairs."""
        return self._batches

    def instructions(self, side: int, runs: int, progress: Callable[[int, int], None]) -> Instructions:
        """Instructions of an inference, counted on the same inputs on both sides."""
        chosen = spread(self.feeds(0), runs)
        feeds = [self.feeds(side)[i] for i in chosen]
        return count_package(
            self.package(side), feeds, runs=runs, progress=lambda done, of: progress(side * of + done, 2 * of)
        )

    def loads(self, times: int, progress: Callable[[int, int], None]) -> list[list[Loaded]]:
        """Loads in fresh processes; those of the latency's workers count."""
        return self.pairs().load(times, progress)

    def latency_details(self) -> dict[str, Any]:
        """Quantiles of all runs so far, for a report."""
        names = ("p50_ms", "p90_ms", "p99_ms")
        sides = {}
        for which, seconds, cpu in zip(
            ("baseline", "candidate"), self.pairs().seconds, self.pairs().cpu_s, strict=True
        ):
            values = dict(zip(names, (1e3 * np.quantile(seconds, (0.5, 0.9, 0.99))).tolist(), strict=True))
            sides[which] = {**values, "cpu_ms": 1e3 * cpu, "runs": int(seconds.size)}
        return {**sides, "runs_in_a_block": self.pairs().runs, "threads": self.threads}

    @contextmanager
    def bar(self, what: str, total: int) -> Iterator[Callable[[int, int], None]]:
        """A progress bar, as a function of what is done and how much there is."""
        with self.output.progress() as progress:
            task = progress.add_task(escape(what), total=total)
            yield lambda done, of: progress.update(task, completed=done, total=of)
