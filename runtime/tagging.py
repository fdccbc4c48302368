"""Text or words in, a label for every word out: the tokenizer and the model of a package together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lepto.runtime.errors import LeptoError
from lepto.runtime.manifest import TOKEN_CLASSIFICATION
from lepto.runtime.package import Package, open_package
from lepto.runtime.session import Session
from lepto.runtime.text import TextEncoder
from lepto.runtime.words import Span, split_words


@dataclass(frozen=True, slots=True)
class Tag:
    """One word with its label.

    Attributes:
        word: The word.
        label: Its label; None if the model did not see it: it lies beyond the maximum length, or has no token.
        score: The label's probability in [0, 1]; 0 without a label.
        start: Where it begins in the text, in characters.
        end: Where it ends.
        index: The label's place in the package's labels; -1 without one.
    """

    word: str
    label: str | None
    score: float
    start: int
    end: int
    index: int


class TokenClassifier:
    """A token-classification package, ready to answer.

    A text is split by :func:`lepto.runtime.words.split_words`; a list of words is taken as it is, and its spans are
    those in the words joined by single spaces.

    Args:
        package: An opened package or its folder.
        threads: Intra-op threads; by default those it was measured with.

    Raises:
        LeptoError: The package is broken or is for another task.

    Example:
        >>> tag = TokenClassifier("out/entities")  # doctest: +SKIP
        >>> tag("Ada lives in London")[-1]  # doctest: +SKIP
        Tag(word='London', label='B-LOC', score=0.99, start=13, end=19, index=5)
    """

    def __init__(self, package: Package | str | Path, *, threads: int | None = None) -> None:
        self.package = package if isinstance(package, Package) else open_package(package)
        manifest = self.package.manifest
        tokenizer, preprocessing, labels = self.package.tokenizer_path, manifest.preprocessing, self.package.labels
        if manifest.task != TOKEN_CLASSIFICATION or tokenizer is None or preprocessing is None or labels is None:
            raise LeptoError(
                f"{self.package.path} is a package for task {manifest.task!r}, "
                f"not {TOKEN_CLASSIFICATION!r}: use Session"
            )
        self.labels = labels
        self.encoder = TextEncoder(tokenizer, preprocessing)
        self.session = Session(self.package, threads=threads)

    def __call__(self, text: str | Sequence[str]) -> list[Tag]:
        """Label the words of one text, or of one list of words.

        Raises:
            TypeError: It is neither.
        """
        return self.tag([text])[0]

    def tag(self, texts: Sequence[str | Sequence[str]], *, batch_size: int = 1) -> list[list[Tag]]:
        """Label the words of texts, or of lists of words.

        Args:
            texts: Each a text or a list of words.
            batch_size: Texts that are run together; see :meth:`lepto.runtime.text.TextClassifier.scores`.

        Returns:
            For each text one answer for each of its words.

        Raises:
            TypeError: ``texts`` is one string, or holds something else than texts and lists of words.
            ValueError: ``batch_size`` is below 1.
        """
        if isinstance(texts, str | bytes):
            raise TypeError(f"texts must be a list, got one {type(texts).__name__}: put it in a list")
        read = [_read(text) for text in texts]
        scores = self.scores([words for words, _ in read], batch_size=batch_size)
        return [tags(words, spans, rows, self.labels) for (words, spans), rows in zip(read, scores, strict=True)]

    def scores(self, rows: Sequence[Sequence[str]], *, batch_size: int = 1) -> list[NDArray[np.float32]]:
        """The probability of every label for every word: ``[W, L]`` for each row; zeros where the model saw no token.

        Args:
            rows: Lists of words.
            batch_size: Rows that are run together.

        Raises:
            TypeError: A row is no list of strings.
            ValueError: ``batch_size`` is below 1.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        found: list[NDArray[np.float32]] = []
        for start in range(0, len(rows), batch_size):
            inputs, first = self.encoder.encode_words(rows[start : start + batch_size])
            for scores, places in zip(self.session.run(inputs)["scores"], first, strict=True):
                found.append(at_words(scores, places))
        return found


def at_words(scores: NDArray[np.float32], places: Sequence[int]) -> NDArray[np.float32]:
    """What ``[S, L]`` says at the first token of each word, ``[W, L]``; zeros where a word has none (-1)."""
    taken = np.zeros((len(places), scores.shape[1]), dtype=np.float32)
    seen = np.asarray(places, dtype=np.int64) >= 0
    taken[seen] = scores[np.asarray(places, dtype=np.int64)[seen]]
    return taken


def tags(words: Sequence[str], spans: Sequence[Span], scores: NDArray[np.float32], labels: Sequence[str]) -> list[Tag]:
    """Words and their scores ``[W, L]`` as answers; a row of zeros is a word that the model did not see."""
    answers = []
    for word, (start, end), row in zip(words, spans, scores, strict=True):
        best = int(row.argmax())
        if row[best] > 0:
            answers.append(Tag(word, labels[best], float(row[best]), start, end, best))
        else:
            answers.append(Tag(word, None, 0.0, start, end, -1))
    return answers


def _read(text: str | Sequence[str]) -> tuple[list[str], list[Span]]:
    if isinstance(text, str):
        spans = split_words(text)
        return [text[start:end] for start, end in spans], spans
    if not isinstance(text, Sequence) or isinstance(text, bytes):
        raise TypeError(f"a text must be a string or a list of words, got {type(text).__name__}")
    words = list(text)
    spans, place = [], 0
    for index, word in enumerate(words):
        if not isinstance(word, str):
            raise TypeError(f"words[{index}] must be a string, got {type(word).__name__}")
        spans.append((place, place + len(word)))
        place += len(word) + 1
    return words, spans
