import gc

import numpy as np
import pytest

from lepto.runtime import measure
from lepto.runtime.measure import Load, interleave, machine_load


class Log:
    """Runners that write down who ran what."""

    def __init__(self, *names: str) -> None:
        self.calls: list[tuple[str, int]] = []
        self.runners = {name: lambda feed, name=name: self.calls.append((name, feed)) for name in names}


def run(log: Log, **options):
    settings = {"blocks": 3, "per_block": 4, "warmup": 0, "seed": 0} | options
    return interleave(log.runners, list(range(10)), **settings)


def measured(calls: list[tuple[str, int]]) -> list[tuple[str, int]]:
    """The calls without the unmeasured one at the start of each turn (it has the first input of the turn)."""
    kept, previous = [], None
    for call in calls:
        if call == previous:
            kept.pop()
        kept.append(call)
        previous = call
    return kept


def test_shape_and_names():
    times = run(Log("a", "b"))
    assert list(times) == ["a", "b"]
    assert all(array.shape == (3, 4) and array.dtype == np.float64 and (array >= 0).all() for array in times.values())


def test_all_runners_of_a_block_get_the_same_inputs_in_the_same_places():
    log = Log("a", "b", "c")
    run(log, blocks=5)
    calls = measured(log.calls)
    assert len(calls) == 5 * 3 * 4
    for block in range(5):
        part = calls[block * 12 : block * 12 + 12]
        feeds = {name: [feed for who, feed in part if who == name] for name in "abc"}
        assert feeds["a"] == feeds["b"] == feeds["c"]


def test_order_is_reversed_in_the_second_half_of_a_block():
    log = Log("a", "b", "c")
    run(log, blocks=20)
    calls = measured(log.calls)
    firsts = set()
    for block in range(20):
        names = [name for name, _ in calls[block * 12 : block * 12 + 12]]
        first, second = names[0:6:2], names[6:12:2]
        assert first == second[::-1]
        firsts.add(tuple(first))
    assert len(firsts) > 1


def test_every_input_comes_once_before_any_comes_again():
    log = Log("a")
    run(log, blocks=5, per_block=4)
    feeds = [feed for _, feed in measured(log.calls)]
    assert sorted(feeds[:10]) == list(range(10))
    assert sorted(feeds[10:]) == list(range(10))


def test_same_seed_same_order():
    logs = [Log("a", "b") for _ in range(3)]
    for log, seed in zip(logs, (1, 1, 2), strict=True):
        run(log, seed=seed)
    assert logs[0].calls == logs[1].calls != logs[2].calls


def test_warmup_comes_first():
    log = Log("a", "b")
    run(log, warmup=12)
    assert log.calls[:24] == [(name, i % 10) for name in "ab" for i in range(12)]


def test_times_are_those_of_the_call_and_nothing_else(monkeypatch):
    now = 0

    def takes(nanoseconds):
        def run(feed):
            nonlocal now
            now += nanoseconds * (1 + feed)

        return run

    monkeypatch.setattr(measure, "perf_counter_ns", lambda: now)
    times = interleave(
        {"one": takes(1000), "same": takes(1000), "twice": takes(2000)}, [0, 3], blocks=5, per_block=4, warmup=3, seed=0
    )
    assert set(times["one"].ravel().round(9)) == {1e-6, 4e-6}
    np.testing.assert_allclose(times["same"], times["one"])
    np.testing.assert_allclose(times["twice"], 2 * times["one"])


def test_one_input_for_each_block():
    assert run(Log("a", "b"), per_block=1)["b"].shape == (3, 1)


def test_progress():
    seen = []
    run(Log("a"), progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_garbage_collection_is_off_while_timing_and_on_again_after_a_failure():
    def fail(feed):
        assert not gc.isenabled()
        raise RuntimeError("broken model")

    with pytest.raises(RuntimeError, match="broken model"):
        interleave({"a": fail}, [0], blocks=1, per_block=1, warmup=0, seed=0)
    assert gc.isenabled()


@pytest.mark.parametrize("option", ["blocks", "per_block", "warmup"])
def test_counts_out_of_range(option):
    with pytest.raises(ValueError, match=f"{option} must be at least"):
        run(Log("a"), **{option: -1})


def test_nothing_to_run():
    with pytest.raises(ValueError, match="must not be empty"):
        interleave({}, [1], blocks=1, per_block=1, warmup=0, seed=0)
    with pytest.raises(ValueError, match="must not be empty"):
        interleave({"a": print}, [], blocks=1, per_block=1, warmup=0, seed=0)


def test_load():
    load = machine_load()
    assert load.cpus >= 1
    assert load.average_1min is None or load.average_1min >= 0
    assert Load(3.0, 4).per_cpu == 0.75
    assert Load(None, 4).per_cpu is None


def test_a_turn_begins_with_a_rest_and_unmeasured_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    rests: list[float] = []
    monkeypatch.setattr(measure, "REST_S", 0.5)
    monkeypatch.setattr(measure, "WARM_S", 0.01)
    monkeypatch.setattr(measure, "sleep", rests.append)
    log = Log("a", "b")
    run(log, blocks=1, per_block=2)
    assert rests == [0.5] * 4  # two turns of each
    assert len(measured(log.calls)) == 4
    assert len(log.calls) > 100  # they do nothing, and filled 10 ms four times
