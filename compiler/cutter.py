"""What a search cuts: the shapes that a model can be given, and the knife that gives it one.

Every kind of model has its own: encoders lose layers, heads, neurons and width, other networks lose channels. The
search knows neither.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from lepto.compiler.source import Source
from lepto.compiler.training.pool import Pool

LESS = 0.75
"""Of what the parts of a student cost that can be cut, what is left when it is cut once more."""


@dataclass(frozen=True)
class Shape:
    """A candidate before it is taught.

    Attributes:
        name: For people: ``layers 0+5 (6 heads + 384 neurons each)``.
        predicted_ms: What the parts that are cut will cost, by the measured table.
        what: What is kept, for the cutter that made it.
    """

    name: str
    predicted_ms: float
    what: Any

    def __str__(self) -> str:
        """For people."""
        return self.name


class Cutter(Protocol):
    """Proposes shapes for one model, and cuts it to them."""

    def shapes(self) -> list[Shape]:
        """Candidates, ascending by cost."""

    def larger(self) -> list[Shape]:
        """Shapes that cost more than the candidates, for where none of those is good enough; ascending by cost."""

    def cut(self, shape: Shape) -> Source:
        """A new source of that shape, not taught yet."""

    def smaller(self, student: Source, shape: Shape, pool: Pool) -> tuple[Shape, Source] | None:
        """A student that has learned, cut once more: what matters least to it now goes.

        Args:
            student: Of that shape.
            shape: One that this cutter has proposed or cut.
            pool: Training samples with the source's answers.

        Returns:
            Its new shape, and the student with what it keeps of its weights; None where nothing more can go.
        """
