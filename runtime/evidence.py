"""What was measured sample by sample: answers and times of source and result, kept beside the model for later looks.

``evidence.npz`` in a package is optional; a package without it is whole. Scores are stored as 12-bit fixed point, which
keeps a probability to 1 in 4,095 and compresses well.

=======================================  ================  ==========================================================
array                                    shape             what
=======================================  ================  ==========================================================
``rows``, ``labels``                     [K] int           which evaluation samples, and their right classes
``source/decisions``, ``result/…``       [K] int           the best class of each side
``source/scores``, ``result/scores``     [K, L] uint16     probabilities, 4,095 is 1
``tokens``                               [K] int           length of each text, where there are texts
``source/seconds``, ``result/seconds``   [blocks, runs]    interleaved times; the same place is the same input
``layers/names``, ``layers/error``       [M]               relative error of each layer's output, in order
``data``                                 [] str            digest of the evaluation data
=======================================  ================  ==========================================================
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

ONE: Final = 4_095
MOST_SCORES: Final = 4_000_000
"""Probabilities of one side that are kept at most; of more samples an even selection."""

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Answers:
    """What one side said.

    Attributes:
        decisions: ``[K]`` best classes.
        scores: ``[K, L]`` probabilities.
    """

    decisions: Ints
    scores: NDArray[np.float32]

    @classmethod
    def of(cls, outputs: NDArray[np.float32], *, logits: bool = True) -> Answers:
        """From ``[K, L]`` logits, or from probabilities."""
        scores = outputs
        if logits:
            shifted = np.exp(outputs.astype(np.float64) - outputs.max(axis=1, keepdims=True))
            scores = (shifted / shifted.sum(axis=1, keepdims=True)).astype(np.float32)
        return cls(outputs.argmax(axis=1).astype(np.int64), scores.astype(np.float32))

    def take(self, rows: Ints) -> Answers:
        """Some of the samples."""
        return Answers(self.decisions[rows], self.scores[rows])


@dataclass(frozen=True)
class Evidence:
    """Everything that is kept; what was not measured is None.

    Attributes:
        data: Digest of the evaluation data.
        rows: ``[K]`` places of the samples in it.
        labels: ``[K]`` right classes.
        source: The source's answers.
        result: The result's.
        tokens: ``[K]`` lengths of the texts.
        source_seconds: ``[blocks, runs]``.
        result_seconds: ``[blocks, runs]``, measured beside them.
        layers: Names of layers, in order of computation.
        layer_error: ``[M]`` root mean square of the difference over that of the float model's output.
    """

    data: str | None = None
    rows: Ints | None = None
    labels: Ints | None = None
    source: Answers | None = None
    result: Answers | None = None
    tokens: Ints | None = None
    source_seconds: Floats | None = None
    result_seconds: Floats | None = None
    layers: tuple[str, ...] = ()
    layer_error: Floats | None = None

    @property
    def judged(self) -> bool:
        """Whether answers of both sides are there."""
        return self.labels is not None and self.source is not None and self.result is not None

    def thinned(self, most: int = MOST_SCORES) -> Evidence:
        """An even selection of samples, so that no side has more scores than ``most``."""
        sides = [side for side in (self.source, self.result) if side is not None]
        if self.labels is None or not sides or sides[0].scores.size <= most:
            return self
        count = max(1, most // sides[0].scores.shape[1])
        chosen = np.linspace(0, len(self.labels) - 1, count).astype(np.int64)
        return replace(
            self,
            rows=chosen if self.rows is None else self.rows[chosen],
            labels=self.labels[chosen],
            source=None if self.source is None else self.source.take(chosen),
            result=None if self.result is None else self.result.take(chosen),
            tokens=None if self.tokens is None else self.tokens[chosen],
        )

    def to_bytes(self) -> bytes:
        """The content of ``evidence.npz``; equal evidence gives equal bytes."""
        arrays: dict[str, Any] = {}
        if self.data is not None:
            arrays["data"] = np.array(self.data)
        for name, column in (("rows", self.rows), ("labels", self.labels), ("tokens", self.tokens)):
            if column is not None:
                arrays[name] = column.astype(np.int32)
        for name, side in (("source", self.source), ("result", self.result)):
            if side is not None:
                arrays[f"{name}/decisions"] = side.decisions.astype(np.int32)
                arrays[f"{name}/scores"] = np.rint(np.clip(side.scores, 0.0, 1.0) * ONE).astype(np.uint16)
        for name, seconds in (("source", self.source_seconds), ("result", self.result_seconds)):
            if seconds is not None:
                arrays[f"{name}/seconds"] = seconds.astype(np.float32)
        if self.layer_error is not None:
            arrays["layers/names"] = np.array(self.layers)
            arrays["layers/error"] = self.layer_error.astype(np.float32)
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **{name: arrays[name] for name in sorted(arrays)})
        return buffer.getvalue()

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Evidence:
        """Read what :meth:`to_bytes` wrote.

        Raises:
            ValueError: An array is unknown, or the columns are not of one length.
        """
        known = {"data", "rows", "labels", "tokens", "layers/names", "layers/error"}
        known |= {f"{side}/{what}" for side in ("source", "result") for what in ("decisions", "scores", "seconds")}
        if unknown := sorted(arrays.keys() - known):
            raise ValueError(f"unknown arrays {unknown}: another version of lepto wrote them")
        columns = [name for name in arrays if name in known and not name.startswith("layers") and name != "data"]
        lengths = {name: len(arrays[name]) for name in columns if not name.endswith("/seconds")}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"every sample needs every column, got lengths {lengths}")

        def ints(name: str) -> Ints | None:
            return arrays[name].astype(np.int64) if name in arrays else None

        def floats(name: str) -> Floats | None:
            return arrays[name].astype(np.float64) if name in arrays else None

        def answers(side: str) -> Answers | None:
            decisions = ints(f"{side}/decisions")
            if decisions is None or f"{side}/scores" not in arrays:
                return None
            return Answers(decisions, arrays[f"{side}/scores"].astype(np.float32) / ONE)

        return cls(
            data=str(arrays["data"]) if "data" in arrays else None,
            rows=ints("rows"),
            labels=ints("labels"),
            source=answers("source"),
            result=answers("result"),
            tokens=ints("tokens"),
            source_seconds=floats("source/seconds"),
            result_seconds=floats("result/seconds"),
            layers=tuple(map(str, arrays["layers/names"])) if "layers/names" in arrays else (),
            layer_error=floats("layers/error"),
        )
