"""Typed clients for published models, over tritonclient: HTTP or gRPC, blocking or asyncio.

Text goes in as strings and comes back as labels, through Triton's classification extension; scores arrive there with
six decimals. :meth:`TextClient.tag` gives a label for every word, :meth:`TextClient.infer` the raw tensors.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException  # type: ignore[import-untyped]  # no types

from lepto.runtime.client_api import Api, Arrays, Protocol, batches, word_labels_of
from lepto.runtime.embedding import EMBEDDINGS
from lepto.runtime.tagging import Tag
from lepto.runtime.text import Prediction
from lepto.runtime.triton_config import (
    MAX_BATCH_SIZE,
)

VERSION_CHANGE_S = 0.05


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
        self._api = Api(url, name, protocol, timeout_s, asynchronous=False)
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
        for part in batches(texts, top, batch_size):
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
        for part in batches(texts, 1, batch_size):
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
        return self._api.vectors([self._ask(self._api.strings(part)) for part in batches(texts, 1, batch_size)])

    def word_labels(self) -> tuple[str, ...] | None:
        """The labels of a model that labels words; None for other models.

        Raises:
            LeptoError: See :meth:`classify`.
        """
        return word_labels_of(self._configuration())

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
        self._api = Api(url, name, protocol, timeout_s, asynchronous=True)
        self._client: Any = None
        self._config: Mapping[str, Any] | None = None

    async def classify(
        self, texts: Sequence[str], *, top: int = 1, batch_size: int = MAX_BATCH_SIZE
    ) -> list[list[Prediction]]:
        """See :meth:`TextClient.classify`."""
        answers: list[list[Prediction]] = []
        for part in batches(texts, top, batch_size):
            answers += self._api.predictions(await self._ask(self._api.classification(part, top)), len(part))
        return answers

    async def tag(self, texts: Sequence[str], *, batch_size: int = MAX_BATCH_SIZE) -> list[list[Tag]]:
        """See :meth:`TextClient.tag`."""
        labels = self._api.needed(await self.word_labels())
        answers: list[list[Tag]] = []
        for part in batches(texts, 1, batch_size):
            answers += self._api.tagged(part, await self._ask(self._api.strings(part)), labels)
        return answers

    async def embed(self, texts: Sequence[str], *, batch_size: int = MAX_BATCH_SIZE) -> NDArray[Any]:
        """See :meth:`TextClient.embed`."""
        return self._api.vectors([await self._ask(self._api.strings(part)) for part in batches(texts, 1, batch_size)])

    async def word_labels(self) -> tuple[str, ...] | None:
        """See :meth:`TextClient.word_labels`."""
        if self._config is None:
            try:
                config = await self._connected().get_model_config(self._api.name, **self._api.index_options())
            except Exception as error:
                raise await self._explain(error) from error
            self._config = config.get("config", config)
        return word_labels_of(self._config)

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
