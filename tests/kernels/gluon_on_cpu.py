"""Runs the source of the Hopper kernel on CPU tensors: Triton's interpreter knows no Gluon.

The module's functions are plain Python once ``@gluon.jit`` does nothing; here are the imports that they find. Layouts
mean nothing. Each partition is a thread, of which one runs at a time: at every barrier, copy and product, a seeded
generator picks who goes on, so that an order that fails is found again. Partitions and copies differ widely in pace.

What Hopper does at a time of its own is done as unkindly as it may be. A tile that TMA is told to fill is NaN until it
has come. A product reads its tiles when it begins and when it is waited for, a stored tile likewise, and must find the
same; a product that nobody waited for has no value. When nobody can go on, that is a deadlock.

Not seen here: warps of one group that are not at the same place, registers, layouts, and 32-bit overflow.
"""

from __future__ import annotations

import builtins
import importlib.util
import math
import random
import sys
import threading
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from lepto.kernels.attention.launch import hopper_arguments
from lepto.kernels.attention.tables import Specialized

FILE = str(importlib.util.find_spec("lepto.kernels.attention.hopper").origin)
SOURCE = Path(FILE).read_text()
compiled = lru_cache(lambda source: compile(source, FILE, "exec"))


class ProtocolError(Exception):
    """The partitions do not agree on who may use what, and when."""


class Barrier:
    """An mbarrier: its phase ends when all have arrived and all bytes have come."""

    def __init__(self) -> None:
        self.count = self.phase = self.arrived = self.missing = 0

    def ended(self, parity: int) -> bool:
        """Whether the phase of this parity has, as far as hardware can tell: "phase -1" of a fresh barrier has."""
        return self.phase % 2 != parity

    def change(self, arrivals: int, missing: int) -> None:
        self.arrived += arrivals
        self.missing += missing
        if self.arrived > self.count:
            raise ProtocolError(f"{self.arrived} arrivals at a barrier for {self.count}")
        if self.arrived == self.count and not self.missing:
            self.phase, self.arrived = self.phase + 1, 0


class Shared:
    """A view of shared memory. ``write`` stores a value there."""

    def __init__(self, data: torch.Tensor, write: Callable[[torch.Tensor, torch.Tensor], None]) -> None:
        self.data, self.shape, self.dtype = data, [*data.shape], data.dtype
        self.store = lambda value: write(data, value)
        self.index = lambda i: Shared(data[i], write)
        self.reshape = lambda shape: Shared(data.view(shape), write)
        self.permute = lambda order: Shared(data.permute(order), write)

    def bits(self) -> torch.Tensor:
        return self.data.view(torch.int16).clone()


class Pointer:
    """Into a contiguous tensor; adding moves it."""

    def __init__(self, data: torch.Tensor, at: Any = 0) -> None:
        self.data, self.at = data, at

    def __add__(self, more: Any) -> Pointer:
        return Pointer(self.data, self.at + more)


class Descriptor:
    """A tensor as TMA sees it: what lies outside is read as zeros and never written."""

    def __init__(self, made: Any) -> None:
        self.data, self.dtype, self.layout = made.base.as_strided(made.shape, made.strides), made.base.dtype, None
        nbytes = math.prod(made.block_shape) * self.dtype.itemsize
        self.block_type = SimpleNamespace(shape=made.block_shape, nbytes=nbytes)

    def part(self, at: Sequence[Any]) -> tuple[torch.Tensor, tuple[slice, ...]]:
        """What there is of a tile, and where in the tile it is."""
        assert all(start >= 0 for start in at)
        cut = zip(map(int, at), self.block_type.shape, strict=True)
        found = self.data[tuple(slice(start, start + size) for start, size in cut)]
        return found, tuple(slice(0, size) for size in found.shape)


class Transfer:
    """Reads tiles from when it begins to when it ends: they must not change in between."""

    def __init__(self, where: str, tiles: Sequence[Any], work: Callable[[], Any]) -> None:
        self.where, self.work, self.value = where, work, None
        self.tiles = [(tile, tile.bits()) for tile in tiles if isinstance(tile, Shared)]

    def end(self) -> None:
        if any(not torch.equal(tile.bits(), before) for tile, before in self.tiles):
            raise ProtocolError(f"a tile was written while it was read {self.where}")
        self.value = self.work()


