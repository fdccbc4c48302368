"""Instructions of an inference, counted by valgrind: a second opinion that noise does not reach.

A model is run N times and 2 N times on the same inputs under ``valgrind --tool=callgrind``; the difference over N is
what an inference takes, since start-up, loading and the first run's preparations are in both. Two counts of the same
model differ by parts in a thousand. What it counts is no time: a cache miss costs nothing here, and its processor
has AVX2 and neither AVX-512 nor VNNI, so that onnxruntime runs its kernels for AVX2.

Source: Valgrind User Manual, "Callgrind: a call-graph generating cache and branch prediction profiler",
https://valgrind.org/docs/manual/cl-manual.html; the limits of its processor, "Limitations",
https://valgrind.org/docs/manual/manual-core.html#manual-core.limits.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from lepto.benchmarks.workers import spread
from lepto.runtime.errors import LeptoError
from lepto.runtime.package import Package

RUNS: Final = 8
TIMEOUT_S: Final = 1800.0
PROCESSOR: Final = "one thread, kernels for AVX2 (valgrind's processor has neither AVX-512 nor VNNI)"
INSTALL: Final = "install it with `apt-get install valgrind` (Debian, Ubuntu) or `dnf install valgrind` (Fedora, RHEL)"
_COLLECTED = re.compile(r"^==\d+== Collected : (\d+)", re.MULTILINE)
_PROGRAM = Path(__file__).with_name("counted.py")
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Instructions:
    """What an inference takes.

    Attributes:
        per_inference: Instructions of one, the mean over the inputs.
        runs: N, and how many inputs there were.
        once: Instructions of the whole program with N inferences.
        twice: The same with 2 N.
        valgrind: Its version.
    """

    per_inference: float
    runs: int
    once: int
    twice: int
    valgrind: str


def find_valgrind() -> tuple[str, str]:
    """The program and its version.

    Raises:
        LeptoError: There is none; the message says how to install it.
    """
    program = shutil.which("valgrind")
    if program is None:
        raise LeptoError(f"instructions are counted by valgrind, which is not on this machine: {INSTALL}")
    ran = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=60)
    if ran.returncode != 0:
        raise LeptoError(f"{program} does not run ({(ran.stdout + ran.stderr).strip()[-300:]}): {INSTALL}")
    return program, ran.stdout.strip()


def count_package(
    package: Package,
    feeds: Sequence[Mapping[str, npt.NDArray[Any]]],
    *,
    runs: int = RUNS,
    progress: Progress | None = None,
) -> Instructions:
    """Count the instructions of a package's inferences.

    Args:
        package: The package.
        feeds: Its inputs, batch 1; ``runs`` of them are taken, whose lengths are spread like those of all.
        runs: N.
        progress: Told how many of the two runs are done.

    Raises:
        LeptoError: There is no valgrind, or it cannot run the model.
    """
    if runs < 1:
        raise ValueError(f"runs must be at least 1, got {runs}")
    find_valgrind()
    chosen = [feeds[i] for i in spread(feeds, runs)]
    with tempfile.TemporaryDirectory(prefix="lepto-instructions-") as folder:
        stored = Path(folder) / "feeds.npz"
        arrays = {f"{place}/{name}": array for place, feed in enumerate(chosen) for name, array in feed.items()}
        np.savez(stored, **arrays)
        command = [sys.executable, "-I", str(_PROGRAM), str(package.model_path.resolve()), str(stored)]
        return count(lambda times: [*command, str(times)], runs, progress=progress, what=str(package.path))


def count(
    command: Callable[[int], Sequence[str]], runs: int, *, progress: Progress | None = None, what: str = "the program"
) -> Instructions:
    """Count what one of many repetitions takes; both runs at once, since instructions know no waiting.

    Args:
        command: From a number of repetitions to the command that makes them.
        runs: N.
        progress: Told how many of the two runs are done.
        what: It is, for messages.

    Raises:
        LeptoError: There is no valgrind, the program failed under it, or took too long.
    """
    program, version = find_valgrind()
    options = ["--tool=callgrind", "--callgrind-out-file=/dev/null", "--error-limit=no"]
    # Python's hashes are seeded at random, and with them the length of its look-ups.
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    with tempfile.TemporaryDirectory(prefix="lepto-valgrind-") as folder:
        logs = [Path(folder) / name for name in ("once", "twice")]
        started = []
        try:
            for log, times in zip(logs, (runs, 2 * runs), strict=True):
                with log.open("wb") as out:
                    started.append(
                        subprocess.Popen(
                            [program, *options, *command(times)], stdout=out, stderr=out, stdin=subprocess.DEVNULL,
                            env=environment,
                        )
                    )  # fmt: skip
            _wait(started, progress, what)
        finally:
            for process in started:
                if process.poll() is None:
                    process.kill()
                process.wait()
        once, twice = (
            read_count(log.read_text(encoding="utf-8", errors="replace"), process.returncode, what)
            for log, process in zip(logs, started, strict=True)
        )
    if twice <= once:
        raise LeptoError(
            f"{what}: {2 * runs} inferences took no more instructions than {runs} ({twice:,} and {once:,}): its start "
            "varies by more than they take; count more of them"
        )
    return Instructions((twice - once) / runs, runs, once, twice, version)


def _wait(started: Sequence[subprocess.Popen[bytes]], progress: Progress | None, what: str) -> None:
    deadline, seen = time.monotonic() + TIMEOUT_S, 0
    while (done := sum(process.poll() is not None for process in started)) < len(started):
        if time.monotonic() > deadline:
            raise LeptoError(f"{what} took more than {TIMEOUT_S:.0f} s under valgrind: count fewer inferences")
        if progress is not None and done > seen:
            progress(done, len(started))
            seen = done
        time.sleep(0.1)
    if progress is not None:
        progress(len(started), len(started))


def read_count(log: str, code: int, what: str) -> int:
    """The count in what valgrind wrote.

    Args:
        log: All it wrote, with what the program wrote.
        code: With which it ended.
        what: It is, for messages.

    Raises:
        LeptoError: The program failed, with the reason as far as valgrind gives it.
    """
    if "unrecognised instruction" in log or "illegal opcode" in log.lower() or code in (-4, 132):
        raise LeptoError(
            f"{what} runs an instruction that valgrind does not know (AVX-512, for example, which it hides from "
            "programs that ask): instructions cannot be counted on this machine; compare times with `lepto bench`, or "
            "try a newer valgrind"
        )
    found = _COLLECTED.search(log)
    if code != 0 or found is None:
        lines = [line for line in log.splitlines() if line.strip() and not line.startswith("==")]
        raise LeptoError(f"{what} failed under valgrind (exit code {code}): {' | '.join(lines[-3:]) or 'no message'}")
    return int(found[1])
