"""What the clients of published models have in common: requests, answers, and errors with a way out."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException, np_to_triton_dtype  # type: ignore[import-untyped]  # no types

from lepto.runtime.embedding import EMBEDDINGS
from lepto.runtime.errors import LeptoError
from lepto.runtime.tagging import Tag, tags
from lepto.runtime.text import Prediction
from lepto.runtime.triton_config import (
    LABELS,
    MAX_BATCH_SIZE,
    MODEL_SUFFIX,
    SCORES_OUTPUT,
    SPANS_OUTPUT,
    TEXT_INPUT,
    TOKENIZER_SUFFIX,
)
from lepto.runtime.words import split_words

Protocol = Literal["http", "grpc"]
DEFAULT_URLS: dict[str, str] = {"http": "127.0.0.1:8000", "grpc": "127.0.0.1:8001"}

Arrays = dict[str, NDArray[Any]]


class Api:
    """What is the same in the four clients: requests, answers, errors."""

    def __init__(self, url: str, name: str, protocol: Protocol, timeout_s: float, *, asynchronous: bool) -> None:
        if protocol not in DEFAULT_URLS:
            raise ValueError(f"protocol must be 'http' or 'grpc', got {protocol!r}")
        host, colon, port = url.rpartition(":")
        if not (host and colon and port.isdecimal()) or "/" in url:
            raise LeptoError(f"url must be HOST:PORT without a scheme, like {DEFAULT_URLS[protocol]}, got {url!r}")
        if timeout_s <= 0:
            raise ValueError(f"timeout_s must be above 0, got {timeout_s}")
        self.url, self.name, self.protocol, self.timeout_s = url, name, protocol, timeout_s
        self._asynchronous = asynchronous
        self._module = importlib.import_module(f"tritonclient.{protocol}{'.aio' if asynchronous else ''}")

    def connect(self) -> Any:
        """A client of tritonclient for the protocol."""
        if self.protocol == "grpc":
            return self._module.InferenceServerClient(self.url)
        if self._asynchronous:
            return self._module.InferenceServerClient(self.url, conn_timeout=self.timeout_s)
        return self._module.InferenceServerClient(
            self.url, connection_timeout=self.timeout_s, network_timeout=self.timeout_s
        )

    def classification(self, texts: Sequence[str], top: int) -> dict[str, Any]:
        """A request of texts for Triton's classification extension."""
        wanted = self._module.InferRequestedOutput(SCORES_OUTPUT, class_count=top)
        return {**self.strings(texts), "outputs": [wanted]}

    def strings(self, texts: Sequence[str]) -> dict[str, Any]:
        """A request of texts for all the outputs there are."""
        tensor = self._module.InferInput(TEXT_INPUT, [len(texts), 1], "BYTES")
        tensor.set_data_from_numpy(np.array([[text.encode()] for text in texts], dtype=np.object_))
        return {"model_name": self.name, "inputs": [tensor], **self._limits()}

    def tensors(self, inputs: Mapping[str, NDArray[Any]], model: str | None) -> dict[str, Any]:
        """A request of raw tensors, by default to the tensors' side of the text model."""
        tensors = []
        for name, array in inputs.items():
            tensor = self._module.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
            tensor.set_data_from_numpy(np.ascontiguousarray(array))
            tensors.append(tensor)
        return {"model_name": model or self.name + MODEL_SUFFIX, "inputs": tensors, **self._limits()}

    def index_options(self) -> dict[str, Any]:
        """What makes the server's descriptions come as mappings."""
        return {"as_json": True} if self.protocol == "grpc" else {}

    def _limits(self) -> dict[str, Any]:
        return {"client_timeout": self.timeout_s} if self.protocol == "grpc" else {}

    def predictions(self, result: Any, count: int) -> list[list[Prediction]]:
        """The labels in an answer to :meth:`classification`, for each of ``count`` texts."""
        rows = result.as_numpy(SCORES_OUTPUT).reshape(count, -1)
        return [[prediction_of(entry) for entry in row] for row in rows]

    def needed(self, labels: tuple[str, ...] | None) -> tuple[str, ...]:
        """The labels of words, or an error where the model has none."""
        if labels is None:
            raise LeptoError(f"{self.name!r} gives one answer for each text, not for its words: use classify")
        return labels

    def tagged(self, texts: Sequence[str], result: Any, labels: Sequence[str]) -> list[list[Tag]]:
        """The words of texts with what the server says of each."""
        arrays = self.arrays(result)
        return [
            _tags(text, spans, scores, labels)
            for text, spans, scores in zip(texts, arrays[SPANS_OUTPUT], arrays[SCORES_OUTPUT], strict=True)
        ]

    def vectors(self, results: Sequence[Any]) -> NDArray[Any]:
        """The vectors of several answers, ``[N, W]``, or an error where there are none."""
        parts = [self.arrays(result) for result in results]
        if not parts:
            raise ValueError("texts must have at least one text, got none")
        if EMBEDDINGS not in parts[0]:
            raise LeptoError(f"{self.name!r} gives {', '.join(parts[0])}, no {EMBEDDINGS}: use classify or infer")
        return np.concatenate([part[EMBEDDINGS] for part in parts])

    def arrays(self, result: Any) -> Arrays:
        """All outputs of an answer by name."""
        response = result.get_response()
        outputs = response["outputs"] if isinstance(response, Mapping) else response.outputs
        names = [entry["name"] if isinstance(entry, Mapping) else entry.name for entry in outputs]
        return {name: result.as_numpy(name) for name in names}

    def unknown_model(self, error: Exception) -> bool:
        """Whether the server says that it has no such model."""
        return isinstance(error, InferenceServerException) and "is not found" in str(error.message())

    def changing(self, error: Exception) -> bool:
        """Whether a version was unloaded under the request."""
        return isinstance(error, InferenceServerException) and "not at ready state" in str(error.message())

    def explain(self, error: Exception, index: Any) -> Exception:
        """The error to raise instead, with the way out."""
        if isinstance(error, LeptoError | TypeError | ValueError):
            return error
        status = str(error.status() or "") if isinstance(error, InferenceServerException) else ""
        message = str(error.message()) if isinstance(error, InferenceServerException) else str(error)
        if "DEADLINE_EXCEEDED" in status or isinstance(error, TimeoutError) or "timed out" in message:
            return LeptoError(
                f"{self.name!r} at {self.url} did not answer in {self.timeout_s:g} s: "
                "the server is overloaded or gone; raise timeout_s or ask its log",
                exit_code=1,
            )
        # gevent, aiohttp and grpc each have their own class for this; none of them is an answer of the server.
        if not isinstance(error, InferenceServerException) or (
            "UNAVAILABLE" in status and ("connect" in message or "Socket" in message)
        ):
            return LeptoError(
                f"no Triton server answers at {self.url} ({self.protocol}): {message or type(error).__name__}; "
                "start one with `lepto serve --model-repository DIR`, or name another with --url HOST:PORT"
            )
        if self.unknown_model(error):
            return LeptoError(f"the server at {self.url} has no model {self.name!r}; it has {self._names(index)}")
        if status in ("503", "StatusCode.UNAVAILABLE"):
            return LeptoError(f"{self.name!r} at {self.url} is busy: {message}; try again later", exit_code=1)
        return LeptoError(f"{self.name!r} at {self.url} refused the request: {message}", exit_code=1)

    def _names(self, index: Any) -> str:
        try:
            found = index()
        except Exception:  # the list is a courtesy; the first error is what matters
            return "others (the server does not list them)"
        models = found.get("models", []) if isinstance(found, Mapping) else found
        names = sorted({entry["name"] for entry in models if entry.get("state") == "READY"})
        names = [name for name in names if not name.endswith((TOKENIZER_SUFFIX, MODEL_SUFFIX))]
        return ", ".join(names) or "none"