class Partition:
    """What runs one function of ``warp_specialize``, and what it has begun."""

    def __init__(self, name: str, pace: float) -> None:
        self.name, self.pace, self.baton, self.done = name, pace, threading.Semaphore(0), False
        self.where, self.ready = "at its start", lambda: True
        self.products: list[Transfer] = []
        self.stores: list[Transfer] = []
        self.unfenced: set[int] = set()


class Program:
    """One program of the grid: who goes on, memory, and the modules that the source imports."""

    def __init__(self, index: int, programs: int, generator: random.Random, source: str) -> None:
        self.generator, self.lines, self.error = generator, source.splitlines(), None
        self.current, self.partitions, self.copies = Partition("the kernel", 1.0), [], []

        def same(value: Any, *_: Any) -> Any:
            return value

        def nothing(*_: Any) -> None: ...

        def both(function: Any) -> Any:
            return lambda a, b: function(torch.as_tensor(a), torch.as_tensor(b))

        language = SimpleNamespace(
            constexpr=same, convert_layout=same, static_range=range, cdiv=lambda a, b: -(-a // b),
            program_id=lambda _: index, num_programs=lambda _: programs, warp_specialize=self.run,
            SliceLayout=nothing, NVMMADistributedLayout=nothing, DotOperandLayout=nothing,
            float32=torch.float32, int64=torch.int64, allocate_shared_memory=self.allocate, store=self.store,
            arange=lambda start, end, layout: torch.arange(start, end),
            zeros=lambda shape, dtype, layout: torch.zeros(shape, dtype=dtype),
            full=lambda shape, value, dtype, layout: torch.full(shape, value, dtype=dtype),
            minimum=both(torch.minimum), maximum=both(torch.maximum),
            max=torch.amax, sum=torch.sum, where=torch.where, exp2=torch.exp2, log2=torch.log2,
            # The kernel's only assembly copies its argument.
            inline_asm_elementwise=lambda asm, constraints, args, **_: args[0],
        )  # fmt: skip
        mbarrier = SimpleNamespace(
            MBarrierLayout=lambda: Barrier, init=lambda barrier, count: setattr(barrier, "count", count),
            expect=lambda barrier, nbytes: barrier.change(1, nbytes), arrive=self.arrive,
            wait=lambda barrier, parity: self.pause(lambda: barrier.ended(parity)),
        )  # fmt: skip
        self.modules = SimpleNamespace(
            gluon=SimpleNamespace(jit=lambda *function, **_: function[0] if function else same),
            language=language, mbarrier=mbarrier,
            tma=SimpleNamespace(async_load=self.load, async_store=self.begin_store, store_wait=self.await_stores),
            warpgroup_mma=self.multiply, warpgroup_mma_wait=self.await_products,
            fence_async_shared=lambda: self.current.unfenced.clear(),
        )  # fmt: skip
        # An import statement calls what a module's own builtins have for it.
        self.namespace = {"__builtins__": vars(builtins) | {"__import__": self.imported}}
        exec(compiled(source), self.namespace)

    def imported(self, name: str, *more: Any) -> Any:
        return self.modules if name.startswith("triton.") else __import__(name, *more)

    def run(self, parts: Sequence[tuple[Any, tuple[Any, ...]]], warps: list[int], registers: list[int]) -> None:
        assert len(parts) - 1 == len(warps) == len(registers)
        self.partitions = [Partition(f"{f.__name__} {i}", self.pace()) for i, (f, _) in enumerate(parts)]
        jobs = [(partition, *part) for partition, part in zip(self.partitions, parts, strict=True)]
        threads = [threading.Thread(target=self.run_partition, args=job, daemon=True) for job in jobs]
        for thread in threads:
            thread.start()
        self.hand_on()
        for thread in threads:
            thread.join()
        if self.error:
            raise self.error

    def run_partition(self, partition: Partition, function: Any, arguments: tuple[Any, ...]) -> None:
        partition.baton.acquire()
        try:
            if not self.error:
                function(*arguments)
            if partition.products or partition.stores:
                raise ProtocolError(f"{partition.name} ends before what it began")
        except Exception as error:
            self.error = self.error or error
        partition.done = True
        self.hand_on()

    def pace(self) -> float:
        return 10.0 ** self.generator.uniform(-3.0, 0.0)

    def pause(self, ready: Callable[[], bool] = lambda: True) -> None:
        """Let others go on, and come back when it is this one's turn and it is ready."""
        partition = self.current
        partition.ready, partition.where = ready, self.where()
        self.hand_on()
        partition.baton.acquire()
        if self.error:
            raise ProtocolError("another partition failed")

    def hand_on(self) -> None:
        while left := [partition for partition in self.partitions if not partition.done]:
            able = left if self.error else [p for p in left if p.ready()] + self.copies
            if not able:
                waiting = [f"\n{partition.name} waits {partition.where}" for partition in left]
                self.error = ProtocolError(f"deadlock: nobody can go on{''.join(waiting)}")
                continue
            (picked,) = self.generator.choices(able, [one.pace for one in able])
            if isinstance(picked, Partition):
                self.current = picked
                picked.baton.release()
                return
            self.copies.remove(picked)
            picked.come()
        if self.copies and not self.error:
            self.error = ProtocolError("the program ends before its copies have come")

    def where(self) -> str:
        """The kernel's line that called."""
        frame = sys._getframe()
        while frame.f_code.co_filename != FILE:
            frame = frame.f_back
        return f"in line {frame.f_lineno}: {self.lines[frame.f_lineno - 1].strip()}"

    def arrive(self, barrier: Barrier, count: int) -> None:
        barrier.change(count, 0)
        self.pause()

    def allocate(self, dtype: torch.dtype, shape: list[int], layout: Any) -> Any:
        if layout is Barrier:
            return SimpleNamespace(index=[Barrier() for _ in range(shape[0])].__getitem__)
        return Shared(torch.full(shape, torch.nan, dtype=dtype), self.write)

    def write(self, tile: torch.Tensor, value: torch.Tensor) -> None:
        tile.copy_(value)
        self.current.unfenced.add(tile.data_ptr())

    def store(self, pointer: Pointer, value: torch.Tensor, mask: torch.Tensor) -> None:
        pointer.data.view(-1)[pointer.at[mask]] = value[mask]

    def load(self, descriptor: Descriptor, at: list[Any], barrier: Barrier, tile: Shared) -> None:
        found, inside = descriptor.part(at)

        def come() -> None:
            tile.data.zero_()
            tile.data[inside] = found
            barrier.change(0, -descriptor.block_type.nbytes)

        tile.data.fill_(torch.nan)
        self.copies.append(SimpleNamespace(pace=self.pace(), come=come))
        self.pause()

    def begin_store(self, descriptor: Descriptor, at: list[Any], tile: Shared) -> None:
        if tile.data.data_ptr() in self.current.unfenced:
            raise ProtocolError(f"no fence before the store {self.where()}")
        found, inside = descriptor.part(at)
        self.current.stores.append(Transfer(self.where(), [tile], lambda: found.copy_(tile.data[inside])))
        self.pause()

    def multiply(self, a: Any, b: Shared, acc: Any, *, use_acc: bool = True, is_async: bool) -> Transfer:
        assert is_async

        def work() -> torch.Tensor:
            left, right = ((x.data if isinstance(x, Shared) else x).float() for x in (a, b))
            return left @ right + (self.value_of(acc) if use_acc else 0.0)

        self.current.products.append(Transfer(self.where(), [a, b], work))
        return self.current.products[-1]

    def value_of(self, register: Any) -> Any:
        """A product that has ended is its value."""
        return register.value if isinstance(register, Transfer) and register.value is not None else register

    def await_products(self, pending: int, deps: Sequence[Any]) -> Any:
        self.end(self.current.products, pending)
        values = [self.value_of(dep) for dep in deps]
        return values[0] if len(values) == 1 else values

    def await_stores(self, pending: int) -> None:
        self.end(self.current.stores, pending)

    def end(self, begun: list[Transfer], pending: int) -> None:
        self.pause()
        while len(begun) > pending:
            begun.pop(0).end()


def run_hopper(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    causal: bool,
    config: Specialized,
    lse: torch.Tensor | None = None,
    scale: float | None = None,
    lanes: int = 1,
    programs: int = 3,  # which run one after another
    seed: int = 0,
    source: str = SOURCE,
) -> torch.Tensor:
    """What the launcher fills for views of ``[B, H, S, D]``, in the layout of ``q``."""
    out = torch.full_like(q, torch.nan)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    arguments = hopper_arguments(q, k, v, out, lse, scale=scale, causal=causal, config=config, lanes=lanes)
    arguments |= {name: Descriptor(made) for name, made in arguments.items() if name.endswith("_tensor")}
    arguments["lse_ptr"] = None if lse is None else Pointer(lse)
    generator = random.Random(seed)
    for index in range(programs):
        Program(index, programs, generator, source).namespace["_attention_hopper_kernel"](**arguments)
    return out
