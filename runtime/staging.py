"""Write a folder whole or not at all: stage it beside its place, make it durable, rename it."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def write_durably(path: Path, data: bytes) -> None:
    """Write a new file and wait until it is on the disk.

    Raises:
        OSError: The disk is full, or the file exists.
    """
    with path.open("xb") as file:
        file.write(data)
        sync_file(file)


def sync_file(file: IO[bytes]) -> None:
    """Wait until what was written to an open file is on the disk."""
    file.flush()
    os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Wait until a folder's list of names is on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def staged_folder(folder: Path) -> Iterator[Path]:
    """A new hidden folder beside ``folder``, on the same file system; whatever happens, nothing of it is left.

    Missing parents of ``folder`` are made, and removed again if the body fails.
    """
    missing = [parent for parent in folder.absolute().parents if not parent.exists()]
    done = False
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=f".{folder.name}.staging-", dir=folder.parent))
        try:
            stage.chmod(0o777 & ~_umask())  # mkdtemp's 0700 would keep a server that runs as another user out
            yield stage
            done = True
        finally:
            shutil.rmtree(stage, ignore_errors=True)
    except OSError as error:
        error.add_note(f"{folder} was not written; what was there before is unchanged")
        raise
    finally:
        if not done:
            for parent in missing:
                try:
                    parent.rmdir()
                except OSError:
                    break


def replace_folder(stage: Path, folder: Path, *, force: bool) -> None:
    """Put a complete staged folder in its place.

    With ``force`` the folder that is there is exchanged with the staged one in a single step where the file system can
    (Linux), else moved aside first and moved back if the rename fails. To make the step itself durable, sync the parent
    folder afterwards.

    Raises:
        FileExistsError: The folder exists and ``force`` is not given.
        OSError: The rename failed; the folder is as it was.
    """
    sync_folder(stage)
    if not force:
        # os.rename replaces an empty folder without a word, hence the explicit look.
        if folder.exists():
            raise FileExistsError(errno.EEXIST, "the folder appeared while it was being written", str(folder))
        stage.rename(folder)
    elif not folder.exists():
        stage.rename(folder)
    elif not _exchange(stage, folder):
        aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.staging-", dir=folder.parent))
        try:
            folder.rename(aside)
            try:
                stage.rename(folder)
            except BaseException:
                aside.rename(folder)
                raise
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two folders in one step; False where this cannot be done."""
    if sys.platform != "linux":
        return False
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    if rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):  # overlay and network file systems
        return False
    raise OSError(code, os.strerror(code), str(other))


def _umask() -> int:
    # The umask can only be read by setting it; Linux also shows it, without the race between threads.
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("Umask:"):
                return int(line.split()[1], 8)
    except OSError:
        pass
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
