"""The process that holds a tritonserver: when its owner goes, in whatever way, nothing is left.

It stands between Lepto and the server and runs on the standard library alone, as ``python -I -S guardian.py``. Its
standard input is a pipe from the owner, whose first line is the order. When the pipe closes, because the owner asked
for it or was killed, the guardian stops the server, kills what the server started, removes its shared memory and its
folder, and ends. On standard output it says ``pid N`` when the server runs and ``exit CODE`` when the server has ended
by itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
_SHARED_MEMORY = Path("/dev/shm")
_ENVIRONMENTS, _LOADING_S = Path("/tmp"), 300.0
"""Where Triton's python backend makes a folder for each model, ``python_env_*``, and until when after its start."""


class Guardian:
    """One server, from its folder to its end.

    Args:
        order: ``folder`` to make and remove; ``copies`` and ``links`` in it (relative path to source) and ``log``, a
            file in it; ``command`` and ``environment`` of the server; ``shared_memory_prefix`` of its segments;
            ``grace_s``, how long it may take to stop.
    """

    def __init__(self, order: dict[str, Any]) -> None:
        self._order = order
        self._folder = Path(order["folder"])
        self._server: subprocess.Popen[bytes] | None = None
        self._exit_code: int | None = None
        self._started_at = 0.0
        self._stop = False

    def run(self) -> None:
        """Start the server and stay until the owner closes the pipe."""
        wakeup, wakeup_writer = os.pipe()
        os.set_blocking(wakeup, False)
        os.set_blocking(wakeup_writer, False)
        signal.set_wakeup_fd(wakeup_writer, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, lambda *_: setattr(self, "_stop", True))
        # A terminal sends these to a whole group; the owner decides what they mean.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        # Orphans of the server become ours instead of init's, and are found and killed.
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        grace_s = float(self._order["grace_s"])
        try:
            self._start()
            told = False
            while not self._stop:
                ready, _, _ = select.select([0, wakeup], [], [])
                if wakeup in ready:
                    os.read(wakeup, 4096)
                    self._reap()
                if 0 in ready:
                    message = os.read(0, 4096)
                    if b"kill" in message:
                        grace_s = 0.0
                    if not message:
                        break
                if self._exit_code is not None and not told:
                    told = True
                    self._clear()
                    _say(f"exit {self._exit_code}")
        finally:
            self._end(grace_s)
            shutil.rmtree(self._folder, ignore_errors=True)

    def _start(self) -> None:
        self._folder.mkdir(mode=0o700)
        for place in [*self._order["copies"], *self._order["links"]]:
            (self._folder / place).parent.mkdir(parents=True, exist_ok=True)
        for place, source in self._order["copies"].items():
            shutil.copy(source, self._folder / place)
        for place, target in self._order["links"].items():
            (self._folder / place).symlink_to(target)
        library = ctypes.CDLL(None)
        self._started_at = time.time()
        with (self._folder / self._order["log"]).open("xb") as log:
            self._server = subprocess.Popen(
                self._order["command"],
                env=self._order["environment"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Should the guardian itself be killed, the kernel ends the server.
                preexec_fn=lambda: library.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0),
            )
        _say(f"pid {self._server.pid}")

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if self._server is not None and pid == self._server.pid:
                self._exit_code = self._server.returncode = os.waitstatus_to_exitcode(status)

    def _end(self, grace_s: float) -> None:
        if self._server is not None and self._exit_code is None:
            os.kill(self._server.pid, signal.SIGTERM if grace_s else signal.SIGKILL)
            deadline = time.monotonic() + grace_s
            while self._exit_code is None and time.monotonic() < deadline:
                time.sleep(0.02)
                self._reap()
        self._clear()

    def _clear(self) -> None:
        clear(os.getsid(0), self._order["shared_memory_prefix"], after_each=self._reap)
        if self._exit_code != 0:
            remove_environments(self._started_at)


def clear(session: int, shared_memory_prefix: str, *, after_each: Callable[[], object] = lambda: None) -> None:
    """Kill everything in a session but this process, and remove the server's shared memory.

    Args:
        session: The guardian's session: the server and all that it started.
        shared_memory_prefix: How the names of the server's segments begin.
        after_each: Called between two looks at who is left.
    """
    deadline = time.monotonic() + 5.0
    while (left := _members(session)) and time.monotonic() < deadline:
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
        after_each()
    for segment in _SHARED_MEMORY.glob(shared_memory_prefix + "*"):
        segment.unlink(missing_ok=True)


def remove_environments(started_at: float) -> None:
    """Remove the folders that the python backend of a killed server left; one that was stopped removes its own.

    Their place is fixed in the backend, and they are empty, as no model of ours brings an environment of its own.

    Args:
        started_at: When the server was started, in seconds since the epoch.
    """
    for folder in _ENVIRONMENTS.glob("python_env_*"):
        with contextlib.suppress(OSError):  # not empty, or gone
            found = folder.lstat()
            if found.st_uid == os.getuid() and 0.0 <= found.st_mtime - started_at + 0.1 <= _LOADING_S:
                folder.rmdir()


def _members(session: int) -> list[int]:
    own = os.getpid()
    members = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != own:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                if os.getsid(int(entry.name)) == session:
                    members.append(int(entry.name))
    return members


def _say(line: str) -> None:
    with contextlib.suppress(BrokenPipeError):  # the owner is gone; the closed input says so too
        os.write(1, f"{line}\n".encode())


def _read_order() -> dict[str, Any] | None:
    """The first line of the standard input; None if the owner was gone before it was written."""
    line = b""
    while not line.endswith(b"\n"):
        # Byte by byte: what follows the line must stay in the pipe for `select`.
        byte = os.read(0, 1)
        if not byte:
            return None
        line += byte
    order: dict[str, Any] = json.loads(line)
    return order


if __name__ == "__main__":
    given = _read_order()
    if given is not None:
        Guardian(given).run()
