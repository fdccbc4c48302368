"""Measure packages in their own processes, in randomised ABBA blocks on the same inputs.

Each package runs in a process forked from one server process that has imported ONNX Runtime and nothing else, so that
the two sides share every address of code. What remains different between two loads of the *same* model (where its
weights and buffers lie) is worth a percent or two and stays for the life of a process: after a few pairs both processes
are replaced, so that it becomes noise between pairs instead of a difference between sides.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from lepto.runtime.errors import LeptoError
from lepto.runtime.package import Package
from lepto.runtime.session import Session

Feed = Mapping[str, npt.NDArray[Any]]
Seconds = npt.NDArray[np.float64]

# A block must be long against the clock and the scheduler's tick, and have enough runs for a 90th percentile.
BLOCK_S: Final = 0.04
LEAST_RUNS, MOST_RUNS = 20, 200
PAIRS_PER_PROCESS: Final = 6
WARM_S, WARM_RUNS = 0.004, 3  # at the start of a turn: the caches are the other's, its threads may still be spinning
FEEDS: Final = 256
START_TIMEOUT_S: Final = 300.0


@dataclass(frozen=True, slots=True)
class Loaded:
    """What loading took.

    Attributes:
        seconds: From the open package to a session and its first answer.
        load_s: Of the session alone.
        memory_bytes: Largest resident memory that loading and running added to the process.
    """

    seconds: float
    load_s: float
    memory_bytes: int


@dataclass(frozen=True)
class Subject:
    """What one side runs.

    Attributes:
        package: The package.
        feeds: Its inputs; the same place means the same sample on every side.
        threads: Intra-op threads.
        slow: Added to every run, as a share of its time: a known regression, for the proof of the gate.
    """

    package: Package
    feeds: Sequence[Feed] = field(repr=False)
    threads: int
    slow: float = 0.0


class Worker:
    """One package in one process.

    Args:
        subject: What it runs.
        cpus: Where it may run.

    Raises:
        LeptoError: The package cannot be loaded, or its process died.
    """

    def __init__(self, subject: Subject, cpus: Sequence[int]) -> None:
        self.subject = subject
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["onnxruntime", __name__])
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()
        self._send(("load", subject.package, subject.threads, list(cpus), subject.slow, list(subject.feeds)))
        self.loaded: Loaded = self._answer(START_TIMEOUT_S)

    def run(self, places: Sequence[int]) -> tuple[Seconds, float]:
        """Run the inputs at some places; seconds of each ``[len(places)]``, and CPU seconds of all together."""
        self._send(("run", list(places)))
        seconds, cpu = self._answer(START_TIMEOUT_S)
        return seconds, cpu

    def close(self) -> None:
        """End the process."""
        with suppress(OSError):
            self._pipe.send(("stop",))
        self._pipe.close()
        self._process.join(2.0)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._process.close()

    def _send(self, message: Any) -> None:
        try:
            self._pipe.send(message)
        except OSError as error:
            raise self._died() from error

    def _answer(self, timeout_s: float) -> Any:
        try:
            if not self._pipe.poll(timeout_s):
                raise LeptoError(f"{self.subject.package.path} did not answer within {timeout_s:.0f} s")
            kind, value = self._pipe.recv()
        except (EOFError, OSError) as error:
            raise self._died() from error
        if kind == "error":
            raise AnswerError(f"{self.subject.package.path} does not answer: {value}")
        return value

    def _died(self) -> LeptoError:
        self._process.join(1.0)
        return LeptoError(
            f"the process that ran {self.subject.package.path} died (exit code {self._process.exitcode}) while it was "
            "measured: it was killed, perhaps for its memory, or onnxruntime crashed; run `lepto verify` on the package"
        )


class AnswerError(LeptoError):
    """A package answered an error where it should have answered."""


def _serve(pipe: Connection) -> None:
    session: Session | None = None
    feeds: list[Feed] = []
    slow = 0.0
    while True:
        try:
            message = pipe.recv()
        except (EOFError, KeyboardInterrupt):
            return
        if message[0] == "stop":
            return
        try:
            if message[0] == "load":
                _, package, threads, cpus, slow, feeds = message
                session, loaded = _load(package, threads, cpus, feeds)
                pipe.send(("loaded", loaded))
            elif session is not None:
                pipe.send(("seconds", _run(session, feeds, message[1], slow)))
        except KeyboardInterrupt:
            return
        except Exception as error:  # whatever it was, it is told on the other side
            pipe.send(("error", str(error).partition("\n")[0]))


def _load(package: Package, threads: int, cpus: list[int], feeds: list[Feed]) -> tuple[Session, Loaded]:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cpus)
    before = _resident()
    start = time.perf_counter()
    session = Session(package, threads=threads)
    load_s = time.perf_counter() - start
    session.run(feeds[0])
    seconds = time.perf_counter() - start
    for feed in feeds[:WARM_RUNS]:
        session.run(feed)
    gc.collect()
    gc.freeze()
    gc.disable()
    return session, Loaded(seconds, load_s, max(1, _peak() - before))


def _run(session: Session, feeds: list[Feed], places: list[int], slow: float) -> tuple[Seconds, float]:
    first, now = feeds[places[0]], time.perf_counter
    start = now()
    for count in range(1000):
        if count >= WARM_RUNS and now() - start > WARM_S:
            break
        session.run(first)
    seconds = np.empty(len(places))
    cpu = time.process_time()
    clock = time.perf_counter_ns
    for i, place in enumerate(places):
        feed = feeds[place]
        begin = clock()
        session.run(feed)
        end = clock()
        if slow:
            until = begin + int((end - begin) * (1.0 + slow))
            while (end := clock()) < until:
                pass
        seconds[i] = (end - begin) * 1e-9
    return seconds, time.process_time() - cpu


def _resident() -> int:
    return _status("VmRSS:")


def _peak() -> int:
    return _status("VmHWM:")


def _status(key: str) -> int:
    try:
        with open("/proc/self/status") as file:
            for line in file:
                if line.startswith(key):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@contextmanager
def _workers(subjects: Sequence[Subject], cpus: Sequence[int]) -> Iterator[list[Worker]]:
    workers: list[Worker] = []
    try:
        for subject in subjects:
            workers.append(Worker(subject, cpus))  # noqa: PERF401  (those that started must be closed)
        yield workers
    finally:
        for worker in workers:
            worker.close()


class Pairs:
    """Measures subjects side by side, block by block; goes on where it stopped.

    Args:
        subjects: Two or more; all must have as many inputs.
        seed: Of all random orders.
        runs: Runs in a block; chosen from the fastest subject's speed unless given.

    Attributes:
        seconds: For each subject the blocks so far, ``[K, R]`` seconds.
        cpu_s: For each subject the CPU seconds for each run, of all blocks together.
        loaded: For each subject what each load took.
    """

    def __init__(self, subjects: Sequence[Subject], *, seed: int, runs: int | None = None) -> None:
        if not subjects or not subjects[0].feeds or len({len(subject.feeds) for subject in subjects}) != 1:
            raise ValueError("there must be a subject, and inputs, as many for each subject")
        self.subjects = subjects
        self._order = random.Random(seed)
        self._places = _endless(len(subjects[0].feeds), self._order)
        self._blocks: list[list[Seconds]] = [[] for _ in subjects]
        self._cpu = [0.0 for _ in subjects]
        self.runs = runs
        self.loaded: list[list[Loaded]] = [[] for _ in subjects]
        self._cpus = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]

    @property
    def seconds(self) -> list[Seconds]:
        """``[K, R]`` for each subject."""
        return [np.stack(blocks) if blocks else np.empty((0, self.runs or 0)) for blocks in self._blocks]

    @property
    def cpu_s(self) -> list[float]:
        """CPU seconds a run."""
        return [cpu / max(1, sum(map(len, blocks))) for cpu, blocks in zip(self._cpu, self._blocks, strict=True)]

    def measure(self, pairs: int, progress: Callable[[int, int], None] | None = None) -> list[Seconds]:
        """Measure until there are ``pairs`` blocks of each subject.

        Raises:
            LeptoError: A package cannot be loaded, answers an error, or its process died.
        """
        while len(self._blocks[0]) < pairs:
            order = list(range(len(self.subjects)))
            self._order.shuffle(order)
            threads = max(subject.threads for subject in self.subjects)
            # One CPU for one thread, the same for all; another one in the next round.
            cpus = self._cpus if threads > 1 else [self._order.choice(self._cpus)]
            with _workers([self.subjects[i] for i in order], cpus) as started:
                workers = [started[order.index(i)] for i in range(len(order))]
                for store, worker in zip(self.loaded, workers, strict=True):
                    store.append(worker.loaded)
                if self.runs is None:
                    self.runs = self._fitting(workers)
                for _ in range(min(PAIRS_PER_PROCESS, pairs - len(self._blocks[0]))):
                    self._block(workers, self.runs)
                    if progress is not None:
                        progress(len(self._blocks[0]), pairs)
        return self.seconds

    def load(self, times: int, progress: Callable[[int, int], None] | None = None) -> list[list[Loaded]]:
        """Load until there are so many loads of each subject, in a random order each time."""
        while len(self.loaded[0]) < times:
            order = list(range(len(self.subjects)))
            self._order.shuffle(order)
            for i in order:
                with _workers([self.subjects[i]], self._cpus) as (worker,):
                    self.loaded[i].append(worker.loaded)
            if progress is not None:
                progress(len(self.loaded[0]), times)
        return self.loaded

    def _fitting(self, workers: Sequence[Worker]) -> int:
        places = [next(self._places) for _ in range(10)]
        for worker in workers:
            worker.run(places)
        fastest = min(float(np.median(worker.run(places)[0])) for worker in workers)
        return int(np.clip(BLOCK_S / fastest, LEAST_RUNS, MOST_RUNS))

    def _block(self, workers: Sequence[Worker], runs: int) -> None:
        places = [next(self._places) for _ in range(runs)]
        half = (runs + 1) // 2
        order = list(range(len(workers)))
        self._order.shuffle(order)
        parts: list[list[Seconds]] = [[] for _ in workers]
        for turn, part in ((order, places[:half]), (order[::-1], places[half:])):
            for i in turn:
                seconds, cpu = workers[i].run(part)
                parts[i].append(seconds)
                self._cpu[i] += cpu
        for store, own in zip(self._blocks, parts, strict=True):
            store.append(np.concatenate(own))


def _endless(count: int, order: random.Random) -> Iterator[int]:
    while True:
        indices = list(range(count))
        order.shuffle(indices)
        yield from indices


def spread(feeds: Sequence[Feed], count: int = FEEDS) -> list[int]:
    """Places of up to ``count`` inputs whose lengths are spread like those of all."""
    if len(feeds) <= count:
        return list(range(len(feeds)))
    sizes = [sum(array.size for array in feed.values()) for feed in feeds]
    order = np.argsort(sizes, kind="stable")
    return [int(order[i]) for i in np.linspace(0, len(feeds) - 1, count).astype(int)]


def others_busy(seconds: float = 0.5) -> float | None:
    """The share of this machine's CPU time that went to others than this process and its children; None if unknown."""
    first = _busy()
    mine = time.process_time()
    time.sleep(seconds)
    last = _busy()
    if first is None or last is None or last[1] <= first[1]:
        return None
    used = (last[0] - first[0]) / os.sysconf("SC_CLK_TCK") - (time.process_time() - mine)
    return max(0.0, min(1.0, used / ((last[1] - first[1]) / os.sysconf("SC_CLK_TCK"))))


def _busy() -> tuple[int, int] | None:
    try:
        with open("/proc/stat") as file:
            ticks = [int(value) for value in file.readline().split()[1:9]]
    except (OSError, ValueError):
        return None
    return sum(ticks) - ticks[3] - ticks[4], sum(ticks)


def wait_until_quiet(wait_s: float, busy: float = 0.25, say: Callable[[str], None] | None = None) -> float | None:
    """Wait until other work leaves most of the machine alone.

    Args:
        wait_s: At most so long; 0 only looks.
        busy: The share of CPU time of others from which on the machine counts as loaded.
        say: Told once that it waits.

    Returns:
        The share last seen; None where it cannot be seen.
    """
    deadline, told = time.monotonic() + wait_s, False
    while True:
        share = others_busy()
        if share is None or share < busy or time.monotonic() >= deadline:
            return share
        if not told and say is not None:
            say(f"other work uses {share:.0%} of this machine's CPUs: waiting up to {wait_s:.0f} s for a quieter one")
            told = True
        time.sleep(1.0)
