"""For all tests."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import psutil
import pytest

# Kernels run on CPU tensors. Triton reads this when it is imported, which torch may do in any test.
os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_configure() -> None:
    """Let children be interrupted: a shell's background jobs inherit an ignored SIGINT, and pass it on."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def timings_take_no_rest() -> Iterator[None]:
    """No test judges a time: turns begin at once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lepto.runtime.measure.REST_S", 0.0)
        patch.setattr("lepto.runtime.measure.WARM_S", 0.0)
        yield


@pytest.fixture(scope="module", autouse=True)
def no_process_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """A module of tests ends the processes that it started.

    Python's own fork server and resource tracker serve a process until it ends, and end with it.
    """
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    yield
    left = []
    for child in psutil.Process().children(recursive=True):
        try:
            command = " ".join(child.cmdline())
            if child.pid not in before and "from multiprocessing." not in command:
                left.append(f"{child.pid} {command[:300]}")
        except psutil.NoSuchProcess:
            continue
    assert not left, f"{request.module.__name__} left processes: {left}"
