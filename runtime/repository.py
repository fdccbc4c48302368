"""Publish packages into a Triton model repository, and roll back: atomically.

A version is staged in a hidden folder of the repository, made durable, load-tested, and moved into place with renames.
Exactly one rename changes what clients get: that of the published model's ``config.pbtxt``, or for a new name that of
its folder. Whatever instant a crash hits, the repository serves the old version or the new one; what a crash left
behind is swept by the next publish. A version folder is never overwritten.

For a text package the order is: the new version's folders; the configurations of ``NAME.tokenizer`` and ``NAME.model``
with the old and the new version; the ensemble's (the commit). The first two keep both versions: whoever loads the
ensemble makes Triton read them again, and it must not unload the old steps while the old ensemble still uses them.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from lepto.runtime import triton_config
from lepto.runtime.errors import LeptoError, is_full_disk
from lepto.runtime.manifest import Manifest
from lepto.runtime.package import (
    ENGINE,
    ENGINE_RECORD,
    LABELS,
    MANIFEST,
    MODEL,
    TOKENIZER,
    Package,
    file_digest,
    open_package,
)
from lepto.runtime.plans import Plan, publishable_plan
from lepto.runtime.published import (
    CONFIG,
    Published,
    check_name,
    find_model,
    get_model,
    list_models,
    open_root,
    read_config,
    version_folders,
)
from lepto.runtime.staging import sync_file, sync_folder, write_durably
from lepto.runtime.triton_config import MODEL_SUFFIX, TOKENIZER_SUFFIX

__all__ = ["Published", "check_name", "get_model", "list_models", "publish", "rollback"]

LOCK = ".lepto.lock"
STAGING_PREFIX = ".lepto-staging-"
LOCK_TIMEOUT_S = 60.0


def publish(
    package: Package | str | Path, repository: str | Path, *, name: str | None = None, max_queue: int | None = None
) -> Published:
    """Publish a package as the next version of a model and put it in production.

    Args:
        package: The package; its digests are checked.
        repository: The model repository; made if it does not exist.
        name: The model's name; by default the package's.
        max_queue: How many requests may wait for a model before more are refused; 0 sets no bound, None what is in
            production, and ``triton_config.QUEUE_BOUND`` for a new name.

    Raises:
        LeptoError: The package is broken or fails its load test, its interface differs from the version in production,
            the name is taken by another model, or the disk is full. The repository serves what it served before.
    """
    package = open_package(package.path if isinstance(package, Package) else package)
    manifest = package.manifest
    name = check_name(name or manifest.name)
    plan = publishable_plan(package)
    with _made_root(Path(repository)) as root, _disk_errors(root), _locked(root, create=True):
        _sweep(root, name)
        current = find_model(root, name)
        if current is not None:
            _check_interface(package, plan, current)
        version = _next_version(root, name)
        if max_queue is None:
            max_queue = triton_config.QUEUE_BOUND if current is None else current.max_queue()
        with _staging(root) as stage:
            text = manifest.preprocessing is not None
            _stage_version(stage, name, version, package, plan)
            _load_test(package)
            target = Published(name, version, (), text, root / name)
            if current is None:
                _stage_new_folders(stage, target, package, plan, max_queue)
                for model in target.models:
                    _move(stage / model, root / model)
            else:
                changes = _stage_change(stage, current, target, manifest, package.labels, plan, max_queue)
                for model in target.models:
                    _move(stage / model / str(version), root / model / str(version))
                _apply(root, changes)
    return get_model(root, name)


def rollback(name: str, repository: str | Path, *, to: int | None = None) -> Published:
    """Put an earlier version of a published model back in production.

    Args:
        name: The published model.
        repository: The model repository.
        to: The version; by default the one before the version in production.

    Raises:
        LeptoError: The model or the version is not there, or the version's files are not what was published.
    """
    root = open_root(repository)
    with _disk_errors(root), _locked(root):
        current = get_model(root, name)
        _sweep(root, name)
        there = ", ".join(map(str, current.versions))
        if to is None:
            earlier = [version for version in current.versions if version < current.version]
            if not earlier:
                raise LeptoError(
                    f"{name!r} has no version before {current.version}, which is in production; "
                    f"versions there: {there}; name one with --to"
                )
            to = earlier[-1]
        if to not in current.versions:
            raise LeptoError(f"{name!r} has no version {to}; versions there: {there}")
        if to == current.version:
            raise LeptoError(f"version {to} of {name!r} is in production already; versions there: {there}")
        manifest = current.manifest(to)
        _check_files(root, current, to, manifest)
        target = Published(name, to, (), current.text, current.folder)
        with _staging(root) as stage:
            changes = _stage_change(
                stage, current, target, manifest, current.labels(), current.plan(to), current.max_queue()
            )
            _apply(root, changes)
    return get_model(root, name)


@contextmanager
def _made_root(root: Path) -> Iterator[Path]:
    """The repository's folder; if it was made for this and the body fails, it is removed again."""
    missing = [folder for folder in (root.absolute(), *root.absolute().parents) if not folder.exists()]
    done = False
    try:
        yield open_root(root, create=True)
        done = True
    finally:
        if not done and missing and root.is_dir():
            _remove_empty(root, missing)


