"""Parts of training samples: what is held out to steer by, and what there is time to learn from."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from lepto.compiler.data import Samples
from lepto.runtime.errors import LeptoError


def split_development(samples: Samples, share: float, seed: int) -> tuple[Samples, Samples]:
    """Carve a development split from training samples, the same share of every label.

    Args:
        samples: N training samples.
        share: In (0, 1).
        seed: Decides which.

    Returns:
        What is left to train on, and the development samples; no sample is in both.
    """
    rng = np.random.default_rng(seed)
    chosen: list[int] = []
    if samples.labels.ndim == 1 and samples.labels.dtype != object:
        for label in np.unique(samples.labels):
            rows = np.flatnonzero(samples.labels == label)
            chosen += rng.permutation(rows)[: round(share * len(rows))].tolist()
    else:  # a row of labels for each sample
        chosen = rng.permutation(len(samples))[: round(share * len(samples))].tolist()
    held = np.zeros(len(samples), dtype=bool)
    held[chosen] = True
    if not held.any() or held.all():
        raise LeptoError(f"{samples.origin}: {len(samples)} samples are too few to carve from: give --dev")
    return take(samples, np.flatnonzero(~held), "training part"), take(samples, np.flatnonzero(held), "carved")


def take(samples: Samples, rows: npt.NDArray[np.int64], what: str) -> Samples:
    """Some of the samples.

    Args:
        samples: N samples.
        rows: Which, in [0, N).
        what: Of which part, for messages.
    """
    inputs = samples.inputs
    taken = (
        tuple(inputs[i] for i in rows)
        if isinstance(inputs, tuple)
        else {name: array[rows] for name, array in inputs.items()}
    )
    return dataclasses.replace(samples, inputs=taken, labels=samples.labels[rows], origin=f"{samples.origin} ({what})")
