"""What the load generator asks: a package in this process, or a model on a running server over HTTP or gRPC.

Requests to a server are serialized once, before anything is timed, and sent as bytes over kept connections, so that the
time is the server's and not that of building a request in Python.
"""

from __future__ import annotations

import importlib
import json
import re
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
from tritonclient.utils import (  # type: ignore[import-untyped]  # no types
    InferenceServerException,
    np_to_triton_dtype,
    triton_to_np_dtype,
)

from lepto.benchmarks import scenarios
from lepto.benchmarks.http2 import CallError, Connection
from lepto.benchmarks.workers import Feed
from lepto.compiler.data import Samples
from lepto.runtime.control import PROBE_TEXT
from lepto.runtime.errors import LeptoError
from lepto.runtime.package import Package
from lepto.runtime.session import Session
from lepto.runtime.triton_config import TEXT_INPUT

TIMEOUT_S: Final = 30.0
_URL = re.compile(r"(?:(http|grpc)://)?([^/\s:]+:\d+)/([A-Za-z0-9_][A-Za-z0-9_.-]*)")


class Target(Protocol):
    """Something that answers samples by their place."""

    name: str
    count: int

    def run(self, place: int) -> None:
        """Answer one sample. Safe to call from several threads."""

    def run_many(self, places: Sequence[int]) -> None:
        """Answer samples in one batch, if it can."""

    def close(self) -> None:
        """Let go of everything."""


@dataclass(frozen=True, slots=True)
class Url:
    """A served model.

    Attributes:
        protocol: ``http`` or ``grpc``.
        address: ``HOST:PORT``.
        model: Its name.
    """

    protocol: str
    address: str
    model: str


def parse_url(text: str) -> Url | None:
    """``http://HOST:PORT/MODEL``, ``grpc://HOST:PORT/MODEL`` or ``HOST:PORT/MODEL``; None if it is no such thing."""
    match = _URL.fullmatch(text)
    return Url(match[1] or "http", match[2], match[3]) if match else None


class InProcess:
    """A package in this process.

    Args:
        package: The package.
        feeds: Its inputs, batch 1.
        threads: Intra-op threads.

    Attributes:
        load_s: What loading took.
        first_s: What the first request took.
    """

    def __init__(self, package: Package, feeds: Sequence[Feed], threads: int) -> None:
        self.name, self.count = str(package.path), len(feeds)
        self._feeds, self._package = feeds, package
        start = time.perf_counter()
        self._session = Session(package, threads=threads)
        self.load_s = time.perf_counter() - start
        start = time.perf_counter()
        self._session.run(feeds[0])
        self.first_s = time.perf_counter() - start
        self._whole = package.manifest.result.batch_invariant

    def run(self, place: int) -> None:
        """Run one sample."""
        self._session.run(self._feeds[place])

    def run_many(self, places: Sequence[int]) -> None:
        """Run a batch; row by row where a row's answer depends on its neighbours."""
        if not self._whole:
            for place in places:
                self.run(place)
            return
        (batch,) = scenarios.batches(self._package, [self._feeds[place] for place in places], len(places))
        self._session.run(batch)

    def close(self) -> None:
        """Nothing to close."""


class Served:
    """A model on a running server.

    Args:
        url: Which.
        samples: What is sent, texts or arrays; without them a fixed text or zeros.
        connections: How many requests may be on their way at once.

    Raises:
        LeptoError: The server cannot be reached, does not have the model, or the samples are not what it takes.
    """

    def __init__(self, url: Url, samples: Samples | None, connections: int = 8) -> None:
        self.name = f"{url.protocol}://{url.address}/{url.model}"
        self._url, self._local = url, threading.local()
        self._open: list[Any] = []
        self._sent = 0
        try:
            self._requests = _requests(url, samples)
        except (InferenceServerException, OSError) as error:
            raise LeptoError(
                f"{self.name} does not answer: {_said(error)}; is the server running, and the model loaded? "
                "`lepto serve --model-repository DIR` starts one"
            ) from error
        self.count = len(self._requests)
        self._pool: Any = None
        self._connections = connections
        self.run(0)

    def run(self, place: int) -> None:
        """Send one sample and read its answer.

        Raises:
            LeptoError: The server is gone, or answers an error.
        """
        try:
            connection = self._connection()
            connection.ask(self._requests[place])
            self._sent += 1
        except (OSError, EOFError, InferenceServerException) as error:
            raise LeptoError(
                f"{self.name} stopped answering after {self._sent:,} requests: {_said(error)}; look at the server's "
                "log, start it again and repeat the measurement: what was measured so far is thrown away",
                exit_code=2,
            ) from error

    def run_many(self, places: Sequence[int]) -> None:
        """Send samples at once, each a request of its own: the server batches them."""
        from concurrent.futures import ThreadPoolExecutor

        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._connections)
        list(self._pool.map(self.run, places))

    def close(self) -> None:
        """Close all connections."""
        if self._pool is not None:
            self._pool.shutdown()
        for connection in self._open:
            connection.close()

    def _connection(self) -> Any:
        found = getattr(self._local, "connection", None)
        if found is None:
            found = _Http(self._url) if self._url.protocol == "http" else _Grpc(self._url)
            self._local.connection = found
            self._open.append(found)
        return found


