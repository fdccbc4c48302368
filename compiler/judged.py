"""Samples that a pass may judge candidates by: development data, or training samples; never the evaluation data."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lepto.compiler.context import Feed
from lepto.compiler.data import Samples
from lepto.compiler.metrics import score
from lepto.compiler.source import Text
from lepto.compiler.verify import encode, first_places
from lepto.compiler.words import word_outputs

Array = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Judged:
    """Samples as a model takes them, with their labels.

    Attributes:
        feeds: Inputs of batch 1.
        samples: The same with labels.
        first: For rows of words the places of their first tokens.
        training: Whether these are the training samples, in the order of ``Context.calibration``.
    """

    feeds: Sequence[Feed]
    samples: Samples
    first: Sequence[Sequence[int]] | None = None
    training: bool = False

    @classmethod
    def of(cls, samples: Samples, text: Text | None, *, training: bool = False) -> Judged:
        """Encode samples."""
        return cls(encode(samples.inputs, text), samples, first_places(samples.inputs, text), training)

    def __len__(self) -> int:
        """N."""
        return len(self.feeds)

    @property
    def decides(self) -> bool:
        """Whether outputs are logits, of samples or of words; else they are vectors."""
        return self.samples.labels.ndim == 1

    def take(self, rows: Sequence[int]) -> Judged:
        """Some of the samples; of their inputs only the feeds are kept."""
        samples = dataclasses.replace(self.samples, inputs=(), labels=self.samples.labels[list(rows)])
        first = None if self.first is None else [self.first[i] for i in rows]
        return Judged([self.feeds[i] for i in rows], samples, first, self.training)

    def score(self, outputs: Sequence[Array], reference: Sequence[Array]) -> float:
        """The task's metric of outputs, one ``[1, ...]`` for each sample; of vectors how close they are to others."""
        if self.first is not None:
            return score(word_outputs([output[0] for output in outputs], self.first), self.samples)
        samples = self.samples
        if not self.decides:
            samples = dataclasses.replace(samples, labels=np.concatenate(reference))
        return score(np.concatenate(outputs), samples)
