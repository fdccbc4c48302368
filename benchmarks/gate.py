"""Judge a candidate against a baseline: measure what the checks need, judge, correct, conclude; it fails closed.

Nothing passes by being left out: a check that was asked for and could not be made is inconclusive, and so is the gate.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from rich.markup import escape

from lepto.benchmarks.blamed import blamed
from lepto.benchmarks.checks.check import Check, Limit, Verdict, broken, corrected, not_checked, overall
from lepto.benchmarks.checks.registry import REGISTRY
from lepto.benchmarks.evidence import BrokenError, Evidence, MissingError
from lepto.benchmarks.gate_config import GateConfig
from lepto.benchmarks.sides import Side, check_comparable, open_sides
from lepto.benchmarks.workers import AnswerError, wait_until_quiet
from lepto.compiler.data import Samples, load_samples
from lepto.runtime.console import Output
from lepto.runtime.errors import LeptoError
from lepto.runtime.machine import package_versions, this_machine

__all__ = ["Check", "GateResult", "Limit", "Verdict", "as_document", "overall", "print_checks", "run_gate"]

VERSIONS: Final = ("lepto", "onnxruntime", "numpy", "scipy", "tokenizers")
# From here on other work disturbs the times; what was measured is judged all the same, and said to be so.
BUSY: Final = 0.25


@dataclass(frozen=True)
class GateResult:
    """What a gate has found.

    Attributes:
        baseline: As it was named.
        candidate: As it was named.
        checks: One value for each thing that was looked at.
        seconds: How long it took.
        others_busy: Share of the CPU time that other work had before measuring; None if unknown.
        settings: The resolved settings.
        hardware: CPU and its count.
        versions: Of what ran the models.
        notes: What a reader must know besides.
        blame: Why checks failed, line by line.
        blame_details: The same as plain values.
    """

    baseline: str
    candidate: str
    checks: tuple[Check, ...]
    seconds: float
    others_busy: float | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    hardware: str = ""
    versions: dict[str, str | None] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    blame: tuple[str, ...] = ()
    blame_details: dict[str, Any] = field(default_factory=dict)

    @property
    def verdict(self) -> Verdict:
        """Over all checks."""
        return overall(self.checks)

    def document(self) -> dict[str, Any]:
        """For ``--format json``."""
        return {
            "schema": "lepto.gate/1",
            "baseline": self.baseline,
            "candidate": self.candidate,
            **as_document(self.checks),
            "seconds": round(self.seconds, 2),
            "others_busy": self.others_busy,
            "notes": list(self.notes),
            "blame": {"lines": list(self.blame), **self.blame_details},
            "settings": self.settings,
            "hardware": self.hardware,
            "versions": self.versions,
        }


def run_gate(
    baseline: str | Path, candidate: str | Path, config: GateConfig, output: Output, *, slow: float = 0.0
) -> GateResult:
    """Make the checks of a gate.

    Args:
        baseline: A package, ``REPOSITORY/MODEL/VERSION``, or a stored result.
        candidate: The same.
        config: What is judged.
        output: Shows settings and progress.
        slow: For the proof of the gate: added to every run of the candidate, as a share of its time.

    Raises:
        LeptoError: Something that was given is broken or does not fit; that is no verdict.
    """
    references = [baseline, candidate, *([config.source] if config.source else [])]
    with open_sides(*references) as sides:
        check_comparable(sides[0], sides[1])
        if config.source:
            check_comparable(sides[2], sides[1])
        samples = read_samples(sides[1], config)
        evidence = Evidence(
            sides[:2],
            samples,
            plan=config.plan(),
            output=output,
            reference=config.eval,
            source=sides[2] if config.source else None,
            threads=config.threads,
            seed=config.seed,
            slow=slow,
        )
        return judge(evidence, config)


def judge(evidence: Evidence, config: GateConfig) -> GateResult:
    """Make all checks on opened sides."""
    start = time.monotonic()
    timed = any(REGISTRY[name].live for name in config.checks)
    busy = wait_until_quiet(config.wait_s, BUSY, evidence.output.print) if timed else None
    notes = []
    if busy is not None and busy >= BUSY:
        notes.append(
            f"other work used {busy:.0%} of the CPUs: times are compared in pairs, which hold under load, but it takes "
            "more of them to decide; rerun on a quieter machine (or wait longer with wait_s) if the gate is "
            "inconclusive"
        )
    checks: list[Check] = []
    for name, setting in config.checks.items():
        try:
            checks += REGISTRY[name].make(evidence, setting)
        except MissingError as error:
            checks.append(not_checked(name, str(error)))
        except (BrokenError, AnswerError) as error:
            checks.append(_failed(name, error, evidence))
    checks = corrected(checks, config.alpha)
    notes += _hardware_notes(evidence.sides)
    machine = this_machine()
    seconds = time.monotonic() - start
    # The proof of the gate slows one side down on purpose: there is nothing to explain.
    lines, details = ((), {}) if evidence.slowed else blamed(checks, evidence)
    return GateResult(
        evidence.sides[0].name,
        evidence.sides[1].name,
        tuple(checks),
        seconds,
        busy,
        settings(config, evidence),
        f"{machine.cpu}, {machine.cpus} CPUs",
        package_versions(VERSIONS),
        tuple(notes),
        lines,
        details,
    )


def _failed(name: str, error: Exception, evidence: Evidence) -> Check:
    baseline = evidence.sides[0].package
    if isinstance(error, AnswerError) and baseline is not None and str(baseline.path) in str(error):
        raise error  # the baseline does not answer: that is broken input, no verdict
    return broken(name, str(error))


def _hardware_notes(sides: Sequence[Side]) -> list[str]:
    here = this_machine().cpu
    return [
        f"{side.name} was stored on other hardware ({side.stored.hardware}, here {here}): it is used for what does not "
        "depend on hardware"
        for side in sides
        if side.stored is not None and side.stored.hardware != here
    ]


def read_samples(side: Side, config: GateConfig) -> Samples | None:
    """The labelled samples, if any are given.

    Raises:
        LeptoError: They cannot be read, have an unknown label, or are not those of the digest.
    """
    if config.eval is None:
        return None
    samples = load_samples(
        config.eval, text_column=config.text_column, label_column=config.label_column, labels=side.labels, split="test",
        task=side.task,
    )  # fmt: skip
    if config.digest is not None and not samples.digest.startswith(config.digest):
        raise LeptoError(
            f"{config.eval} has changed: its samples have the digest {samples.digest[:12]}…, the gate file says "
            f"{config.digest[:12]}…; bring back the old file, or put the new digest into the gate file on purpose"
        )
    return samples


def settings(config: GateConfig, evidence: Evidence) -> dict[str, Any]:
    """The resolved settings, as plain values."""
    plan = evidence.plan
    return {
        "checks": {
            name: {key: str(limit) for key, limit in one.limits.items()} | one.options
            for name, one in config.checks.items()
        },
        "eval": config.eval,
        "samples": None if evidence.samples is None else len(evidence.samples),
        "digest": None if evidence.samples is None else evidence.samples.digest,
        "source": config.source or "the baseline",
        "looks": list(plan.looks),
        "alpha": plan.alpha,
        "beta": plan.beta,
        "threads": evidence.threads,
        "seed": evidence.seed,
    }


def print_checks(output: Output, result: GateResult) -> None:
    """Print one line for each check and the verdict."""
    colors = {Verdict.PASS: "green", Verdict.REGRESSION: "red", Verdict.INCONCLUSIVE: "yellow"}
    for check in result.checks:
        output.print(f"[{colors[check.verdict]}]{check.verdict.value:<12}[/]  {escape(check.message)}")
    for line in result.blame:
        output.print(f"  {escape(line)}")
    for note in result.notes:
        output.print(f"[dim]note: {escape(note)}[/]")
    output.print(f"gate: [bold {colors[result.verdict]}]{result.verdict.value}[/] in {result.seconds:.1f} s")


def as_document(checks: Sequence[Check]) -> dict[str, Any]:
    """The verdict and the checks as plain values."""
    return {
        "verdict": overall(checks).value,
        "checks": [{name: getattr(check, name) for name in Check.__dataclass_fields__} for check in checks],
    }
