"""How long the steps of a search took; kept in the cache, so that a search that is run again decides the same again."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from lepto.compiler.cache import Cache

_T = TypeVar("_T")


@dataclass
class Spent:
    """A search's account of its time.

    Attributes:
        limit: Seconds that it may take.
        cache: Where the times are kept.
        key: What all of them depend on.
        seconds: Spent so far, or when it was run first.
        teaching: The part of it in which the source answered and students were taught.

    A step inside another one is part of that; one that is done again is counted once, when it was work.
    """

    limit: float
    cache: Cache
    key: Mapping[str, Any]
    seconds: float = field(default=0.0, init=False)
    teaching: float = field(default=0.0, init=False)
    _counted: set[str] = field(default_factory=set, init=False)
    _inside: bool = field(default=False, init=False)

    @property
    def left(self) -> float:
        """Seconds that are left; negative where the limit is passed."""
        return self.limit - self.seconds

    def add(self, seconds: float, *, teaching: bool = False) -> None:
        """Count a step."""
        self.seconds += seconds
        self.teaching += seconds if teaching else 0.0

    def on(self, step: Mapping[str, Any], work: Callable[[], _T], *, teaching: bool = False) -> _T:
        """Do a step, and count how long it took the first time.

        Args:
            step: What it depends on.
            work: The step.
            teaching: Whether it belongs to the teaching.
        """
        if self._inside:
            return work()
        self._inside, started = True, time.monotonic()
        try:
            result = work()
        finally:
            self._inside = False
        took = time.monotonic() - started
        if (name := json.dumps(step, sort_keys=True)) in self._counted:
            return result
        self._counted.add(name)

        def make(stage: Path) -> None:
            (stage / "seconds.json").write_text(json.dumps(took))

        entry, _ = self.cache.get("took", {**step, **self.key}, make)
        self.add(float(json.loads((entry / "seconds.json").read_text())), teaching=teaching)
        return result
