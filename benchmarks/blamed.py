"""What a failed gate says besides its verdict: where the time went, what flipped, where the error grew."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from lepto.benchmarks.checks.check import Check, Verdict

if TYPE_CHECKING:
    from lepto.benchmarks.evidence import Evidence

TIMES: Final = frozenset({"p50_ms", "p90_ms", "throughput"})
ANSWERS: Final = frozenset({"accuracy", "f1", "word_accuracy", "worst_slice", "fairness", "flip_rate", "kl", "ece"})
_RUNS: Final = 100
_TOP: Final = 4


def blamed(checks: Sequence[Check], evidence: Evidence) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Explain the regressions among the checks.

    Args:
        checks: What the gate found.
        evidence: What it was found from; both sides are still open.

    Returns:
        Lines for people, and the same as plain values; both empty where no check failed.
    """
    from lepto.benchmarks.blame import blame_accuracy, blame_latency

    failed = {check.name for check in checks if check.verdict is Verdict.REGRESSION and check.change is not None}
    lines: list[str] = []
    found: dict[str, Any] = {}
    if any(side.package is None for side in evidence.sides) or not failed & (TIMES | ANSWERS):
        return (), {}
    packages = evidence.package(0), evidence.package(1)
    try:
        feeds = evidence.feeds(0), evidence.feeds(1)
        if failed & TIMES:
            with evidence.bar("blame: profiles", _RUNS) as progress:
                time = blame_latency(*packages, feeds, threads=evidence.threads, runs=_RUNS, progress=progress)
            lines += time.lines(_TOP)
            found["latency"] = time.to_json()
        if failed & ANSWERS and evidence.samples is not None:
            inputs = evidence.samples.inputs
            rows = inputs if isinstance(inputs, tuple) else ()
            texts = [row if isinstance(row, str) else " ".join(row) for row in rows]
            truth, given = evidence.truth(), (evidence.classes(0), evidence.classes(1))
            if evidence.has_words:
                truth, given, texts = _by_word(evidence, rows)
            answers = blame_accuracy(*packages, feeds, truth, given, texts=texts, threads=evidence.threads)
            lines += answers.lines(_TOP)
            found["accuracy"] = answers.to_json()
    except Exception as error:  # a verdict must come out, whatever becomes of its explanation
        lines.append(f"no more is known: {type(error).__name__}: {error}")
    return tuple(lines), found


def _by_word(evidence: Evidence, rows: Sequence[Any]) -> tuple[Any, tuple[Any, Any], list[str]]:
    """Right labels, both sides' answers, and the words in their rows, word by word."""
    truth, first, second = (
        np.concatenate(list(part)) for part in (evidence.true_rows(), evidence.decided(0), evidence.decided(1))
    )
    return truth, (first, second), [f"{word} (in: {' '.join(row)})" for row in rows for word in row]
