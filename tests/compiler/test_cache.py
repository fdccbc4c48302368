from __future__ import annotations

import errno
import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

from lepto.compiler.cache import Cache, cache_folder


def write(text: str) -> Callable[[Path], None]:
    def make(stage: Path) -> None:
        (stage / "result").write_text(text)

    return make


def left_over(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def test_the_second_call_finds_the_entry(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    entry, cached = cache.get("step", {"a": 1}, write("one"))
    assert not cached
    again, cached = cache.get("step", {"a": 1}, write("two"))
    assert cached
    assert again == entry
    assert (entry / "result").read_text() == "one"


@pytest.mark.parametrize(("step", "key"), [("other", {"a": 1}), ("step", {"a": 2}), ("step", {"a": 1, "b": None})])
def test_every_part_of_the_key_counts(tmp_path: Path, step: str, key: dict[str, object]) -> None:
    cache = Cache(tmp_path)
    cache.get("step", {"a": 1}, write("one"))
    assert not cache.get(step, key, write("two"))[1]


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left")])
def test_a_make_that_fails_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    def make(stage: Path) -> None:
        (stage / "half").write_text("x")
        raise error

    cache = Cache(tmp_path)
    with pytest.raises(type(error)):
        cache.get("step", {}, make)
    assert left_over(tmp_path) == []
    assert not cache.get("step", {}, write("whole"))[1]


def test_a_disk_that_is_full_at_the_end_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        Cache(tmp_path).get("step", {}, write("x"))
    assert left_over(tmp_path) == []


def _slow_make(stage: Path) -> None:
    time.sleep(0.3)
    (stage / f"by-{os.getpid()}").write_text("x")


def _compete(folder: str, answers: multiprocessing.Queue[bool]) -> None:
    answers.put(Cache(Path(folder)).get("step", {}, _slow_make)[1])


def test_two_processes_at_once_make_an_entry_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    processes = [context.Process(target=_compete, args=(str(tmp_path), answers)) for _ in range(3)]
    for process in processes:
        process.start()
    found = sorted(answers.get(timeout=60) for _ in processes)
    for process in processes:
        process.join()
    assert found == [False, True, True]
    (entry,) = left_over(tmp_path)
    assert len([path for path in (tmp_path / entry).iterdir() if path.name.startswith("by-")]) == 1


def _never_finish(folder: str, started: multiprocessing.synchronize.Event) -> None:
    def make(stage: Path) -> None:
        (stage / "half").write_text("x")
        started.set()
        time.sleep(60)

    Cache(Path(folder)).get("step", {}, make)


def test_what_a_killed_process_left_is_swept_and_made_again(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    started = context.Event()
    process = context.Process(target=_never_finish, args=(str(tmp_path), started))
    process.start()
    assert started.wait(30)
    process.kill()
    process.join()
    assert len(left_over(tmp_path)) == 1
    assert left_over(tmp_path)[0].startswith(".step-")
    _, cached = Cache(tmp_path).get("another", {}, write("x"))
    assert not cached
    assert [name for name in left_over(tmp_path) if name.startswith(".")] == []
    entry, cached = Cache(tmp_path).get("step", {}, write("whole"))
    assert not cached
    assert (entry / "result").read_text() == "whole"


def test_a_stage_that_somebody_works_in_is_not_swept(tmp_path: Path) -> None:
    stage = tmp_path / ".step-1234.abcdefgh"
    stage.mkdir()
    with FileLock(tmp_path / ".step-1234.lock"):
        Cache(tmp_path).get("another", {}, write("x"))
        assert stage.is_dir()
    Cache(tmp_path).get("a third", {}, write("x"))
    assert not stage.exists()


def test_the_folder_is_the_users_cache_or_what_the_variable_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEPTO_CACHE", "/somewhere")
    assert cache_folder() == Path("/somewhere")
    monkeypatch.delenv("LEPTO_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_folder() == Path("/xdg/lepto")
