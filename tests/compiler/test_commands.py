"""The real command line: exit codes, messages without a traceback, and nothing left behind."""

from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lepto.compiler.passes import PASSES as PASS_NAMES
from lepto.runtime import TextClassifier

from .conftest import Lepto, Toy, write_csv

PASSES = ("--passes", "fuse,quantize-dynamic")


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


def test_compile_echoes_settings_and_prints_one_json_document(toy: Toy, tmp_path: Path, lepto: Lepto) -> None:
    ran = lepto("compile", *toy.flags(), *PASSES, "-o", tmp_path / "out", "--json")
    assert ran.code == 0, ran.err
    document = ran.document()
    assert document["package"] == str(tmp_path / "out")
    assert document["manifest"] == json.loads((tmp_path / "out/manifest.json").read_text())
    assert "BertForSequenceClassification" in ran.err
    assert "max drop" in ran.err
    again = lepto("compile", *toy.flags(), *PASSES, "-o", tmp_path / "again")
    assert again.code == 0
    assert "every step was in the cache: nothing was computed again" in again.out
    assert TextClassifier(tmp_path / "again")("cancel my order") == TextClassifier(tmp_path / "out")("cancel my order")
    checked = lepto("verify", tmp_path / "again", "--eval", toy.eval)
    assert checked.code == 0, checked.out + checked.err


def test_brackets_in_names_and_intervals_are_shown_as_they_are(toy: Toy, tmp_path: Path, lepto: Lepto) -> None:
    folder = tmp_path / "a [bold]model"
    shutil.copytree(toy.model, folder)
    ran = lepto("compile", *toy.flags(model=str(folder)), "--passes", "fuse", "-o", tmp_path / "out [red]x")
    assert ran.code == 0, ran.err
    assert "a [bold]model" in ran.out
    assert "out [red]x: " in ran.out
    assert "\\[" not in ran.out
    assert "accuracy 1.0000 [0." in ran.out


def test_a_dry_run_writes_nothing(toy: Toy, tmp_path: Path, own_cache: Path, lepto: Lepto) -> None:
    ran = lepto("compile", *toy.flags(), "-o", tmp_path / "out", "--dry-run", "--json")
    assert ran.code == 0
    assert ran.document()["plan"] == ["fuse", "quantize-dynamic|quantize-static"]
    assert list(tmp_path.iterdir()) == []


def test_flags_override_the_recipe(toy: Toy, tmp_path: Path, lepto: Lepto) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(f"model: {toy.model}\neval: {toy.eval}\npasses: fuse\nmax-drop: 5%\nseed: 3\n")
    ran = lepto("compile", recipe, "--max-drop", "2%", "--dry-run", "--json")
    assert ran.code == 0, ran.err
    found = ran.document()["recipe"]
    assert (found["max_drop"], found["seed"], found["passes"]) == ("2%", 3, ["fuse"])
    schema = lepto("recipe", "schema").document()
    assert {name.replace("-", "_") for name in schema["properties"]} == set(found)
    assert "max-drop" in schema["properties"]  # as the flags, and as the README writes recipes
    checked = lepto("recipe", "check", recipe, "--json")
    assert checked.document()["max_drop"] == "5%"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"passes": "fuze"}, "unknown pass 'fuze'; did you mean 'fuse'?"),
        ({"target": "x86-64-v44"}, "unknown target 'x86-64-v44'; did you mean 'x86-64-v4'?"),
        ({"target": "h200", "passes": "fuse"}, "must end in tensorrt"),
        ({"text-column": "txt"}, "has no column 'txt'; did you mean 'text'?"),
        ({"label-column": "category"}, "has no column 'category'"),
        ({"task": "token-classification"}, "made for text-classification, not token-classification"),
        ({"max-drop": "5"}, "did you mean 5%?"),
        ({"model": "/no/such/model"}, "model '/no/such/model' does not exist"),
        ({"eval": "/no/such/file.csv"}, "data file /no/such/file.csv does not exist"),
        ({"threads": "0"}, "threads"),
        ({"name": "a/b"}, "name must match"),
    ],
)
def test_a_bad_request_is_refused_before_any_work(
    toy: Toy, tmp_path: Path, own_cache: Path, lepto: Lepto, flags: dict[str, str], said: str
) -> None:
    ran = lepto("compile", *toy.flags(**flags), "-o", tmp_path / "out")
    assert (ran.code, list(tmp_path.iterdir())) == (2, [])
    assert ran.err.startswith("error: ")
    assert said in ran.err


