"""What a pass is given besides the model, and how it can decline or fail."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from lepto.runtime.errors import LeptoError

if TYPE_CHECKING:
    from lepto.compiler.data import Samples
    from lepto.compiler.judged import Judged
    from lepto.compiler.passes.learned import LearnedRanges
    from lepto.compiler.source import Source

Feed = Mapping[str, npt.NDArray[np.generic]]
"""Inputs of one run: name to array, first axis batch."""


class PassError(LeptoError):
    """A pass broke its promise; the pipeline stops and nothing is written."""

    def __init__(self, message: str) -> None:
        super().__init__(message, exit_code=1)


class Left(Exception):  # noqa: N818  (no error: a pass that declines)
    """A pass has nothing to do on this model, and says why; it is left out of the plan."""


@dataclass(frozen=True)
class Table:
    """Rows for people.

    Attributes:
        title: Above it.
        columns: Headings.
        rows: Cells, already formatted.
        names: So many columns, the first ones, hold names; the others numbers.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    names: int = 1


@dataclass(frozen=True)
class Context:
    """What a pass may use.

    Attributes:
        calibration: Inputs from the training data, batch 1 each, in a fixed order; empty without training data.
        threads: Intra-op threads of every run.
        seed: Seed of whatever is random in a pass.
        layers: Number of transformer layers as the model's configuration tells it, None where it does not.
        constant_inputs: Inputs that always hold one value everywhere, by name: single texts have one kind of token.
        train: Training samples, in the order of ``calibration``; None without them.
        judged: Samples for passes that judge candidates themselves, never those of the evaluation; None without them.
        learned: Ranges that were trained with the weights, which then need no calibration; None without them.
        teacher: The original, for passes that learn from it.
        progress: Told by long passes how many of how many steps are done.
        notes: What passes have to say about their work, for the record.
        tables: The same in rows, for people.
    """

    calibration: Sequence[Feed] = ()
    threads: int = 1
    seed: int = 0
    layers: int | None = None
    constant_inputs: Mapping[str, int] = field(default_factory=dict)
    train: Samples | None = None
    judged: Judged | None = None
    learned: LearnedRanges | None = None
    teacher: Source | None = None
    progress: Callable[[int, int], None] | None = None
    notes: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)

    def note(self, text: str) -> None:
        """Say something about the work done, for people and the manifest."""
        self.notes.append(text)

    def expect(self, condition: bool, message: str) -> None:
        """Stop the pipeline if what a pass promised is not so."""
        if not condition:
            raise PassError(message)
