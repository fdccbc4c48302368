"""Typed clients for published models, over tritonclient: HTTP or gRPC, blocking or asyncio.

Text goes in as strings and comes back as labels, through Triton's classification extension; scores arrive there with
six decimals. :meth:`TextClient.tag` gives a label for every word, :meth:`TextClient.infer` the raw tensors.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, Self

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
VERSION_CHANGE_S = 0.05

Arrays = dict[str, NDArray[Any]]


class TextClient:
    """Asks a published text model. Use it as a context manager; not shared between threads.

    Args:
        url: ``HOST:PORT`` of the server, for the protocol.
        name: The published model.
        protocol: ``http`` or ``grpc``.
        timeout_s: How long one request may take.

    Raises:
        LeptoError: ``url`` is not ``HOST:PORT``.

    Example:
        >>> with TextClient("127.0.0.1:8000", "intents") as client:  # doctest: +SKIP
        ...     client.classify(["where is my parcel?"])
        [[Prediction(label='track_order', score=0.99, index=7)]]
    """

    def __init__(self, url: str, name: str, *, protocol: Protocol = "http", timeout_s: float = 30.0) -> None:
        self._api = _Api(url, name, protocol, timeout_s, asynchronous=False)
        self._client = self._api.connect()
        self._config: Mapping[str, Any] | None = None

    def classify(
        self, texts: Sequence[str], *, top: int = 1, batch_size: int = MAX_BATCH_SIZE
    ) -> list[list[Prediction]]:
        """Classify texts.

        Args:
            texts: The texts, any number.
            top: How many labels for each, best first.
            batch_size: Texts in one request, at most what the model takes.

        Raises:
            TypeError: ``texts`` is one string, or holds something else than strings.
            ValueError: ``top`` or ``batch_size`` is out of range.
            LeptoError: The server cannot be reached, does not know the model, or refuses the request.
        """
        answers: list[list[Prediction]] = []
        for part in _batches(texts, top, batch_size):
            answers += self._api.predictions(self._ask(self._api.classification(part, top)), len(part))
        return answers

    def tag(self, texts: Sequence[str], *, batch_size: int = MAX_BATCH_SIZE) -> list[list[Tag]]:
        """Label the words of texts; the answers are those of :class:`lepto.runtime.tagging.TokenClassifier`.

        Args:
            texts: The texts, any number.
            batch_size: Texts in one request, at most what the model takes.

        Raises:
            TypeError: ``texts`` is one string, or holds something else than strings.
            ValueError: ``batch_size`` is out of range.
            LeptoError: See :meth:`classify`; or the model labels no words.
        """
        labels = self._api.needed(self.word_labels())
        answers: list[list[Tag]] = []
        for part in _batches(texts, 1, batch_size):
            answers += self._api.tagged(part, self._ask(self._api.strings(part)), labels)
        return answers

    def embed(self, texts: Sequence[str], *, batch_size: int = MAX_BATCH_SIZE) -> NDArray[Any]:
        """The vectors of texts, float32 ``[N, W]``, of a published sentence encoder.

        Args:
            texts: The texts, at least one.
            batch_size: Texts in one request, at most what the model takes.

        Raises:
            TypeError: ``texts`` is one string, or holds something else than strings.
            ValueError: There is no text, or ``batch_size`` is out of range.
            LeptoError: See :meth:`classify`; or the model gives no vectors.
        """
        return self._api.vectors([self._ask(self._api.strings(part)) for part in _batches(texts, 1, batch_size)])

    def word_labels(self) -> tuple[str, ...] | None:
        """The labels of a model that labels words; None for other models.

        Raises:
            LeptoError: See :meth:`classify`.
        """
        return _word_labels(self._configuration())

    def gives_vectors(self) -> bool:
        """Whether :meth:`embed` is what the model is asked by.

        Raises:
            LeptoError: See :meth:`classify`.
        """
        return any(output["name"] == EMBEDDINGS for output in self._configuration().get("output", []))

    def _configuration(self) -> Mapping[str, Any]:
        """The model's configuration, asked for once; over gRPC it lies one level deeper."""
        if self._config is None:
            try:
                config = self._client.get_model_config(self._api.name, **self._api.index_options())
            except Exception as error:
                raise self._explain(error) from error
            self._config = config.get("config", config)
        return self._config

    def _ask(self, request: dict[str, Any]) -> Any:
        try:
            try:
                return self._client.infer(**request)
            except InferenceServerException as error:
                if not self._api.changing(error):
                    raise
                # A version was unloaded under the request, by a server that does not wait for those on their way.
                time.sleep(VERSION_CHANGE_S)
                return self._client.infer(**request)
        except Exception as error:
            raise self._explain(error) from error

    def infer(self, inputs: Mapping[str, NDArray[Any]], *, model: str | None = None) -> Arrays:
        """Run a model on raw tensors.

        Args:
            inputs: One array for each input.
            model: The Triton model; by default the tensors' side of the text model, ``NAME.model``.

        Raises:
            LeptoError: See :meth:`classify`.
        """
        try:
            return self._api.arrays(self._client.infer(**self._api.tensors(inputs, model)))
        except Exception as error:
            raise self._explain(error) from error

    def _explain(self, error: Exception) -> Exception:
        return self._api.explain(error, lambda: self._client.get_model_repository_index(**self._api.index_options()))

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncTextClient:
    """The asyncio twin of :class:`TextClient`: same arguments, same answers, many requests in flight in one loop.

    Example:
        >>> async with AsyncTextClient("127.0.0.1:8001", "intents", protocol="grpc") as client:  # doctest: +SKIP
        ...     await client.classify(["where is my parcel?"])
    """

    def __init__(self, url: str, name: str, *, protocol: Protocol = "http", timeout_s: float = 30.0) -> None:
        self._api = _Api(url, name, protocol, timeout_s, asynchronous=True)
        self._client: Any = None
        self._config: Mapping[str, Any] | None = None

    async def classify(
        self, texts: Sequence[str], *, top: int = 1, batch_size: int = MAX_BATCH_SIZE
    ) -> list[list[Prediction]]:
        """See :meth:`TextClient.classify`."""
        answers: list[list[Prediction]] = []
        for part in _batches(texts, top, batch_size):
            answers += self._api.predictions(await self._ask(self._api.classification(part, top)), len(part))
        return answers

    async def tag(self, texts: Sequence[str], *, batch_size: int = MAX_BATCH_SIZE) -> list[list[Tag]]:
        """See :meth:`TextClient.tag`."""
        labels = self._api.needed(await self.word_labels())
        answers: list[list[Tag]] = []
        for part in _batches(texts, 1, batch_size):
            answers += self._api.tagged(part, await self._ask(self._api.strings(part)), labels)
        return answers

    async def embed(self, texts: Sequence[str], *, batch_size: int = MAX_BATCH_SIZE) -> NDArray[Any]:
        """See :meth:`TextClient.embed`."""
        return self._api.vectors([await self._ask(self._api.strings(part)) for part in _batches(texts, 1, batch_size)])

    async def word_labels(self) -> tuple[str, ...] | None:
        """See :meth:`TextClient.word_labels`."""
        if self._config is None:
            try:
                config = await self._connected().get_model_config(self._api.name, **self._api.index_options())
            except Exception as error:
                raise await self._explain(error) from error
            self._config = config.get("config", config)
        return _word_labels(self._config)

    async def _ask(self, request: dict[str, Any]) -> Any:
        try:
            try:
                return await self._connected().infer(**request)
            except InferenceServerException as error:
                if not self._api.changing(error):
                    raise
                await asyncio.sleep(VERSION_CHANGE_S)  # see TextClient
                return await self._connected().infer(**request)
        except Exception as error:
            raise await self._explain(error) from error

    async def infer(self, inputs: Mapping[str, NDArray[Any]], *, model: str | None = None) -> Arrays:
        """See :meth:`TextClient.infer`."""
        try:
            return self._api.arrays(await self._connected().infer(**self._api.tensors(inputs, model)))
        except Exception as error:
            raise await self._explain(error) from error

    async def _explain(self, error: Exception) -> Exception:
        index: Any = []
        if self._api.unknown_model(error):
            try:
                index = await self._connected().get_model_repository_index(**self._api.index_options())
            except Exception:  # the list is a courtesy; the first error is what matters
                index = []
        return self._api.explain(error, lambda: index)

    def _connected(self) -> Any:
        # aiohttp wants to be made inside a running loop.
        if self._client is None:
            self._client = self._api.connect()
        return self._client

    async def close(self) -> None:
        """Close the connection."""
        if self._client is not None:
            await self._client.close()
            self._client = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class _Api:
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
        if self.protocol == "grpc":
            return self._module.InferenceServerClient(self.url)
        if self._asynchronous:
            return self._module.InferenceServerClient(self.url, conn_timeout=self.timeout_s)
        return self._module.InferenceServerClient(
            self.url, connection_timeout=self.timeout_s, network_timeout=self.timeout_s
        )

    def classification(self, texts: Sequence[str], top: int) -> dict[str, Any]:
        wanted = self._module.InferRequestedOutput(SCORES_OUTPUT, class_count=top)
        return {**self.strings(texts), "outputs": [wanted]}

    def strings(self, texts: Sequence[str]) -> dict[str, Any]:
        """A request of texts for all the outputs there are."""
        tensor = self._module.InferInput(TEXT_INPUT, [len(texts), 1], "BYTES")
        tensor.set_data_from_numpy(np.array([[text.encode()] for text in texts], dtype=np.object_))
        return {"model_name": self.name, "inputs": [tensor], **self._limits()}

    def tensors(self, inputs: Mapping[str, NDArray[Any]], model: str | None) -> dict[str, Any]:
        tensors = []
        for name, array in inputs.items():
            tensor = self._module.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
            tensor.set_data_from_numpy(np.ascontiguousarray(array))
            tensors.append(tensor)
        return {"model_name": model or self.name + MODEL_SUFFIX, "inputs": tensors, **self._limits()}

    def index_options(self) -> dict[str, Any]:
        return {"as_json": True} if self.protocol == "grpc" else {}

    def _limits(self) -> dict[str, Any]:
        return {"client_timeout": self.timeout_s} if self.protocol == "grpc" else {}

    def predictions(self, result: Any, count: int) -> list[list[Prediction]]:
        rows = result.as_numpy(SCORES_OUTPUT).reshape(count, -1)
        return [[_prediction(entry) for entry in row] for row in rows]

    def needed(self, labels: tuple[str, ...] | None) -> tuple[str, ...]:
        if labels is None:
            raise LeptoError(f"{self.name!r} gives one answer for each text, not for its words: use classify")
        return labels

    def tagged(self, texts: Sequence[str], result: Any, labels: Sequence[str]) -> list[list[Tag]]:
        arrays = self.arrays(result)
        return [
            _tags(text, spans, scores, labels)
            for text, spans, scores in zip(texts, arrays[SPANS_OUTPUT], arrays[SCORES_OUTPUT], strict=True)
        ]

    def vectors(self, results: Sequence[Any]) -> NDArray[Any]:
        parts = [self.arrays(result) for result in results]
        if not parts:
            raise ValueError("texts must have at least one text, got none")
        if EMBEDDINGS not in parts[0]:
            raise LeptoError(f"{self.name!r} gives {', '.join(parts[0])}, no {EMBEDDINGS}: use classify or infer")
        return np.concatenate([part[EMBEDDINGS] for part in parts])

    def arrays(self, result: Any) -> Arrays:
        response = result.get_response()
        outputs = response["outputs"] if isinstance(response, Mapping) else response.outputs
        names = [entry["name"] if isinstance(entry, Mapping) else entry.name for entry in outputs]
        return {name: result.as_numpy(name) for name in names}

    def unknown_model(self, error: Exception) -> bool:
        return isinstance(error, InferenceServerException) and "is not found" in str(error.message())

    def changing(self, error: Exception) -> bool:
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


def _batches(texts: Sequence[str], top: int, batch_size: int) -> list[Sequence[str]]:
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


def _word_labels(config: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The labels of words in a model's configuration."""
    parameters = config.get("parameters", {})
    return tuple(json.loads(parameters[LABELS]["string_value"])) if LABELS in parameters else None


def _tags(text: str, spans: NDArray[Any], scores: NDArray[Any], labels: Sequence[str]) -> list[Tag]:
    """The words of a text with what the server says at the first token of each; it names those by their spans."""
    seen = {(int(start), int(end)): row for (start, end), row in zip(spans, scores, strict=True) if start >= 0}
    words = split_words(text)
    rows = [seen.get(span, np.zeros(len(labels), np.float32)) for span in words]
    return tags([text[start:end] for start, end in words], words, np.array(rows).reshape(-1, len(labels)), labels)


def _prediction(entry: bytes | str) -> Prediction:
    """Read ``score:index:label``; the label may have colons of its own."""
    text = entry.decode() if isinstance(entry, bytes) else entry
    score, index, label = text.split(":", 2)
    return Prediction(label=label, score=float(score), index=int(index))
