"""Time several workers in interleaved blocks: plain values out, no storing, no judging."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

from lepto.compiler.statistics import pairs_needed
from lepto.runtime.errors import LeptoError

Batch = list[int]
# What is asked of a worker in one turn must last so long that the time to wake it does not count.
_LEAST_PER_BLOCK, _MOST_PER_BLOCK = 20, 100


class Timer(Protocol):
    """Times batches; a worker, or a stand-in."""

    def __call__(self, batches: Sequence[Batch]) -> list[float]:
        """Seconds of each batch."""
        ...


def single_blocks(count: int, blocks: int, seed: int) -> list[list[Batch]]:
    """Blocks of single samples in a random order: where they fit all of them once, before any comes again.

    Args:
        count: N samples.
        blocks: K.
        seed: Of the order.

    Returns:
        K blocks of 20 to 100 batches of one sample; all of the same size.
    """
    order = random.Random(seed)
    per_block = min(_MOST_PER_BLOCK, max(_LEAST_PER_BLOCK, -(-count // blocks)))
    chosen = _endless(count, order)
    return [[[next(chosen)] for _ in range(per_block)] for _ in range(blocks)]


def sorted_batches(lengths: Sequence[int], size: int) -> list[Batch]:
    """All samples, once each, in batches of neighbours by length."""
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    return [order[start : start + size] for start in range(0, len(order), size)]


def spread_blocks(batches: Sequence[Batch], blocks: int, seed: int) -> list[list[Batch]]:
    """Blocks that each hold short and long batches; together every batch once.

    Too few batches for an interval come again.

    Args:
        batches: Sorted by length.
        blocks: K at most; no block is empty.
        seed: Of the order within and of the blocks.
    """
    order = random.Random(seed)
    whole = list(batches)
    while len(whole) < pairs_needed():
        whole += batches
    count = min(blocks, len(whole))
    made = [whole[start::count] for start in range(count)]
    for block in made:
        order.shuffle(block)
    order.shuffle(made)
    return made


def interleave(
    timers: Mapping[str, Timer],
    blocks: Sequence[Sequence[Batch]],
    *,
    seed: int,
    settle_s: float,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[dict[str, list[list[float]]], dict[str, str]]:
    """Give every block to every timer, in an order that cancels drift.

    The first half of a block goes to all in a random order, the second half in the reverse order (ABBA). Before each
    turn comes a short rest, in which the threads of the one before stop spinning.

    Args:
        timers: By name.
        blocks: K blocks of batches.
        seed: Of the order.
        settle_s: The rest.
        progress: Called with (blocks done, blocks).

    Returns:
        For each name the seconds of each batch, block by block; and the errors of those that failed on the way, which
        are left out.
    """
    order = random.Random(seed)
    names = list(timers)
    seconds: dict[str, list[list[float]]] = {name: [] for name in names}
    failed: dict[str, str] = {}
    for number, block in enumerate(blocks):
        half = (len(block) + 1) // 2
        order.shuffle(names)
        for name in names:
            seconds[name].append([])
        for turn, part in ((names, block[:half]), (names[::-1], block[half:])):
            for name in turn:
                if not part or name in failed:
                    continue
                time.sleep(settle_s)
                try:
                    seconds[name][number].extend(timers[name](part))
                except LeptoError as error:
                    failed[name] = str(error)
        if progress is not None:
            progress(number + 1, len(blocks))
    return {name: times for name, times in seconds.items() if name not in failed}, failed


def _endless(count: int, order: random.Random) -> Iterator[int]:
    while True:
        indices = list(range(count))
        order.shuffle(indices)
        yield from indices
