"""What the students of one source learn from: its training samples, augmented copies, and what it says of each."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from lepto.compiler.cache import Cache
from lepto.compiler.data import NO_LABEL, Samples
from lepto.compiler.encoder import Encoder
from lepto.compiler.source import Source, Text
from lepto.compiler.training.augment import TextAugmentation, add_noise, mix_arrays, near_tokens, shift_images
from lepto.compiler.training.pool import (
    Collate,
    Pool,
    Targets,
    array_collate,
    head_path,
    teach,
    text_collate,
)
from lepto.compiler.verify import tokenize
from lepto.compiler.vocabulary import spelling_tokens
from lepto.compiler.words import are_words, read_words, token_labels
from lepto.runtime.manifest import FEATURE_EXTRACTION

_FORMAT = 1
"""Raised whenever an augmentation changes its meaning."""

_FEATURE_BYTES = 2**30
"""With a label at every token the classifier's inputs of every token would be kept: beyond this they are not."""


@dataclass(frozen=True)
class Lesson:
    """Samples with the teacher's answers.

    Attributes:
        path: The classifier's path in teacher and student.
        original: The training samples as the teacher reads them.
        augmented: Copies.
        student: The same pools as a student with a trimmed vocabulary reads them, the original first.
        digest: Which samples and how many copies: part of the keys of what is learned from them.
        beyond: Whether students keep tokens that the samples have not.
    """

    path: str | None
    original: Pool
    augmented: tuple[Pool, ...]
    student: tuple[Pool, ...]
    digest: str = ""
    beyond: bool = False


def copies_for(count: int) -> int:
    """How many augmented copies are made of so many samples: some 50,000 in all, at least 4 and at most 30."""
    return int(np.clip(round(50_000 / max(count, 1)), 4, 30))


def special_tokens(text: Text) -> tuple[int, int]:
    """How many special tokens a tokenizer puts before and after a text."""
    from tokenizers import Tokenizer

    mask = Tokenizer.from_str(text.tokenizer).encode("a").special_tokens_mask
    before = next((i for i, special in enumerate(mask) if not special), len(mask))
    after = next((i for i, special in enumerate(reversed(mask)) if not special), 0)
    return before, after


def prepare_lesson(
    teacher: Source,
    base: Source,
    samples: Samples,
    *,
    copies: int,
    seed: int,
    cache: Cache,
    versions: Mapping[str, str],
    progress: Callable[[int, int], None] | None = None,
) -> Lesson:
    """Ask the teacher about the training samples and about augmented copies of them.

    Args:
        teacher: The source.
        base: What the students are cut from: the source, or the source with a trimmed vocabulary.
        samples: Training samples; nothing else is read.
        copies: How many augmented copies of each.
        seed: Of the augmentation.
        cache: Where the answers are kept.
        versions: Part of the key.
        progress: Told how many of how many samples were answered.
    """
    module = teacher.module()
    path = _classifier(teacher)
    near = _near(teacher, base, samples)
    sets = _sets(teacher, samples, copies, seed, near)
    collates = [_collate(teacher, rows) for rows in sets]
    sizes = [_sizes(rows, len(samples)) for rows in sets]
    words = sizes if are_words(samples.inputs) else None
    total = len(samples) * len(sets)
    targets, done = [], 0
    for index, (collate, size) in enumerate(zip(collates, sizes, strict=True)):

        def advance(count: int, start: int = done) -> None:
            nonlocal done
            done += count
            if progress is not None:
                progress(done, total)

        def make(stage: Path, collate: Collate = collate, size: Sequence[int] = size) -> None:
            kept = path if words is None or feature_bytes(module, path, sizes) <= _FEATURE_BYTES else None
            _write(teach(module, kept, size, collate, progress=advance), stage)

        key = {
            "format": _FORMAT,
            "teacher": teacher.digest,
            "samples": samples.digest,
            "copy": index,
            "seed": seed,
            "versions": dict(versions),
        }
        if near and index:
            key["near"] = hashlib.sha256(repr(sorted(near.items())).encode()).hexdigest()
        entry, cached = cache.get("answers", key, make)
        targets.append(_read(entry))
        if cached:
            advance(len(samples))
    labels = _labels(teacher, samples, sizes)
    vectors = teacher.task == FEATURE_EXTRACTION
    pools = [Pool(c, s, lab, t, vectors) for c, s, lab, t in zip(collates, sizes, labels, targets, strict=True)]
    if base.kept_tokens is None or teacher.text is None:
        student = pools
    else:
        new = {old: i for i, old in enumerate(base.kept_tokens)}
        renumbered = [[[new[token] for token in row] for row in rows] for rows in sets]
        student = [
            dataclasses.replace(pool, collate=_collate(base, rows))
            for pool, rows in zip(pools, renumbered, strict=True)
        ]
    return Lesson(path, pools[0], tuple(pools[1:]), tuple(student), f"{samples.digest} {copies}", beyond=bool(near))


def feature_bytes(module: torch.nn.Module, path: str | None, sizes: Sequence[Sequence[int]]) -> int:
    """What the classifier's inputs at every token would take, as float32, over all samples and copies."""
    width = getattr(module.get_submodule(path), "in_features", 0) if path is not None else 0
    return 4 * int(width) * sum(map(sum, sizes))


