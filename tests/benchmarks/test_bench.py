from __future__ import annotations

import contextlib
import json
import math
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from lepto.benchmarks import gate as gating
from lepto.benchmarks import workers
from lepto.benchmarks.loadgen import read_summary
from lepto.benchmarks.results import change_points, draw
from lepto.benchmarks.targets import parse_url
from lepto.runtime import cli
from lepto.runtime.errors import LeptoError
from lepto.runtime.package import open_package

MakePackage = Callable[..., Path]


@pytest.fixture
def lepto(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def run(*arguments: Any) -> tuple[int, str, str]:
        code = cli.run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


class TestScenarios:
    @pytest.mark.parametrize(
        ("scenario", "metric"),
        [("single-stream", "p90_ms"), ("multi-stream", "p99_ms"), ("offline", "samples_per_second")],
    )
    def test_in_process(
        self, lepto: Any, make_package: MakePackage, tmp_path: Path, evaluation: Path, scenario: str, metric: str
    ) -> None:
        one = make_package(tmp_path / "one")
        code, out, err = lepto("bench", one, "--scenario", scenario, "--seconds", 0.5, "--eval", evaluation, "--json")
        assert code == 0, err
        found = json.loads(out)
        assert found["metric"] == metric
        assert found["value"] > 0
        assert found["throughput"] > 0
        assert found["queries"] >= 64
        assert found["versions"]["mlcommons-loadgen"]
        assert found["load_ms"] > 0
        if scenario == "single-stream":
            assert 0 < found["p50_ms"] <= found["p90_ms"] <= found["p99_ms"]

    def test_server_finds_a_rate(self, lepto: Any, make_package: MakePackage, tmp_path: Path) -> None:
        one = make_package(tmp_path / "one")
        options = ("--scenario", "server", "--seconds", 0.3, "--workers", 1, "--json")
        code, out, err = lepto("bench", one, *options, "--bound-ms", 50)
        assert code == 0, err
        found = json.loads(out)
        assert found["value"] > 100
        assert len(found["trials"]) > 2
        code, _, err = lepto("bench", one, *options, "--bound-ms", 0.001)
        assert code == 1
        assert "allow more with --bound-ms" in err

    def test_summary(self) -> None:
        assert read_summary("====\nResult is : VALID\n  50.00 percentile latency (ns)   : 7\nno\n") == {
            "Result is": "VALID",
            "50.00 percentile latency (ns)": "7",
        }

    def test_urls(self) -> None:
        url = parse_url("grpc://127.0.0.1:8001/intents")
        assert url is not None
        assert (url.protocol, url.address, url.model) == ("grpc", "127.0.0.1:8001", "intents")
        assert parse_url("host:80/m") is not None
        assert parse_url("out/package") is None

    def test_wrong_usage(self, lepto: Any, make_package: MakePackage, tmp_path: Path) -> None:
        one = make_package(tmp_path / "one")
        assert "one package or one served model" in lepto("bench", one, one, "--scenario", "offline")[2]
        assert "is a served model" in lepto("bench", "127.0.0.1:1/m")[2]
        code, _, err = lepto("bench", "127.0.0.1:1/m", "--scenario", "offline")
        assert code == 2
        assert "does not answer" in err


@pytest.fixture(scope="module")
def served(make_package: MakePackage, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from lepto.runtime.repository import publish
    from lepto.runtime.server import Server
    from lepto.runtime.tritonserver import find_installation

    try:
        find_installation()
    except LeptoError as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("served")
    publish(make_package(folder / "t"), folder / "repository")
    with Server(folder / "repository", http_port=0, grpc_port=0, metrics_port=0) as server:
        yield server


class TestServed:
    @pytest.mark.parametrize("protocol", ["http", "grpc"])
    def test_single_stream(self, lepto: Any, served: Any, evaluation: Path, protocol: str) -> None:
        address = served.http_url if protocol == "http" else served.grpc_url
        code, out, err = lepto(
            "bench", f"{protocol}://{address}/t", "--scenario", "single-stream", "--seconds", 0.5, "--eval", evaluation,
            "--json",
        )  # fmt: skip
        assert code == 0, err
        found = json.loads(out)
        assert 0 < found["p50_ms"] < 1000
        assert found["queries"] >= 64
        if protocol == "http":
            assert found["server"] == "triton"

    def test_offline(self, lepto: Any, served: Any) -> None:
        code, _, err = lepto("bench", f"{served.http_url}/t", "--scenario", "offline", "--seconds", 0.3)
        assert code == 0, err

    def test_a_model_that_is_not_there(self, lepto: Any, served: Any) -> None:
        code, _, err = lepto("bench", f"{served.http_url}/nobody", "--scenario", "offline")
        assert code == 2
        assert "nobody does not answer" in err

    def test_a_server_that_dies_half_way(
        self, lepto: Any, make_package: MakePackage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from lepto.benchmarks.targets import Served
        from lepto.runtime.repository import publish
        from lepto.runtime.server import Server
        from lepto.runtime.tritonserver import find_installation

        try:
            find_installation()
        except LeptoError as error:
            pytest.skip(str(error))
        publish(make_package(tmp_path / "t"), tmp_path / "repository")
        server = Server(tmp_path / "repository", http_port=0, grpc_port=0, metrics_port=0)
        run, asked = Served.run, []

        def run_and_kill(self: Served, place: int) -> None:
            asked.append(place)
            if len(asked) == 100:  # long after the first answers, which show that it is there
                _kill_servers()
            run(self, place)

        monkeypatch.setattr(Served, "run", run_and_kill)
        with server:
            code, _, err = lepto("bench", f"{server.http_url}/t", "--scenario", "single-stream", "--seconds", 1)
        assert len(asked) >= 100
        assert code == 2, err
        assert "stopped answering after" in err
        assert "start it again" in err


def _kill_servers() -> None:
    """Kill this test's own tritonserver, as the system would."""
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # another child may end in between
            if process.name() == "tritonserver":
                process.kill()


class TestStored:
    def test_store_history_and_gate(
        self, lepto: Any, make_package: MakePackage, tmp_path: Path, evaluation: Path
    ) -> None:
        one, two = make_package(tmp_path / "one"), make_package(tmp_path / "two", swap=True)
        store = ("--blocks", 6, "--eval", evaluation, "--store", "--results", tmp_path / "results", "--json")
        code, out, err = lepto("bench", one, *store)
        assert code == 0, err
        document = json.loads(out)
        (stored,) = document["stored"]
        assert document["aa"]["low"] <= document["aa"]["value"] <= document["aa"]["high"]
        assert lepto("gate", stored, one, "--eval", evaluation, "--checks", "accuracy,bytes")[0] == 0
        assert lepto("gate", stored, two, "--eval", evaluation, "--checks", "accuracy,bytes")[0] == 1
        code, _, err = lepto("gate", stored, one, "--eval", evaluation, "--checks", "latency", "--wait", 0)
        assert code == 3
        assert "must be measured on one machine" in err
        evaluation.write_text(evaluation.read_text() + "please order,order\n")
        code, _, err = lepto("gate", stored, one, "--eval", evaluation, "--checks", "accuracy")
        assert code == 2
        assert "was stored with other samples" in err
        code, out, _ = lepto("history", "t", "--results", tmp_path / "results", "--json")
        assert code == 0
        assert len(json.loads(out)["series"][0]["values"]) == 1
        code, _, err = lepto("history", "nobody", "--results", tmp_path / "results")
        assert code == 2
        assert "stored there: t" in err

    def test_a_baseline_of_other_hardware_is_told(self, lepto: Any, make_package: MakePackage, tmp_path: Path) -> None:
        one = make_package(tmp_path / "one")
        code, out, _ = lepto("bench", one, "--blocks", 6, "--store", "--results", tmp_path / "r", "--json")
        path = Path(json.loads(out)["stored"][0])
        path.write_text(json.dumps(json.loads(path.read_text()) | {"hardware": "Abacus"}))
        code, out, _ = lepto("gate", path, one, "--checks", "bytes")
        assert code == 0
        assert "stored on other hardware (Abacus" in out
        path.write_text("{}")
        code, _, err = lepto("gate", path, one, "--checks", "bytes")
        assert code == 2
        assert "is no stored result" in err

    def test_change_points(self) -> None:
        generator = np.random.default_rng(0)
        flat = np.exp(generator.normal(0, 0.02, 40))
        assert change_points(flat) == []
        stepped = flat * np.where(np.arange(40) < 25, 1.0, 1.15)
        assert change_points(stepped) == [25]
        assert change_points([1.0, 2.0]) == []
        lines = draw([1.0, 1.0, 2.0], [2])
        assert sum(line.count("●") for line in lines) == 3
        assert sum("┊" in line for line in lines) == len(lines) - 1


class TestPublish:
    def test_only_what_passes_is_published(
        self, lepto: Any, make_package: MakePackage, tmp_path: Path, evaluation: Path
    ) -> None:
        one, bad = make_package(tmp_path / "one"), make_package(tmp_path / "bad", swap=True)
        config = tmp_path / "gate.yaml"
        config.write_text(f"eval: {evaluation}\nchecks:\n  accuracy: 1%\n  bytes: 5%\n")
        repository = tmp_path / "repository"
        options = ("--model-repository", repository, "--gate", config)
        code, _, err = lepto("publish", one, *options)
        assert code == 2
        assert "publish the first version without --gate" in err
        assert lepto("publish", one, "--model-repository", repository)[0] == 0
        code, _, err = lepto("publish", bad, *options)
        assert code == 1
        assert "not published, version 1 of 't' stays in production: regression: accuracy fell" in err
        code, out, err = lepto("publish", one, *options, "--json")
        assert code == 0, err
        assert json.loads(out)["version"] == 2
        assert json.loads(out)["versions"] == [1, 2]
        code, out, _ = lepto("rollback", "t", "--model-repository", repository, "--json")
        assert json.loads(out)["version"] == 1


class TestBadInput:
    def test_another_task(self, lepto: Any, make_package: MakePackage, tmp_path: Path) -> None:
        one, two = make_package(tmp_path / "one"), make_package(tmp_path / "two")
        manifest = json.loads((two / "manifest.json").read_text())
        (two / "manifest.json").write_text(json.dumps(manifest | {"task": "ranking"}))
        code, _, err = lepto("gate", one, two, "--checks", "bytes")
        assert code == 2
        assert "for task 'text-classification'" in err
        assert "'ranking'" in err

    def test_a_candidate_that_answers_errors(
        self, lepto: Any, make_package: MakePackage, tmp_path: Path, evaluation: Path
    ) -> None:
        one, two = make_package(tmp_path / "one"), make_package(tmp_path / "two", rows=6)
        code, _, err = lepto("gate", one, two, "--eval", evaluation, "--checks", "accuracy,latency", "--wait", 0)
        assert code == 1
        assert "answers an error for sample" in err
        assert "latency:" in err
        code, _, err = lepto("gate", two, one, "--eval", evaluation, "--checks", "latency", "--wait", 0)
        assert code == 2
        assert "does not answer" in err

    def test_a_process_that_is_killed(self, make_package: MakePackage, tmp_path: Path) -> None:
        package = open_package(make_package(tmp_path / "one"))
        inputs, _ = package.probe()
        feeds = [{name: array[:1] for name, array in inputs.items()}]
        worker = workers.Worker(workers.Subject(package, feeds, 1), sorted(os.sched_getaffinity(0)))
        os.kill(worker._process.pid, signal.SIGKILL)
        time.sleep(0.2)
        with pytest.raises(LeptoError, match=r"died \(exit code -9\)"):
            worker.run([0])
        worker.close()

    def test_a_machine_under_load(
        self, lepto: Any, make_package: MakePackage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        one = make_package(tmp_path / "one")
        shares = [0.9, 0.9, 0.1]
        monkeypatch.setattr(workers, "others_busy", lambda *_: shares.pop(0) if len(shares) > 1 else shares[0])
        options = ("--checks", "latency", "--max-slowdown", "300%")
        code, out, _ = lepto("gate", one, one, *options, "--wait", 30)
        assert code == 0
        assert "other work uses 90% of this machine's CPUs: waiting up to 30 s" in out
        assert "note:" not in out
        shares[:] = [0.9]
        code, out, _ = lepto("gate", one, one, *options, "--wait", 0)
        assert code == 0
        assert "note: other work used 90% of the CPUs" in out
        assert gating.BUSY == 0.25


def test_numbers_are_plain() -> None:
    from lepto.benchmarks.bench import _plain

    assert _plain(math.nan) is None
    assert _plain(1.5) == 1.5


def test_the_time_left_is_shown() -> None:
    from rich.console import Console

    from lepto.runtime.console import Output

    progress = Output(as_json=True).progress()  # not started: what it would draw is asked for instead
    task = progress.add_task("measuring", total=10)
    for done in range(1, 6):
        time.sleep(0.02)
        progress.update(task, completed=done)
    shown = Console(width=100, force_terminal=True)
    with shown.capture() as said:
        shown.print(progress.get_renderable())
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", said.get())
    assert re.search(r"measuring .* 5/10 \d:\d\d:\d\d 0:00:0\d left", plain), plain
