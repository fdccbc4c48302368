"""More inputs from the training data alone: pure functions of token ids and of images; the teacher labels the results.

A sample is a list of token ids without its special tokens at the ends; they are put around it again afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from lepto.compiler.vocabulary import likeness

Tokens = list[int]


def drop_tokens(tokens: Sequence[int], share: float, rng: np.random.Generator) -> Tokens:
    """Leave out each token with probability ``share``, but never all of them.

    Word dropout: Iyyer et al. 2015, "Deep Unordered Composition Rivals Syntactic Methods", section 3.1.
    """
    kept = [token for token, left in zip(tokens, rng.random(len(tokens)) < share, strict=True) if not left]
    return kept or [tokens[int(rng.integers(len(tokens)))]]


def replace_tokens(tokens: Sequence[int], share: float, pool: Sequence[int], rng: np.random.Generator) -> Tokens:
    """Replace each token with probability ``share`` by one drawn from ``pool``, the tokens of the training data.

    Drawn by frequency, since the pool repeats: the unigram replacement of Xie et al. 2017, "Data Noising as Smoothing".
    """
    hit = rng.random(len(tokens)) < share
    drawn = rng.integers(len(pool), size=len(tokens))
    return [pool[new] if replaced else token for token, replaced, new in zip(tokens, hit, drawn, strict=True)]


def near_tokens(
    table: npt.NDArray[np.float32], seen: Sequence[int], others: Sequence[int], *, most: int = 3, least: float = 0.3
) -> dict[int, tuple[int, ...]]:
    """For tokens of the training data those others that lie near them in the source's own table of embeddings.

    Args:
        table: ``[V, W]``.
        seen: Tokens of the training data.
        others: Tokens that it has not.
        most: Each of the others is near so many at most.
        least: And no less similar: cosine, once the mean of the table is taken away.

    Returns:
        For each seen token that is near one of the others, those, ascending.
    """
    columns, near = sorted(seen), dict[int, list[int]]()
    if not columns:
        return {}
    for part, like in likeness(table, sorted(others), columns):
        for token, row in zip(part.tolist(), like, strict=True):
            for place in np.argsort(-row, kind="stable")[:most]:
                if row[place] >= least:
                    near.setdefault(columns[int(place)], []).append(token)
    return {token: tuple(found) for token, found in near.items()}


def replace_by_near(
    tokens: Sequence[int], share: float, near: Mapping[int, Sequence[int]], rng: np.random.Generator
) -> Tokens:
    """Replace each token with probability ``share`` by one that is near it and that the training data has not.

    A student then meets every token that it keeps, where a sentence makes sense with it: the replacement by neighbours
    of Jiao et al. 2020, "TinyBERT", section 4.1.2, with the source's own table instead of a language model.
    """
    hit, drawn = rng.random(len(tokens)) < share, rng.random(len(tokens))
    return [
        near[token][int(draw * len(near[token]))] if replaced and token in near else token
        for token, replaced, draw in zip(tokens, hit, drawn, strict=True)
    ]


def swap_tokens(tokens: Sequence[int], swaps: int, rng: np.random.Generator) -> Tokens:
    """Swap neighbours at random places: Wei & Zou 2019, "EDA", restricted to neighbours so that phrases survive."""
    result = list(tokens)
    for _ in range(swaps if len(result) > 1 else 0):
        i = int(rng.integers(len(result) - 1))
        result[i], result[i + 1] = result[i + 1], result[i]
    return result


def mix_spans(first: Sequence[int], second: Sequence[int], rng: np.random.Generator) -> Tokens:
    """A span of one sample followed by a span of another.

    The span-wise mixing of Yoon et al. 2021, "SSMix"; here the teacher labels the mixture, no label is interpolated.
    """
    return [*_span(first, rng), *_span(second, rng)]


def _span(tokens: Sequence[int], rng: np.random.Generator) -> Sequence[int]:
    """A contiguous part, a third of the sample at least."""
    length = int(rng.integers(max(1, len(tokens) // 3), len(tokens) + 1))
    start = int(rng.integers(len(tokens) - length + 1))
    return tokens[start : start + length]


@dataclass(frozen=True, slots=True)
class TextAugmentation:
    """How one augmented copy of a sample is made.

    Attributes:
        drop: Share of tokens left out.
        replace: Share of tokens replaced.
        mix: Probability that a copy is a mixture with another sample instead.
        swaps: Neighbours swapped.
        nearby: Share of tokens replaced by one of those that are ``near`` them.
        near: See :func:`near_tokens`.
    """

    drop: float = 0.1
    replace: float = 0.1
    mix: float = 0.3
    swaps: int = 1
    nearby: float = 0.15
    near: Mapping[int, Sequence[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the fields."""
        for name in ("drop", "replace", "mix", "nearby"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}")
        if self.swaps < 0:
            raise ValueError(f"swaps must not be negative, got {self.swaps}")

    def __call__(
        self,
        rows: Sequence[Sequence[int]],
        *,
        before: int,
        after: int,
        max_length: int,
        seed: int,
    ) -> list[Tokens]:
        """One augmented copy of each row.

        Args:
            rows: Token ids of the samples, special tokens included.
            before: How many special tokens stand before each sample.
            after: How many stand after it.
            max_length: Longest row.
            seed: Decides everything drawn.

        Returns:
            As many rows, in the same order.
        """
        rng = np.random.default_rng(seed)
        cores = [list(row[before : len(row) - after]) for row in rows]
        pool = [token for core in cores for token in core]
        made = []
        for row, core in zip(rows, cores, strict=True):
            if not core:
                made.append(list(row))
                continue
            if rng.random() < self.mix:
                other = cores[int(rng.integers(len(cores)))]
                new = mix_spans(core, other or core, rng)
            else:
                new = replace_tokens(drop_tokens(core, self.drop, rng), self.replace, pool, rng)
                new = swap_tokens(new, self.swaps, rng)
            if self.near:
                new = replace_by_near(new, self.nearby, self.near, rng)
            new = new[: max_length - before - after]
            made.append([*row[:before], *new, *(row[len(row) - after :] if after else [])])
        return made


