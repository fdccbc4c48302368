"""A search's account of its time: each step once, a step in a step as its part, and the same again from the cache."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from lepto.compiler.cache import Cache
from lepto.compiler.spent import Spent


class Clock:
    """Time that passes when a step says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)

    def step(self, seconds: float) -> str:
        """Take some seconds."""
        self.now += seconds
        return f"took {seconds}"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def _account(folder: Path) -> Spent:
    return Spent(100.0, Cache(folder), {"seed": 0})


def test_each_step_is_counted_once(clock: Clock, tmp_path: Path) -> None:
    account = _account(tmp_path)
    assert account.on({"a": 1}, lambda: clock.step(5)) == "took 5"
    account.on({"a": 1}, lambda: clock.step(0.125))
    account.on({"a": 2}, lambda: clock.step(7), teaching=True)
    assert (account.seconds, account.teaching, account.left) == (12, 7, 88)


def test_a_step_inside_another_is_part_of_it(clock: Clock, tmp_path: Path) -> None:
    def outer() -> str:
        clock.step(2)
        return account.on({"inner": 1}, lambda: clock.step(3), teaching=True)

    account = _account(tmp_path)
    assert account.on({"outer": 1}, outer) == "took 3"
    assert (account.seconds, account.teaching) == (5, 0)
    account.on({"next": 1}, lambda: clock.step(1))
    assert account.seconds == 6


def test_a_step_that_fails_leaves_the_account_open(clock: Clock, tmp_path: Path) -> None:
    def fails() -> None:
        raise OSError("no more")

    account = _account(tmp_path)
    with pytest.raises(OSError, match="no more"):
        account.on({"a": 1}, fails)
    account.on({"b": 1}, lambda: clock.step(4))
    assert account.seconds == 4


def test_run_again_it_counts_what_the_first_time_took(clock: Clock, tmp_path: Path) -> None:
    first, again = _account(tmp_path), _account(tmp_path)
    first.on({"a": 1}, lambda: clock.step(9))
    again.on({"a": 1}, lambda: clock.step(0.5))
    assert again.seconds == first.seconds == 9