def batches(texts: Sequence[str], top: int, batch_size: int) -> list[Sequence[str]]:
    """Texts in requests of at most ``batch_size``; what callers may get wrong is checked first."""
    if isinstance(texts, str | bytes):
        raise TypeError(f"texts must be a list of strings, got one {type(texts).__name__}: put it in a list")
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"texts[{index}] must be a string, got {type(text).__name__}")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"texts[{index}] is no valid Unicode: {error}") from error
    if top < 1:
        raise ValueError(f"top must be at least 1, got {top}")
    if not 1 <= batch_size <= MAX_BATCH_SIZE:
        raise ValueError(f"batch_size must be in [1, {MAX_BATCH_SIZE}], got {batch_size}")
    return [texts[start : start + batch_size] for start in range(0, len(texts), batch_size)]


def word_labels_of(config: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The labels of words in a model's configuration."""
    parameters = config.get("parameters", {})
    return tuple(json.loads(parameters[LABELS]["string_value"])) if LABELS in parameters else None


def _tags(text: str, spans: NDArray[Any], scores: NDArray[Any], labels: Sequence[str]) -> list[Tag]:
    """The words of a text with what the server says at the first token of each; it names those by their spans."""
    seen = {(int(start), int(end)): row for (start, end), row in zip(spans, scores, strict=True) if start >= 0}
    words = split_words(text)
    rows = [seen.get(span, np.zeros(len(labels), np.float32)) for span in words]
    return tags([text[start:end] for start, end in words], words, np.array(rows).reshape(-1, len(labels)), labels)


def prediction_of(entry: bytes | str) -> Prediction:
    """Read ``score:index:label``; the label may have colons of its own."""
    text = entry.decode() if isinstance(entry, bytes) else entry
    score, index, label = text.split(":", 2)
    return Prediction(label=label, score=float(score), index=int(index))
