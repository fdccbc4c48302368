"""Engines in a model repository. The bytes stand for an engine, which only a GPU could make; nothing here runs it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lepto.runtime import plans
from lepto.runtime.errors import LeptoError
from lepto.runtime.package import BUILD_SCRIPT, BUILD_SPEC, ENGINE, ENGINE_RECORD, write_package
from lepto.runtime.published import get_model, read_config
from lepto.runtime.repository import publish, rollback
from lepto.runtime.server import Server

Parts = Callable[..., dict[str, Any]]
KIT = {BUILD_SPEC: b"{}", BUILD_SCRIPT: b"print()"}
TEXT = {name: {"min": [1, 1], "opt": [4, 8], "max": [8, 12]} for name in ("input_ids", "attention_mask")}


def with_engine(folder: Path, parts: dict[str, Any], plan: bytes = b"plan", **changes: Any) -> Path:
    """A package with an engine of TensorRT that was checked on its device, but for the changes."""
    record = {
        "schema": "lepto.engine/1",
        "runtime": "tensorrt",
        "version": "10.3.0",
        "compute_capability": "8.7",
        "profile": TEXT,
        "plan_sha256": hashlib.sha256(plan).hexdigest(),
        "check": {"ok": True},
        **changes,
    }
    extra = {**KIT, ENGINE: plan, ENGINE_RECORD: json.dumps(record).encode()}
    return write_package(folder, **parts, extra=extra).path


def test_a_text_package_is_published_as_a_plan_within_its_profile(text_parts: Parts, tmp_path: Path) -> None:
    root = tmp_path / "repository"
    model = publish(with_engine(tmp_path / "package", text_parts()), root)
    assert model.plan() == plans.Plan("8.7", "10.3.0", {n: ([1, 1], [8, 12]) for n in TEXT})
    part = root / "intents.model"
    assert sorted(f.name for f in (part / "1").iterdir()) == ["sm87.plan"]
    assert (part / "1" / "sm87.plan").read_bytes() == b"plan"
    config = read_config(part)
    assert config.platform == "tensorrt_plan"
    assert dict(config.cc_model_filenames) == {"8.7": "sm87.plan"}
    assert not config.default_model_filename  # a server on another GPU finds no file
    assert config.max_batch_size == 8
    assert [list(one.dims) for one in config.input] == [[-1], [-1]]
    assert [one.kind for one in config.instance_group] == [config.instance_group[0].KIND_GPU]
    assert config.model_warmup[0].inputs["input_ids"].dims == [12]  # sixteen tokens are outside of the profile
    assert config.parameters["lepto.tensorrt"].string_value == "10.3.0"
    for name in ("intents", "intents.tokenizer"):
        assert read_config(root / name).max_batch_size == 8
    assert read_config(root / "intents").platform == "ensemble"


def test_versions_of_a_plan_come_and_go(tensor_parts: Parts, tmp_path: Path) -> None:
    root, profile = tmp_path / "repository", {"x": {"min": [1, 4], "opt": [2, 4], "max": [16, 4]}}
    publish(with_engine(tmp_path / "one", tensor_parts(), b"one", profile=profile), root)
    wider = {"x": {"min": [1, 4], "opt": [2, 4], "max": [4, 4]}}
    publish(with_engine(tmp_path / "two", tensor_parts(), b"two", profile=wider), root)
    assert read_config(root / "linear").max_batch_size == 4
    back = rollback("linear", root)
    assert back.version == 1
    assert read_config(root / "linear").max_batch_size == 16
    (root / "linear" / "2" / "sm87.plan").write_bytes(b"changed")
    with pytest.raises(LeptoError, match=r"sm87.plan is not the file that was published"):
        rollback("linear", root, to=2)


def test_a_name_keeps_its_kind_of_gpu(tensor_parts: Parts, tmp_path: Path) -> None:
    root, profile = tmp_path / "repository", {"x": {"min": [1, 4], "opt": [2, 4], "max": [16, 4]}}
    publish(with_engine(tmp_path / "orin", tensor_parts(), profile=profile), root)
    other = with_engine(tmp_path / "l4", tensor_parts(), profile=profile, compute_capability="8.9")
    with pytest.raises(LeptoError, match=r"(?s)backend.*differ.*another --name"):
        publish(other, root)
    with pytest.raises(LeptoError, match=r"(?s)backend.*differ.*another --name"):
        publish(write_package(tmp_path / "cpu", **tensor_parts()), root)
    assert get_model(root, "linear").versions == (1,)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"runtime": "tensorrt-rtx"}, r"tensorrt_plan backend reads engines of TensorRT alone"),
        ({"check": None}, r"was never run: run `python3 build_engine.py check"),
        ({"check": {"ok": False, "outputs": {"logits": {"max_abs": 3.0}}}}, r"differed from the stored probe.*3.0"),
        ({"plan_sha256": "0" * 64}, r"is not the engine of engine.json"),
        ({"profile": {"input_ids": {"min": [2, 1], "max": [8, 12]}}}, r"begins at a batch of 2"),
        ({"profile": {}}, r"engine.json is broken"),
    ],
)
def test_what_cannot_be_served_is_refused(
    text_parts: Parts, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    package = with_engine(tmp_path / "package", text_parts(), **changes)
    with pytest.raises(LeptoError, match=message):
        publish(package, tmp_path / "repository")
    assert not (tmp_path / "repository").exists()


def test_a_build_kit_says_how_its_engine_is_made(text_parts: Parts, tmp_path: Path) -> None:
    package = write_package(tmp_path / "kit", **text_parts(), extra=KIT)
    with pytest.raises(LeptoError, match=r"build kit.*no engine yet.*build_engine.py build .*publish `built`"):
        publish(package, tmp_path / "repository")


def test_an_engine_for_another_gpu_is_refused(
    text_parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Machine:
        gpus = (type("Gpu", (), {"compute_capability": "9.0"})(),)

    monkeypatch.setattr(plans, "this_machine", Machine)
    with pytest.raises(LeptoError, match=r"for a GPU of compute capability 8.7, and the GPU here has 9.0"):
        publish(with_engine(tmp_path / "package", text_parts()), tmp_path / "repository")


def test_the_server_for_cpus_says_where_a_plan_is_served(text_parts: Parts, tmp_path: Path) -> None:
    publish(with_engine(tmp_path / "package", text_parts()), tmp_path / "repository")
    with pytest.raises(LeptoError, match=r"is an engine .*NVIDIA's container"):
        Server(tmp_path / "repository", http_port=0, grpc_port=0, metrics_port=0).start()
