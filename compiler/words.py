"""Rows of words as a model's tokens, and a label at every word as one at every token.

N samples, W words, S tokens, L labels. What is measured is measured at words, which are the same for every tokenizer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lepto.runtime.tagging import at_words
from lepto.runtime.words import first_tokens

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

    from lepto.compiler.source import Text

Words = tuple[str, ...]
"""One sample that was given as words."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One sample as its tokens.

    Attributes:
        ids: The tokens.
        first: For each word the place of its first token; -1 where it lies beyond the maximum length or has none.
    """

    ids: list[int]
    first: list[int]


def are_words(inputs: Any) -> bool:
    """Whether samples are rows of words, and not texts or arrays."""
    return isinstance(inputs, Sequence) and bool(inputs) and not isinstance(inputs[0], str)


def encode_all(tokenizer: Tokenizer, inputs: Sequence[str | Words]) -> list[Encoding]:
    """Encode texts, or rows of words word by word."""
    if not are_words(inputs):
        return list(tokenizer.encode_batch_fast(list(inputs)))
    # A tuple of two would be read as a pair of texts. The fast variant does not tell words.
    return list(tokenizer.encode_batch([list(row) for row in inputs], is_pretokenized=True))


def read_words(inputs: Sequence[str | Words], text: Text) -> list[Reading]:
    """Tokens of rows of words, cut at the maximum length."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(text.tokenizer)
    tokenizer.enable_truncation(text.preprocessing.max_length)
    encodings = encode_all(tokenizer, inputs)
    return [
        Reading(encoding.ids or [text.preprocessing.pad_id], first_tokens(encoding.word_ids, len(row)))
        for encoding, row in zip(encodings, inputs, strict=True)
    ]


def word_outputs(outputs: Sequence[npt.NDArray[np.float32]], first: Sequence[Sequence[int]]) -> npt.NDArray[np.float32]:
    """What a model says at the first token of each word: from ``[S, L]`` for each sample to ``[N, W, L]``.

    Rows of zeros are words without a token, and fill the samples with fewer words.
    """
    longest = max(map(len, first))
    result = np.zeros((len(outputs), longest, outputs[0].shape[-1]), dtype=np.float32)
    for row, (output, places) in enumerate(zip(outputs, first, strict=True)):
        result[row, : len(places)] = at_words(output, places)
    return result


def token_labels(readings: Sequence[Reading], labels: Sequence[npt.NDArray[np.int64]], ignored: int) -> list[list[int]]:
    """Each word's label at its first token, ``ignored`` at all other tokens."""
    rows = []
    for reading, own in zip(readings, labels, strict=True):
        row = [ignored] * len(reading.ids)
        for place, label in zip(reading.first, own, strict=True):
            if place >= 0:
                row[place] = int(label)
        rows.append(row)
    return rows


def with_prefix_space(tokenizer: str) -> str:
    """The text of ``tokenizer.json`` that reads every word as one after a space.

    Byte-level tokenizers (RoBERTa) would read single words as if they stood at the beginning of a text; transformers
    refuses rows of words without ``add_prefix_space`` for the same reason.
    """
    loaded = json.loads(tokenizer)

    def visit(part: Any) -> None:
        if isinstance(part, Mapping):
            if part.get("type") == "ByteLevel" and "add_prefix_space" in part:
                part["add_prefix_space"] = True  # type: ignore[index]  # json gives dicts
            for inner in part.get("pretokenizers", ()):
                visit(inner)

    visit(loaded.get("pre_tokenizer"))
    return json.dumps(loaded, ensure_ascii=False)
