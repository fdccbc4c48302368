"""One run of tritonserver: its ports, its start under the guardian, its log and its end."""

from __future__ import annotations

import errno
import json
import select
import shutil
import socket
import subprocess
import sys
import threading
import time
from importlib.resources import files
from pathlib import Path

from lepto.runtime.control import Control
from lepto.runtime.errors import LeptoError
from lepto.runtime.guardian import clear, remove_environments
from lepto.runtime.published import Published
from lepto.runtime.tritonserver import ADDRESS, LOG, Ports, check_stub, find_installation, guardian_order

START_TIMEOUT_S = 120.0
LOG_TAIL_LINES = 15


class StoppedError(Exception):
    """The owner asked to stop while the server was starting."""


class Incarnation:
    """One run of tritonserver under its guardian."""

    def __init__(self, repository: Path, models: list[Published], ports: Ports, grace_s: float) -> None:
        installation = find_installation()
        check_stub(installation)
        names = [part for model in models for part in model.models]
        order = guardian_order(installation, repository, names, ports, grace_s=grace_s)
        self._control = Control(ADDRESS, ports.http)
        self._log = Path(order["folder"], LOG)
        self._shared_memory_prefix = order["shared_memory_prefix"]
        self._grace_s = grace_s
        self._exit_code: int | None = None
        self.pid: int | None = None
        program = str(files("lepto.runtime").joinpath("guardian.py"))
        # Its own session: a Ctrl-C in the terminal reaches Lepto alone, which then stops the server in order.
        self._started_at = time.time()
        self._guardian = subprocess.Popen(
            [sys.executable, "-I", "-S", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        # Not as an argument: it holds the whole environment, and every user of the machine can read arguments.
        assert self._guardian.stdin is not None
        self._guardian.stdin.write(json.dumps(order).encode() + b"\n")
        self._guardian.stdin.flush()

    def wait_until_ready(self, stop: threading.Event) -> None:
        """Wait until the server says it is ready.

        Raises:
            LeptoError: It ended, or took too long.
        """
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            if stop.is_set():
                raise StoppedError
            if self.exit_code() is not None:
                raise LeptoError(f"tritonserver did not start; {self.log_tail()}")
            if self._control.ready():
                return
            if time.monotonic() > deadline:
                raise LeptoError(f"tritonserver was not ready after {START_TIMEOUT_S:.0f} s; {self.log_tail()}")
            stop.wait(0.05)

    def exit_code(self) -> int | None:
        """How the server ended, or None while it runs."""
        pipe = self._guardian.stdout
        if self._exit_code is None and pipe is not None:
            while select.select([pipe], [], [], 0)[0]:
                word, _, number = pipe.readline().decode().partition(" ")
                if word == "pid":
                    self.pid = int(number)
                else:  # an empty line: the guardian itself was killed, and the server with it
                    self._exit_code = int(number or -9)
                    break
        return self._exit_code

    def end(self, *, at_once: bool = False) -> None:
        """Stop the server and wait until nothing of it is left."""
        if self._guardian.stdin is not None and not self._guardian.stdin.closed:
            try:
                if at_once:
                    self._guardian.stdin.write(b"kill\n")
                self._guardian.stdin.close()
            except BrokenPipeError:
                pass  # it is gone already
        try:
            self._guardian.wait(timeout=self._grace_s + 10)
        except subprocess.TimeoutExpired:
            self._guardian.kill()
            self._guardian.wait()
        if self._guardian.returncode != 0:
            # It was killed, by us or by someone else, and could not clean up: the kernel ended the server with it.
            clear(self._guardian.pid, self._shared_memory_prefix)
            remove_environments(self._started_at)
            shutil.rmtree(self._log.parent, ignore_errors=True)
        if self._guardian.stdout is not None:
            self._guardian.stdout.close()

    def log_tail(self) -> str:
        """The end of the server's log, for an error message."""
        try:
            lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return "it left no log"
        # Tables and notes say nothing about a failure.
        telling = [line for line in lines if line.strip() and not line.startswith(("I", "+", "|"))]
        return "the end of its log:\n  " + "\n  ".join(telling[-LOG_TAIL_LINES:])


def pick_ports(wanted: Ports) -> Ports:
    """Check that the ports are free, and choose those that were left open.

    Raises:
        LeptoError: A port is in use, not allowed, or named twice.
    """
    flags = {"--http-port": wanted.http, "--grpc-port": wanted.grpc, "--metrics-port": wanted.metrics}
    held: list[socket.socket] = []
    chosen: list[int] = []
    try:
        for flag, port in flags.items():
            if port != 0 and port in chosen:
                raise LeptoError(f"port {port} is given twice; choose another with {flag}, or 0 for a free one")
            listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            held.append(listener)
            # As the server does: a port whose last connections are still closing is free.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind((ADDRESS, port))
                listener.listen(1)
            except (OSError, OverflowError) as error:
                why = "is in use" if getattr(error, "errno", None) == errno.EADDRINUSE else f"cannot be used ({error})"
                raise LeptoError(f"port {port} {why}; choose another with {flag}, or 0 for a free one") from error
            chosen.append(listener.getsockname()[1])
    finally:
        for listener in held:
            listener.close()
    http, grpc, metrics = chosen
    return Ports(http, grpc, metrics)
