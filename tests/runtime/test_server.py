"""The whole serving road on a real tritonserver: one server for the module, more only where one must die."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import tritonclient.grpc as grpcclient

from lepto.runtime import server as server_module
from lepto.runtime import tritonserver
from lepto.runtime.client import TextClient
from lepto.runtime.control import Control
from lepto.runtime.errors import LeptoError
from lepto.runtime.published import CONFIG
from lepto.runtime.repository import publish, rollback
from lepto.runtime.server import Server
from lepto.runtime.session import Session
from lepto.runtime.text import TextClassifier
from lepto.runtime.tritonserver import find_installation, guardian_order, new_folder

needs_server = pytest.mark.skipif(find_spec("pytriton") is None, reason="needs the extra lepto[server]")
MakePackage = Callable[..., Path]
TEXTS = ["where is my order", "cancel", "refund please", "", "ünïcödé 🎉", "please cancel my order please"]
FREE: dict[str, Any] = {
    "http_port": 0,
    "grpc_port": 0,
    "metrics_port": 0,
    "probe_interval_s": 0.2,
    "grace_s": 3,
    "drain_s": 1.0,
}


def leftovers(*, apart_from: Server | None = None) -> set[str]:
    """What servers of this process may leave: folders, shared memory, processes.

    Args:
        apart_from: A server that runs on; it may be loading or unloading a version at any time.
    """
    run = apart_from._incarnation if apart_from is not None else None
    name = run._log.parent.name if run is not None else "-"
    prefix = f"lepto{name.removeprefix('lepto-server-').replace('-', 'x')}_"
    folders = {
        str(path) for path in Path(tempfile.gettempdir()).glob(f"lepto-server-{os.getpid()}-*") if path.name != name
    }
    segments = {
        str(path) for path in Path("/dev/shm").glob(f"lepto{os.getpid()}x*") if not path.name.startswith(prefix)
    }
    processes = set()
    for child in psutil.Process().children(recursive=True):
        try:
            # Python's own fork server and resource tracker, started by other tests, end with this process.
            own = any("from multiprocessing." in word for word in child.cmdline())
            if not own and (run is None or os.getsid(child.pid) != run._guardian.pid):
                processes.add(f"{child.pid} {child.name()}")
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return folders | segments | processes


def environments() -> set[Path]:
    """Folders of the python backend, of any server on this machine."""
    return set(Path("/tmp").glob("python_env_*"))


def wait_for(condition: Callable[[], object], timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.05)


def foreign_files(root: Path) -> set[str]:
    """What is in a repository besides what `publish` writes."""
    published = {
        "config.pbtxt", "labels.txt", "manifest.json", "model.onnx", "model.py", "tokenizer.json", "preprocessing.json",
        ".lepto.lock",
    }  # fmt: skip
    return {str(path) for path in root.rglob("*") if path.is_file() and path.name not in published}


@pytest.fixture(scope="module")
def packages(
    make_text_package: MakePackage, make_tensor_package: MakePackage, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("packages")
    return {
        "v1": make_text_package(folder / "v1"),
        "v2": make_text_package(folder / "v2", model="text_v2"),
        "linear": make_tensor_package(folder / "linear"),
    }


@pytest.fixture(scope="module")
def served(
    packages: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Server, Path, list[str]]]:
    # A space in the path: the server must never see it.
    root = tmp_path_factory.mktemp("served") / "model repository"
    publish(packages["v1"], root)
    publish(packages["linear"], root)
    said: list[str] = []
    with Server(root, say=said.append, **FREE) as server:
        yield server, root, said
    assert leftovers() == set()
    assert foreign_files(root) == set()


def test_an_interrupt_while_it_waits_does_not_forget_the_server(tmp_path, monkeypatch):
    """Python up to 3.12 takes a thread for ended whose join was broken off: the command would leave its server."""
    ended = []

    def supervise(server):
        server._up.set()
        server._stop.wait()
        time.sleep(0.3)
        ended.append("cleaned up")

    monkeypatch.setattr(Server, "_supervise", supervise)
    monkeypatch.setattr(signal, "alarm", signal.alarm)
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), Server(tmp_path) as server:  # noqa: PT012  (what comes after counts)
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            server.wait(5)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert ended == ["cleaned up"]
    assert server.wait(0)


@needs_server
@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_answers_are_the_packages_own(
    served: tuple[Server, Path, list[str]], packages: dict[str, Path], protocol: Any
) -> None:
    server = served[0]
    url = server.http_url if protocol == "http" else server.grpc_url
    expected = TextClassifier(packages["v1"]).predict(TEXTS, top=3)

    with TextClient(url, "intents", protocol=protocol) as client:
        together = client.classify(TEXTS, top=3)
        alone = [client.classify([text], top=3)[0] for text in TEXTS]

    for answers in (together, alone):
        for answer, own in zip(answers, expected, strict=True):
            # The classification extension prints six decimals, and leaves the order of equal scores open.
            assert {one.label: one.score for one in answer} == pytest.approx(
                {one.label: one.score for one in own}, abs=1e-6
            )
            assert answer[0].score == pytest.approx(own[0].score, abs=1e-6)


@needs_server
def test_serving_writes_nothing_into_the_repository(served: tuple[Server, Path, list[str]]) -> None:
    assert foreign_files(served[1]) == set()


@needs_server
def test_other_users_cannot_read_the_environment_from_the_processes(served: tuple[Server, Path, list[str]]) -> None:
    pid = served[0].pid
    assert pid is not None
    guardian = psutil.Process(pid).parent()
    assert guardian is not None
    for process in (guardian, *guardian.children(recursive=True)):
        assert os.environ["PATH"] not in " ".join(process.cmdline())


@needs_server
def test_raw_tensors_are_bit_for_bit_the_sessions(
    served: tuple[Server, Path, list[str]], packages: dict[str, Path]
) -> None:
    classifier = TextClassifier(packages["v1"])
    inputs = classifier.encoder.encode(["where is my order"])
    x = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)

    with TextClient(served[0].grpc_url, "intents", protocol="grpc") as client:
        raw = client.infer(inputs)
        linear = client.infer({"x": x}, model="linear")

    for name, array in classifier.session.run(inputs).items():
        np.testing.assert_array_equal(raw[name], array)
    np.testing.assert_array_equal(linear["y"], Session(packages["linear"]).run({"x": x})["y"])


@needs_server
def test_bad_requests_get_errors_and_others_go_on(served: tuple[Server, Path, list[str]]) -> None:
    server = served[0]
    ids = np.array([[2, 5, 3]], np.int64)
    bad: list[dict[str, np.ndarray]] = [
        {"input_ids": ids.astype(np.int32), "attention_mask": ids},
        {"input_ids": ids[0], "attention_mask": ids},
        {"input_ids": ids, "attention_mask": ids[:, :2]},
        {"input_ids": ids, "mask": ids},
        {"input_ids": ids},
        {"input_ids": ids * 1000, "attention_mask": ids},
    ]
    stop = threading.Event()
    wrong: list[object] = []

    def neighbour() -> None:
        with TextClient(server.grpc_url, "intents", protocol="grpc") as client:
            while not stop.is_set():
                try:
                    (answer,) = client.classify(["cancel"])
                    if answer[0].label != "cancel_order":
                        wrong.append(answer)
                except Exception as error:
                    wrong.append(error)

    threads = [threading.Thread(target=neighbour) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for protocol, url in (("http", server.http_url), ("grpc", server.grpc_url)):
            with TextClient(url, "intents", protocol=protocol) as client:  # type: ignore[arg-type]  # a literal
                for inputs in bad:
                    with pytest.raises(LeptoError, match="refused the request"):
                        client.infer(inputs)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert wrong == []
    assert server.restarts == 0


@needs_server
def test_text_that_is_not_utf8_is_refused_alone(served: tuple[Server, Path, list[str]]) -> None:
    from tritonclient.http import InferenceServerClient, InferInput
    from tritonclient.utils import InferenceServerException

    client = InferenceServerClient(served[0].http_url)
    tensor = InferInput("TEXT", [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[b"\xff\xfe"]], dtype=np.object_))
    with pytest.raises(InferenceServerException, match="not valid UTF-8"):
        client.infer("intents", [tensor])
    client.close()


@needs_server
def test_many_clients_at_once(served: tuple[Server, Path, list[str]], packages: dict[str, Path]) -> None:
    server = served[0]
    expected = [one[0].label for one in TextClassifier(packages["v1"]).predict(TEXTS[:3])]
    wrong: list[object] = []

    def ask(protocol: Any) -> None:
        url = server.http_url if protocol == "http" else server.grpc_url
        with TextClient(url, "intents", protocol=protocol) as client:
            for _ in range(25):
                got = [one[0].label for one in client.classify(TEXTS[:3])]
                if got != expected:
                    wrong.append(got)

    threads = [threading.Thread(target=ask, args=(protocol,)) for protocol in ("http", "grpc") * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@needs_server
def test_a_new_version_and_a_rollback_under_load_lose_no_request(
    served: tuple[Server, Path, list[str]], packages: dict[str, Path]
) -> None:
    server, root, said = served
    scores = {name: round(TextClassifier(packages[name])("cancel").score, 4) for name in ("v1", "v2")}
    stop = threading.Event()
    seen: list[tuple[float, float]] = []  # when the request was sent, and the score that came back
    errors: list[Exception] = []

    def ask() -> None:
        # Not TextClient, which asks again when a version goes away under a request.
        client = grpcclient.InferenceServerClient(server.grpc_url)
        tensor = grpcclient.InferInput("TEXT", [1, 1], "BYTES")
        tensor.set_data_from_numpy(np.array([[b"cancel"]], dtype=np.object_))
        while not stop.is_set():
            sent = time.monotonic()
            try:
                answer = client.infer("intents", [tensor]).as_numpy("scores")
                seen.append((sent, round(float(answer.max()), 4)))
            except Exception as error:
                errors.append(error)
        client.close()

    def version() -> int:
        return next(model.version for model in server.models if model.name == "intents")

    def answers_from_now() -> set[float]:
        # Requests sent before the switch may still be answered by the version they found.
        now = time.monotonic()
        wait_for(lambda: sum(sent >= now for sent, _ in seen) >= 50)
        return {score for sent, score in seen if sent >= now}

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        publish(packages["v2"], root)
        wait_for(lambda: version() == 2)
        assert answers_from_now() == {scores["v2"]}
        assert rollback("intents", root).version == 1
        wait_for(lambda: version() == 1)
        assert answers_from_now() == {scores["v1"]}
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert errors == []
    assert {score for _, score in seen} == set(scores.values())
    assert "serving version 2 of 'intents'" in said
    # Only the version in production is kept loaded: callers of the raw model get it too.
    expected = {("intents", "1"), ("intents.model", "1"), ("intents.tokenizer", "1"), ("linear", "1")}
    with TextClient(server.http_url, "intents") as client:

        def ready() -> set[tuple[str, str]]:
            index = client._client.get_model_repository_index()
            return {(entry["name"], entry["version"]) for entry in index if entry.get("state") == "READY"}

        wait_for(lambda: ready() == expected)


@needs_server
def test_a_new_name_is_served_and_a_broken_version_is_not(
    served: tuple[Server, Path, list[str]], packages: dict[str, Path]
) -> None:
    server, root, said = served
    publish(packages["linear"], root, name="second")
    wait_for(lambda: any(model.name == "second" for model in server.models))

    # A version that got into production without `lepto publish`, and does not load.
    (root / "second" / "2").mkdir()
    (root / "second" / "2" / "manifest.json").write_bytes((root / "second" / "1" / "manifest.json").read_bytes())
    (root / "second" / "2" / "model.onnx").write_bytes(b"no model")
    config = root / "second" / CONFIG
    config.write_text(config.read_text().replace("versions: 1", "versions: 2"))
    wait_for(lambda: any("version 2 of 'second' is not served" in line for line in said))

    x = np.ones((1, 4), np.float32)
    with TextClient(server.http_url, "second") as client:
        np.testing.assert_array_equal(client.infer({"x": x}, model="second")["y"], [[3, 0]])
    assert next(line for line in said if "not served" in line).endswith("version 1 goes on serving")
    assert server.restarts == 0


def _command(process: psutil.Process) -> str:
    """Empty for one that has just ended."""
    try:
        return " ".join(process.cmdline())
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return ""


@needs_server
def test_a_dead_stub_is_noticed_and_replaced(served: tuple[Server, Path, list[str]]) -> None:
    server, root, said = served
    # Bring the repository of the test above in order, so that a restart can load it.
    config = root / "second" / CONFIG
    if config.exists():
        config.write_text(config.read_text().replace("versions: 2", "versions: 1"))
    pid = server.pid
    assert pid is not None
    stubs = [p for p in psutil.Process(pid).children(recursive=True) if "intents.model" in _command(p)]
    assert stubs
    for stub in stubs:
        stub.kill()

    # Triton itself still says that all is well.
    port = int(server.http_url.rpartition(":")[2])
    assert Control("127.0.0.1", port).ready("intents", 1)

    wait_for(lambda: any("answers again" in line for line in said))
    assert server.restarts == 1
    assert server.pid != pid
    with TextClient(server.http_url, "intents") as client:
        assert client.classify(["cancel"])[0][0].label == "cancel_order"
    assert len(list(Path(tempfile.gettempdir()).glob(f"lepto-server-{os.getpid()}-*"))) == 1


@needs_server
def test_a_server_that_was_killed_is_started_again(served: tuple[Server, Path, list[str]]) -> None:
    server, _, said = served
    before, pid = server.restarts, server.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)

    wait_for(lambda: server.restarts == before + 1 and server.pid not in (pid, None) and "answers again" in said[-1])
    with TextClient(server.http_url, "intents") as client:
        assert client.classify(["cancel"])[0][0].label == "cancel_order"


@needs_server
def test_a_port_in_use_is_said_before_anything_starts(served: tuple[Server, Path, list[str]]) -> None:
    _, root, _ = served
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen(1)
        port = taken.getsockname()[1]
        for flag, option in (
            ("--http-port", "http_port"),
            ("--grpc-port", "grpc_port"),
            ("--metrics-port", "metrics_port"),
        ):
            with pytest.raises(LeptoError, match=f"port {port} is in use; choose another with {flag}"):
                Server(root, **{**FREE, option: port}).start()
    with pytest.raises(LeptoError, match="given twice"):
        Server(root, **{**FREE, "http_port": 45671, "grpc_port": 45671}).start()


def test_an_empty_repository_has_nothing_to_serve(tmp_path: Path) -> None:
    with pytest.raises(LeptoError, match="nothing is published"):
        Server(tmp_path, **FREE).start()
    with pytest.raises(LeptoError, match="no model repository"):
        Server(tmp_path / "nowhere", **FREE).start()


@needs_server
def test_a_model_that_does_not_load_is_an_error_with_the_reason(
    served: tuple[Server, Path, list[str]], packages: dict[str, Path], tmp_path: Path
) -> None:
    publish(packages["linear"], tmp_path)
    (tmp_path / "linear" / "1" / "model.onnx").write_bytes(b"no model")

    with pytest.raises(LeptoError, match=r"(?s)did not start.*cannot load 'linear'"):
        Server(tmp_path, **FREE).start()
    assert leftovers(apart_from=served[0]) == set()


@needs_server
@pytest.mark.parametrize("delay_s", [0.0, 0.15, 0.6])
def test_stopped_while_starting_nothing_is_left(
    served: tuple[Server, Path, list[str]], packages: dict[str, Path], tmp_path: Path, delay_s: float
) -> None:
    publish(packages["linear"], tmp_path)
    server = Server(tmp_path, **FREE)
    starter = threading.Thread(target=server.start)
    starter.start()
    time.sleep(delay_s)

    server.stop()

    starter.join()
    assert leftovers(apart_from=served[0]) == set()


@needs_server
@pytest.mark.alone
@pytest.mark.parametrize("then", ["stop", "restart"])
def test_when_the_guardian_is_killed_nothing_is_left(
    served: tuple[Server, Path, list[str]], packages: dict[str, Path], tmp_path: Path, then: str
) -> None:
    publish(packages["linear"], tmp_path)
    before = environments()
    interval_s = 60.0 if then == "stop" else 0.2
    server = Server(tmp_path, **{**FREE, "probe_interval_s": interval_s}).start()
    try:
        assert server._incarnation is not None
        first = server._incarnation._log.parent
        server._incarnation._guardian.kill()
        if then == "restart":
            wait_for(lambda: server.restarts == 1 and server.pid is not None and not first.exists())
    finally:
        server.stop()
    assert leftovers(apart_from=served[0]) == set()
    assert environments() <= before


OWNER = """
import sys, time
from lepto.runtime.server import Server
server = Server(sys.argv[1], http_port=0, grpc_port=0, metrics_port=0, grace_s=3).start()
print(server.pid, flush=True)
time.sleep(60)
"""


@needs_server
@pytest.mark.alone
def test_when_the_owner_is_killed_nothing_is_left(packages: dict[str, Path], tmp_path: Path) -> None:
    publish(packages["linear"], tmp_path)
    before = environments()
    with subprocess.Popen([sys.executable, "-c", OWNER, str(tmp_path)], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        pid = int(owner.stdout.readline())
        owner.kill()
    wait_for(lambda: not psutil.pid_exists(pid))

    def nothing() -> bool:
        folders = list(Path(tempfile.gettempdir()).glob(f"lepto-server-{owner.pid}-*"))
        segments = list(Path("/dev/shm").glob(f"lepto{owner.pid}x*"))
        return not folders and not segments and environments() <= before

    wait_for(nothing)


def test_without_the_wheel_the_message_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tritonserver, "find_spec", lambda name: None)
    with pytest.raises(LeptoError, match=r"pip install 'lepto\[server\]'"):
        find_installation()


@needs_server
def test_without_libpython_the_message_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tritonserver.sysconfig, "get_config_var", lambda name: str(tmp_path))
    monkeypatch.setattr(tritonserver.sys, "base_prefix", str(tmp_path))

    def missing(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(tritonserver.ctypes, "CDLL", missing)
    with pytest.raises(LeptoError, match=r"libpython3\.\d+\.so\.1\.0.*apt-get install libpython3.*pyenv"):
        find_installation()


@needs_server
def test_a_stub_for_this_python_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tritonserver.sys, "version_info", type("V", (), {"major": 3, "minor": 99}))
    with pytest.raises(LeptoError, match=r"no stub for Python 3\.99, only for .*3\.11, 3\.12"):
        find_installation()


@needs_server
def test_everything_listens_on_loopback_and_paths_are_safe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/tmp/with space")
    order = guardian_order(find_installation(), tmp_path, ["a"], tritonserver.Ports(1, 2, 3), grace_s=5)

    command = order["command"]
    assert {"--http-address=127.0.0.1", "--grpc-address=127.0.0.1", "--metrics-address=127.0.0.1"} <= set(command)
    assert new_folder().parent == Path("/tmp")
    assert not any(" " in word for word in command[1:])
    assert json.dumps(order)


def test_probes_that_a_working_model_may_answer() -> None:
    answers = {status: server_module._alive(server_module.Answer(status, "")) for status in (0, 200, 400, 500, 503)}

    assert answers == {0: False, 200: True, 400: True, 500: False, 503: True}
