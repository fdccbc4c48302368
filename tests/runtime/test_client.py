from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lepto.runtime.client import AsyncTextClient, TextClient
from lepto.runtime.client_api import prediction_of
from lepto.runtime.errors import LeptoError
from lepto.runtime.repository import publish
from lepto.runtime.server import Server
from lepto.runtime.text import Prediction

PROTOCOLS: list[Any] = ["http", "grpc"]


@pytest.fixture(scope="module")
def server(make_text_package: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    if find_spec("pytriton") is None:
        pytest.skip("needs the extra lepto[server]")
    folder = tmp_path_factory.mktemp("client")
    publish(make_text_package(folder / "package"), folder / "repository")
    with Server(folder / "repository", http_port=0, grpc_port=0, metrics_port=0, grace_s=3) as running:
        yield running


def url_of(server: Server, protocol: str) -> str:
    return server.http_url if protocol == "http" else server.grpc_url


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_any_number_of_texts(server: Server, protocol: Any) -> None:
    with TextClient(url_of(server, protocol), "intents", protocol=protocol) as client:
        assert client.classify([]) == []
        answers = client.classify(["cancel", "refund"] * 40, top=2, batch_size=7)

    assert [answer[0].label for answer in answers] == ["cancel_order", "get_refund"] * 40
    assert {len(answer) for answer in answers} == {2}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_asyncio_gives_the_same(server: Server, protocol: Any) -> None:
    async def ask() -> tuple[list[list[list[Prediction]]], dict[str, np.ndarray], str]:
        async with AsyncTextClient(url_of(server, protocol), "intents", protocol=protocol) as client:
            answers = await asyncio.gather(*(client.classify(["cancel", "refund"]) for _ in range(8)))
            ids = np.array([[2, 5, 3]], np.int64)
            raw = await client.infer({"input_ids": ids, "attention_mask": np.ones_like(ids)})
        async with AsyncTextClient(url_of(server, protocol), "nope", protocol=protocol) as client:
            try:
                await client.classify(["x"])
            except LeptoError as error:
                return list(answers), raw, str(error)
        raise AssertionError("an unknown model answered")

    answers, raw, error = asyncio.run(ask())

    with TextClient(url_of(server, protocol), "intents", protocol=protocol) as client:
        expected = client.classify(["cancel", "refund"])
    assert answers == [expected] * 8
    assert raw["scores"].shape == (1, 3)
    assert error.endswith("has no model 'nope'; it has intents")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_unknown_model_is_an_error_that_lists_those_there_are(server: Server, protocol: Any) -> None:
    with (
        TextClient(url_of(server, protocol), "nope", protocol=protocol) as client,
        pytest.raises(LeptoError, match=r"has no model 'nope'; it has intents$"),
    ):
        client.classify(["x"])


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_no_server(protocol: Any) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"127.0.0.1:{free.getsockname()[1]}"
    with (
        TextClient(url, "intents", protocol=protocol, timeout_s=5) as client,
        pytest.raises(LeptoError, match=rf"no Triton server answers at {url}.*lepto serve"),
    ):
        client.classify(["x"])


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_server_that_is_silent(protocol: Any) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(8)
        url = f"127.0.0.1:{silent.getsockname()[1]}"
        with (
            TextClient(url, "intents", protocol=protocol, timeout_s=0.3) as client,
            pytest.raises(LeptoError, match=r"did not answer in 0.3 s"),
        ):
            client.classify(["x"])


def test_callers_mistakes(server: Server) -> None:
    with TextClient(server.http_url, "intents") as client:
        with pytest.raises(TypeError, match="got one str: put it in a list"):
            client.classify("cancel")
        with pytest.raises(TypeError, match=r"texts\[1\] must be a string, got int"):
            client.classify(["a", 1])  # type: ignore[list-item]  # the mistake
        with pytest.raises(ValueError, match=r"texts\[0\] is no valid Unicode"):
            client.classify(["\ud800"])
        with pytest.raises(ValueError, match="top must be at least 1"):
            client.classify(["a"], top=0)
        with pytest.raises(ValueError, match=r"batch_size must be in \[1, 32\], got 33"):
            client.classify(["a"], batch_size=33)
    with pytest.raises(ValueError, match="'http' or 'grpc'"):
        TextClient(server.http_url, "intents", protocol="udp")  # type: ignore[arg-type]  # the mistake
    for url in ("localhost", "http://localhost:8000", ":8000", "localhost:http"):
        with pytest.raises(LeptoError, match="HOST:PORT"):
            TextClient(url, "intents")


def test_a_label_may_have_colons() -> None:
    assert prediction_of(b"0.500000:2:time: 10:30") == Prediction(label="time: 10:30", score=0.5, index=2)