def _labels(teacher: Source, samples: Samples, sizes: Sequence[Sequence[int]]) -> list[Any]:
    """For the samples and each copy of them the labels; a copy has none, since its tokens stand elsewhere."""
    if not are_words(samples.inputs):
        none = [NO_LABEL] * len(samples)
        return [none if samples.labels.ndim != 1 else samples.labels.tolist(), *[none] * (len(sizes) - 1)]
    assert isinstance(samples.inputs, tuple)
    assert teacher.text is not None
    original = token_labels(read_words(samples.inputs, teacher.text), samples.labels.tolist(), NO_LABEL)
    return [original, *[[[NO_LABEL] * size for size in own] for own in sizes[1:]]]


def own_answers(source: Source, samples: Samples, most: int) -> Pool:
    """What a model itself says of up to ``most`` of its training samples, spread over them: a pool to score parts with.

    Args:
        source: The model.
        samples: Training samples.
        most: At least 1.
    """
    chosen = np.unique(np.linspace(0, len(samples) - 1, min(most, len(samples))).astype(int))
    inputs = samples.inputs
    taken: Any = (
        tuple(inputs[i] for i in chosen)
        if isinstance(inputs, tuple)
        else {name: array[chosen] for name, array in inputs.items()}
    )
    some = dataclasses.replace(samples, inputs=taken, labels=samples.labels[chosen])
    rows = _sets(source, some, 0, 0)[0]
    collate, sizes = _collate(source, rows), _sizes(rows, len(some))
    targets = teach(source.module(), _classifier(source), sizes, collate)
    labels: Any = some.labels.tolist() if some.labels.ndim == 1 else [NO_LABEL] * len(some)
    return Pool(collate, sizes, labels, targets, source.task == FEATURE_EXTRACTION)


def _classifier(source: Source) -> str | None:
    """The path of a source's classifier; None where it gives vectors, which nothing reads but who asks."""
    if source.task == FEATURE_EXTRACTION:
        return None
    example = {name: torch.from_numpy(np.array(array)) for name, array in source.example.items()}
    return head_path(source.module(), example)


def lesson_key(samples: Samples, copies: int, seed: int) -> str:
    """A digest of what a lesson is made of besides its teacher."""
    return hashlib.sha256(f"{_FORMAT} {samples.digest} {copies} {seed}".encode()).hexdigest()


def _near(teacher: Source, base: Source, samples: Samples) -> dict[int, tuple[int, ...]]:
    """For tokens of the samples those that students keep besides, and that are near them in the teacher's table."""
    encoder = Encoder.of(teacher.module())
    if encoder is None or teacher.text is None or base.text is None or not isinstance(samples.inputs, tuple):
        return {}
    table = encoder.table()
    seen = {token for row in tokenize(samples.inputs, teacher.text) for token in row}
    besides = range(len(table)) if base.kept_tokens is None else base.besides
    pieces = spelling_tokens(teacher.text.tokenizer)
    return near_tokens(table, sorted(seen - pieces), sorted(set(besides) - seen - pieces))


def _sets(
    source: Source,
    samples: Samples,
    copies: int,
    seed: int,
    near: Mapping[int, Sequence[int]] = MappingProxyType({}),
) -> list[Any]:
    """The inputs of the samples, and of each copy."""
    if isinstance(samples.inputs, Mapping):
        arrays: Mapping[str, npt.NDArray[Any]] = samples.inputs
        return [arrays, *[_augment_arrays(arrays, np.random.default_rng([seed, k])) for k in range(copies)]]
    assert source.text is not None
    rows = tokenize(samples.inputs, source.text)
    before, after = special_tokens(source.text)
    longest = source.text.preprocessing.max_length
    augment = TextAugmentation(near=near)
    # Another seed for every copy and for every kind of use, so that no two draw the same numbers.
    seeds = np.random.default_rng([seed, 1]).integers(2**31, size=copies)
    return [
        rows,
        *[augment(rows, before=before, after=after, max_length=longest, seed=int(s)) for s in seeds],
    ]


def _augment_arrays(arrays: Mapping[str, npt.NDArray[Any]], rng: np.random.Generator) -> dict[str, npt.NDArray[Any]]:
    made = {}
    for name, array in arrays.items():
        if not np.issubdtype(array.dtype, np.floating):
            made[name] = array
        elif array.ndim == 4:
            made[name] = mix_arrays(shift_images(array, max(1, array.shape[-1] // 12), rng), rng)
        else:
            made[name] = mix_arrays(add_noise(array, 0.05, rng), rng)
    return made


def _collate(source: Source, rows: Any) -> Collate:
    if isinstance(rows, Mapping):
        return array_collate(rows)
    assert source.text is not None
    reading = source.text.preprocessing
    return text_collate(rows, reading.pad_id, reading.inputs, reading.max_length)


def _sizes(rows: Any, count: int) -> list[int]:
    return [1] * count if isinstance(rows, Mapping) else [len(row) for row in rows]


def _write(targets: Targets, stage: Path) -> None:
    arrays = {"logits": np.concatenate([np.atleast_2d(a) for a in targets.logits])}
    if targets.features:
        arrays["features"] = np.concatenate([np.atleast_2d(a) for a in targets.features]).astype(np.float16)
    arrays["rows"] = np.array([0 if a.ndim == 1 else len(a) for a in targets.logits])
    np.savez(stage / "answers.npz", **arrays)


def _read(entry: Path) -> Targets:
    with np.load(entry / "answers.npz") as stored:
        rows = stored["rows"]
        logits, features = stored["logits"], stored["features"].astype(np.float32) if "features" in stored else None
    if not rows.any():
        return Targets(list(logits), [] if features is None else list(features))
    ends = np.cumsum(rows)[:-1]
    return Targets(np.split(logits, ends), [] if features is None else np.split(features, ends))
