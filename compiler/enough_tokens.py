"""How large a vocabulary a search keeps: what the source loses by it, counted on texts that it was not trimmed to.

Tokens that no training text has are spelled in pieces, which the source seldom understands. How many texts to come have
one depends on the data: few where there are ten thousand texts of one kind, most where there are a thousand or where
others write them. The likeliest tokens are kept besides, until the source answers nearly as well as with all of them; a
row of a table costs bytes and no time.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from lepto.compiler.context import Context, Left
from lepto.compiler.data import Samples
from lepto.compiler.passes.trim_vocabulary import TrimVocabulary
from lepto.compiler.source import Source
from lepto.compiler.split import take
from lepto.compiler.verify import tokenize
from lepto.compiler.words import are_words

STEPS = (0, 2_000, 4_000, 8_000, 12_000, 16_000)
"""Tokens beyond those of the training texts, the likeliest first; then all."""


def with_enough_tokens(
    root: Source,
    context: Context,
    dev: Samples,
    score: Callable[[Source, Samples], float],
    allowed: Callable[[float], float],
) -> Source:
    """Trim a source's vocabulary to as few tokens as its answers allow.

    Args:
        root: The source.
        context: Has the training texts; told what was kept.
        dev: N samples; none of the training texts.
        score: The task's metric of a source on samples.
        allowed: How much of the metric may be lost over all N, from the score on those that are read otherwise.

    Raises:
        Left: The source cannot be trimmed, or all tokens are needed.
    """
    told = len(context.notes)
    trimmed = TrimVocabulary()(root, context)
    rows = _differing(root, trimmed, dev)
    if not rows.size:
        return trimmed
    differing = len(rows) / len(dev)
    # What a tagger earns is no mean over texts: F1 is asked about all of them.
    some, share = (dev, 1.0) if are_words(dev.inputs) else (take(dev, rows, "read otherwise"), differing)
    whole, lost = score(root, some), 0.0
    most = allowed(whole)
    for extra in STEPS:
        if extra:
            del context.notes[told:]
            trimmed = TrimVocabulary(extra=extra)(root, context)
        lost = share * (whole - score(trimmed, some))
        if lost <= most:
            more = f"; the {extra:,} likeliest besides" if extra else ""
            context.note(
                f"{differing:.1%} of the development samples have tokens that the training texts have not{more}: read "
                f"in pieces, they cost {max(0.0, lost):.4f}"
            )
            return trimmed
    raise Left(
        f"with the {STEPS[-1]:,} likeliest tokens besides those of the training texts the score would still fall by "
        f"{lost:.4f}: all are kept"
    )


def strange_share(root: Source, train: Samples, samples: Samples) -> float:
    """The share of samples that have a token which no training text has; 0 for what is no text."""
    if root.text is None or not isinstance(train.inputs, tuple) or not isinstance(samples.inputs, tuple):
        return 0.0
    known = {token for row in tokenize(train.inputs, root.text) for token in row}
    return float(np.mean([not known.issuperset(row) for row in tokenize(samples.inputs, root.text)]))


def _differing(root: Source, trimmed: Source, samples: Samples) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Which samples a trimmed source reads as other tokens."""
    assert root.text is not None
    assert trimmed.text is not None
    assert trimmed.kept_tokens is not None
    assert isinstance(samples.inputs, tuple)
    kept = trimmed.kept_tokens
    before, after = (tokenize(samples.inputs, text) for text in (root.text, trimmed.text))
    return np.array([i for i, (a, b) in enumerate(zip(before, after, strict=True)) if a != [kept[t] for t in b]], int)
