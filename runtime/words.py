"""Words of a text, and where the tokens of each begin: what a label at every word needs.

The rule that splits a text stands twice: here, and in the published tokenizer (``backends/tokenizer/model.py``), which
imports nothing of Lepto.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

Span = tuple[int, int]


def split_words(text: str) -> list[Span]:
    """Where the words of a text begin and end.

    A word is a run without white space, less the punctuation and symbols at its two ends; each of those is a word of
    its own, as the common corpora write them. In languages without spaces the caller gives the words.

    Example:
        >>> [text[a:b] for text in ["Don't go (to New-York)!"] for a, b in split_words(text)]
        ["Don't", 'go', '(', 'to', 'New-York', ')', '!']
    """
    spans: list[Span] = []
    for run in re.finditer(r"\S+", text):
        start, end = run.span()
        first, last = start, end
        while first < end and _is_mark(text[first]):
            first += 1
        while last > first and _is_mark(text[last - 1]):
            last -= 1
        spans += [(i, i + 1) for i in range(start, first)]
        if first < last:
            spans.append((first, last))
        spans += [(i, i + 1) for i in range(last, end)]
    return spans


def _is_mark(character: str) -> bool:
    return unicodedata.category(character)[0] in "PS"


def first_tokens(word_ids: Sequence[int | None], count: int) -> list[int]:
    """For each of ``count`` words the place of its first token; -1 where none is left of it.

    Args:
        word_ids: For each token its word; None for special tokens and padding.
        count: W.
    """
    places = [-1] * count
    for place, word in enumerate(word_ids):
        if word is not None and places[word] < 0:
            places[word] = place
    return places
