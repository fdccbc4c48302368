"""Activation ranges that were learned with the weights, and which tensors of an exported graph they belong to.

Quantization-aware training knows a layer's input by the layer's path, a graph by the name of a tensor, and names do not
survive export and fusion. Values do: a tensor is a layer's input if it holds the same numbers on the same sample.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from lepto.compiler.context import Feed
    from lepto.compiler.model import OnnxModel

Range = tuple[float, float]


@dataclass(frozen=True, eq=False)
class LearnedRanges:
    """What a trained module's linear layers read.

    Attributes:
        ranges: By the layer's path, low <= 0 <= high.
        feed: A sample.
        inputs: What each of these layers reads for that sample, ``[B, ..., K]`` float32.
    """

    ranges: Mapping[str, Range]
    feed: Feed
    inputs: Mapping[str, npt.NDArray[np.float32]]

    @property
    def digest(self) -> str:
        """Sha256 over all of it."""
        digest = hashlib.sha256(repr(sorted(self.ranges.items())).encode())
        for arrays in (self.feed, self.inputs):
            for name in sorted(arrays):
                array: npt.NDArray[Any] = np.ascontiguousarray(arrays[name])
                digest.update(f"{name}{array.dtype}{array.shape}".encode() + array.tobytes())
        return digest.hexdigest()

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """The sample and what is read for it, under names that :meth:`of_arrays` reads again."""
        return {f"feed/{n}": a for n, a in self.feed.items()} | {f"input/{n}": a for n, a in self.inputs.items()}

    @classmethod
    def of_arrays(cls, ranges: Mapping[str, Sequence[float]], arrays: Mapping[str, npt.NDArray[Any]]) -> LearnedRanges:
        """From ranges as JSON holds them, and :meth:`arrays`."""
        feed, inputs = ({n.split("/", 1)[1]: arrays[n] for n in arrays if n.startswith(k)} for k in ("feed/", "input/"))
        return cls({path: (low, high) for path, (low, high) in ranges.items()}, feed, inputs)

    def of(self, model: OnnxModel, names: Sequence[str], threads: int) -> dict[str, Range]:
        """The ranges of those tensors that hold what a layer reads; a fusion may have moved the others."""
        from lepto.compiler.passes.observe import observe

        (values,) = observe(model, names, [self.feed], threads)
        found: dict[str, Range] = {}
        for name, value in zip(names, values, strict=True):
            readers = [path for path, array in self.inputs.items() if same_values(value, array)]
            if readers:  # layers that read one tensor share its range
                lows, highs = zip(*(self.ranges[path] for path in readers), strict=True)
                found[name] = (min(lows), max(highs))
        return found


def same_values(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> bool:
    """Whether two tensors hold the same numbers, up to the rounding of another order of summation."""
    if a.shape != b.shape:
        return False
    size = max(float(np.abs(b).max(initial=0.0)), 1e-30)
    return bool(np.abs(a.astype(np.float64) - b).max(initial=0.0) <= 1e-3 * size)
