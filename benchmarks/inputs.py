"""What goes into what is measured: samples, texts of given lengths, or the probe that a package stores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lepto.benchmarks import scenarios
from lepto.benchmarks.workers import Feed
from lepto.compiler.data import Samples, load_samples, read_column
from lepto.compiler.tagged import conll_rows
from lepto.runtime.errors import LeptoError
from lepto.runtime.manifest import FEATURE_EXTRACTION, TEXT_CLASSIFICATION
from lepto.runtime.package import Package


@dataclass(frozen=True)
class Inputs:
    """What goes in: samples, lengths, or the stored probe."""

    evaluation: str | None
    text_column: str
    label_column: str
    lengths: Sequence[int] | None

    def __str__(self) -> str:
        """For people."""
        if self.evaluation:
            return self.evaluation
        return f"lengths {', '.join(map(str, self.lengths))}" if self.lengths else "the stored probe"

    def samples(self, labels: tuple[str, ...] | None, task: str = TEXT_CLASSIFICATION) -> Samples | None:
        """The samples, if there are any, as a model of this task takes them."""
        if self.evaluation is None:
            return None
        return load_samples(
            self.evaluation, text_column=self.text_column, label_column=self.label_column, labels=labels, split="test",
            task=task,
        )  # fmt: skip

    def unlabelled(self) -> Samples | None:
        """The samples for a server, whose labels are not asked for; words go there as the text that they make."""
        if self.evaluation is None or not Path(self.evaluation).exists():
            return self.samples(None)
        path = Path(self.evaluation)
        if path.suffix.lower() == ".conll":
            cells = [row["words"] for _, row in conll_rows(path, ("words", "labels"))]
        else:
            cells = read_column(self.evaluation, self.text_column, split="test")
        if cells and not isinstance(cells[0], str):
            texts = tuple(" ".join(map(str, words)) for words in cells)
            return Samples(texts, np.empty((len(texts), 0), np.float32), self.evaluation)
        return load_samples(
            self.evaluation, text_column=self.text_column, label_column=self.label_column, labels=None, split="test",
            task=FEATURE_EXTRACTION,
        )  # fmt: skip

    def feeds(self, packages: Sequence[Package], samples: Samples | None) -> list[Sequence[Feed]]:
        """For each package its inputs."""
        if samples is not None:
            return [scenarios.feeds_from_samples(package, samples) for package in packages]
        if self.lengths is not None:
            return [scenarios.feeds_of_lengths(package, self.lengths) for package in packages]
        if not (packages[0].path / "probe.npz").exists():
            raise LeptoError("a published version has no stored probe: give samples with --eval")
        feeds = scenarios.feeds_from_probe(packages[0])
        for package in packages[1:]:
            if {tensor.name for tensor in package.manifest.inputs} != set(feeds[0]):
                raise LeptoError(
                    f"{package.path} does not take the probe inputs of {packages[0].path}: give samples with --eval"
                )
        return [feeds for _ in packages]