def test_a_recipe_with_an_unknown_key_names_line_and_column(tmp_path: Path, lepto: Lepto) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text("model: m\n\ntarge: host\n")
    ran = lepto("compile", recipe, "-o", tmp_path / "out")
    assert ran.code == 2
    assert f"{recipe}, line 3, column 1: unknown key 'targe'; did you mean 'target'?" in ran.err


def test_an_output_that_exists_is_refused_unless_forced(toy: Toy, tmp_path: Path, lepto: Lepto) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("precious")
    flags = [*toy.flags(), "--passes", "fuse", "-o", out]
    assert "exists" in lepto("compile", *flags).err
    ran = lepto("compile", *flags, "--force")
    assert ran.code == 2
    assert "is no package" in ran.err
    assert (out / "mine.txt").read_text() == "precious"
    (out / "mine.txt").unlink()
    assert lepto("compile", *flags, "--force").code == 0
    assert lepto("compile", *flags).code == 2
    assert lepto("compile", *flags, "--force").code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


class Malicious:
    """What a pickle can do: it calls anything when it is read."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


def broken(toy: Toy, folder: Path, how: str) -> Path:
    import torch

    shutil.copytree(toy.model, folder)
    weights = folder / "model.safetensors"
    config = folder / "config.json"
    if how == "no config":
        config.unlink()
    elif how == "broken config":
        config.write_text("{")
    elif how == "remote code":
        config.write_text(json.dumps({"auto_map": {"AutoConfig": "mine.Config"}, "model_type": "mine"}))
    elif how == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif how == "no weights":
        weights.unlink()
        (folder / "model.pkl").write_bytes(b"")
    elif how == "pickle":
        weights.unlink()
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"w": Malicious(folder / "executed")}))
    elif how == "zipped pickle":
        weights.unlink()
        torch.save({"w": Malicious(folder / "executed")}, folder / "pytorch_model.bin")
    elif how == "no tokenizer":
        (folder / "tokenizer.json").unlink()
        (folder / "tokenizer_config.json").unlink()
    elif how == "headless":
        from safetensors.torch import load_file, save_file

        state = {name: t for name, t in load_file(weights).items() if not name.startswith("classifier")}
        save_file(state, weights, metadata={"format": "pt"})
    elif how == "gap in labels":
        values = json.loads(config.read_text())
        values["id2label"] = {"0": "a", "2": "b", "3": "c"}
        config.write_text(json.dumps(values))
    return folder


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("no config", "is no model: it has no config.json"),
        ("broken config", "is no JSON"),
        ("remote code", "needs code from its own repository, which Lepto does not run"),
        ("truncated", "is no whole safetensors file"),
        ("no weights", "model.pkl may hold code and is not read"),
        ("pickle", "pytorch_model.bin is refused"),
        ("zipped pickle", "pytorch_model.bin is refused"),
        ("no tokenizer", "has no tokenizer"),
        ("headless", "the weights lack classifier.bias, classifier.weight, which would be random"),
        ("gap in labels", "id2label must count from 0 without a gap"),
    ],
)
def test_a_broken_model_is_refused(
    toy: Toy, tmp_path: Path, own_cache: Path, lepto: Lepto, how: str, said: str
) -> None:
    model = broken(toy, tmp_path / "model", how)
    changes = {"eval": str(write_csv(tmp_path / "e.csv", [("x", "0"), ("y", "1")]))} if how == "gap in labels" else {}
    ran = lepto("compile", *toy.flags(model=str(model), **changes), "-o", tmp_path / "out")
    assert ran.code == 2, ran.err
    assert said in ran.err
    assert not (tmp_path / "out").exists()
    assert not (model / "executed").exists()
    left = [path for path in own_cache.glob("*") if path.is_file() is False] if own_cache.exists() else []
    assert left == []


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "is empty"),
        ("text,label\n", "has no rows"),
        (
            "text,label\nx,cancel\n",
            "has the label 'cancel', which the model does not know; did you mean 'cancel",
        ),
    ],
)
def test_broken_data_is_refused(
    toy: Toy, tmp_path: Path, own_cache: Path, lepto: Lepto, content: str, said: str
) -> None:
    (tmp_path / "bad.csv").write_text(content)
    for flag in ("eval", "train"):
        ran = lepto("compile", *toy.flags(**{flag: str(tmp_path / "bad.csv")}), "-o", tmp_path / "out")
        assert ran.code == 2
        assert said in ran.err
    assert [path.name for path in tmp_path.iterdir()] == ["bad.csv"]


def test_a_full_disk_is_said_and_leaves_nothing(
    toy: Toy, tmp_path: Path, own_cache: Path, lepto: Lepto, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    ran = lepto("compile", *toy.flags(), "-o", tmp_path / "out")
    assert ran.code == 2
    assert "no space left on device" in ran.err
    assert not (tmp_path / "out").exists()
    assert [path for path in own_cache.iterdir() if path.is_dir()] == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for a cache's lock files and hardly more."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("no file system may be mounted here; the limit on files below is tested anywhere")
    try:
        yield disk
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def left_in(folder: Path) -> list[str]:
    """Everything but finished results of a cache, lock files and empty folders."""
    found = [path for path in folder.rglob("*") if not path.name.endswith(".lock") and "cache" not in path.parts[-3:-1]]
    return [str(path) for path in found if path.is_file() or path.name.startswith(".")]


def test_a_disk_that_is_really_full_is_said_and_loses_nothing(
    toy: Toy, tmp_path: Path, small_disk: Path, lepto: Lepto, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = [*toy.flags(), "--passes", "fuse"]
    assert lepto("compile", *flags, "-o", tmp_path / "whole").code == 0
    before = (tmp_path / "whole/manifest.json").read_bytes()
    (small_disk / "mine.txt").write_text("precious")

    def fails(output: Path, *more: str) -> None:
        ran = lepto("compile", *flags, "-o", output, *more)
        assert ran.code == 2, ran.out + ran.err
        assert "no space left on device" in ran.err
        assert left_in(small_disk) == [str(small_disk / "mine.txt")]
        assert (small_disk / "mine.txt").read_text() == "precious"
        assert (tmp_path / "whole/manifest.json").read_bytes() == before

    fails(small_disk / "out")
    ran = lepto("publish", tmp_path / "whole", "--model-repository", small_disk / "models")
    assert ran.code == 2
    assert "No space left on device; free some space and publish again" in ran.err
    assert left_in(small_disk) == [str(small_disk / "mine.txt")]
    with monkeypatch.context() as patch:
        patch.setenv("LEPTO_CACHE", str(small_disk / "cache"))
        fails(tmp_path / "whole", "--force")
        assert not list((small_disk / "cache").glob(".*.*[!k]"))  # lock files only
    monkeypatch.setenv("LEPTO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(small_disk))
    fails(tmp_path / "whole", "--force")
    assert not list((tmp_path / "cache").glob("export-*"))


def test_a_limit_on_the_size_of_files_is_said_and_loses_nothing(
    toy: Toy, tmp_path: Path, own_cache: Path, lepto: Lepto
) -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (32_768, before[1]))
    try:
        ran = lepto("compile", *toy.flags(), "--passes", "fuse", "-o", tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert ran.code == 2, ran.err
    assert "ulimit -f" in ran.err
    assert left_in(tmp_path) == []


def test_a_factory_and_a_data_factory(tmp_path: Path, lepto: Lepto) -> None:
    flags = (
        "--eval",
        "factories:mlp_data",
        "--train",
        "factories:mlp_data",
        "--threads",
        1,
        "--max-drop",
        "20%",
        "--search-budget",
        "0",
    )
    ran = lepto("compile", "-m", "factories:mlp", *flags, "-o", tmp_path / "out", "--json")
    assert ran.code == 0, ran.err
    manifest = ran.document()["manifest"]
    assert manifest["preprocessing"] is None
    assert manifest["source"]["metric"]["value"] == 1.0
    assert lepto("verify", tmp_path / "out").code == 0
    wrong = lepto("compile", "-m", "factories:mlp", "--eval", tmp_path / "none.csv", "-o", tmp_path / "x")
    assert wrong.code == 2


def test_a_convolution_says_why_it_is_not_quantized(lepto: Lepto) -> None:
    ran = lepto("inspect", "factories:cnn", "--json")
    assert ran.code == 0, ran.err
    document = ran.document()
    assert document["inputs"]["pixels"]["shape"] == ["batch", 1, "height", "width"]
    passes = {entry["pass"]: entry for entry in document["passes"]}
    assert passes["export"]["applies"]
    assert not passes["fuse"]["applies"]
    assert "nothing to fuse" in passes["fuse"]["reason"]


def test_inspect_asks_the_passes_themselves(toy: Toy, lepto: Lepto) -> None:
    document = lepto("inspect", toy.model, "--json").document()
    passes = {entry["pass"]: entry for entry in document["passes"]}
    assert [*passes] == ["export", *PASS_NAMES]
    assert "2 activations" in passes["smooth"]["reason"]
    assert passes["smooth"]["reason"].endswith("needs --train")
    assert not passes["sparsify"]["applies"]
    assert "no gain from zeros on this machine" in passes["sparsify"]["reason"]
    assert not passes["quantize-embeddings"]["applies"]
    assert "smallest_bytes is 65536" in passes["quantize-embeddings"]["reason"]
    assert passes["quantize-dynamic"]["reason"].startswith("1 QAttention, 9 DynamicQuantizeMatMul")
    assert passes["quantize-dynamic"]["reason"].endswith("needs --eval")
    assert passes["quantize-static"]["reason"].endswith("needs --train and --eval")


def test_passes_and_their_options_are_listed(lepto: Lepto) -> None:
    ran = lepto("recipe", "passes")
    assert ran.code == 0, ran.err
    assert "method=mse" in ran.out
    assert "``" not in ran.out
    document = lepto("recipe", "passes", "--json").document()
    assert [*document] == [*PASS_NAMES]
    assert document["quantize-weights"]["options"]["bits"] == {"default": "4", "values": "4, 8", "about": "4 or 8."}
    shown = lepto("compile", "--help").out
    assert all(name in shown for name in ("quantize-weights", "mixed-precision", "quantization-aware"))


def test_a_wrong_option_is_named_before_any_work(toy: Toy, tmp_path: Path, lepto: Lepto) -> None:
    ran = lepto("compile", *toy.flags(), "--passes", "fuse,quantize-static(metod=mse)", "-o", tmp_path / "out")
    assert ran.code == 2
    assert "quantize-static: unknown option 'metod'; did you mean 'method'?" in ran.err.replace("\n", " ")


def test_inspect_tells_what_a_model_is(toy: Toy, lepto: Lepto) -> None:
    ran = lepto("inspect", toy.model)
    assert ran.code == 0, ran.err
    for part in ("BertForSequenceClassification", "text-classification", "encoder.layer.*", "2 x attention"):
        assert part in ran.out
    assert "int64 ['batch', 'sequence']" in ran.out
    assert "\\[" not in ran.out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_nothing(toy: Toy, tmp_path: Path, number: signal.Signals) -> None:
    temporary, cache = tmp_path / "temporary", tmp_path / "cache"
    temporary.mkdir()
    environment = os.environ | {"TMPDIR": str(temporary), "LEPTO_CACHE": str(cache)}
    command = [sys.executable, "-m", "lepto.runtime.cli", "compile", *toy.flags(), "-o", str(tmp_path / "out")]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        # The export works in a temporary folder: once that is there, the compile is in the middle of it.
        deadline = time.monotonic() + 120
        while not list(temporary.glob("lepto-*")) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 128 + number, err
    assert "interrupted" in err
    assert "Traceback" not in err
    assert list(temporary.glob("lepto-*")) == []
    assert [path for path in cache.iterdir() if path.is_dir() and path.name.startswith(".")] == []
    assert not (tmp_path / "out").exists()
