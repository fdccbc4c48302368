"""Students of one round taught side by side, as Ray tasks: on this machine, or on a cluster.

A task gets what it needs by value (source, lesson, schedule) and gives the files of a student back, which the one who
asked puts into its own cache: nodes need no shared folder.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lepto.runtime.errors import LeptoError

Work = Callable[[Any, Path], None]
"""From what all share, writes its result into a folder."""


@dataclass(frozen=True)
class Workers:
    """Where tasks run.

    Attributes:
        count: How many at once on this machine; None leaves it to the cluster.
        address: A cluster's, ``ray://host:port``; None starts one on this machine.
    """

    count: int | None
    address: str | None

    @classmethod
    def parse(cls, text: str) -> Workers:
        """From ``4`` or ``ray://host:10001``.

        Raises:
            ValueError: It is neither.
        """
        if text.startswith("ray://") and len(text) > len("ray://"):
            return cls(None, text)
        if re.fullmatch(r"[1-9]\d{0,3}", text):
            return cls(int(text), None)
        raise ValueError(f"must be a number of workers like 2, or a Ray cluster like ray://host:10001, got {text!r}")


@contextmanager
def cluster(workers: Workers) -> Iterator[Any]:
    """Ray, started here or connected to; what was started is stopped.

    Raises:
        LeptoError: Ray is not installed, or the cluster does not answer.
    """
    try:
        import ray
    except ImportError:
        raise LeptoError("--workers needs the extra: pip install 'lepto[ray]'") from None
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "include_dashboard": False}
    if workers.address is not None:
        options = {"address": workers.address, "log_to_driver": False, "logging_level": "ERROR"}
    else:
        options["num_cpus"] = workers.count
    started = not ray.is_initialized()
    if started:
        try:
            ray.init(**options)
        except (ConnectionError, RuntimeError, ValueError) as error:
            # A server that asks for a token does not say so: the client just waits until its time is up.
            hint = "" if workers.address is None else " (does it run, and has it this side's RAY_AUTH_MODE and token?)"
            raise LeptoError(f"no Ray cluster at {workers.address or 'this machine'}: {error}{hint}") from error
    try:
        yield ray
    finally:
        if started:
            ray.shutdown()


def run_all(
    ray: Any, works: Mapping[str, Work], shared: Any, *, threads: int, done: Callable[[str, dict[str, bytes]], None]
) -> None:
    """Run pieces of work side by side.

    Args:
        ray: The module, connected.
        works: By name.
        shared: Given to each; sent once.
        threads: Torch's threads in each.
        done: Given each result as it comes: the files that were written, by name.

    Raises:
        Exception: The first that a piece of work raised; the others are cancelled.
    """
    remote = ray.remote(num_cpus=1, max_retries=1)(_run)
    stored = ray.put(shared)
    names = {remote.remote(work, stored, threads): name for name, work in works.items()}
    left: Sequence[Any] = list(names)
    try:
        while left:
            ready, left = ray.wait(list(left), num_returns=1)
            done(names[ready[0]], ray.get(ready[0]))
    except ray.exceptions.RayTaskError as error:
        raise error.as_instanceof_cause() from None
    finally:
        for task in left:
            ray.cancel(task, force=True)


def _run(work: Work, shared: Any, threads: int) -> dict[str, bytes]:
    import torch

    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory(prefix="lepto-") as folder:
        work(shared, Path(folder))
        return {file.name: file.read_bytes() for file in Path(folder).iterdir() if file.is_file()}
