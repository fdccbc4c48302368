"""Rows of words, with a label for each: what the two sides answer, and by what they are compared.

A row counts as right if all its words are: that is what the paired tests of slices, groups and flips ask, since words
of one row depend on each other. The metric of the whole is the exact F1 of entities, or the share of right words where
the labels are no entities.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from lepto.benchmarks.scenarios import scores_output
from lepto.compiler.data import Samples
from lepto.runtime.errors import LeptoError
from lepto.runtime.package import Package
from lepto.runtime.session import Session
from lepto.runtime.spans import are_spans, entities
from lepto.runtime.tagging import at_words
from lepto.runtime.text import TextEncoder

Ints = npt.NDArray[np.int64]
UNIT: Final = "a row is right if all its words are"


def has_words(samples: Samples | None) -> bool:
    """Whether the samples are rows of words, each with a label."""
    return samples is not None and samples.labels.dtype == object


def first_places(package: Package, samples: Samples) -> list[list[int]]:
    """For each row the place of each word's first token; -1 for a word that the model does not see.

    Raises:
        LeptoError: The package takes no text.
    """
    preprocessing, tokenizer = package.manifest.preprocessing, package.tokenizer_path
    if preprocessing is None or tokenizer is None or not isinstance(samples.inputs, tuple):
        raise LeptoError(f"{samples.origin} has rows of words, but {package.path} takes tensors: give a data factory")
    encoder = TextEncoder(tokenizer, preprocessing)
    return [encoder.encode_words([list(row)])[1][0] for row in samples.inputs]


def ask(
    session: Session,
    feeds: Sequence[Mapping[str, npt.NDArray[Any]]],
    places: Sequence[Sequence[int]],
    progress: Callable[[int, int], None] | None = None,
) -> list[npt.NDArray[np.float32]]:
    """For each row ``[W, L]`` logits of its words, every row run by itself; zeros for words that are not seen.

    Raises:
        LeptoError: The package labels no words.
    """
    name, found = scores_output(session), []
    for i, (feed, own) in enumerate(zip(feeds, places, strict=True)):
        found.append(at_words(session.run(dict(feed))[name][0], own))
        if progress is not None:
            progress(i + 1, len(feeds))
    return found


def decide(logits: npt.NDArray[Any]) -> Ints:
    """``[W]`` best labels of the words of a row, from ``[W, L]``; -1 for a word that the model did not see (zeros)."""
    return np.where(logits.any(axis=-1), logits.argmax(axis=-1), -1).astype(np.int64)


def row_ids(rows: Sequence[Ints]) -> Ints:
    """``[N]`` one number for each row of labels: equal for equal rows, the same on every machine."""
    found = [hashlib.blake2b(np.asarray(row, "<i8").tobytes(), digest_size=8).digest() for row in rows]
    return np.array([int.from_bytes(one, "little") >> 1 for one in found], dtype=np.int64)


def label_masks(rows: Sequence[Ints], names: Sequence[str]) -> dict[str, npt.NDArray[np.bool_]]:
    """For each kind of entity, or each label where they are no entities, the rows that have one; masks may overlap."""
    spans = are_spans(names)
    kinds = [{kind for kind, _, _ in entities(tags)} if spans else set(tags) for tags in map(_named(names), rows)]
    return {f"label={kind}": np.array([kind in own for own in kinds]) for kind in sorted(set().union(*kinds))}


def _named(names: Sequence[str]) -> Any:
    return lambda row: [names[i] for i in row]
