from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lepto.benchmarks import gpu
from lepto.runtime import cli
from lepto.runtime.errors import LeptoError
from lepto.runtime.measure import interleave

MakePackage = Callable[..., Path]
LINE = "NVIDIA L4, 570.86.15, 2040, 2040, 6251, 61, 71.32, 0x0000000000000000\n"


@pytest.fixture
def lepto(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def run(*arguments: Any) -> tuple[int, str, str]:
        code = cli.run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def reading(sm_mhz: float = 2000.0, slowed_by: tuple[str, ...] = ()) -> gpu.Reading:
    return gpu.Reading("NVIDIA L4", "570", sm_mhz, 2040.0, 6251.0, 61.0, 70.0, slowed_by)


class TestReading:
    def test_what_the_driver_says(self) -> None:
        found = gpu.parse_reading(LINE)
        assert found == gpu.Reading("NVIDIA L4", "570.86.15", 2040, 2040, 6251, 61, 71.32, ())

    @pytest.mark.parametrize(
        ("mask", "expected"),
        [
            ("0x0000000000000001", ()),  # idle
            ("0x0000000000000002", ()),  # clocks that someone chose
            ("0x0000000000000004", ("power cap",)),
            ("0x0000000000000048", ("hardware slowdown", "temperature (hardware)")),
            ("[N/A]", ()),
        ],
    )
    def test_why_it_is_slow(self, mask: str, expected: tuple[str, ...]) -> None:
        assert gpu.parse_reading(LINE.replace("0x0000000000000000", mask)).slowed_by == expected

    def test_what_the_driver_does_not_tell(self) -> None:
        found = gpu.parse_reading("A, 570, [N/A], [N/A], 6251, 40, [Not Supported], 0x0")
        assert (found.sm_mhz, found.power_w, found.memory_mhz) == (None, None, 6251)
        with pytest.raises(LeptoError, match="8 values were asked for"):
            gpu.parse_reading("No devices were found")

    def test_notes(self) -> None:
        assert gpu.notes([reading(), reading(2010)]) == []
        (hot,) = gpu.notes([reading(), reading(slowed_by=("power cap",))])
        assert "slowed itself down (power cap)" in hot
        (moved,) = gpu.notes([reading(1500), reading(2000)])
        assert "between 1500 and 2000 MHz" in moved
        assert "nvidia-smi -lgc" in moved

    def test_what_is_stored(self) -> None:
        found = gpu.document([reading(1500), reading(2000)], True)
        assert found["sm_mhz"] == [1500, 2000]
        assert found["temperature_c"] == [61, 61]
        assert len(found["readings"]) == 2
        assert "replayed graphs" in found["timed_by"]
        json.dumps(found, allow_nan=False)


def test_a_graph_for_each_shape() -> None:
    short, long = ({"x": np.zeros((1, n)), "y": np.zeros(1)} for n in (3, 4))
    assert gpu.shapes_of(short) == gpu.shapes_of(dict(reversed(short.items())))
    assert gpu.shapes_of(short) != gpu.shapes_of(long)


def test_another_clock_is_asked() -> None:
    ran: list[tuple[str, int]] = []

    def runner(name: str) -> Callable[[int], None]:
        return lambda place: ran.append((name, place))

    def timer(run: Callable[[Any], Any], feed: Any) -> float:
        run(feed)
        return float(feed) + (100.0 if ran[-1][0] == "b" else 0.0)

    names = {name: runner(name) for name in "ab"}
    found = interleave(names, [1, 2, 3], blocks=4, per_block=3, warmup=0, seed=0, timer=timer)
    np.testing.assert_array_equal(found["b"], found["a"] + 100.0)
    assert sorted(found["a"][0].tolist()) == [1.0, 2.0, 3.0]


class TestWithoutGpu:
    def test_no_driver(
        self, lepto: Any, make_package: MakePackage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(gpu.shutil, "which", lambda name: None)
        code, _, err = lepto("bench", make_package(tmp_path / "one"), "--device", "cuda")
        assert code == 2
        assert "--device cuda needs an NVIDIA GPU and its driver" in err
        assert "leave --device out" in err

    def test_a_driver_without_a_gpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(gpu.shutil, "which", lambda name: "nvidia-smi")
        failed = subprocess.CompletedProcess([], 9, "", "NVIDIA-SMI has failed because it couldn't communicate")
        monkeypatch.setattr(gpu.subprocess, "run", lambda *_, **__: failed)
        with pytest.raises(LeptoError, match="nvidia-smi does not answer"):
            gpu.find_gpu()

    def test_a_torch_without_cuda(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import torch

        monkeypatch.setattr(gpu.shutil, "which", lambda name: "nvidia-smi")
        monkeypatch.setattr(gpu.subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 0, LINE, ""))
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        with pytest.raises(LeptoError, match="sees no GPU"):
            gpu.find_gpu()


def test_on_a_gpu(lepto: Any, make_package: MakePackage, tmp_path: Path) -> None:
    try:
        gpu.find_gpu()
    except LeptoError as error:
        pytest.skip(str(error))
    one, two = make_package(tmp_path / "one"), make_package(tmp_path / "two", work=40)
    code, out, err = lepto("bench", one, two, "--blocks", 6, "--device", "cuda", "--json")
    assert code == 0, err
    document = json.loads(out)
    assert document["gpu"]["name"]
    first, second = (row["gpu"] for row in document["packages"])
    assert 0 < first["p50_ms"] < second["p50_ms"]
