"""The thin gRPC client against gRPC's own server."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc  # type: ignore[import-untyped,unused-ignore]
import pytest

from lepto.benchmarks.http2 import CallError, Connection, read_headers

METHOD = "/a.Service/Do"


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[Any, int]]:
    """Answers what it is sent, twice; refuses ``no`` and is slow at ``slow``."""

    def do(request: bytes, context: Any) -> bytes:
        if request == b"no":
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "not that: 100 % wröng")
        if request == b"slow":
            import time

            time.sleep(1.0)
        return request * 2

    handler = grpc.method_handlers_generic_handler("a.Service", {"Do": grpc.unary_unary_rpc_method_handler(do)})
    made = grpc.server(
        ThreadPoolExecutor(4),
        options=[("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)],
    )
    made.add_generic_rpc_handlers((handler,))
    port = made.add_insecure_port("127.0.0.1:0")
    made.start()
    yield made, port
    made.stop(None).wait()


@pytest.fixture
def connection(server: tuple[Any, int]) -> Iterator[Connection]:
    made = Connection("127.0.0.1", server[1], METHOD, 20.0)
    yield made
    made.close()


def test_many_calls_on_one_connection(connection: Connection) -> None:
    for i in range(300):
        assert connection.call(str(i).encode()) == 2 * str(i).encode()
    assert connection.call(b"") == b""


@pytest.mark.parametrize("size", [20_000, 100_000, 3_000_000])
def test_what_is_larger_than_a_window_waits_for_room(connection: Connection, size: int) -> None:
    message = bytes(range(256)) * (size // 256)
    for _ in range(3):
        assert connection.call(message) == 2 * message
    assert connection.call(b"x") == b"xx"


def test_what_is_read_is_told_to_the_server(connection: Connection) -> None:
    message = b"0" * 5_000_000
    for _ in range(8):  # 80 MB come back, and the server may send 67 unless it is told that they were read
        assert len(connection.call(message)) == 10_000_000


def test_an_error_of_the_server_has_its_status_and_words(connection: Connection) -> None:
    with pytest.raises(CallError, match="gRPC status 3: not that: 100 % wröng"):
        connection.call(b"no")
    assert connection.call(b"1") == b"11"


def test_what_is_not_there(server: tuple[Any, int]) -> None:
    other = Connection("127.0.0.1", server[1], "/a.Service/Nothing", 20.0)
    with pytest.raises(CallError, match="gRPC status 12"):
        other.call(b"1")
    other.close()
    with pytest.raises(OSError, match="refused"):
        Connection("127.0.0.1", 1, METHOD, 1.0)


def test_a_call_that_takes_too_long(server: tuple[Any, int]) -> None:
    slow = Connection("127.0.0.1", server[1], METHOD, 0.2)
    with pytest.raises(TimeoutError):
        slow.call(b"slow")
    slow.close()


def test_a_server_that_goes(server: tuple[Any, int]) -> None:
    handler = grpc.method_handlers_generic_handler(
        "a.Service", {"Do": grpc.unary_unary_rpc_method_handler(lambda request, context: request)}
    )
    made = grpc.server(ThreadPoolExecutor(1))
    made.add_generic_rpc_handlers((handler,))
    port = made.add_insecure_port("127.0.0.1:0")
    made.start()
    connection = Connection("127.0.0.1", port, METHOD, 5.0)
    assert connection.call(b"1") == b"1"
    made.stop(None).wait()
    with pytest.raises((EOFError, OSError)):
        connection.call(b"1")
    connection.close()


def test_header_blocks_of_the_specification() -> None:
    # RFC 7541, C.2.1 to C.2.3: literals with, without and never with indexing; C.2.4: an indexed one.
    assert read_headers(bytes.fromhex("400a637573746f6d2d6b65790d637573746f6d2d686561646572")) == {
        "custom-key": "custom-header"
    }
    assert read_headers(bytes.fromhex("040c2f73616d706c652f70617468")) == {}  # its name is in the static table
    assert read_headers(bytes.fromhex("100870617373776f726406736563726574")) == {"password": "secret"}
    assert read_headers(b"\x20\x82\x00\x01a\x01b") == {"a": "b"}
    # C.4.3's value in Huffman's code is left out, and what follows is read.
    coded = bytes.fromhex("408825a849e95ba97d7f8925a849e95bb8e8b4bf")
    assert read_headers(coded + b"\x00\x01a\x01b") == {"a": "b"}
    long = b"x" * 300
    assert read_headers(b"\x00\x01a\x7f\xad\x01" + long) == {"a": long.decode()}
