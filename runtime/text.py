"""Text in, labels out: the tokenizer and the model of a package together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lepto.runtime.errors import LeptoError
from lepto.runtime.manifest import TEXT_CLASSIFICATION, Preprocessing
from lepto.runtime.package import Package, open_package
from lepto.runtime.session import Session
from lepto.runtime.words import first_tokens, split_words

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from tokenizers import Encoding


@dataclass(frozen=True, slots=True)
class Prediction:
    """One label with its score.

    Attributes:
        label: The label's text.
        score: Its probability in [0, 1].
        index: Its place in the package's labels.
    """

    label: str
    score: float
    index: int


class TextEncoder:
    """Turns texts into a text model's inputs.

    Args:
        tokenizer_path: The ``tokenizer.json``.
        preprocessing: How to cut and pad, and which inputs the model takes.

    Raises:
        LeptoError: The tokenizer cannot be read, or ``max_length`` leaves no room for text.
    """

    def __init__(self, tokenizer_path: str | Path, preprocessing: Preprocessing) -> None:
        from tokenizers import Tokenizer

        path = Path(tokenizer_path)
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises plain Exception
            raise LeptoError(f"{path} is no tokenizer that the installed `tokenizers` can read: {error}") from error
        special = self._tokenizer.num_special_tokens_to_add(is_pair=False)
        if preprocessing.max_length <= special:
            # tokenizers would not cut at all then, without a word.
            raise LeptoError(
                f"max_length must be above {special}, the special tokens that {path} adds, "
                f"got {preprocessing.max_length}"
            )
        self._tokenizer.enable_truncation(preprocessing.max_length)
        self._tokenizer.enable_padding(
            pad_id=preprocessing.pad_id,
            pad_type_id=preprocessing.pad_type_id,
            pad_token=preprocessing.pad_token,
        )
        self.preprocessing = preprocessing

    def encode(self, texts: Sequence[str]) -> dict[str, NDArray[np.int64]]:
        """Encode texts, padded to the longest of them.

        Args:
            texts: At least one text.

        Returns:
            int64 ``[B, S]`` for each of the model's inputs.

        Raises:
            TypeError: ``texts`` is one string, or holds something else than strings.
            ValueError: There is no text, or one is no valid Unicode.
        """
        _check_texts(texts)
        if not texts:
            raise ValueError("texts must have at least one text, got none")
        if self.preprocessing.kind == "words":
            return self.encode_words([[text[start:end] for start, end in split_words(text)] for text in texts])[0]
        return self._arrays(self._tokenizer.encode_batch(list(texts)))

    def encode_words(self, rows: Sequence[Sequence[str]]) -> tuple[dict[str, NDArray[np.int64]], list[list[int]]]:
        """Encode lists of words, padded to the longest of them.

        Args:
            rows: At least one list; a list may be empty.

        Returns:
            int64 ``[B, S]`` for each of the model's inputs; and for each row the place of each word's first token, -1
            where none is left of it.

        Raises:
            TypeError: A row is no list of strings.
            ValueError: There is no row, or a word is no valid Unicode.
        """
        if not rows:
            raise ValueError("rows must have at least one list of words, got none")
        for row in rows:
            _check_texts(row)
        encodings = self._tokenizer.encode_batch([list(row) for row in rows], is_pretokenized=True)
        first = [first_tokens(encoding.word_ids, len(row)) for encoding, row in zip(encodings, rows, strict=True)]
        return self._arrays(encodings), first

    def _arrays(self, encodings: Sequence[Encoding]) -> dict[str, NDArray[np.int64]]:
        import numpy as np

        columns = {
            "input_ids": [encoding.ids for encoding in encodings],
            "attention_mask": [encoding.attention_mask for encoding in encodings],
            "token_type_ids": [encoding.type_ids for encoding in encodings],
        }
        arrays: dict[str, NDArray[np.int64]] = {
            name: np.array(columns[name], dtype=np.int64) for name in self.preprocessing.inputs
        }
        if arrays["input_ids"].shape[1] == 0:
            # Only a tokenizer without [CLS] makes nothing of an empty text; a model needs one token to look at.
            padding = {"input_ids": self.preprocessing.pad_id, "token_type_ids": self.preprocessing.pad_type_id}
            return {name: np.full((len(encodings), 1), padding.get(name, 1), dtype=np.int64) for name in arrays}
        return arrays


class TextClassifier:
    """A text-classification package, ready to answer.

    Args:
        package: An opened package or its folder.
        threads: Intra-op threads; by default those it was measured with.

    Raises:
        LeptoError: The package is broken or is for another task.

    Example:
        >>> classify = TextClassifier("out/intents")  # doctest: +SKIP
        >>> classify("where is my parcel?")  # doctest: +SKIP
        Prediction(label='track_order', score=0.99, index=7)
    """

    def __init__(self, package: Package | str | Path, *, threads: int | None = None) -> None:
        self.package = package if isinstance(package, Package) else open_package(package)
        manifest = self.package.manifest
        tokenizer, preprocessing, labels = self.package.tokenizer_path, manifest.preprocessing, self.package.labels
        if manifest.task != TEXT_CLASSIFICATION or tokenizer is None or preprocessing is None or labels is None:
            raise LeptoError(
                f"{self.package.path} is a package for task {manifest.task!r}, not {TEXT_CLASSIFICATION!r}: use Session"
            )
        self.labels = labels
        self.encoder = TextEncoder(tokenizer, preprocessing)
        self.session = Session(self.package, threads=threads)

    def __call__(self, text: str) -> Prediction:
        """Classify one text.

        Raises:
            TypeError: ``text`` is no string.
        """
        if not isinstance(text, str):
            raise TypeError(f"text must be a string, got {type(text).__name__}")
        return self.predict([text])[0][0]

    def predict(self, texts: Sequence[str], *, top: int = 1, batch_size: int = 1) -> list[list[Prediction]]:
        """Classify texts.

        Args:
            texts: The texts.
            top: How many labels for each, best first.
            batch_size: See :meth:`scores`.

        Returns:
            For each text its ``top`` predictions; of equal scores the label that comes first.

        Raises:
            TypeError: ``texts`` is one string, or holds something else than strings.
            ValueError: ``top`` or ``batch_size`` is out of range.
        """
        if not 1 <= top <= len(self.labels):
            raise ValueError(f"top must be in [1, {len(self.labels)}], the number of labels, got {top}")
        scores = self.scores(texts, batch_size=batch_size)
        order = (-scores).argsort(axis=1, kind="stable")[:, :top]
        return [
            [Prediction(label=self.labels[i], score=float(row[i]), index=int(i)) for i in best]
            for row, best in zip(scores, order, strict=True)
        ]

    def scores(self, texts: Sequence[str], *, batch_size: int = 1) -> NDArray[np.float32]:
        """The probability of every label.

        Args:
            texts: The texts.
            batch_size: Texts that are run together. With dynamically quantized models the neighbours in a batch share
                one scale, so that scores move in the last digits; with 1 each text is answered by itself.

        Returns:
            float32 ``[N, L]``.

        Raises:
            TypeError: ``texts`` is one string, or holds something else than strings.
            ValueError: ``batch_size`` is below 1.
        """
        _check_texts(texts)
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        import numpy as np

        scores = np.empty((len(texts), len(self.labels)), dtype=np.float32)
        for start in range(0, len(texts), batch_size):
            inputs = self.encoder.encode(texts[start : start + batch_size])
            scores[start : start + batch_size] = self.session.run(inputs)["scores"]
        return scores


def _check_texts(texts: Sequence[str]) -> None:
    if isinstance(texts, str | bytes):
        raise TypeError(f"texts must be a list of strings, got one {type(texts).__name__}: put it in a list")
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"texts[{index}] must be a string, got {type(text).__name__}")
        if not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise ValueError(f"texts[{index}] is no valid Unicode: {error}") from error
