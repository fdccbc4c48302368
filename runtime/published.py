"""What a model repository has: the models that Lepto published, their versions, and the one in production.

Reading takes no lock: every change is one rename.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lepto.runtime import triton_config
from lepto.runtime.errors import LeptoError
from lepto.runtime.manifest import Manifest
from lepto.runtime.package import MANIFEST
from lepto.runtime.plans import Plan, read_plan
from lepto.runtime.triton_config import MODEL_SUFFIX, TOKENIZER_SUFFIX

CONFIG = "config.pbtxt"


@dataclass(frozen=True, slots=True)
class Published:
    """A published model, as the repository has it.

    Attributes:
        name: What clients call.
        version: The version in production.
        versions: All complete versions, ascending.
        text: Whether it takes text (an ensemble of three models) or tensors (one model).
        folder: Its folder in the repository.
    """

    name: str
    version: int
    versions: tuple[int, ...]
    text: bool
    folder: Path

    @property
    def parts(self) -> tuple[str, ...]:
        """The models that the ensemble is made of; empty if it takes tensors."""
        return (self.name + TOKENIZER_SUFFIX, self.name + MODEL_SUFFIX) if self.text else ()

    @property
    def models(self) -> tuple[str, ...]:
        """Names of its Triton models in the order in which they are loaded."""
        return (*self.parts, self.name)

    def manifest(self, version: int | None = None) -> Manifest:
        """The manifest of a version; by default the one in production.

        Raises:
            LeptoError: The version is not there or broken.
        """
        path = self.folder / str(version or self.version) / MANIFEST
        try:
            return Manifest.from_json(path.read_bytes())
        except OSError as error:
            raise LeptoError(f"cannot read {path}: {error.strerror}; publish the package again") from error
        except ValueError as error:
            raise LeptoError(f"{path} is broken: {error}; publish the package again") from error

    def plan(self, version: int | None = None) -> Plan | None:
        """The engine of a version, by default of the one in production; None if onnxruntime serves it."""
        return read_plan(self.folder / str(version or self.version))

    def max_queue(self) -> int:
        """How many requests may wait for a part of it; 0 without a bound."""
        config = read_config(self.folder.parent / self.models[0])
        return 0 if config is None else triton_config.queue_bound(config)

    def labels(self) -> tuple[str, ...] | None:
        """The labels in the order of the scores, or None if there are none."""
        path = self.folder / triton_config.LABELS_FILE
        return tuple(path.read_text(encoding="utf-8").removesuffix("\n").split("\n")) if path.exists() else None


def check_name(name: str) -> str:
    """Check a name for a published model.

    Raises:
        LeptoError: It does not fit a folder and Triton's unquoted command line, or belongs to a part of an ensemble.
    """
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
        raise LeptoError(
            f"a model's name has letters, digits, '_', '.' and '-' and starts with none of '.' and '-', got {name!r}; "
            "choose one with --name"
        )
    if len(name) > 200:
        raise LeptoError(f"a model's name has at most 200 characters, got {len(name)}; choose one with --name")
    for suffix in (TOKENIZER_SUFFIX, MODEL_SUFFIX):
        if name.endswith(suffix):
            raise LeptoError(
                f"a name ending in {suffix!r} belongs to a part of a text model, got {name!r}; choose one with --name"
            )
    return name


def list_models(repository: str | Path) -> list[Published]:
    """The models that Lepto published into a repository, by name; others in there are left alone.

    Raises:
        LeptoError: There is no such folder, or a configuration in it is broken.
    """
    root = open_root(repository)
    names = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    parts = tuple(name for name in names if name.endswith((TOKENIZER_SUFFIX, MODEL_SUFFIX)))
    found = (find_model(root, name, foreign_ok=True) for name in names if name not in parts)
    return [model for model in found if model is not None]


def get_model(repository: str | Path, name: str) -> Published:
    """One published model.

    Raises:
        LeptoError: There is none of this name; the message lists those there are.
    """
    root = open_root(repository)
    model = find_model(root, check_name(name))
    if model is None:
        there = ", ".join(other.name for other in list_models(root)) or "nothing"
        raise LeptoError(f"no model {name!r} is published in {root}; published there: {there}")
    return model


def find_model(root: Path, name: str, *, foreign_ok: bool = False) -> Published | None:
    """One published model, or None.

    Raises:
        LeptoError: Its configuration is broken, or it is not Lepto's and ``foreign_ok`` is not set.
    """
    folder = root / name
    config = read_config(folder)
    if config is None and (foreign_ok or not folder.exists()):
        return None
    if config is None or triton_config.owner(config) is None:
        if foreign_ok:
            return None
        raise LeptoError(f"{folder} was not published by lepto and is left alone; choose another --name")
    versions = tuple(version for version in version_folders(folder) if (folder / str(version) / MANIFEST).exists())
    text = config.platform == "ensemble"
    return Published(name, triton_config.production_version(config), versions, text, folder)


def open_root(repository: str | Path, *, create: bool = False) -> Path:
    """The folder of a repository.

    Raises:
        LeptoError: There is none, or it cannot be made.
    """
    root = Path(repository)
    if create:
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LeptoError(f"cannot make the model repository {root}: {error.strerror}") from error
    if not root.is_dir():
        raise LeptoError(
            f"no model repository at {root}: there is no such folder; "
            f"`lepto publish PACKAGE --model-repository {root}` makes one"
        )
    return root


def version_folders(folder: Path) -> list[int]:
    """The version folders of a Triton model, ascending."""
    if not folder.is_dir():
        return []
    return sorted(int(entry.name) for entry in folder.iterdir() if re.fullmatch(r"[1-9][0-9]*", entry.name))


def read_config(folder: Path) -> Any | None:
    """A Triton model's configuration, or None if it has none.

    Raises:
        LeptoError: It is broken.
    """
    path = folder / CONFIG
    try:
        return triton_config.parse(path.read_text(encoding="utf-8"), source=str(path))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except UnicodeDecodeError as error:
        raise LeptoError(f"{path} is broken: {error}") from error
