from __future__ import annotations

import errno
import os
import signal
import sys
import threading
import time
import weakref
from collections.abc import Iterator

import pytest

from lepto.runtime import signals
from lepto.runtime.signals import Terminated, unwinding


@pytest.fixture(autouse=True)
def defaults() -> Iterator[None]:
    """As a command finds them when it starts."""
    before = {
        signal.SIGINT: signal.signal(signal.SIGINT, signal.default_int_handler),
        signal.SIGTERM: signal.signal(signal.SIGTERM, signal.SIG_DFL),
        signal.SIGHUP: signal.signal(signal.SIGHUP, signal.SIG_DFL),
    }
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_unwinds_once_however_often_it_comes(number: int) -> None:
    cleaned = []

    def work() -> None:
        try:
            send(number)
            pytest.fail("the signal did not raise")
        finally:
            for again in (number, signal.SIGINT, signal.SIGTERM):
                send(again)
                cleaned.append(again)

    with pytest.raises(KeyboardInterrupt) as caught, unwinding():
        work()
    assert len(cleaned) == 3
    assert isinstance(caught.value, Terminated) == (number != signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) == signal.getsignal(signal.SIGHUP) == signal.SIG_DFL


def test_a_later_one_raises_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "PATIENCE_S", 0.05)
    with unwinding():
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                send(signal.SIGINT)
            time.sleep(0.06)


class Dying:
    """An object whose finalizer is running when the signal comes."""

    def __del__(self) -> None:
        send(signal.SIGTERM)


def test_one_that_a_finalizer_swallowed_is_sent_again() -> None:
    def work() -> None:
        dying = Dying()
        del dying  # Python drops what is raised in there
        time.sleep(5)
        pytest.fail("the signal was lost")

    with pytest.raises(Terminated), unwinding():
        work()


def test_one_that_a_callback_swallowed_is_sent_again() -> None:
    class Thing:
        pass

    def work() -> None:
        thing = Thing()
        reference = weakref.ref(thing, lambda _: send(signal.SIGINT))
        del thing
        time.sleep(5)
        pytest.fail(f"the signal was lost {reference}")

    with pytest.raises(KeyboardInterrupt), unwinding():
        work()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_ignored_signals_stay_ignored(number: int) -> None:
    signal.signal(number, signal.SIG_IGN)
    with unwinding():
        send(number)
        assert signal.getsignal(number) == signal.SIG_IGN


def test_a_handler_of_whoever_embeds_it_is_left_alone() -> None:
    heard: list[int] = []
    signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))
    with unwinding():
        send(signal.SIGINT)
    assert heard == [signal.SIGINT]


def test_a_finalizer_that_meets_a_full_disk_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    class Half:
        def __init__(self, code: int) -> None:
            self.code = code

        def __del__(self) -> None:
            raise OSError(self.code, os.strerror(self.code))

    said: list[object] = []
    hook, sys.unraisablehook = sys.unraisablehook, lambda lost: said.append(lost.exc_value)
    try:
        with unwinding():
            Half(errno.ENOSPC)
            Half(errno.EIO)
        assert [type(error) for error in said] == [OSError]
    finally:
        sys.unraisablehook = hook


def test_another_thread_leaves_the_signals_alone() -> None:
    before = signal.getsignal(signal.SIGTERM)
    seen: list[object] = []

    def run() -> None:
        with unwinding():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [before]
