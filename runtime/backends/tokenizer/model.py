"""The first step of a published text model: strings in, token ids out.

``lepto publish`` copies this file beside ``tokenizer.json`` and ``preprocessing.json``. It runs in Triton's python
stub, on any server with the python backend and the ``tokenizers`` package: it stands alone.

Every request is padded to its own longest text, never to its neighbours': a text's answer does not depend on who else
was asking.

Where the model labels words (``"kind": "words"`` in ``preprocessing.json``) a text is split first, by the rule of
``lepto.runtime.words``, and ``spans`` tells where the word begins and ends that a token is the first of.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]  # exists only inside Triton's stub
from tokenizers import Encoding, Tokenizer

INPUT = "TEXT"
SPANS = "spans"


class TritonPythonModel:
    """What Triton's python stub calls."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load the tokenizer.

        Args:
            args: Triton's strings; ``model_repository`` is the model's own folder.
        """
        folder = Path(args["model_repository"], args["model_version"])
        settings = json.loads((folder / "preprocessing.json").read_text(encoding="utf-8"))
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.enable_truncation(max_length=settings["max_length"])
        self._tokenizer.no_padding()
        self._names: list[str] = settings["inputs"]
        self._words = settings["kind"] == "words"
        self._pad = {
            "input_ids": settings["pad_id"],
            "attention_mask": 0,
            "token_type_ids": settings["pad_type_id"],
        }

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer each request, in order: ``TEXT`` [B, 1] to int64 [B, S] for each of the model's inputs."""
        responses: list[Any] = [None] * len(requests)
        texts: list[str] = []
        places: list[tuple[int, int, int]] = []
        for index, request in enumerate(requests):
            try:
                own = _read(request)
            except ValueError as error:
                responses[index] = pb_utils.InferenceResponse(
                    error=pb_utils.TritonError(str(error), pb_utils.TritonError.INVALID_ARG)
                )
                continue
            places.append((index, len(texts), len(texts) + len(own)))
            texts += own
        words = [split_words(text) for text in texts] if self._words else []
        encodings = self._encode(texts, words) if texts else []
        for index, start, end in places:
            responses[index] = self._respond(requests[index], encodings[start:end], words[start:end])
        return responses

    def _encode(self, texts: Sequence[str], words: Sequence[Sequence[tuple[int, int]]]) -> list[Encoding]:
        if not self._words:
            return list(self._tokenizer.encode_batch(texts))
        rows = [[text[start:end] for start, end in own] for text, own in zip(texts, words, strict=True)]
        return list(self._tokenizer.encode_batch(rows, is_pretokenized=True))

    def _respond(self, request: Any, encodings: Sequence[Encoding], words: Sequence[Sequence[tuple[int, int]]]) -> Any:
        length = max(len(encoding.ids) for encoding in encodings)
        wanted = set(request.requested_output_names())
        tensors = []
        for name in self._names:
            if name not in wanted:
                continue
            rows = np.full((len(encodings), length or 1), self._pad[name], np.int64)
            if length == 0 and name == "attention_mask":
                # Only a tokenizer without [CLS] makes nothing of an empty text; a model needs one token to look at.
                rows[:] = 1
            for row, encoding in zip(rows, encodings, strict=True):
                values = {
                    "input_ids": encoding.ids,
                    "attention_mask": encoding.attention_mask,
                    "token_type_ids": encoding.type_ids,
                }[name]
                row[: len(values)] = values
            tensors.append(pb_utils.Tensor(name, rows))
        if self._words and SPANS in wanted:
            spans = np.full((len(encodings), length or 1, 2), -1, np.int64)
            for row, encoding, own in zip(spans, encodings, words, strict=True):
                last = None
                for place, word in enumerate(encoding.word_ids):
                    if word is not None and word != last:
                        row[place] = own[word]
                        last = word
            tensors.append(pb_utils.Tensor(SPANS, spans))
        return pb_utils.InferenceResponse(output_tensors=tensors)


def split_words(text: str) -> list[tuple[int, int]]:
    """Where the words of a text begin and end: runs without white space, less the marks at their ends, one by one."""
    spans: list[tuple[int, int]] = []
    for run in re.finditer(r"\S+", text):
        start, end = run.span()
        first, last = start, end
        while first < end and unicodedata.category(text[first])[0] in "PS":
            first += 1
        while last > first and unicodedata.category(text[last - 1])[0] in "PS":
            last -= 1
        spans += [(i, i + 1) for i in range(start, first)]
        if first < last:
            spans.append((first, last))
        spans += [(i, i + 1) for i in range(last, end)]
    return spans


def _read(request: Any) -> list[str]:
    """The request's texts.

    Raises:
        ValueError: There are none, or one of them is not UTF-8.
    """
    tensor = pb_utils.get_input_tensor_by_name(request, INPUT)
    if tensor is None:
        raise ValueError(f"input {INPUT!r} is missing: send the texts as strings of shape [batch, 1]")
    values = tensor.as_numpy()
    if values.ndim != 2 or values.shape[1] != 1 or values.shape[0] < 1:
        raise ValueError(f"input {INPUT!r} must have shape ['batch', 1], got {list(values.shape)}")
    texts = []
    for index, value in enumerate(values[:, 0]):
        if isinstance(value, str):
            texts.append(value)
            continue
        try:
            texts.append(bytes(value).decode("utf-8"))
        except UnicodeDecodeError as error:
            raise ValueError(f"{INPUT}[{index}] is not valid UTF-8: {error.reason} at byte {error.start}") from error
    return texts