def _remove_empty(root: Path, made: list[Path]) -> None:
    """Remove folders that hold nothing but the lock, while nobody else holds it."""
    try:
        with _locked(root, timeout_s=0):
            if {entry.name for entry in root.iterdir()} == {LOCK}:
                (root / LOCK).unlink()
                for folder in made:
                    folder.rmdir()
    except (LeptoError, OSError):
        pass  # somebody is publishing there, or put something else in


@contextmanager
def _disk_errors(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        hint = "free some space and publish again" if is_full_disk(error) else "check its permissions"
        raise LeptoError(
            f"cannot write to the model repository {root}: {error.strerror or error}; {hint}. "
            "What was in production is untouched"
        ) from error


@contextmanager
def _locked(root: Path, *, create: bool = False, timeout_s: float | None = None) -> Iterator[None]:
    """Hold the repository's lock: one change at a time, across processes. The kernel lets go of it in a crash."""
    timeout_s = LOCK_TIMEOUT_S if timeout_s is None else timeout_s
    deadline = time.monotonic() + timeout_s
    while True:
        if create:
            root.mkdir(parents=True, exist_ok=True)  # whoever made it may have failed and removed it since
        descriptor = os.open(root / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            if _take(descriptor, root / LOCK):
                yield
                return
        finally:
            os.close(descriptor)
        if time.monotonic() > deadline:
            raise LeptoError(
                f"another publish or rollback has held {root / LOCK} for {timeout_s:.0f} s; wait for it or end it"
            )
        time.sleep(0.05)


def _take(descriptor: int, path: Path) -> bool:
    """Take the lock if nobody has it, and if the file is still the one at its place: who failed may have removed it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except (BlockingIOError, FileNotFoundError):
        return False


@contextmanager
def _staging(root: Path) -> Iterator[Path]:
    stage = Path(tempfile.mkdtemp(prefix=STAGING_PREFIX, dir=root))
    try:
        yield stage
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _sweep(root: Path, name: str) -> None:
    """Remove what a crashed publish left: staging folders, and parts that no complete version belongs to."""
    for stale in root.glob(f"{STAGING_PREFIX}*"):
        shutil.rmtree(stale, ignore_errors=True)
    complete = {version for version in version_folders(root / name) if (root / name / str(version) / MANIFEST).exists()}
    for part in (root / (name + TOKENIZER_SUFFIX), root / (name + MODEL_SUFFIX)):
        config = read_config(part)
        if config is None:
            if part.exists():
                raise LeptoError(f"{part} was not published by lepto and is left alone; choose another --name")
            continue
        if triton_config.owner(config) is None:
            raise LeptoError(f"{part} was not published by lepto and is left alone; choose another --name")
        if not (root / name).exists():
            _remove(root, part)
            continue
        for version in version_folders(part):
            # The folders of NAME come last, the configurations after them: without its manifest, nothing refers to it.
            if version not in complete:
                _remove(root, part / str(version))


def _remove(root: Path, path: Path) -> None:
    # Out of a server's sight in one step, then piece by piece.
    with _staging(root) as stage:
        path.rename(stage / "removed")
        sync_folder(path.parent)


def _next_version(root: Path, name: str) -> int:
    folders = (root / (name + suffix) for suffix in ("", TOKENIZER_SUFFIX, MODEL_SUFFIX))
    return max((version for folder in folders for version in version_folders(folder)), default=0) + 1


def _check_interface(package: Package, plan: Plan | None, current: Published) -> None:
    old = triton_config.interface(current.manifest(), current.labels(), current.plan())
    new = triton_config.interface(package.manifest, package.labels, plan)
    for part, before in old.items():
        if new[part] != before:
            raise LeptoError(
                f"the {part} of {package.path} differ from version {current.version} of {current.name!r}, which is in "
                f"production, and its clients would break: {_difference(before, new[part])}; "
                "publish it under another --name"
            )


def _difference(before: Any, after: Any) -> str:
    if isinstance(before, list) and isinstance(after, list):
        gone = [item for item in before if item not in after]
        come = [item for item in after if item not in before]
        if not gone and not come:
            return "the order changed"
        return "; ".join(
            f"{word} {', '.join(items[:5])}{', …' if len(items) > 5 else ''}"
            for word, items in (("without", gone), ("with", come))
            if items
        )
    return f"{before!r} became {after!r}"


def _stage_version(stage: Path, name: str, version: int, package: Package, plan: Plan | None) -> None:
    """Write the new version's folders, checked against the manifest's digests and durable."""
    manifest = package.manifest
    text = manifest.preprocessing is not None
    home = _new_folder(stage / name / str(version))
    model = _new_folder(stage / (name + MODEL_SUFFIX) / str(version)) if text else home
    if plan is None:
        _copy(package.model_path, model / MODEL, manifest.files[MODEL])
    else:
        _copy(package.path / ENGINE, model / plan.file, manifest.files[ENGINE])
        write_durably(home / ENGINE_RECORD, (package.path / ENGINE_RECORD).read_bytes())
    write_durably(home / MANIFEST, (package.path / MANIFEST).read_bytes())
    if manifest.preprocessing is not None and package.tokenizer_path is not None:
        tokenizer = _new_folder(stage / (name + TOKENIZER_SUFFIX) / str(version))
        _copy(package.tokenizer_path, tokenizer / TOKENIZER, manifest.files[TOKENIZER])
        settings = json.dumps(manifest.preprocessing.model_dump(mode="json"), indent=2) + "\n"
        write_durably(tokenizer / "preprocessing.json", settings.encode())
        write_durably(tokenizer / "model.py", _tokenizer_program())
        sync_folder(tokenizer)
    sync_folder(model)
    sync_folder(home)


def _tokenizer_program() -> bytes:
    return files("lepto.runtime.backends.tokenizer").joinpath("model.py").read_bytes()


def _new_folder(path: Path) -> Path:
    path.mkdir(parents=True)
    return path


def _copy(source: Path, destination: Path, digest: str) -> None:
    with source.open("rb") as reader, destination.open("xb") as writer:
        shutil.copyfileobj(reader, writer)
        sync_file(writer)
    if file_digest(destination) != digest:
        raise LeptoError(f"{source} changed while it was copied; publish again when nothing writes to the package")


def _load_test(package: Package) -> None:
    """Run the model and compare with the outputs that the package stores."""
    from lepto.runtime.session import Session  # loads onnxruntime, which listing a repository does not need

    inputs, expected = package.probe()
    tolerance = package.manifest.tolerance
    try:
        outputs = Session(package).run(inputs)
    except Exception as error:
        raise LeptoError(f"{package.path} does not run here and is not published: {error}", exit_code=1) from error
    for name, reference in expected.items():
        if not np.allclose(outputs[name], reference, rtol=tolerance.rtol, atol=tolerance.atol):
            largest = float(np.max(np.abs(outputs[name].astype(np.float64) - reference)))
            raise LeptoError(
                f"{package.path} is not published: on its own probe, output {name!r} differs from the stored one by up "
                f"to {largest:.3g} (allowed: {tolerance.atol:g} + {tolerance.rtol:g} * |value|); "
                "compile it for this machine",
                exit_code=1,
            )


def _stage_new_folders(stage: Path, target: Published, package: Package, plan: Plan | None, max_queue: int) -> None:
    """Complete the staged folders of a name that is published for the first time."""
    configs = _configs(target, package.manifest, package.labels, plan, max_queue)
    for model, config in configs.items():
        write_durably(stage / model / CONFIG, triton_config.render(config).encode())
        if package.labels is not None and not model.endswith(TOKENIZER_SUFFIX):
            write_durably(stage / model / triton_config.LABELS_FILE, (package.path / LABELS).read_bytes())
        sync_folder(stage / model)


def _configs(
    target: Published,
    manifest: Manifest,
    labels: tuple[str, ...] | None,
    plan: Plan | None,
    max_queue: int,
    keep: Manifest | None = None,
) -> Mapping[str, Any]:
    name, version = target.name, target.version
    if target.text:
        configs = triton_config.text_configs(name, version, manifest, labels=labels, keep=keep, plan=plan)
    else:
        configs = {name: triton_config.tensor_config(name, version, manifest, labels=labels, plan=plan)}
    for config in configs.values():
        triton_config.bound_queue(config, max_queue)
    return configs


def _stage_change(
    stage: Path,
    current: Published,
    target: Published,
    manifest: Manifest,
    labels: tuple[str, ...] | None,
    plan: Plan | None,
    max_queue: int,
) -> list[tuple[Path, str]]:
    """Write the configurations that lead from one version to another.

    Returns:
        The staged files in the order in which they are moved, each with the model whose ``config.pbtxt`` it becomes.
    """
    configs = _configs(target, manifest, labels, plan, max_queue, keep=current.manifest())
    steps = [
        *(
            (part, triton_config.set_versions(configs[part], [current.version, target.version]))
            for part in target.parts
        ),
        (target.name, configs[target.name]),
    ]
    folder = _new_folder(stage / "configs")
    changes = []
    for index, (model, config) in enumerate(steps):
        path = folder / f"{index}-{model}"
        write_durably(path, triton_config.render(config).encode())
        changes.append((path, model))
    return changes


def _apply(root: Path, changes: list[tuple[Path, str]]) -> None:
    for path, model in changes:
        os.replace(path, root / model / CONFIG)
        sync_folder(root / model)


def _move(source: Path, destination: Path) -> None:
    # Under the lock, and the version number is new: nothing can be there. os.rename would replace an empty folder.
    if destination.exists():
        raise LeptoError(f"{destination} exists and is never overwritten; remove it if nothing serves it")
    sync_folder(source)
    source.rename(destination)
    sync_folder(destination.parent)


def _check_files(root: Path, model: Published, version: int, manifest: Manifest) -> None:
    plan, home = model.plan(version), root / (model.parts[1] if model.text else model.name)
    places = {MODEL: home / str(version) / MODEL} if plan is None else {ENGINE: home / str(version) / plan.file}
    if model.text:
        places[TOKENIZER] = root / model.parts[0] / str(version) / TOKENIZER
    for file, path in places.items():
        if not path.is_file():
            raise LeptoError(f"version {version} of {model.name!r} is incomplete: {path} is missing; publish it again")
        if file_digest(path) != manifest.files[file]:
            raise LeptoError(f"{path} is not the file that was published (its SHA-256 differs); publish it again")
