"""Several processes that teach together, as ``torchrun`` starts them: the first one compiles, the others help it.

The first process runs the whole command. What it gives to :meth:`Team.run` runs in every process, each with its share
of the samples; between two such jobs the others wait. A job is a row of blocks (:meth:`Team.together`) that all finish
or none, so that an error in one process ends the job in all of them, and is told once. A process that is gone closes
its connections, which ends those who wait for it.
"""

from __future__ import annotations

import datetime
import functools
import os
import pickle
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from lepto.runtime.errors import LeptoError

if TYPE_CHECKING:
    import torch

Result = TypeVar("Result")
Arguments = ParamSpec("Arguments")

_PATIENCE = datetime.timedelta(days=365)
"""Between two jobs the first process measures and searches for as long as it likes."""


@dataclass
class Team:
    """The processes that teach together.

    Attributes:
        size: How many they are.
        rank: Which of them this one is; 0 leads.
    """

    size: int = 1
    rank: int = 0
    _group: Any = field(default=None, repr=False)
    _told: Exception | None = field(default=None, repr=False)

    def share(self, rows: Sequence[int]) -> Sequence[int]:
        """This process's rows of a batch.

        A batch normalization needs two samples, so that a small batch has fewer shares than there are processes, and
        this process may have none of it.
        """
        shares = max(1, min(self.size, len(rows) // 2))
        return rows[self.rank :: shares] if self.rank < shares else []

    def run(self, job: Callable[..., Result], *arguments: Any, **own: Any) -> Result:
        """Run a job in every process; called by the first.

        Args:
            job: A function; it is given the team, and must do the same row of blocks everywhere.
            arguments: For every process: the others get a copy.
            own: For the first process alone.

        Returns:
            What the job returned in the first process.

        Raises:
            Exception: The first that a process raised.
        """
        if self.size == 1:
            return job(self, *arguments, **own)
        import cloudpickle  # type: ignore[import-untyped]  # it ships no types
        import torch

        threads = torch.get_num_threads()
        # The processes of a machine share them, as Ray's tasks do.
        part = max(1, threads // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
        try:
            copied = cloudpickle.dumps((job, arguments, part))
        except Exception as error:  # whatever a model's class does when it is copied
            error.add_note("under torchrun every process gets a copy of the model: start lepto without it")
            raise
        # A model's classes may come from the current folder, and from others that only this process has been told of.
        self._broadcast(([*sys.path, os.getcwd()], copied))
        torch.set_num_threads(part)
        try:
            return self._work(functools.partial(job, self, *arguments, **own))
        finally:
            torch.set_num_threads(threads)
            self._told = None  # its traceback keeps the tensors of the job alive, and memory may be what ran out

    def serve(self) -> None:
        """Take part in the jobs of the first process until it says that there is none left.

        Raises:
            SystemExit: The first process has ended without a word: it failed, and has said so itself.
        """
        while (sent := self._broadcast(None)) is not None:
            path, job = sent
            sys.path.extend(entry for entry in path if entry not in sys.path)
            try:
                self._work(functools.partial(self._help, job))
            except Exception as error:
                if error is not self._told:
                    raise
            self._told = None  # as above

    def dismiss(self) -> None:
        """Tell the others that there is no job left."""
        self._broadcast(None)

    @contextmanager
    def together(self) -> Iterator[None]:
        """A block that every process finishes, or none.

        What processes send each other comes right after such a block, where nothing fails any more.

        Raises:
            Exception: What the block raised, here or in another process.
        """
        try:
            yield
        except Exception as error:
            self._meet(error)
            raise
        self._meet(None)

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """The sum of a few numbers over all processes."""
        return self._reduced(values, "SUM")

    def smallest(self, values: torch.Tensor) -> torch.Tensor:
        """The smallest over all processes of each of a few numbers."""
        return self._reduced(values, "MIN")

    def add_up(self, values: torch.Tensor) -> torch.Tensor:
        """Add up many numbers over all processes, in place: those of GPUs do not come to the CPU."""
        if self.size > 1:
            import torch.distributed

            with self._talking():
                torch.distributed.all_reduce(values)
        return values

    def gather(self, value: Result) -> list[Result]:
        """What every process has, for the first; the others get nothing."""
        if self.size == 1:
            return [value]
        import torch.distributed

        gathered: list[Any] = [None] * self.size
        with self._talking():
            torch.distributed.gather_object(value, gathered if self.rank == 0 else None, 0, self._group)
        return gathered if self.rank == 0 else []

    def _help(self, sent: bytes) -> None:
        import torch

        job, arguments, threads = pickle.loads(sent)  # from the first process of this very command
        torch.set_num_threads(threads)
        job(self, *arguments)

    def _work(self, job: Callable[[], Result]) -> Result:
        """Run a job here; an error outside of a block meets the others at the end of their next one."""
        try:
            result = job()
        except Exception as error:
            if error is not self._told:
                self._meet(error)
            raise
        self._meet(None)
        return result

    def _meet(self, error: Exception | None) -> None:
        """Raise the same error in all processes if one has one."""
        if self.size == 1:
            return
        import torch
        import torch.distributed

        if not self._reduced(torch.tensor([float(error is not None)]), "SUM").any():
            return
        errors: list[Any] = [None] * self.size
        with self._talking():
            torch.distributed.all_gather_object(errors, _sendable(error), self._group)
        rank = next(i for i, one in enumerate(errors) if one is not None)
        self._told = error if error is not None else errors[rank]
        assert self._told is not None
        if error is None:
            self._told.add_note(f"in process {rank} of {self.size}")
        raise self._told

    def _broadcast(self, value: Any) -> Any:
        """What the first process sends."""
        import torch.distributed

        sent = [value]
        with self._talking():
            torch.distributed.broadcast_object_list(sent, 0, self._group)
        return sent[0]

    def _reduced(self, values: torch.Tensor, operation: str) -> torch.Tensor:
        if self.size == 1:
            return values
        import torch.distributed

        here = values.detach().double().cpu()
        with self._talking():
            torch.distributed.all_reduce(here, getattr(torch.distributed.ReduceOp, operation), self._group)
        return here.to(values.device)

    @contextmanager
    def _talking(self) -> Iterator[None]:
        """What becomes of a process whose partner is gone."""
        try:
            yield
        except RuntimeError as error:
            if self.rank:
                raise SystemExit(1) from error
            self._told = LeptoError(
                "another process of torchrun has ended before the work was done: see what torchrun says of it. The "
                "same command goes on where this one ends"
            )
            raise self._told from error


def _sendable(error: Exception | None) -> Exception | None:
    """The error, or where it cannot be sent, one that says the same."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # whatever a class of exceptions does when it is copied
        return LeptoError(f"{type(error).__name__}: {error}")
    return error


_alone = Team()
_current: list[Team] = []  # like the process group, of which a process has one


def current() -> Team:
    """The team of this process: itself, outside of :func:`joined`."""
    return _current[-1] if _current else _alone


def processes() -> int:
    """How many processes ``torchrun`` has started, this one among them."""
    return int(os.environ.get("WORLD_SIZE") or 1)


@contextmanager
def joined() -> Iterator[bool]:
    """Form a team of the processes that ``torchrun`` has started.

    Yields:
        Whether this process leads: it does the work of the block. The others have helped it when they get here, and
        nothing is left for them to do.

    Raises:
        LeptoError: What ``torchrun`` tells its processes is missing.
        SystemExit: Where this process helps, and the first one has failed.
    """
    if processes() <= 1:
        yield True
        return
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        if name not in os.environ:
            raise LeptoError(f"WORLD_SIZE is {processes()}, but {name} is not set: start lepto with torchrun, or alone")
    import torch
    from accelerate import PartialState  # type: ignore[import-untyped]  # it ships no types

    state = PartialState(cpu=not torch.cuda.is_available())
    # Not NCCL: it would keep a GPU busy with waiting, and give up after ten minutes.
    group = torch.distributed.new_group(backend="gloo", timeout=_PATIENCE)
    team = Team(state.num_processes, state.process_index, group)
    _current.append(team)
    try:
        if team.rank:
            with _the_first_decides():
                team.serve()
            yield False
        else:
            yield True
            team.dismiss()
    finally:
        _current.remove(team)
    # Not after an error: the others end when this process does, and by then it has said why.
    torch.distributed.destroy_process_group()


@contextmanager
def _the_first_decides() -> Iterator[None]:
    """Ctrl-C ends the first process, and that ends this one; it has nothing to clean up, and no word to say."""
    # The others end it at once: a handler in Python would wait for what is being waited for.
    hung_up = getattr(signal, "SIGHUP", signal.SIGTERM)
    wanted = {signal.SIGINT: signal.SIG_IGN, signal.SIGTERM: signal.SIG_DFL, hung_up: signal.SIG_DFL}
    heard = [number for number in wanted if signal.getsignal(number) != signal.SIG_IGN]  # not under nohup
    before = {number: signal.signal(number, wanted[number]) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def led(command: Callable[Arguments, None]) -> Callable[Arguments, None]:
    """A command that the first process runs; the others help it to teach."""

    @functools.wraps(command)
    def run(*arguments: Arguments.args, **options: Arguments.kwargs) -> None:
        with joined() as leads:
            if leads:
                command(*arguments, **options)

    return run
