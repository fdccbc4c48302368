import errno
import hashlib
import json
import os
import shutil
import stat
import subprocess
from pathlib import Path

import numpy as np
import pytest

from lepto.runtime import LeptoError, open_package, write_package
from lepto.runtime.package import ALLOWED_FILES, ENGINE_FILES, EVIDENCE

NEEDED = ALLOWED_FILES - {EVIDENCE} - ENGINE_FILES


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its content, hidden ones too."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_written_package_opens_with_everything(text_parts, tmp_path):
    parts = text_parts()
    package = write_package(tmp_path / "new" / "intents", **parts)
    again = open_package(package.path)
    assert again == package
    assert again.labels == ("place_order", "cancel_order", "get_refund")
    assert again.model_path.read_bytes() == parts["model"]
    assert again.tokenizer_path is not None
    assert again.tokenizer_path.read_text() == parts["tokenizer"]
    assert {entry.name for entry in package.path.iterdir()} == NEEDED
    inputs, outputs = again.probe()
    for name, array in (inputs | outputs).items():
        np.testing.assert_array_equal(array, parts["probe"][f"{'input' if name in inputs else 'output'}/{name}"])


def test_the_manifest_has_the_digest_of_every_other_file(tiny_text_package):
    files = json.loads((tiny_text_package / "manifest.json").read_text())["files"]
    content = tree(tiny_text_package)
    del content["manifest.json"]
    assert files == {name: hashlib.sha256(data).hexdigest() for name, data in content.items()}


def test_tensor_package_has_no_text_files(tiny_tensor_package):
    package = open_package(tiny_tensor_package)
    assert package.tokenizer_path is None
    assert package.labels is None
    assert set(tree(tiny_tensor_package)) == {"manifest.json", "model.onnx", "probe.npz", "README.md"}


def test_equal_parts_give_equal_files(text_parts, tmp_path):
    one = write_package(tmp_path / "one", **text_parts())
    two = write_package(tmp_path / "two", **text_parts())
    assert tree(one.path) == tree(two.path)


def test_a_server_under_another_user_can_read_it(tiny_text_package):
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(tiny_text_package.stat().st_mode) == 0o777 & ~mask
    for entry in tiny_text_package.iterdir():
        assert stat.S_IMODE(entry.stat().st_mode) == 0o666 & ~mask


def test_writing_leaves_nothing_beside_it(tiny_text_package):
    assert [entry.name for entry in tiny_text_package.parent.iterdir()] == ["intents"]


# --- what is no package -------------------------------------------------------------------------------------------


def test_no_folder(tmp_path):
    with pytest.raises(LeptoError, match="there is no such folder"):
        open_package(tmp_path / "nothing")


