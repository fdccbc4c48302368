"""Optimization profiles: the smallest, typical and largest shape that an engine takes, from data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lepto.compiler.context import Feed
from lepto.compiler.model import OnnxModel
from lepto.runtime.errors import LeptoError


@dataclass(frozen=True)
class Shapes:
    """What one input may be; the engine is tuned for ``typical``.

    Attributes:
        minimum: Its smallest shape.
        typical: The shape that kernels are chosen for (``opt`` in TensorRT).
        maximum: Its largest shape.

    Raises:
        ValueError: They are not in order.
    """

    minimum: tuple[int, ...]
    typical: tuple[int, ...]
    maximum: tuple[int, ...]

    def __post_init__(self) -> None:
        """Check the order."""
        ranks = {len(shape) for shape in (self.minimum, self.typical, self.maximum)}
        ordered = len(ranks) == 1 and all(
            1 <= low <= middle <= high
            for low, middle, high in zip(self.minimum, self.typical, self.maximum, strict=True)
        )
        if not ordered:
            raise ValueError(
                "a profile needs 1 <= minimum <= typical <= maximum on each axis, got "
                f"{list(self.minimum)}, {list(self.typical)}, {list(self.maximum)}"
            )

    def to_json(self) -> dict[str, list[int]]:
        """As in ``build.json``."""
        return {"min": list(self.minimum), "opt": list(self.typical), "max": list(self.maximum)}


Profile = Mapping[str, Shapes]
"""For each input its shapes."""


def profile_of(
    model: OnnxModel,
    feeds: Sequence[Feed],
    *,
    batch: tuple[int, int, int],
    percentile: float,
    limits: Mapping[str, int],
) -> Profile:
    """The profile of a model: batches as asked for, other axes as they are in the data.

    Args:
        model: Its inputs tell which axes are dynamic, by name.
        feeds: Inputs of batch 1 as they come in use.
        batch: Smallest, typical and largest batch.
        percentile: Of the sizes in the data, taken as the typical one; rounded up to a multiple of 8, as kernels are.
        limits: Largest size of axes that have one: a text model must take a text of its maximum length, whatever the
            data had, and one of a single token.

    Raises:
        LeptoError: An axis is dynamic and nothing tells its sizes.
    """
    proto = model.proto()
    names = {tensor.name for tensor in proto.graph.initializer}
    profile = {}
    for value in proto.graph.input:
        if value.name in names:
            continue
        sizes: list[tuple[int, int, int]] = []
        for place, dim in enumerate(value.type.tensor_type.shape.dim):
            if dim.HasField("dim_value"):
                sizes.append((dim.dim_value,) * 3)
            elif place == 0:
                sizes.append(batch)
            else:
                found = [feed[value.name].shape[place] for feed in feeds if value.name in feed]
                sizes.append(_sizes(found, percentile, limits.get(dim.dim_param), f"{value.name} axis {place}"))
        low, middle, high = ([size[i] for size in sizes] for i in range(3))
        profile[value.name] = Shapes(tuple(low), tuple(middle), tuple(high))
    return profile


def _sizes(found: Sequence[int], percentile: float, limit: int | None, where: str) -> tuple[int, int, int]:
    if not found:
        raise LeptoError(f"{where} is dynamic and no data tells its sizes: give --train")
    low, high = (min(found), max(found)) if limit is None else (1, limit)
    typical = math.ceil(float(np.percentile(found, percentile)) / 8) * 8
    return low, min(max(typical, low), high), high


def trtexec_shapes(profile: Profile) -> list[str]:
    """The flags of ``trtexec`` that say the same."""
    flags = []
    for flag, field in (("minShapes", "minimum"), ("optShapes", "typical"), ("maxShapes", "maximum")):
        shapes = ",".join(f"{name}:{'x'.join(map(str, getattr(s, field)))}" for name, s in profile.items())
        flags.append(f"--{flag}={shapes}")
    return flags
