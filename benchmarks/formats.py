"""What a gate says, in the forms that build servers read: JSON, JUnit, Markdown, GitHub's workflow commands."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET

from lepto.benchmarks.checks.check import Check, Verdict
from lepto.benchmarks.commands import Format
from lepto.benchmarks.gate import GateResult

MARKS = {Verdict.PASS: "✅", Verdict.REGRESSION: "❌", Verdict.INCONCLUSIVE: "⚠️"}
_WIDTH = 41


def render(result: GateResult, how: Format) -> str:
    """The result as text of one format.

    Raises:
        ValueError: ``text`` is printed by :func:`lepto.benchmarks.gate.print_checks`.
    """
    makers = {
        Format.json: lambda: json.dumps(result.document(), indent=2, default=str, allow_nan=False) + "\n",
        Format.junit: lambda: junit(result),
        Format.markdown: lambda: markdown(result),
        Format.github: lambda: github(result),
    }
    if how not in makers:
        raise ValueError(f"{how} has no document")
    return makers[how]()


def junit(result: GateResult) -> str:
    """JUnit's XML: a regression is a failure, an inconclusive check an error; neither is ever a skipped test."""
    suite = ET.Element(
        "testsuite",
        name="lepto gate",
        tests=str(len(result.checks)),
        failures=str(_count(result, Verdict.REGRESSION)),
        errors=str(_count(result, Verdict.INCONCLUSIVE)),
        time=f"{result.seconds:.2f}",
    )
    for check in result.checks:
        case = ET.SubElement(suite, "testcase", classname=f"lepto.gate.{result.candidate}", name=check.name)
        if check.verdict is Verdict.REGRESSION:
            ET.SubElement(case, "failure", message=check.message, type="regression").text = check.rule
        elif check.verdict is Verdict.INCONCLUSIVE:
            ET.SubElement(case, "error", message=check.message, type="inconclusive").text = check.rule
        else:
            ET.SubElement(case, "system-out").text = check.message
    suites = ET.Element("testsuites")
    suites.append(suite)
    ET.indent(suites)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(suites, encoding="unicode") + "\n"


def markdown(result: GateResult) -> str:
    """A table and a small plot of the intervals, for a pull request's comment."""
    lines = [
        f"### {MARKS[result.verdict]} Gate: {result.verdict.value}",
        "",
        f"`{result.candidate}` against `{result.baseline}`",
        "",
        "| | check | baseline | candidate | change | 95 % | limit | n |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for check in result.checks:
        cells = [
            MARKS[check.verdict],
            check.name,
            _value(check.baseline),
            _value(check.candidate),
            _change(check, check.change),
            " to ".join(filter(None, (_change(check, check.low), _change(check, check.high)))),
            check.limit or "",
            "" if check.n is None else f"{check.n:,}",
        ]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    drawn = [line for line in map(plot, result.checks) if line]
    if drawn:
        lines += ["", "```text", *drawn, f"{'':<14}{'better ◂':>{_WIDTH // 2}} │ ▸ worse      ● change  ┃ limit", "```"]
    open_ = [check for check in result.checks if check.verdict is not Verdict.PASS]
    if open_:
        lines += ["", *(f"- **{check.name}**: {check.message}" for check in open_)]
    if result.blame:
        lines += ["", "<details><summary>Why</summary>", "", "```text", *result.blame, "```", "", "</details>"]
    lines += ["", *(f"> {note}" for note in result.notes)]
    lines.append(f"<sub>{result.hardware}; {result.seconds:.0f} s</sub>")
    return "\n".join(lines) + "\n"


def plot(check: Check) -> str:
    """One line: the change's interval on an axis on which the limit lies at three quarters of the right half."""
    if check.change is None or not check.allowed:
        return ""
    sign = -1.0 if check.allowed < 0 else 1.0  # rates get worse downwards
    scale = abs(check.allowed) / 0.75
    half = _WIDTH // 2

    def place(value: float) -> int:
        return max(0, min(_WIDTH - 1, half + round(half * sign * value / scale)))

    row = [" "] * _WIDTH
    row[half] = "│"
    if check.low is not None:
        ends = sorted((place(check.low), place(check.change if check.high is None else check.high)))
        row[ends[0] : ends[1] + 1] = "─" * (ends[1] - ends[0] + 1)
    row[place(check.allowed)] = "┃"
    row[place(check.change)] = "●"
    return f"{check.name:<13} {''.join(row)} {_change(check, check.change)}"


def github(result: GateResult) -> str:
    """Workflow commands, which become annotations."""
    words = {Verdict.PASS: "notice", Verdict.REGRESSION: "error", Verdict.INCONCLUSIVE: "warning"}
    lines = [
        f"::{words[check.verdict]} title={_escape(f'lepto gate: {check.name}', True)}::{_escape(check.message)}"
        for check in result.checks
    ]
    lines.append(
        f"::{words[result.verdict]} title=lepto gate::{_escape(f'{result.candidate}: {result.verdict.value}')}"
    )
    return "\n".join(lines) + "\n"


def _escape(text: str, is_property: bool = False) -> str:
    for old, new in (
        ("%", "%25"),
        ("\r", "%0D"),
        ("\n", "%0A"),
        *(((":", "%3A"), (",", "%2C")) if is_property else ()),
    ):
        text = text.replace(old, new)
    return text


def _count(result: GateResult, verdict: Verdict) -> int:
    return sum(check.verdict is verdict for check in result.checks)


def _value(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _change(check: Check, value: float | None) -> str:
    if value is None:
        return ""
    if check.name in ("accuracy", "f1", "word_accuracy", "worst_slice", "ece", "fairness", "flip_rate"):
        return f"{100 * value:+.2f} pt"
    return f"{value:+.4g}" if check.name in ("kl", "explanations") else f"{100 * value:+.1f} %"