def test_a_file_is_no_package(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(LeptoError, match="a package is a folder"):
        open_package(tmp_path / "file")


def test_a_folder_without_manifest(tmp_path):
    with pytest.raises(LeptoError, match=r"has no manifest\.json"):
        open_package(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": "lepto.package/1"}'])
def test_broken_manifest(tiny_text_package, text):
    (tiny_text_package / "manifest.json").write_text(text)
    with pytest.raises(LeptoError, match=r"manifest\.json is broken"):
        open_package(tiny_text_package)


def test_huge_manifest_is_not_read(tiny_text_package):
    with (tiny_text_package / "manifest.json").open("r+b") as file:
        file.truncate(2**30)
    with pytest.raises(LeptoError, match="more than any manifest"):
        open_package(tiny_text_package)


def test_unknown_key_is_named(tiny_text_package, edit_manifest):
    edit_manifest(tiny_text_package, lambda d: d["result"].update(latency=1))
    with pytest.raises(LeptoError, match=r"result\.latency: unknown key"):
        open_package(tiny_text_package)


@pytest.mark.parametrize("name", sorted(NEEDED - {"manifest.json"}))
def test_missing_file_is_named(tiny_text_package, name):
    (tiny_text_package / name).unlink()
    with pytest.raises(LeptoError, match=f"incomplete: {name} missing"):
        open_package(tiny_text_package)


@pytest.mark.parametrize("name", sorted(NEEDED - {"manifest.json"}))
def test_changed_file_is_named(tiny_text_package, name):
    path = tiny_text_package / name
    path.write_bytes(path.read_bytes() + b"\n")
    with pytest.raises(LeptoError, match=f"{name} was changed"):
        open_package(tiny_text_package)


@pytest.mark.parametrize("name", ["weights.bin", "libevil.so", "model.py", ".hidden", "triton_python_backend_stub"])
def test_unknown_file_is_refused(tiny_text_package, name):
    (tiny_text_package / name).touch()
    with pytest.raises(LeptoError, match=f"'{name}': remove it"):
        open_package(tiny_text_package)


def test_file_that_the_manifest_does_not_list_is_refused(tiny_tensor_package):
    (tiny_tensor_package / "labels.txt").write_text("a\nb\n")
    with pytest.raises(LeptoError, match=r"has labels\.txt, which its manifest does not list"):
        open_package(tiny_tensor_package)


@pytest.mark.parametrize("name", sorted(NEEDED))
def test_symbolic_link_is_refused(tiny_text_package, tmp_path, name):
    path = tiny_text_package / name
    shutil.move(path, tmp_path / name)
    path.symlink_to(tmp_path / name)
    with pytest.raises(LeptoError, match="must be a regular file"):
        open_package(tiny_text_package)


def test_folder_in_place_of_a_file_is_refused(tiny_text_package):
    (tiny_text_package / "README.md").unlink()
    (tiny_text_package / "README.md").mkdir()
    with pytest.raises(LeptoError, match="must be a regular file"):
        open_package(tiny_text_package)


@pytest.mark.parametrize("name", ["../model.onnx", "manifest.json", "other"])
def test_manifest_cannot_list_other_files(tiny_text_package, edit_manifest, name):
    edit_manifest(tiny_text_package, lambda d: d["files"].update({name: "0" * 64}))
    with pytest.raises(LeptoError, match="nothing unknown"):
        open_package(tiny_text_package)


def test_digests_can_be_left_to_verify(tiny_text_package):
    (tiny_text_package / "README.md").write_text("changed")
    assert open_package(tiny_text_package, check_digests=False).labels is not None


@pytest.mark.parametrize("text", ["a\nb\n", "a\nb\nc\nd\n", "a\na\nb\n", "a\n\nb\n", "a\nb\nc\r\n", "\xff"])
def test_labels_that_do_not_fit(tiny_text_package, text):
    (tiny_text_package / "labels.txt").write_bytes(text.encode("latin-1"))
    with pytest.raises(LeptoError, match=r"labels\.txt is broken"):
        open_package(tiny_text_package, check_digests=False)


def test_probe_is_never_unpickled(tiny_tensor_package):
    with (tiny_tensor_package / "probe.npz").open("wb") as file:
        np.savez(file, **{"input/x": np.array([object()]), "output/y": np.array([1])})
    with pytest.raises(LeptoError, match=r"probe\.npz is broken.*allow_pickle"):
        open_package(tiny_tensor_package, check_digests=False).probe()


@pytest.mark.parametrize("keep", [0, 10, 200])
def test_truncated_probe(tiny_tensor_package, keep):
    path = tiny_tensor_package / "probe.npz"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(LeptoError, match=r"probe\.npz is broken"):
        open_package(tiny_tensor_package, check_digests=False).probe()


def test_probe_of_another_model(tiny_tensor_package):
    with (tiny_tensor_package / "probe.npz").open("wb") as file:
        np.savez(file, **{"input/x": np.zeros((1, 5), np.float32), "output/y": np.zeros((1, 2), np.float32)})
    with pytest.raises(LeptoError, match=r"does not fit the manifest: input/x must have the shape \[batch, 4\]"):
        open_package(tiny_tensor_package, check_digests=False).probe()


# --- what cannot be written ---------------------------------------------------------------------------------------


def test_existing_folder_is_refused(tiny_text_package, text_parts):
    before = tree(tiny_text_package)
    with pytest.raises(LeptoError, match="exists: choose another folder, or --force"):
        write_package(tiny_text_package, **text_parts(model="text_v2"))
    assert tree(tiny_text_package) == before


def test_force_replaces_a_package(tiny_text_package, text_parts):
    write_package(tiny_text_package, **text_parts(model="text_v2"), force=True)
    assert open_package(tiny_text_package).model_path.read_bytes() == text_parts(model="text_v2")["model"]
    assert [entry.name for entry in tiny_text_package.parent.iterdir()] == ["intents"]


def test_force_replaces_where_folders_cannot_be_exchanged(tiny_text_package, text_parts, monkeypatch):
    monkeypatch.setattr("lepto.runtime.staging._exchange", lambda one, other: False)
    write_package(tiny_text_package, **text_parts(model="text_v2"), force=True)
    assert open_package(tiny_text_package).model_path.read_bytes() == text_parts(model="text_v2")["model"]
    assert [entry.name for entry in tiny_text_package.parent.iterdir()] == ["intents"]


def test_a_failed_rename_puts_the_old_package_back(tiny_text_package, text_parts, monkeypatch):
    monkeypatch.setattr("lepto.runtime.staging._exchange", lambda one, other: False)
    before = tree(tiny_text_package.parent)
    rename, calls = Path.rename, []

    def fail_second(self, target):
        calls.append(self)
        if len(calls) == 2:
            raise OSError(errno.EIO, "input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_second)
    with pytest.raises(OSError, match="input/output"):
        write_package(tiny_text_package, **text_parts(model="text_v2"), force=True)
    assert tree(tiny_text_package.parent) == before


def test_force_replaces_only_packages(tmp_path, text_parts):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(LeptoError, match="is no package"):
        write_package(tmp_path, **text_parts(), force=True)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_a_file_or_a_link_is_not_replaced(tmp_path, tiny_text_package, text_parts):
    (tmp_path / "file").touch()
    with pytest.raises(LeptoError, match="is a file"):
        write_package(tmp_path / "file", **text_parts(), force=True)
    (tmp_path / "link").symlink_to(tiny_text_package)
    with pytest.raises(LeptoError, match="symbolic link"):
        write_package(tmp_path / "link", **text_parts(), force=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer": None}, "come together"),
        ({"tokenizer": "{"}, "tokenizer must be"),
        ({"labels": None}, "3 scores but there are no labels"),
        ({"labels": ["a", "b"]}, "3 scores but there are 2 labels"),
        ({"labels": ["a", "b", "a"]}, "'a' stands twice"),
        ({"labels": ["a", "b\nc", "d"]}, "visible text in one line"),
        ({"labels": ["a", " ", "d"]}, "visible text in one line"),
        ({"probe": {}}, "missing .*input/input_ids"),
        ({"model": b"other"}, "no ONNX model"),
        ({"model": b""}, "no ONNX model"),
    ],
)
def test_parts_that_do_not_fit(text_parts, tmp_path, change, message):
    with pytest.raises((ValueError, LeptoError), match=message):
        write_package(tmp_path / "out" / "intents", **(text_parts() | change))
    assert list(tmp_path.iterdir()) == []


def test_probe_with_python_objects_is_refused(tensor_parts, tmp_path):
    parts = tensor_parts()
    parts["probe"]["input/x"] = np.array([[object()] * 4])
    with pytest.raises(ValueError, match="Python objects"):
        write_package(tmp_path / "out", **parts)


def test_a_model_that_is_not_the_measured_one_is_refused(text_parts, tmp_path):
    parts = text_parts() | {"model": text_parts(model="text_v2")["model"]}
    with pytest.raises(ValueError, match=r"manifest\.result must describe the model"):
        write_package(tmp_path / "out", **parts)


def test_a_model_with_weights_in_another_file_is_refused(tensor_parts, tmp_path):
    with pytest.raises(LeptoError, match=r"keeps the tensor 'weight' in another file \('\.\./weights\.bin'\)"):
        write_package(tmp_path / "out", **tensor_parts(model="external"))


def test_model_can_be_given_as_a_file(text_parts, data, tmp_path):
    package = write_package(tmp_path / "out", **(text_parts() | {"model": data / "text.onnx"}))
    assert package.model_path.read_bytes() == (data / "text.onnx").read_bytes()


# --- a full disk --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("force", [False, True])
def test_a_disk_that_fills_at_any_step_loses_nothing(text_parts, tmp_path, monkeypatch, force):
    """The disk fills at the first flush, at the second, …: old package or new package, and nothing else."""
    home = tmp_path / "home"
    home.mkdir()
    if force:
        write_package(home / "intents", **text_parts())
    before = tree(home)
    fsync = os.fsync
    failures = 0
    for allowed in range(100):
        left = [allowed]

        def full(descriptor, left=left):
            if left[0] == 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            left[0] -= 1
            fsync(descriptor)

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left") as caught:
            write_package(home / "intents", **text_parts(model="text_v2"), force=force)
        failures += 1
        if tree(home) != before:  # the last flush comes after the rename: the new package is whole
            monkeypatch.setattr(os, "fsync", fsync)
            assert open_package(home / "intents").path.is_dir()
            assert [entry.name for entry in home.iterdir()] == ["intents"]
            break
        assert any("not written" in note for note in caught.value.__notes__)
        assert [entry.name for entry in home.iterdir()] == (["intents"] if force else [])
    assert failures >= 6


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can mount")
def test_a_really_full_disk(text_parts, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40k", "none", str(disk)], capture_output=True)
    if mount.returncode != 0:
        pytest.skip("this container may not mount")
    try:
        write_package(disk / "old", **text_parts())
        before = tree(disk)
        parts = text_parts() | {"card": "x" * 60_000}
        for name in ("old", "new/deeper"):
            with pytest.raises(OSError, match="No space left"):
                write_package(disk / name, **parts, force=True)
            assert tree(disk) == before
            assert [entry.name for entry in disk.iterdir()] == ["old"]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_parents_that_were_made_are_removed_on_failure(text_parts, tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_package(tmp_path / "a" / "b" / "intents", **text_parts())
    assert list(tmp_path.iterdir()) == []


def test_interrupt_leaves_nothing(text_parts, tmp_path, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("lepto.runtime.package.replace_folder", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_package(tmp_path / "a" / "intents", **text_parts())
    assert list(tmp_path.iterdir()) == []
