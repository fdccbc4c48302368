from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

MakePackage = Callable[..., Path]


def lepto(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from lepto.runtime.cli import main; main()", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def serve(root: Path) -> subprocess.Popen[str]:
    ports = [word for kind in ("http", "grpc", "metrics") for word in (f"--{kind}-port", "0")]
    command = ["serve", "--model-repository", str(root), *ports, "--json"]
    return subprocess.Popen(
        [sys.executable, "-c", "from lepto.runtime.cli import main; main()", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def left_by(pid: int) -> list[str]:
    folders = Path(tempfile.gettempdir()).glob(f"lepto-server-{pid}-*")
    return [*map(str, folders), *map(str, Path("/dev/shm").glob(f"lepto{pid}x*"))]


def read_document(stream: Any) -> dict[str, Any]:
    text = ""
    while True:
        line = stream.readline()
        assert line, f"ended after {text!r}"
        text += line
        if line == "}\n":
            document = json.loads(text)
            assert isinstance(document, dict)
            return document


@pytest.mark.parametrize("command", ["publish", "rollback", "serve", "infer"])
def test_help_has_an_example(command: str) -> None:
    ran = lepto(command, "--help")

    assert ran.returncode == 0
    assert f"lepto {command} " in ran.stdout
    assert "--json" in ran.stdout


def test_publish_and_rollback(tiny_text_package: Path, tmp_path: Path) -> None:
    root = tmp_path / "repository"
    first = lepto("publish", tiny_text_package, "--model-repository", root)
    second = lepto("publish", tiny_text_package, "--model-repository", root, "--json")
    back = lepto("rollback", "intents", "--model-repository", root, "--to", 1, "--json")

    assert first.returncode == 0, first.stderr
    assert "published version 1 of intents" in first.stdout
    assert "model repository" in first.stdout
    assert json.loads(second.stdout)["version"] == 2
    assert "model repository" in second.stderr
    assert json.loads(back.stdout) == {
        "name": "intents",
        "version": 1,
        "versions": [1, 2],
        "text": True,
        "folder": str(root / "intents"),
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["publish", "nowhere", "--model-repository", "ROOT"], "no package at nowhere"),
        (["publish", "PACKAGE", "--model-repository", "ROOT", "--name", "a b"], "choose one with --name"),
        (["rollback", "intents", "--model-repository", "ROOT"], "no model repository at"),
        (["serve", "--model-repository", "ROOT"], "no model repository at"),
        (["infer", "intents", "x", "--url", "nowhere"], "url must be HOST:PORT"),
        (["infer", "intents", "x", "--url", "127.0.0.1:1"], "no Triton server answers at 127.0.0.1:1"),
    ],
)
def test_mistakes_are_told_without_a_traceback(
    tiny_text_package: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    places = {"ROOT": str(tmp_path / "none"), "PACKAGE": str(tiny_text_package)}
    ran = lepto(*(places.get(argument, argument) for argument in arguments))

    assert ran.returncode == 2
    assert message in " ".join(ran.stderr.split())
    assert "Traceback" not in ran.stderr


@pytest.fixture(scope="module")
def repository(make_text_package: MakePackage, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if find_spec("pytriton") is None:
        pytest.skip("needs the extra lepto[server]")
    folder = tmp_path_factory.mktemp("commands")
    from lepto.runtime.repository import publish

    publish(make_text_package(folder / "package"), folder / "repository")
    return folder / "repository"


def test_serve_and_infer(repository: Path) -> None:
    with serve(repository) as server:
        try:
            ready = read_document(server.stdout)
            told = lepto("infer", "intents", "cancel", "[bold] refund", "--url", ready["http_url"], "--top", 2)
            document = lepto("infer", "intents", "cancel", "--url", ready["grpc_url"], "--protocol", "grpc", "--json")
        finally:
            server.send_signal(signal.SIGTERM)
        _, errors = server.communicate(timeout=30)

    assert [model["name"] for model in ready["models"]] == ["intents"]
    assert told.returncode == 0, told.stderr
    assert "cancel → cancel_order 0.65" in told.stdout
    assert "[bold] refund → get_refund" in told.stdout
    (answer,) = json.loads(document.stdout)["answers"]
    assert answer["text"] == "cancel"
    assert answer["predictions"][0]["label"] == "cancel_order"
    assert "ready: intents (version 1)" in errors
    assert "try: lepto infer intents" in errors
    assert server.returncode == 0
    assert left_by(server.pid) == []


@pytest.mark.parametrize("delay_s", [0.6, 1.2])
def test_ctrl_c_while_starting_leaves_nothing(repository: Path, delay_s: float) -> None:
    with serve(repository) as server:
        try:
            server.wait(delay_s)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGINT)
        _, errors = server.communicate(timeout=30)

    assert server.returncode in (0, 130)
    assert "Traceback" not in errors
    assert left_by(server.pid) == []
