"""One unary gRPC call after the other over one HTTP/2 connection, as thin as a measurement needs it.

Python's gRPC client spends some 0.45 ms of CPU time on a call, half of what a light model on a server takes in all: a
measurement with it is one of the client. This one writes two frames and reads what comes, and does no more than a
benchmark of serialized requests asks for: no TLS, no compression, one call at a time.

Sources: RFC 9113 (HTTP/2), RFC 7541 (HPACK; with a table size of 0 there is no dynamic table), "gRPC over HTTP2"
(PROTOCOL-HTTP2.md of grpc/grpc).
"""

from __future__ import annotations

import socket
import struct
from typing import Final
from urllib.parse import unquote

_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE, _CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
_END_STREAM, _ACK, _END_HEADERS = 0x1, 0x1, 0x4
_PADDED, _PRIORITY = 0x8, 0x20
_TABLE_SIZE, _PUSH, _WINDOW, _FRAME_SIZE = 1, 2, 4, 5  # settings
_LARGEST_WINDOW: Final = 2**31 - 1
_FIRST_WINDOW: Final = 65_535
# What the server may send on the connection before it is told that it was read, and when it is told.
_ROOM: Final = 2**26
_REFILL: Final = 2**24


class CallError(Exception):
    """The server answered an error; the message has its gRPC status."""


class Connection:
    """A connection for calls of one method.

    Args:
        host: Of the server.
        port: Of the server.
        method: ``/package.Service/Method``.
        timeout_s: How long one call may take.

    Raises:
        OSError: There is no server.
    """

    def __init__(self, host: str, port: int, method: str, timeout_s: float) -> None:
        self._socket = socket.create_connection((host, port), timeout_s)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._file = self._socket.makefile("rb")
        self._block = _request_headers(f"{host}:{port}", method)
        self._stream = -1
        self._window, self._stream_window = _FIRST_WINDOW, 0
        self._peer_window, self._peer_frame = _FIRST_WINDOW, 16_384
        self._read = 0
        ours = ((_TABLE_SIZE, 0), (_PUSH, 0), (_WINDOW, _LARGEST_WINDOW), (_FRAME_SIZE, 2**24 - 1))
        self._socket.sendall(
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
            + _frame(_SETTINGS, 0, 0, b"".join(struct.pack(">HI", *one) for one in ours))
            + _frame(_WINDOW_UPDATE, 0, 0, struct.pack(">I", _ROOM - _FIRST_WINDOW))
        )
        kind = None
        while kind != _SETTINGS:  # what the server takes in one frame must be known before anything is sent
            kind = self._next()[0]

    def call(self, message: bytes) -> bytes:
        """Send a serialized message; the serialized answer.

        Raises:
            CallError: The server answers an error.
            OSError: The connection broke, or the call took too long.
            EOFError: The server closed the connection.
        """
        self._stream += 2
        self._stream_window = self._peer_window
        self._send(b"\0" + struct.pack(">I", len(message)) + message)
        body, block, ends = bytearray(), b"", False
        while True:
            kind, flags, stream, payload = self._next()
            if stream != self._stream:
                continue
            if kind == _RST_STREAM:
                raise CallError(f"the server reset the call (HTTP/2 error {int.from_bytes(payload, 'big')})")
            if kind == _DATA:
                body += _unpadded(flags, payload)
            elif kind == _HEADERS:
                block, ends = _unpadded(flags, payload), bool(flags & _END_STREAM)
            elif kind == _CONTINUATION:
                block += payload
            if kind in (_HEADERS, _CONTINUATION) and ends and flags & _END_HEADERS:
                return _answer(bytes(body), read_headers(block))

    def close(self) -> None:
        """Close the connection."""
        self._file.close()
        self._socket.close()

    def _send(self, data: bytes) -> None:
        out = _frame(_HEADERS, _END_HEADERS, self._stream, self._block)
        start = 0
        while start < len(data):
            size = min(len(data) - start, self._peer_frame, self._window, self._stream_window)
            if size <= 0:
                self._socket.sendall(out)
                out = b""
                self._next()  # until the server makes room
                continue
            last = start + size == len(data)
            out += _frame(_DATA, _END_STREAM if last else 0, self._stream, data[start : start + size])
            start += size
            self._window -= size
            self._stream_window -= size
        self._socket.sendall(out)

    def _next(self) -> tuple[int, int, int, bytes]:
        """Read a frame, and do what one must do on it."""
        head = self._file.read(9)
        if len(head) < 9:
            raise EOFError("the connection was closed")
        size, kind, flags = int.from_bytes(head[:3], "big"), head[3], head[4]
        stream = int.from_bytes(head[5:], "big") & _LARGEST_WINDOW
        payload = self._file.read(size)
        if len(payload) < size:
            raise EOFError("the connection was closed within an answer")
        if kind == _DATA:
            self._read += size
            if self._read >= _REFILL:
                self._socket.sendall(_frame(_WINDOW_UPDATE, 0, 0, struct.pack(">I", self._read)))
                self._read = 0
        elif kind == _SETTINGS and not flags & _ACK:
            for key, value in struct.iter_unpack(">HI", payload):
                if key == _WINDOW:
                    self._stream_window += value - self._peer_window
                    self._peer_window = value
                elif key == _FRAME_SIZE:
                    self._peer_frame = value
            self._socket.sendall(_frame(_SETTINGS, _ACK, 0, b""))
        elif kind == _PING and not flags & _ACK:
            self._socket.sendall(_frame(_PING, _ACK, 0, payload))
        elif kind == _WINDOW_UPDATE:
            more = int.from_bytes(payload, "big") & _LARGEST_WINDOW
            if stream == 0:
                self._window += more
            elif stream == self._stream:
                self._stream_window += more
        elif kind == _GOAWAY:
            raise EOFError(f"the server says goodbye: {payload[8:].decode('utf-8', 'replace') or 'it shuts down'}")
        return kind, flags, stream, payload


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes((kind, flags)) + struct.pack(">I", stream) + payload


