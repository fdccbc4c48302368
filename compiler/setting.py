"""What all parts of one search share: the source, the machine, the cache, the account of the time, and who is told."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lepto.compiler.cache import Cache
from lepto.compiler.source import Source
from lepto.compiler.spent import Spent
from lepto.runtime.manifest import FEATURE_EXTRACTION

Say = Callable[[str], None]
"""Told what people are to read."""

Tell = Callable[[str, int, int], None]
"""Told what is being done, and how many of how many steps are done."""


@dataclass(frozen=True)
class Setting:
    """What the parts of one search share.

    Attributes:
        root: The source, which teaches.
        threads: Intra-op threads of the measurements, and all that teaching uses.
        seed: Of everything random.
        cache: Where everything is kept.
        versions: Part of every key.
        machine: What identifies this machine's speed.
        seconds: How long the search may take.
        say: For people.
        tell: Progress.
        spent: The search's time.
    """

    root: Source
    threads: int
    seed: int
    cache: Cache
    versions: Mapping[str, str]
    machine: str
    seconds: float
    say: Say = lambda _: None
    tell: Tell = lambda *_: None
    spent: Spent = field(init=False)

    def __post_init__(self) -> None:
        """Open the account of the time."""
        spent = Spent(self.seconds, self.cache, {"seed": self.seed, "versions": dict(self.versions)})
        object.__setattr__(self, "spent", spent)

    @property
    def vectors(self) -> bool:
        """Whether the source gives vectors: nothing is decided by them, and none is right but its own."""
        return self.root.task == FEATURE_EXTRACTION

    def kept(self, step: str, key: Mapping[str, Any], make: Callable[[Path], None]) -> Path:
        """The folder of a step's result, from the cache or made by ``make``, for these versions; its time is counted.

        Args:
            step: What the step is called.
            key: What else decides the result, as JSON values.
            make: Writes the result's files into an empty folder.
        """
        whole = {**key, "versions": dict(self.versions)}
        return self.spent.on({step: key}, lambda: self.cache.get(step, whole, make)[0])
