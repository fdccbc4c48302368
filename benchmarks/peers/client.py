"""The measuring side of a worker: start the process, ask, and end it."""

from __future__ import annotations

import json
import selectors
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from lepto.benchmarks.peers.environments import last_error
from lepto.runtime.errors import LeptoError

_CHUNK = 1 << 16
_END_S = 5.0


class Worker:
    """A process that holds one model; see :mod:`lepto.benchmarks.peers.worker`. Use it as a context manager.

    Args:
        name: For messages.
        command: What starts it.
        log: What it prints goes here.
        variables: Its environment variables.

    Raises:
        LeptoError: It cannot be started.
    """

    def __init__(self, name: str, command: Sequence[str], *, log: Path, variables: Mapping[str, str]) -> None:
        self.name = name
        self._log = log
        self._rest = b""
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as errors:
            try:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    env=dict(variables),
                    cwd=log.parent,
                    bufsize=0,
                )
            except OSError as error:
                raise LeptoError(f"{name}: its worker cannot be started: {error}") from error

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid

    def ask(self, do: str, *, timeout_s: float = 600.0, **values: Any) -> dict[str, Any]:
        """Ask for one thing and wait for the answer.

        Raises:
            LeptoError: The worker reports an error, ends, answers nonsense, or takes too long.
        """
        try:
            self._send(json.dumps({"do": do, **values}).encode() + b"\n")
            line = self._line(timeout_s)
        except BrokenPipeError:
            raise self._ended() from None
        try:
            answer: dict[str, Any] = json.loads(line)
        except ValueError:
            raise LeptoError(f"{self.name}: its worker answered no JSON: {line[:80]!r}") from None
        if "error" in answer:
            raise LeptoError(f"{self.name}: {answer['error']}")
        return answer

    def close(self) -> None:
        """End the process."""
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()
        try:
            self._process.wait(_END_S)  # it ends by itself when nothing more can come
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _send(self, data: bytes) -> None:
        pipe = self._pipe(self._process.stdin)
        view = memoryview(data)
        while view:
            view = view[pipe.write(view) :]

    def _line(self, timeout_s: float) -> bytes:
        pipe = self._pipe(self._process.stdout)
        deadline = time.monotonic() + timeout_s
        pieces = [self._rest]
        with selectors.DefaultSelector() as selector:
            selector.register(pipe, selectors.EVENT_READ)
            while b"\n" not in pieces[-1]:
                left = deadline - time.monotonic()
                if left <= 0 or not selector.select(left):
                    self._process.kill()
                    raise LeptoError(f"{self.name}: no answer within {timeout_s:.0f} s; its worker was ended")
                piece = pipe.read(_CHUNK)
                if not piece:
                    raise self._ended()
                pieces.append(piece)
        line, _, self._rest = b"".join(pieces).partition(b"\n")
        return line

    def _ended(self) -> LeptoError:
        code = self._process.wait()
        said = last_error(self._log.read_text(encoding="utf-8", errors="replace"))
        return LeptoError(f"{self.name}: its worker ended with exit code {code}{f': {said}' if said else ''}")

    @staticmethod
    def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
        assert pipe is not None
        return pipe
