"""Measure how long things take, in pairs: plain values out, no storing, no judging.

Times on a shared machine drift by several percent from minute to minute, so that two series taken one after the other
compare the minutes. Here every block holds all candidates, on the same inputs, in an order that cancels drift.
"""

from __future__ import annotations

import gc
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter_ns, sleep
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lepto.runtime.machine import usable_cpus

Runner = Callable[[Any], Any]

FORM = 2
"""Raised whenever measured times change their meaning: part of the key where they are kept."""

REST_S, WARM_S = 0.012, 0.003
"""Of a turn. OpenMP's threads, which PyTorch has, were seen to spin for 10 ms after a call; those of Lepto's own
sessions spin for 2 ms, see :func:`lepto.runtime.session.session_options`."""


@dataclass(frozen=True, slots=True)
class Load:
    """How busy the machine was.

    Attributes:
        average_1min: The system's load average over the last minute; None where there is none.
        cpus: CPUs that this process may use.
    """

    average_1min: float | None
    cpus: int

    @property
    def per_cpu(self) -> float | None:
        """The load average for each usable CPU; times taken above about 0.5 are disturbed by other work."""
        return None if self.average_1min is None else self.average_1min / self.cpus


def machine_load() -> Load:
    """How busy this machine is now."""
    try:
        average: float | None = round(os.getloadavg()[0], 2)
    except (OSError, AttributeError):  # no such thing on Windows
        average = None
    return Load(average_1min=average, cpus=usable_cpus())


def interleave(
    runners: Mapping[str, Runner],
    feeds: Sequence[Any],
    *,
    blocks: int,
    per_block: int,
    warmup: int,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
    timer: Callable[[Runner, Any], float] | None = None,
) -> dict[str, NDArray[np.float64]]:
    """Time several runners on the same inputs, interleaved.

    A block takes ``per_block`` inputs. Every runner gets the first half of them, in a random order of runners, then
    every runner the second half in the reverse order (ABBA), so that a drift within the block hits all alike. A turn
    begins with a rest, in which the predecessor's threads stop spinning, and with unmeasured runs, at least one: the
    caches are still the predecessor's.

    Args:
        runners: Functions of one input, by name.
        feeds: The inputs; they are taken in a random order, all once before any comes again.
        blocks: Number of blocks.
        per_block: Inputs in each block.
        warmup: Unmeasured runs of every runner before the first block.
        seed: Seed of all random orders.
        progress: Called with (blocks done, blocks) after each block.
        timer: Runs a runner on an input and returns the seconds that it took, where a clock other than this process's
            is to be asked; by default ``perf_counter``.

    Returns:
        For each runner seconds, float64 ``[blocks, per_block]``; the same place means the same input for all runners.

    Raises:
        ValueError: There is nothing to run, or a count is out of range.
    """
    if not runners or not feeds:
        raise ValueError(f"runners and feeds must not be empty, got {len(runners)} runners and {len(feeds)} feeds")
    for name, value, least in (("blocks", blocks, 1), ("per_block", per_block, 1), ("warmup", warmup, 0)):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    order = random.Random(seed)
    chosen = _endless(len(feeds), order)
    names = list(runners)
    seconds = {name: np.empty((blocks, per_block)) for name in names}
    for name in names:
        for index in range(warmup):
            runners[name](feeds[index % len(feeds)])
    half = (per_block + 1) // 2
    collecting, frozen = gc.isenabled(), gc.get_freeze_count()
    gc.collect()
    # What lives already (a framework's modules, half a second to walk) is set aside: only what the runs leave is
    # walked.
    gc.freeze()
    gc.disable()
    try:
        for block in range(blocks):
            indices = [next(chosen) for _ in range(per_block)]
            order.shuffle(names)
            for turn, places in ((names, range(half)), (names[::-1], range(half, per_block))):
                for name in turn:
                    _time(runners[name], feeds, indices, places, seconds[name][block], timer or _by_clock)
            gc.collect()
            if progress is not None:
                progress(block + 1, blocks)
    finally:
        if not frozen:  # else the caller had set objects aside, which cannot be told from ours
            gc.unfreeze()
        if collecting:
            gc.enable()
    return seconds


def _by_clock(run: Runner, feed: Any) -> float:
    start = perf_counter_ns()
    run(feed)
    return (perf_counter_ns() - start) * 1e-9


def _time(
    run: Runner,
    feeds: Sequence[Any],
    indices: Sequence[int],
    places: range,
    seconds: NDArray[np.float64],
    timer: Callable[[Runner, Any], float],
) -> None:
    if not places:
        return
    sleep(REST_S)
    warm = perf_counter_ns() + WARM_S * 1e9
    run(feeds[indices[places[0]]])
    while perf_counter_ns() < warm:
        run(feeds[indices[places[0]]])
    for place in places:
        seconds[place] = timer(run, feeds[indices[place]])


def _endless(count: int, order: random.Random) -> Iterator[int]:
    """Indices below ``count`` in a random order, again and again, all once before any comes again."""
    while True:
        indices = list(range(count))
        order.shuffle(indices)
        yield from indices
