from __future__ import annotations

import errno
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lepto.runtime import repository as repository_module
from lepto.runtime import triton_config
from lepto.runtime.errors import LeptoError
from lepto.runtime.repository import get_model, list_models, publish, rollback

MakePackage = Callable[..., Path]


def files_of(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


def check_serves(root: Path, name: str = "intents") -> int:
    """Check what a server would need, from the files alone, and return the version in production."""
    model = get_model(root, name)
    assert model.version in model.versions
    config = triton_config.parse((model.folder / "config.pbtxt").read_text(), source="config")
    for step in config.ensemble_scheduling.step:
        part = triton_config.parse((root / step.model_name / "config.pbtxt").read_text(), source="part")
        served = list(part.version_policy.specific.versions)
        assert step.model_version == model.version
        assert model.version in served
        file = "model.py" if step.model_name.endswith(".tokenizer") else "model.onnx"
        for version in served:
            assert (root / step.model_name / str(version) / file).is_file()
    return model.version


def test_a_text_package_becomes_three_models(tiny_text_package: Path, tmp_path: Path) -> None:
    root = tmp_path / "repository"

    model = publish(tiny_text_package, root)

    assert (model.name, model.version, model.versions, model.text) == ("intents", 1, (1,), True)
    assert model.models == ("intents.tokenizer", "intents.model", "intents")
    assert files_of(root) == {
        ".lepto.lock",
        "intents/config.pbtxt",
        "intents/labels.txt",
        "intents/1/manifest.json",
        "intents.model/config.pbtxt",
        "intents.model/labels.txt",
        "intents.model/1/model.onnx",
        "intents.tokenizer/config.pbtxt",
        "intents.tokenizer/1/model.py",
        "intents.tokenizer/1/tokenizer.json",
        "intents.tokenizer/1/preprocessing.json",
    }
    assert check_serves(root) == 1
    assert model.labels() == ("place_order", "cancel_order", "get_refund")


def test_a_tensor_package_becomes_one_model(tiny_tensor_package: Path, tmp_path: Path) -> None:
    model = publish(tiny_tensor_package, tmp_path / "repository", name="numbers")

    assert model.models == ("numbers",)
    assert files_of(tmp_path / "repository") == {
        ".lepto.lock",
        "numbers/config.pbtxt",
        "numbers/1/manifest.json",
        "numbers/1/model.onnx",
    }


def test_versions_go_up_and_back(tiny_text_package: Path, make_text_package: MakePackage, tmp_path: Path) -> None:
    root = tmp_path / "repository"
    second = make_text_package(tmp_path / "second", model="text_v2")

    assert publish(tiny_text_package, root).version == 1
    assert publish(second, root).version == 2
    assert check_serves(root) == 2
    assert rollback("intents", root).version == 1
    assert check_serves(root) == 1
    # The version that was rolled back stays; its number is not used again.
    assert publish(second, root).versions == (1, 2, 3)
    assert rollback("intents", root, to=2).version == 2
    assert check_serves(root) == 2
    assert [model.name for model in list_models(root)] == ["intents"]


def bounds(root: Path, *models: str) -> list[int]:
    """The bound of each model's queue, from its configuration."""
    texts = [(root / model / "config.pbtxt").read_text() for model in models]
    configs = [triton_config.parse(text, source="config") for text in texts]
    for config in configs:  # one instance alone would let a bounded queue sleep
        assert config.instance_group[0].count == (2 if triton_config.queue_bound(config) else 1)
    return [triton_config.queue_bound(config) for config in configs]


def test_a_queue_is_bounded_as_asked_for_and_stays_so(tiny_text_package: Path, tmp_path: Path) -> None:
    parts = ("intents.tokenizer", "intents.model")
    publish(tiny_text_package, tmp_path)
    assert bounds(tmp_path, *parts) == [128, 128]
    publish(tiny_text_package, tmp_path, max_queue=64)
    assert bounds(tmp_path, *parts) == [64, 64]
    assert publish(tiny_text_package, tmp_path).max_queue() == 64  # as in production
    rollback("intents", tmp_path)
    assert bounds(tmp_path, *parts) == [64, 64]
    assert publish(tiny_text_package, tmp_path, max_queue=0).max_queue() == 0
    assert bounds(tmp_path, *parts) == [0, 0]
    assert check_serves(tmp_path) == 4


def test_rollback_of_a_tensor_model(tiny_tensor_package: Path, tmp_path: Path) -> None:
    publish(tiny_tensor_package, tmp_path)
    publish(tiny_tensor_package, tmp_path)

    assert rollback("linear", tmp_path).version == 1


def test_rollback_says_what_is_there(tiny_text_package: Path, tmp_path: Path) -> None:
    publish(tiny_text_package, tmp_path)
    with pytest.raises(LeptoError, match="no version before 1"):
        rollback("intents", tmp_path)
    with pytest.raises(LeptoError, match="no version 7; versions there: 1"):
        rollback("intents", tmp_path, to=7)
    with pytest.raises(LeptoError, match="in production already"):
        rollback("intents", tmp_path, to=1)
    with pytest.raises(LeptoError, match=r"no model 'nope' is published .* published there: intents"):
        rollback("nope", tmp_path)


def test_rollback_refuses_files_that_changed(tiny_text_package: Path, tmp_path: Path) -> None:
    publish(tiny_text_package, tmp_path)
    publish(tiny_text_package, tmp_path)
    (tmp_path / "intents.model" / "1" / "model.onnx").write_bytes(b"something else")

    with pytest.raises(LeptoError, match=r"model.onnx is not the file that was published"):
        rollback("intents", tmp_path)
    assert check_serves(tmp_path) == 2


@pytest.mark.parametrize("name", [".hidden", "-x", "a b", "a/b", "../up", "ü", "x.model", "x.tokenizer", "n" * 201])
def test_names_that_do_not_fit_are_refused(tiny_text_package: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(LeptoError, match="--name"):
        publish(tiny_text_package, tmp_path / "repository", name=name)


def test_other_labels_need_another_name(
    tiny_text_package: Path, make_text_package: MakePackage, tmp_path: Path
) -> None:
    other = make_text_package(tmp_path / "other", labels=("place_order", "track_order", "get_refund"))
    publish(tiny_text_package, tmp_path / "repository")

    with pytest.raises(LeptoError, match=r"labels .* without cancel_order; with track_order; .*another --name"):
        publish(other, tmp_path / "repository")
    assert check_serves(tmp_path / "repository") == 1
    assert publish(other, tmp_path / "repository", name="tracking").version == 1


def test_tensors_do_not_replace_text(tiny_text_package: Path, tiny_tensor_package: Path, tmp_path: Path) -> None:
    publish(tiny_text_package, tmp_path / "repository")

    with pytest.raises(LeptoError, match=r"input kind .*'text' became 'tensors'"):
        publish(tiny_tensor_package, tmp_path / "repository", name="intents")


def test_models_of_others_are_left_alone(tiny_text_package: Path, tmp_path: Path) -> None:
    for name in ("intents", "theirs.model"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.pbtxt").write_text(f'name: "{name}"\nbackend: "python"\n')

    for name in ("intents", "theirs"):
        with pytest.raises(LeptoError, match="not published by lepto and is left alone"):
            publish(tiny_text_package, tmp_path, name=name)
    assert list_models(tmp_path) == []


def test_a_model_that_fails_its_own_probe_is_not_published(
    text_parts: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    from lepto.runtime.package import write_package

    parts = text_parts()
    parts["probe"] = parts["probe"] | {"output/scores": parts["probe"]["output/scores"] + np.float32(0.1)}
    package = write_package(tmp_path / "package", **parts)

    with pytest.raises(LeptoError, match="on its own probe, output 'scores' differs") as error:
        publish(package, tmp_path / "repository")
    assert error.value.exit_code == 1
    assert not (tmp_path / "repository").exists()


def test_a_changed_package_is_not_published(tiny_text_package: Path, tmp_path: Path) -> None:
    (tiny_text_package / "labels.txt").write_text("a\nb\nc\n")

    with pytest.raises(LeptoError, match=r"labels.txt"):
        publish(tiny_text_package, tmp_path / "repository")


def test_a_full_disk_loses_nothing(tiny_text_package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "repository"
    publish(tiny_text_package, root)
    before = files_of(root)
    calls = 0
    real = os.fsync

    def full(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(LeptoError, match=r"No space left on device; free some space.*untouched"):
        publish(tiny_text_package, root)

    assert files_of(root) == before
    assert check_serves(root) == 1


def test_a_first_publish_that_fails_removes_only_what_it_made(
    tiny_text_package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(package: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(repository_module, "_load_test", full)
    (tmp_path / "mine").mkdir()
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "notes.txt").write_text("precious")
    for root in ("new", "new/deeper", "mine", "theirs", "theirs/new"):
        with pytest.raises(LeptoError, match="No space left"):
            publish(tiny_text_package, tmp_path / root)
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if "packages" not in path.parts} == {
        "mine", "mine/.lepto.lock", "theirs", "theirs/.lepto.lock", "theirs/notes.txt",
    }  # fmt: skip


def test_a_folder_that_is_removed_while_others_wait_is_made_again(
    tiny_text_package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "repository"
    real = repository_module._load_test
    holding, errors = threading.Event(), []

    def first_fails(package: Any) -> None:
        if not holding.is_set():
            holding.set()
            time.sleep(0.5)
            raise LeptoError("the first one fails")
        real(package)

    monkeypatch.setattr(repository_module, "_load_test", first_fails)

    def one() -> None:
        try:
            publish(tiny_text_package, root)
        except LeptoError as error:
            errors.append(str(error))

    failing = threading.Thread(target=one)
    failing.start()
    assert holding.wait(30)
    waiting = [threading.Thread(target=one) for _ in range(3)]
    for thread in waiting:
        thread.start()
    for thread in (failing, *waiting):
        thread.join()
    assert errors == ["the first one fails"]
    assert get_model(root, "intents").versions == (1, 2, 3)


def test_one_change_at_a_time(tiny_text_package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    errors: list[Exception] = []

    def one() -> None:
        try:
            publish(tiny_text_package, tmp_path / "repository")
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=one) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert errors == []
    assert get_model(tmp_path / "repository", "intents").versions == (1, 2, 3, 4)
    monkeypatch.setattr(repository_module, "LOCK_TIMEOUT_S", 0.1)
    with repository_module._locked(tmp_path / "repository"), pytest.raises(LeptoError, match="another publish"):
        publish(tiny_text_package, tmp_path / "repository")


def test_no_repository(tmp_path: Path, tiny_text_package: Path) -> None:
    with pytest.raises(LeptoError, match="no model repository"):
        list_models(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(LeptoError, match="cannot make the model repository"):
        publish(tiny_text_package, tmp_path / "file")


def _fork_crash(count: int, when: str, action: Callable[[], object]) -> int:
    """Run the action in a forked child that dies at the Nth lasting change of the disk; its exit code."""
    child = os.fork()
    if child == 0:
        calls = 0

        def crashing(real: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any, **options: Any) -> Any:
                nonlocal calls
                calls += 1
                if calls == count and when == "before":
                    os._exit(9)
                result = real(*arguments, **options)
                if calls == count:
                    os._exit(9)
                return result

            return call

        try:
            for name in ("fsync", "rename", "replace"):
                setattr(os, name, crashing(getattr(os, name)))
            action()
            os._exit(0)
        except BaseException:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("action", ["first publish", "publish", "rollback"])
def test_a_crash_at_any_instant_leaves_a_repository_that_serves(
    tiny_text_package: Path,
    make_text_package: MakePackage,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    action: str,
    when: str,
) -> None:
    # A process that ends loses nothing that it wrote: counting the calls is enough, and waiting for the disk is slow.
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    # onnxruntime's threads do not survive a fork; the load test changes nothing on the disk.
    monkeypatch.setattr(repository_module, "_load_test", lambda package: None)
    second = make_text_package(tmp_path / "second", model="text_v2")
    start = tmp_path / "start"
    if action != "first publish":
        publish(tiny_text_package, start)
    if action == "rollback":
        publish(second, start)
    before = {"first publish": None, "publish": 1, "rollback": 2}[action]
    after = {"first publish": 1, "publish": 2, "rollback": 1}[action]
    seen: list[int | None] = []
    for count in range(1, 200):
        root = tmp_path / f"{count}"
        if start.exists():
            shutil.copytree(start, root)
        run = (lambda at: rollback("intents", at)) if action == "rollback" else (lambda at: publish(second, at))
        code = _fork_crash(count, when, lambda run=run, root=root: run(root))  # type: ignore[misc]
        if code == 0:
            break
        assert code == 9
        published = [model.name for model in list_models(root)] if root.exists() else []
        seen.append(check_serves(root) if published else None)
        # The next publish works, gets a new number, and sweeps what the crash left.
        following = publish(second, root)
        assert check_serves(root) == following.version
        assert following.version == max(following.versions)
        assert not list(root.glob(".lepto-staging-*"))
        for part in following.parts:
            assert {int(entry.name) for entry in (root / part).iterdir() if entry.is_dir()} == set(following.versions)
        shutil.rmtree(root)
    else:
        pytest.fail("the action never came to its end")
    assert len(seen) > 8
    # Old until the commit, new from then on: never anything else, never back.
    commit = seen.index(after) if after in seen else len(seen)
    assert seen == [before] * commit + [after] * (len(seen) - commit)
    assert commit > 0
