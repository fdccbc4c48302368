"""Results are kept under a digest of everything that made them.

An entry is a folder that appears whole, by a rename, or not at all; entries are never changed. Two compiles that want
the same entry wait for one another, and the second finds the work done.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lepto.runtime.errors import is_full_disk
from lepto.runtime.staging import sync_folder

_FORMAT = 2
"""Raised whenever what a step writes changes its meaning."""


def cache_folder() -> Path:
    """``$LEPTO_CACHE``, else ``lepto`` in the user's cache folder (XDG Base Directory Specification)."""
    if (named := os.environ.get("LEPTO_CACHE")) is not None:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lepto"


class Cache:
    """A store of finished steps.

    Args:
        folder: Where it lies; made when the first entry is written.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = cache_folder() if folder is None else folder

    def has(self, step: str, key: Mapping[str, Any]) -> bool:
        """Whether a step's result is there."""
        return (self.folder / self._name(step, key)[0]).is_dir()

    def _name(self, step: str, key: Mapping[str, Any]) -> tuple[str, str]:
        text = json.dumps({"format": _FORMAT, "step": step, **key}, sort_keys=True)
        return f"{step}-{hashlib.sha256(text.encode()).hexdigest()[:40]}", text

    def get(self, step: str, key: Mapping[str, Any], make: Callable[[Path], None]) -> tuple[Path, bool]:
        """The folder of a step's result, made by ``make`` if it is not there yet.

        Args:
            step: What the step is called; part of the key.
            key: Everything that decides the result, as JSON values.
            make: Writes the result's files into an empty folder.

        Returns:
            The folder, and whether it was there before.
        """
        name, text = self._name(step, key)
        entry = self.folder / name
        if entry.is_dir():
            return entry, True
        self.folder.mkdir(parents=True, exist_ok=True)
        # The lock dies with its process; its file stays, since removing it would race with another waiter.
        with FileLock(self.folder / f".{name}.lock"):
            if entry.is_dir():
                return entry, True
            self._sweep(name)
            stage = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=self.folder))
            try:
                make(stage)
                (stage / "key.json").write_text(text)
                for file in stage.iterdir():
                    with file.open("rb") as stream:
                        os.fsync(stream.fileno())
                sync_folder(stage)
                stage.rename(entry)
                sync_folder(self.folder)
            except BaseException as error:
                shutil.rmtree(stage, ignore_errors=True)
                if is_full_disk(error):
                    error.add_note(
                        f"a result for the cache {self.folder} was being made, with temporary files in "
                        f"{tempfile.gettempdir()}: one of the two is full ($LEPTO_CACHE and $TMPDIR name other "
                        "places). Finished results are kept: the same command goes on there"
                    )
                raise
        return entry, False

    def _sweep(self, mine: str) -> None:
        """Remove what killed processes left: a stage whose lock is free has nobody who works in it."""
        for stage in [path for path in self.folder.glob(".*.*") if path.is_dir()]:
            name = stage.name[1:].rpartition(".")[0]
            if name == mine:  # its lock is ours
                shutil.rmtree(stage, ignore_errors=True)
                continue
            try:
                with FileLock(self.folder / f".{name}.lock", timeout=0):
                    shutil.rmtree(stage, ignore_errors=True)
            except Timeout:
                continue