def shift_images(images: npt.NDArray[np.float32], most: int, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Shift each image ``[N, C, H, W]`` by up to ``most`` pixels either way; what enters is the nearest edge."""
    if most < 0:
        raise ValueError(f"most must not be negative, got {most}")
    padded = np.pad(images, ((0, 0), (0, 0), (most, most), (most, most)), mode="edge")
    height, width = images.shape[2:]
    result = np.empty_like(images)
    for i, (y, x) in enumerate(rng.integers(0, 2 * most + 1, size=(len(images), 2))):
        result[i] = padded[i, :, y : y + height, x : x + width]
    return result


def add_noise(arrays: npt.NDArray[np.float32], share: float, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Add Gaussian noise of ``share`` of each feature's standard deviation over the samples ``[N, ...]``."""
    if share < 0:
        raise ValueError(f"share must not be negative, got {share}")
    deviation = arrays.std(axis=0, keepdims=True)
    noisy: npt.NDArray[np.float32] = (arrays + share * deviation * rng.standard_normal(arrays.shape)).astype(
        arrays.dtype
    )
    return noisy


def mix_arrays(arrays: npt.NDArray[np.float32], rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Each sample mixed with another, weight in [0.5, 1): the inputs of Zhang et al. 2018, "mixup"."""
    other = rng.permutation(len(arrays))
    weight = rng.uniform(0.5, 1.0, size=(len(arrays),) + (1,) * (arrays.ndim - 1)).astype(arrays.dtype)
    mixed: npt.NDArray[np.float32] = weight * arrays + (1 - weight) * arrays[other]
    return mixed
