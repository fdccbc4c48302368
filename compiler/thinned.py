"""What students lose against a source that knows the samples by heart: counted on copies that lack some of their words.

Where development samples are a part of the training data the source has learned their labels, and is nearly always
right: against that every student looks bad. The best student is no yardstick either: it may be as far behind. On copies
with three words in ten left out there is less to remember, and both must understand. Measured on 25 students of two
sources, all with the trimmed vocabulary: how far they were behind on these copies was 1.3 times as much as on test data
for BANKING77 and 2.9 times for HWU64 (medians); on the samples themselves 3.2 and 3.8 times.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from lepto.compiler.data import Samples
from lepto.compiler.words import Words, are_words

SHARE = 0.3
"""Of the words, what is left out: less leaves too much to remember, more leaves too little to understand."""

COPIES = 4

EXAGGERATION = 1.5
"""How many times as far apart two models are taken to be on copies as on samples that neither has seen."""

_LEAST_WORDS = 5
"""Where half of the samples have fewer, copies say nothing: also in scripts without spaces."""


def thinned(samples: Samples, seed: int) -> Samples | None:
    """Copies with words left out, never all of one.

    Args:
        samples: N texts, or rows of words with a label at each.
        seed: Decides which words.

    Returns:
        ``COPIES`` times N samples with their labels; None where the samples are no texts of several words.
    """
    if not isinstance(samples.inputs, tuple):
        return None
    words = are_words(samples.inputs)
    rows: list[Sequence[str]] = [row if words else row.split() for row in samples.inputs]  # type: ignore[union-attr]  # a text or a row
    if np.median([len(row) for row in rows]) < _LEAST_WORDS:
        return None
    rng = np.random.default_rng([seed, 3])
    inputs: list[str | Words] = []
    labels = []
    for _ in range(COPIES):
        for row, label in zip(rows, samples.labels, strict=True):
            kept = np.flatnonzero(rng.random(len(row)) >= SHARE)
            if not len(kept):
                kept = np.arange(min(1, len(row)))
            left = tuple(row[i] for i in kept)
            inputs.append(left if words else " ".join(left))
            labels.append(label[kept] if words else label)
    together = np.empty(len(labels), dtype=samples.labels.dtype)
    together[:] = labels
    return dataclasses.replace(
        samples, inputs=tuple(inputs), labels=together, origin=f"{samples.origin} (copies that lack words)"
    )