def _unpadded(flags: int, payload: bytes) -> bytes:
    if flags & _PADDED:
        payload = payload[1 : len(payload) - payload[0]]
    return payload[5:] if flags & _PRIORITY else payload


def _answer(body: bytes, headers: dict[str, str]) -> bytes:
    status = headers.get("grpc-status")
    if status != "0":
        what = "no gRPC status" if status is None else f"gRPC status {status}"
        raise CallError(f"{what}: {unquote(headers.get('grpc-message', 'no message'))}")
    if len(body) < 5 or body[0] or int.from_bytes(body[1:5], "big") != len(body) - 5:
        raise CallError(f"the answer is no single uncompressed message ({len(body)} bytes)")
    return body[5:]


def _request_headers(authority: str, method: str) -> bytes:
    """A block of literals that are never indexed; 3 and 6 of the static table are POST and http."""
    fields = ((":path", method), (":authority", authority), ("te", "trailers"), ("content-type", "application/grpc"))
    block = b"\x83\x86"
    for name, value in fields:
        for text in (name, value):
            if len(text) > 126:
                raise ValueError(f"a header must have at most 126 characters, got {len(text)}: {text!r}")
        block += b"\0" + bytes((len(name),)) + name.encode() + bytes((len(value),)) + value.encode()
    return block


def read_headers(block: bytes) -> dict[str, str]:
    """The literal fields of a header block; indexed ones are of the static table, and none of those matters here.

    Huffman's code is not read: gRPC's servers do not use it for what is asked here, and a field that is written in it
    is missing, so that the call fails.
    """
    found: dict[str, str] = {}
    at = 0
    while at < len(block):
        first = block[at]
        if first & 0x80:
            _, at = _integer(block, at, 7)
        elif first & 0xE0 == 0x20:
            _, at = _integer(block, at, 5)
        else:
            index, at = _integer(block, at, 6 if first & 0x40 else 4)
            name, at = ("", at) if index else _string(block, at)
            value, at = _string(block, at)
            if name and value is not None:
                found[name] = value
    return found


def _integer(block: bytes, at: int, bits: int) -> tuple[int, int]:
    """An integer with a prefix of so many bits, and where what follows begins."""
    most = (1 << bits) - 1
    value = block[at] & most
    at += 1
    if value < most:
        return value, at
    shift = 0
    while True:
        byte = block[at]
        value += (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if not byte & 0x80:
            return value, at


def _string(block: bytes, at: int) -> tuple[str | None, int]:
    coded = block[at] & 0x80
    size, at = _integer(block, at, 7)
    return None if coded else block[at : at + size].decode("utf-8", "replace"), at + size
