from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from lepto.benchmarks.checks.check import Check, Verdict
from lepto.benchmarks.checks.registry import REGISTRY
from lepto.benchmarks.commands import Format
from lepto.benchmarks.formats import render
from lepto.benchmarks.gate import GateResult
from lepto.benchmarks.gate_config import read_config
from lepto.runtime.errors import LeptoError


def read(tmp_path: Path, text: str) -> object:
    path = tmp_path / "gate.yaml"
    path.write_text(text)
    return read_config(path)


class TestConfig:
    def test_reads_everything(self, tmp_path: Path) -> None:
        config = read_config_text(
            tmp_path,
            "eval: test.csv\nlabel_column: category\nlooks: [12, 24]\nchecks:\n  latency: {p50: 3%, p90: 5%}\n"
            "  accuracy: {limit: 0.5 points, rule: mlperf}\n  worst-slice: {limit: 5 points, by: [label, length], "
            "least: 50}\n  bytes: 4 MB\n  memory:\n",
        )
        assert list(config.checks) == ["latency", "accuracy", "worst-slice", "bytes", "memory"]
        assert str(config.checks["latency"].limits["p90"]) == "5%"
        assert config.checks["accuracy"].options == {"rule": "mlperf"}
        assert config.checks["worst-slice"].options["by"] == ["label", "length"]
        assert str(config.checks["memory"].limit) == REGISTRY["memory"].default
        assert config.plan().looks == (12, 24)
        assert config.plan().checks == 2 + 1 + 1 + 0 + 1

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            (
                "checks:\n  latency: 3%\n  acuracy: 1%\n",
                "line 3: acuracy: unknown check 'acuracy': did you mean 'accuracy'?",
            ),
            ("checks:\n  accuracy: 1%\n  latency: 3\n", "line 3: latency: the limit '3' has no unit: write one of 5%"),
            ("checks:\n  latency:\n    p50: 3%\n    p90: 5\n", "line 4: latency: the limit '5' has no unit"),
            ("checks:\n  bytes: 5 ms\n", "line 2: bytes: the limit '5 ms' is in ms, which does not fit here"),
            (
                "checks:\n  accuracy:\n    limit: 1%\n    rul: mlperf\n",
                "line 4: accuracy: the check 'accuracy' has no option 'rul'",
            ),
            ("checks:\n  accuracy: {rule: luck}\n", "rule must be one of non-inferiority, mlperf, got 'luck'"),
            ("evl: a.csv\n", "line 1: unknown key 'evl': did you mean 'eval'?"),
            ("eval: a.csv\nthreads: none\n", "line 2: threads"),
            ("checks: []\n", "line 1: checks must name at least one of"),
            ("checks: [\n", "no valid YAML"),
            ("- a\n", "must have keys such as"),
            ("looks: [3, 5]\n", "the first look must have at least"),
            ("checks:\n  worst-slice: {least: many}\n", "least must be a whole number"),
        ],
    )
    def test_mistakes_are_told_with_their_line(self, tmp_path: Path, text: str, message: str) -> None:
        with pytest.raises(LeptoError) as error:
            read(tmp_path, text)
        assert message in str(error.value)
        assert error.value.exit_code == 2

    def test_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(LeptoError, match="cannot read the gate file"):
            read_config(tmp_path / "none.yaml")


def read_config_text(tmp_path: Path, text: str) -> object:
    return read(tmp_path, text)


RESULT = GateResult(
    "a",
    "b",
    (
        Check("p50_ms", Verdict.PASS, "p50_ms fell", 1.0, 0.9, -0.1, -0.12, -0.08, "3%", 0.03, 12, 0.9),
        Check(
            "accuracy",
            Verdict.REGRESSION,
            "accuracy fell 2.00 points, 5% | <of>",
            baseline=0.9,
            candidate=0.88,
            change=-0.02,
            low=-0.03,
            limit="1 points",
            allowed=-0.01,
            n=3080,
            p=0.001,
        ),
        Check("kl", Verdict.INCONCLUSIVE, "kl: two\nlines"),
    ),
    3.2,
    notes=("a note",),
)


class TestFormats:
    def test_junit(self) -> None:
        suites = ET.fromstring(render(RESULT, Format.junit))
        suite = suites[0]
        assert suite.attrib | {"time": ""} == {
            "name": "lepto gate", "tests": "3", "failures": "1", "errors": "1", "time": "",
        }  # fmt: skip
        assert suite[1][0].tag == "failure"
        assert suite[1][0].attrib["message"] == "accuracy fell 2.00 points, 5% | <of>"
        assert suite[2][0].tag == "error"

    def test_markdown(self) -> None:
        text = render(RESULT, Format.markdown)
        assert text.startswith("### ❌ Gate: regression")
        assert "| ❌ | accuracy | 0.9 | 0.88 | -2.00 pt | -3.00 pt | 1 points | 3,080 |" in text
        plots = [line for line in text.splitlines() if "●" in line and "┃" in line and not line.startswith(" ")]
        assert len(plots) == 2
        assert plots[0].index("●") < plots[0].index("┃")  # faster lies left of the limit
        assert plots[1].index("●") > plots[1].index("┃")  # a loss beyond its limit lies right of it
        assert "> a note" in text

    def test_github(self) -> None:
        lines = render(RESULT, Format.github).splitlines()
        assert lines[0].startswith("::notice title=lepto gate%3A p50_ms::")
        assert lines[1] == "::error title=lepto gate%3A accuracy::accuracy fell 2.00 points, 5%25 | <of>"
        assert lines[2] == "::warning title=lepto gate%3A kl::kl: two%0Alines"
        assert lines[3].startswith("::error title=lepto gate::b: regression")

    def test_json(self) -> None:
        import json

        document = json.loads(render(RESULT, Format.json))
        assert document["verdict"] == "regression"
        assert document["checks"][2]["name"] == "kl"
