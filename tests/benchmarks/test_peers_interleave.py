"""The order in which workers are asked, on stand-ins."""

from __future__ import annotations

from collections import Counter
from itertools import chain

import pytest

from lepto.benchmarks.peers.interleave import interleave, single_blocks, sorted_batches, spread_blocks
from lepto.runtime.errors import LeptoError


class Log:
    """Timers that write down who was asked for what."""

    def __init__(self, *names: str, fails_at: dict[str, int] | None = None) -> None:
        self.turns: list[tuple[str, list[list[int]]]] = []
        self.fails_at = fails_at or {}
        self.timers = {name: self._timer(name) for name in names}

    def _timer(self, name: str):
        def time(batches):
            self.turns.append((name, list(batches)))
            if sum(who == name for who, _ in self.turns) == self.fails_at.get(name):
                raise LeptoError(f"{name}: gone")
            return [float(batch[0]) for batch in batches]

        return time


def run(log: Log, blocks, seed=0):
    return interleave(log.timers, blocks, seed=seed, settle_s=0.0)


BLOCKS = [[[1], [2], [3]], [[4], [5], [6]], [[7], [8], [9]]]


def test_every_block_comes_to_everyone_in_its_order():
    seconds, failed = run(Log("a", "b", "c"), BLOCKS)
    assert failed == {}
    assert seconds == {name: [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]] for name in "abc"}


def test_the_second_half_of_a_block_comes_in_the_reverse_order():
    log = Log("a", "b", "c")
    run(log, BLOCKS * 5)
    firsts = set()
    for start in range(0, len(log.turns), 6):
        names = [name for name, _ in log.turns[start : start + 6]]
        assert names[:3] == names[:2:-1]
        firsts.add(tuple(names[:3]))
    assert len(firsts) > 1


def test_only_one_is_asked_at_a_time_and_each_for_half_a_block():
    log = Log("a", "b")
    run(log, [[[1], [2], [3], [4]]])
    assert [len(batches) for _, batches in log.turns] == [2, 2, 2, 2]


def test_one_that_fails_on_the_way_is_left_out_and_the_others_go_on():
    seconds, failed = run(Log("a", "b", fails_at={"b": 3}), BLOCKS)
    assert failed == {"b": "b: gone"}
    assert list(seconds) == ["a"]
    assert len(seconds["a"]) == 3


def test_a_block_of_one_batch_has_one_turn():
    seconds, _ = run(Log("a"), [[[5]]])
    assert seconds == {"a": [[5.0]]}


@pytest.mark.parametrize("count", [100, 800])
def test_single_blocks_take_every_sample_before_any_comes_again(count: int):
    blocks = single_blocks(count, 8, seed=0)
    seen = Counter(chain.from_iterable(chain.from_iterable(blocks)))
    assert len(blocks) == 8
    assert len(seen) == count
    assert max(seen.values()) - min(seen.values()) <= 1
    assert {len(block) for block in blocks} == {max(20, count // 8)}


def test_single_blocks_stay_short_on_many_samples():
    assert {len(block) for block in single_blocks(100_000, 6, seed=0)} == {100}


def test_batches_are_neighbours_by_length():
    batches = sorted_batches([5, 1, 4, 2, 3], 2)
    assert batches == [[1, 3], [4, 2], [0]]


def test_spread_blocks_hold_every_batch_once():
    batches = [[i] for i in range(97)]
    blocks = spread_blocks(batches, 40, seed=0)
    assert len(blocks) == 40
    assert sorted(chain.from_iterable(blocks)) == batches


def test_spread_blocks_hold_short_and_long_batches():
    blocks = spread_blocks([[i] for i in range(60)], 6, seed=0)
    assert all(min(block)[0] < 12 and max(block)[0] >= 48 for block in blocks)


def test_few_batches_come_again_until_there_are_enough_for_an_interval():
    blocks = spread_blocks([[0], [1]], 40, seed=0)
    assert len(blocks) == 6
    assert Counter(map(tuple, chain.from_iterable(blocks))) == {(0,): 3, (1,): 3}
