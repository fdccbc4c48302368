"""Why a gate failed: where the time went, which slices and samples flipped, at which layer the error grew most.

What is found here explains a verdict; it is none. A function for each question, which the gate calls when a check
fails, and ``lepto blame`` for people.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from lepto.benchmarks.profiles import Moved, by_layer, by_operator, profile_pair
from lepto.compiler.layer_errors import LayerError, grew_most, layer_errors
from lepto.compiler.model import OnnxModel
from lepto.compiler.proportions import mcnemar_worse
from lepto.runtime.package import Package

Feed = Mapping[str, npt.NDArray[Any]]
Feeds = tuple[Sequence[Feed], Sequence[Feed]]
"""The same samples as baseline and candidate take them."""
Ints = npt.NDArray[np.int64]
Progress = Callable[[int, int], None]

_LAYER_SAMPLES = 16


@dataclass(frozen=True)
class LatencyBlame:
    """Where the time went.

    Attributes:
        baseline_us: A profiled run of the baseline; longer than an unprofiled one.
        candidate_us: The same of the candidate.
        layers: Every layer, what changed most first.
        operators: Every operator.
    """

    baseline_us: float
    candidate_us: float
    layers: tuple[Moved, ...]
    operators: tuple[Moved, ...]

    def lines(self, top: int = 5) -> list[str]:
        """For people, the most important first."""
        change = self.candidate_us - self.baseline_us
        said = [f"a profiled run went from {self.baseline_us:.1f} to {self.candidate_us:.1f} µs ({change:+.1f})"]
        said += [f"by layer: {item}" for item in self.layers[:top]]
        return said + [f"by operator: {item}" for item in self.operators[:top]]

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "baseline_us": self.baseline_us,
            "candidate_us": self.candidate_us,
            "layers": [asdict(item) | {"change_us": item.change_us} for item in self.layers],
            "operators": [asdict(item) | {"change_us": item.change_us} for item in self.operators],
        }


@dataclass(frozen=True, slots=True)
class SliceLoss:
    """What a slice lost.

    Attributes:
        column: What the samples were parted by.
        value: Which part.
        n: Samples.
        broken: Right with the baseline only.
        repaired: Right with the candidate only.
        p: One-sided exact McNemar, Holm-corrected over all slices.
    """

    column: str
    value: str
    n: int
    broken: int
    repaired: int
    p: float

    @property
    def change(self) -> float:
        """Of the accuracy; negative is a loss."""
        return (self.repaired - self.broken) / self.n

    def __str__(self) -> str:
        """For people."""
        return (
            f"{self.column} {self.value!r} {100 * self.change:+.1f} points ({self.broken} of {self.n} broke, "
            f"{self.repaired} repaired, p = {self.p:.2g})"
        )


@dataclass(frozen=True, slots=True)
class FlippedSample:
    """A sample that only the baseline has right.

    Attributes:
        row: Its place in the data.
        text: What it says; empty where it is no text.
        label: The right class.
        candidate: What the candidate says.
    """

    row: int
    text: str
    label: str
    candidate: str

    def __str__(self) -> str:
        """For people."""
        said = f" {self.text[:120]!r}" if self.text else ""
        return f"sample {self.row}{said}: {self.label} → {self.candidate}"


@dataclass(frozen=True)
class AccuracyBlame:
    """What was lost, and where the error comes from.

    Attributes:
        changed: Samples with another answer, of ``n``.
        n: Samples.
        slices: Those that lost something, the most lost samples first.
        samples: Those that broke.
        layers: Error of the candidate's layers against the baseline's, in order; empty if the graphs share no tensor.
        worst: The layer at which it grew most.
    """

    changed: int
    n: int
    slices: tuple[SliceLoss, ...]
    samples: tuple[FlippedSample, ...]
    layers: tuple[LayerError, ...]
    worst: LayerError | None

    def lines(self, top: int = 5) -> list[str]:
        """For people, the most important first."""
        said = [f"{self.changed} of {self.n:,} answers changed, {len(self.samples)} of them broke"]
        if self.worst is not None:
            said.append(f"of {len(self.layers)} layers that both graphs have, the error grew most at {self.worst}")
        elif not self.layers:
            said.append("by layer: not known, the two graphs share no tensor")
        said += [f"slice: {item}" for item in self.slices[:top]]
        return said + [str(item) for item in self.samples[:top]]

    def to_json(self) -> dict[str, Any]:
        """As plain values; an error that is not finite is null."""

        def plain(item: LayerError) -> dict[str, Any]:
            return {k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in asdict(item).items()}

        return {
            "changed": self.changed,
            "n": self.n,
            "slices": [asdict(item) | {"change": item.change} for item in self.slices],
            "samples": [asdict(item) for item in self.samples],
            "layers": [plain(item) for item in self.layers],
            "worst_layer": None if self.worst is None else plain(self.worst),
        }


def blame_latency(
    baseline: Package,
    candidate: Package,
    feeds: Feeds,
    *,
    threads: int,
    runs: int = 200,
    progress: Progress | None = None,
) -> LatencyBlame:
    """Profile both packages in turns and lay the profiles side by side.

    Args:
        baseline: The package in production.
        candidate: The one that is to replace it.
        feeds: Inputs of batch 1 for each.
        threads: Intra-op threads.
        runs: Profiled runs of each.
        progress: Told what is done, and of how much.
    """
    models = baseline.model_path, candidate.model_path
    before, after = profile_pair(models, feeds, threads=threads, runs=runs, progress=progress)
    return LatencyBlame(
        sum(item.us for item in before),
        sum(item.us for item in after),
        tuple(by_layer(before, after)),
        tuple(by_operator(before, after)),
    )


def blame_accuracy(
    baseline: Package,
    candidate: Package,
    feeds: Feeds,
    labels: Ints,
    answers: tuple[Ints, Ints],
    *,
    texts: Sequence[str] = (),
    columns: Mapping[str, Sequence[str]] | None = None,
    threads: int = 1,
) -> AccuracyBlame:
    """Which slices and samples flipped, and at which layer the error grew most.

    Args:
        baseline: The package in production.
        candidate: The one that is to replace it.
        feeds: Inputs of batch 1 for each.
        labels: ``[N]`` right classes, of the samples or of all their words.
        answers: ``[N]`` classes of each side; -1 for a word without an answer.
        texts: ``[N]`` what the samples say, where they are texts.
        columns: Further columns of the data, ``[N]`` each, to part the samples by.
        threads: Intra-op threads.
    """
    names = baseline.labels or tuple(str(i) for i in range(int(max(labels.max(), *(a.max() for a in answers))) + 1))
    names = (*names, "(no answer)")  # the last place is -1
    parts: dict[str, Sequence[str]] = {"label": [names[label] for label in labels], **(columns or {})}
    broke = (answers[0] == labels) & (answers[1] != labels)
    samples = tuple(
        FlippedSample(int(row), texts[row] if texts else "", names[labels[row]], names[answers[1][row]])
        for row in np.flatnonzero(broke)
    )
    chosen = np.linspace(0, len(feeds[0]) - 1, min(_LAYER_SAMPLES, len(feeds[0]))).astype(int)
    errors = layer_errors(
        _with_types(baseline),
        _with_types(candidate),
        [feeds[0][i] for i in chosen],
        threads,
        [feeds[1][i] for i in chosen],
    )
    return AccuracyBlame(
        int((answers[0] != answers[1]).sum()),
        len(labels),
        tuple(losing_slices(parts, answers[0] == labels, answers[1] == labels)),
        samples,
        tuple(errors),
        grew_most(errors),
    )


def losing_slices(
    columns: Mapping[str, Sequence[str]], baseline: npt.NDArray[np.bool_], candidate: npt.NDArray[np.bool_]
) -> list[SliceLoss]:
    """The slices in which more samples broke than were repaired, the most lost samples first.

    Args:
        columns: ``[N]`` values of each column.
        baseline: ``[N]`` which samples the baseline has right.
        candidate: ``[N]`` which the candidate has right.
    """
    found: list[tuple[str, str, int, int, int, float]] = []
    for column, values in columns.items():
        cells = np.asarray(values)
        for value in dict.fromkeys(values):
            rows = cells == value
            broken = int((baseline & ~candidate & rows).sum())
            repaired = int((~baseline & candidate & rows).sum())
            found.append((column, value, int(rows.sum()), broken, repaired, mcnemar_worse(broken, repaired)))
    corrected = holm([item[5] for item in found])
    losses = [SliceLoss(*item[:5], p) for item, p in zip(found, corrected, strict=True) if item[3] > item[4]]
    return sorted(losses, key=lambda item: (item.repaired - item.broken, item.p, item.value))


def holm(values: Sequence[float]) -> list[float]:
    """Holm's step-down correction (Scandinavian Journal of Statistics 6 (1979), 65-70), in the order given."""
    order = np.argsort(values, kind="stable")
    adjusted, highest = [0.0] * len(values), 0.0
    for rank, place in enumerate(order):
        highest = max(highest, min(1.0, (len(values) - rank) * values[place]))
        adjusted[place] = highest
    return adjusted


def _with_types(package: Package) -> OnnxModel:
    """The graph with the types of its tensors, as far as ONNX can tell them."""
    model = OnnxModel(package.model_path.read_bytes())
    try:
        return OnnxModel.from_proto(onnx.shape_inference.infer_shapes(model.proto()))
    except onnx.shape_inference.InferenceError:  # what the graph itself records must do
        return model
