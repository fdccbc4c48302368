"""Text in, vectors out: the tokenizer and the model of a sentence encoder's package together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lepto.runtime.errors import LeptoError
from lepto.runtime.manifest import FEATURE_EXTRACTION
from lepto.runtime.package import Package, open_package
from lepto.runtime.session import Session
from lepto.runtime.text import TextEncoder

EMBEDDINGS = "embeddings"
"""The output that holds one vector for each text."""


class TextEmbedder:
    """A feature-extraction package for texts, ready to answer.

    Args:
        package: An opened package or its folder.
        threads: Intra-op threads; by default those it was measured with.

    Raises:
        LeptoError: The package is broken or is for another task.

    Example:
        >>> embed = TextEmbedder("out/minilm")  # doctest: +SKIP
        >>> embed("where is my parcel?").shape  # doctest: +SKIP
        (384,)
    """

    def __init__(self, package: Package | str | Path, *, threads: int | None = None) -> None:
        self.package = package if isinstance(package, Package) else open_package(package)
        manifest = self.package.manifest
        tokenizer, preprocessing = self.package.tokenizer_path, manifest.preprocessing
        outputs = {tensor.name: tensor for tensor in manifest.outputs}
        if manifest.task != FEATURE_EXTRACTION or tokenizer is None or preprocessing is None:
            raise LeptoError(
                f"{self.package.path} is a package for task {manifest.task!r}, not {FEATURE_EXTRACTION!r} of texts: "
                "use Session"
            )
        if EMBEDDINGS not in outputs or not isinstance(outputs[EMBEDDINGS].shape[-1], int):
            raise LeptoError(f"{self.package.path} has no output {EMBEDDINGS!r} ['batch', width]: use Session")
        self.width = int(outputs[EMBEDDINGS].shape[-1])
        self.encoder = TextEncoder(tokenizer, preprocessing)
        self.session = Session(self.package, threads=threads)

    def __call__(self, text: str) -> NDArray[np.float32]:
        """The vector of one text, float32 ``[W]``.

        Raises:
            TypeError: ``text`` is no string.
        """
        if not isinstance(text, str):
            raise TypeError(f"text must be a string, got {type(text).__name__}")
        vector: NDArray[np.float32] = self.embed([text])[0]
        return vector

    def embed(self, texts: Sequence[str], *, batch_size: int = 1) -> NDArray[np.float32]:
        """The vectors of texts, float32 ``[N, W]``.

        Args:
            texts: The texts.
            batch_size: Texts that are run together; see :meth:`lepto.runtime.text.TextClassifier.scores`.

        Raises:
            TypeError: ``texts`` is one string, or holds something else than strings.
            ValueError: ``batch_size`` is below 1.
        """
        if isinstance(texts, str | bytes):
            raise TypeError(f"texts must be a list of strings, got one {type(texts).__name__}: put it in a list")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        vectors = np.empty((len(texts), self.width), dtype=np.float32)
        for start in range(0, len(texts), batch_size):
            inputs = self.encoder.encode(texts[start : start + batch_size])
            vectors[start : start + batch_size] = self.session.run(inputs)[EMBEDDINGS]
        return vectors
