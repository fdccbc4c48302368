"""What a pass is given besides the model, and how it can decline or fail."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from lepto.runtime.errors import LeptoError

Feed = Mapping[str, npt.NDArray[np.generic]]
"""Inputs of one run: name to array, first axis batch."""


class PassError(LeptoError):
    """A pass broke its promise; the pipeline stops and nothing is written."""

    def __init__(self, message: str) -> None:
        super().__init__(message, exit_code=1)


class Left(Exception):  # noqa: N818  (no error: a pass that declines)
    """A pass has nothing to do on this model, and says why; it is left out of the plan."""


@dataclass(frozen=True)
class Context:
    """What a pass may use.

    Attributes:
        calibration: Inputs from the training data, batch 1 each, in a fixed order; empty without training data.
        threads: Intra-op threads of every run.
        seed: Seed of whatever is random in a pass.
        layers: Number of transformer layers as the model's configuration tells it, None where it does not.
        notes: What passes have to say about their work, for the record.
    """

    calibration: Sequence[Feed] = ()
    threads: int = 1
    seed: int = 0
    layers: int | None = None
    notes: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        """Say something about the work done, for people and the manifest."""
        self.notes.append(text)

    def expect(self, condition: bool, message: str) -> None:
        """Stop the pipeline if what a pass promised is not so."""
        if not condition:
            raise PassError(message)