class _Http:
    def __init__(self, url: Url) -> None:
        host, _, port = url.address.rpartition(":")
        self._socket = socket.create_connection((host, int(port)), TIMEOUT_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._file = self._socket.makefile("rb")

    def ask(self, request: bytes) -> None:
        # Head and body apart, as libcurl sends them for Triton's C++ client and perf_analyzer: the server is woken
        # twice by that, and answers what comes in one piece some 0.05 ms sooner.
        head = request.index(b"\r\n\r\n") + 4
        self._socket.sendall(request[:head])
        self._socket.sendall(request[head:])
        status = self._file.readline()
        if not status:
            raise EOFError("the connection was closed")
        length = 0
        while (line := self._file.readline()) not in (b"\r\n", b""):
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        body = self._file.read(length)
        if len(body) < length:
            raise EOFError("the connection was closed within an answer")
        if b" 200 " not in status:
            raise InferenceServerException(f"{status.decode().strip()}: {body[:300].decode('utf-8', 'replace')}")

    def close(self) -> None:
        self._file.close()
        self._socket.close()


class _Grpc:
    def __init__(self, url: Url) -> None:
        host, _, port = url.address.rpartition(":")
        self._connection = Connection(host, int(port), "/inference.GRPCInferenceService/ModelInfer", TIMEOUT_S)

    def ask(self, request: bytes) -> None:
        try:
            self._connection.call(request)
        except CallError as error:
            raise InferenceServerException(str(error)) from error

    def close(self) -> None:
        self._connection.close()


def _said(error: BaseException) -> str:
    text = str(error.message()) if isinstance(error, InferenceServerException) else str(error)
    return text or type(error).__name__


def _requests(url: Url, samples: Samples | None) -> list[bytes]:
    """A serialized request for each sample."""
    module: Any = importlib.import_module(f"tritonclient.{url.protocol}")
    client = module.InferenceServerClient(url.address)
    try:
        options = {"as_json": True} if url.protocol == "grpc" else {}
        metadata = client.get_model_metadata(url.model, **options)
    finally:
        client.close()
    inputs = metadata["inputs"]
    made = []
    for feed in _arrays(url, inputs, samples):
        tensors = []
        for name, array in feed.items():
            kind = "BYTES" if array.dtype == object else np_to_triton_dtype(array.dtype)
            tensor = module.InferInput(name, list(array.shape), kind)
            tensor.set_data_from_numpy(array)
            tensors.append(tensor)
        made.append(_http_bytes(url, module, tensors) if url.protocol == "http" else _grpc_bytes(url, tensors))
    return made


def _arrays(url: Url, inputs: Sequence[Any], samples: Samples | None) -> list[dict[str, Any]]:
    names = [one["name"] for one in inputs]
    if names == [TEXT_INPUT]:
        texts = [PROBE_TEXT] if samples is None else list(samples.inputs)
        if samples is not None and not isinstance(samples.inputs, tuple):
            raise LeptoError(f"{url.model} takes texts, {samples.origin} has arrays: give a file of texts")
        return [{TEXT_INPUT: np.array([[_text(text).encode()]], dtype=np.object_)} for text in texts]
    if samples is not None:
        if isinstance(samples.inputs, tuple) or set(samples.inputs) != set(names):
            raise LeptoError(f"{url.model} takes {', '.join(names)}, which {samples.origin} does not give")
        arrays = {name: np.ascontiguousarray(array) for name, array in samples.inputs.items()}
        return [{name: array[i : i + 1] for name, array in arrays.items()} for i in range(len(samples))]
    return [
        {
            one["name"]: np.zeros([max(1, int(size)) for size in one["shape"]], triton_to_np_dtype(one["datatype"]))
            for one in inputs
        }
    ]


def _text(sample: Any) -> str:
    return sample if isinstance(sample, str) else " ".join(sample)


def _http_bytes(url: Url, module: Any, tensors: list[Any]) -> bytes:
    body, size = module.InferenceServerClient.generate_request_body(tensors)
    header = "" if size is None else f"Inference-Header-Content-Length: {size}\r\n"
    head = (
        f"POST /v2/models/{url.model}/infer HTTP/1.1\r\nHost: {url.address}\r\n{header}"
        f"Content-Type: application/octet-stream\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + bytes(body)


def _grpc_bytes(url: Url, tensors: list[Any]) -> bytes:
    service_pb2: Any = importlib.import_module("tritonclient.grpc.service_pb2")

    request = service_pb2.ModelInferRequest(model_name=url.model)
    for tensor in tensors:
        request.inputs.append(tensor._get_tensor())
        content = tensor._get_content()
        if content is not None:
            request.raw_input_contents.append(content)
    found: bytes = request.SerializeToString()
    return found


def server_versions(url: Url) -> dict[str, Any]:
    """What the server says of itself; empty if it does not."""
    import http.client

    if url.protocol != "http":
        return {}
    host, _, port = url.address.rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=5)
    try:
        connection.request("GET", "/v2")
        answer = json.loads(connection.getresponse().read())
        return {"server": answer.get("name"), "server_version": answer.get("version")}
    except (OSError, ValueError, http.client.HTTPException):
        return {}
    finally:
        connection.close()
