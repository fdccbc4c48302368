"""The checks there are, by the name they have in a gate file, with what each needs and takes."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from lepto.benchmarks.checks.accuracy import NON_INFERIORITY, RULES, judge_accuracy
from lepto.benchmarks.checks.calibration import judge_calibration
from lepto.benchmarks.checks.check import Check, Limit, not_checked
from lepto.benchmarks.checks.entities import judge_words
from lepto.benchmarks.checks.fairness import judge_fairness
from lepto.benchmarks.checks.flips import judge_divergence, judge_flips, log_softmax
from lepto.benchmarks.checks.instructions import judge_instructions
from lepto.benchmarks.checks.pairs import Plan, judge_blocks, judge_ratios
from lepto.benchmarks.checks.size import judge_bytes
from lepto.benchmarks.checks.slices import by_length, by_value, judge_slices
from lepto.benchmarks.instructions import RUNS, find_valgrind
from lepto.benchmarks.words import UNIT, label_masks
from lepto.runtime.errors import LeptoError

if TYPE_CHECKING:
    from lepto.benchmarks.evidence import Evidence

QUANTILES: Final = {"p50": ("p50_ms", 0.5), "p90": ("p90_ms", 0.9)}
LOADS: Final = 12


@dataclass(frozen=True)
class Setting:
    """What a gate file says of one check.

    Attributes:
        name: The check's name.
        limits: By quantile for latency, else one under ``limit``.
        options: The rest, by name.
    """

    name: str
    limits: dict[str, Limit]
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def limit(self) -> Limit:
        """The one limit."""
        return self.limits["limit"]


@dataclass(frozen=True)
class Kind:
    """A check that can be asked for.

    Attributes:
        make: Makes it.
        default: The limit if none is given.
        units: Units that a limit may have.
        options: Names of what else it takes.
        chances: How many p-values it gives: they share alpha with those of the other checks.
        live: Whether both sides must be there to run.
        help: What it is.
    """

    make: Callable[[Evidence, Setting], list[Check]]
    default: str
    units: tuple[str, ...]
    help: str
    options: tuple[str, ...] = ()
    chances: int = 0
    live: bool = True


def _latency(evidence: Evidence, setting: Setting) -> list[Check]:
    limits = {name: setting.limits.get(name) or setting.limits.get("limit") for name in QUANTILES}
    wanted = {name: limit for name, limit in limits.items() if limit is not None}
    decided: dict[str, Check] = {}
    plan = evidence.plan
    with evidence.bar("latency: pairs of blocks", plan.looks[-1]) as progress:
        for look, pairs in enumerate(plan.looks):
            before, after = evidence.pairs().measure(pairs, lambda now, _: progress(now, plan.looks[-1]))
            for name, limit in wanted.items():
                # What an earlier look has decided stays: looking again would spend its level twice.
                if name not in decided or decided[name].verdict.value == "inconclusive":
                    shown, quantile = QUANTILES[name]
                    # Another check may have measured more already.
                    decided[name] = judge_blocks(shown, before[:pairs], after[:pairs], limit, plan, look, quantile)
            verdicts = {check.verdict.value for check in decided.values()}
            if "regression" in verdicts or "inconclusive" not in verdicts:
                break  # one regression is enough to fail
    return [_with_latency(decided[name], evidence) for name in wanted]


def _with_latency(check: Check, evidence: Evidence) -> Check:
    return replace(check, details={**check.details, **evidence.latency_details()})


def _throughput(evidence: Evidence, setting: Setting) -> list[Check]:
    plan = evidence.plan
    check = None
    with evidence.bar("throughput: pairs of blocks", plan.looks[-1]) as progress:
        for look, count in enumerate(plan.looks):
            before, after = evidence.batches().measure(count, lambda now, _: progress(now, plan.looks[-1]))
            totals = [blocks[:count].mean(axis=1) for blocks in (before, after)]
            first, second = (evidence.batch_rows / float(np.median(total)) for total in totals)
            worse = np.log(totals[1] / totals[0])
            check = judge_ratios("throughput", worse, first, second, setting.limit, plan, look)
            if check.verdict.value != "inconclusive":
                break
    assert check is not None
    return [check]


def _loads(name: str, pick: Callable[[Any], float]) -> Callable[[Evidence, Setting], list[Check]]:
    def make(evidence: Evidence, setting: Setting) -> list[Check]:
        with evidence.bar("loading", LOADS) as progress:
            loads = evidence.loads(LOADS, progress)
        before, after = (np.array([pick(one) for one in side[:LOADS]]) for side in loads)
        plan = Plan((LOADS,), evidence.plan.alpha, evidence.plan.beta, evidence.plan.checks)
        worse = np.log(after / before)
        first, second = float(np.median(before)), float(np.median(after))
        return [judge_ratios(name, worse, first, second, setting.limit, plan, 0)]

    return make


def _accuracy(evidence: Evidence, setting: Setting) -> list[Check]:
    evidence.need_labels("accuracy")
    if evidence.has_words:
        return [
            judge_words(
                evidence.true_rows(),
                evidence.decided(0),
                evidence.decided(1),
                evidence.labels or (),
                setting.limit,
                rule=setting.options.get("rule", NON_INFERIORITY),
                alpha=evidence.plan.alpha / evidence.plan.checks,
                beta=evidence.plan.beta,
                seed=evidence.seed,
            )
        ]
    return [
        judge_accuracy(
            evidence.classes(0),
            evidence.classes(1),
            evidence.truth(),
            setting.limit,
            rule=setting.options.get("rule", NON_INFERIORITY),
            alpha=evidence.plan.alpha / evidence.plan.checks,
            beta=evidence.plan.beta,
        )
    ]


def _slices(evidence: Evidence, setting: Setting) -> list[Check]:
    evidence.need_labels("worst_slice")
    masks: dict[str, Any] = {}
    for name in setting.options.get("by", ["label"]):
        if name == "label":
            names = evidence.labels
            if evidence.has_words:
                masks |= label_masks(evidence.true_rows(), names or ())
                continue
            truth = evidence.truth()
            masks |= by_value("label", [names[i] if names else int(i) for i in truth])
        elif name == "length":
            masks |= by_length(evidence.lengths())
        else:
            masks |= by_value(name, evidence.column(name))
    truth = evidence.truth()
    first, second = (evidence.classes(side) == truth for side in (0, 1))
    alpha = evidence.plan.alpha / evidence.plan.checks
    least = int(setting.options.get("least", 0))
    found = judge_slices(masks, first, second, setting.limit, alpha=alpha, beta=evidence.plan.beta, least=least)
    return [_of_rows(found, evidence)]


def _of_rows(check: Check, evidence: Evidence) -> Check:
    """Say what counts as right where a sample has many answers."""
    return (
        replace(check, message=f"{check.message} ({UNIT})", rule=f"{check.rule}; {UNIT}")
        if (evidence.has_words)
        else check
    )


def _flips(evidence: Evidence, setting: Setting) -> list[Check]:
    alpha, beta = evidence.plan.alpha, evidence.plan.beta
    found = judge_flips(evidence.source_classes(), evidence.classes(1), setting.limit, alpha=alpha, beta=beta)
    return [_of_rows(found, evidence)]


def _divergence(evidence: Evidence, setting: Setting) -> list[Check]:
    alpha, beta = evidence.plan.alpha, evidence.plan.beta
    logits, groups = (evidence.source_logits(), evidence.logits(1)), evidence.row_of_words()
    return [judge_divergence(*logits, setting.limit, alpha=alpha, beta=beta, groups=groups)]


def _calibration(evidence: Evidence, setting: Setting) -> list[Check]:
    evidence.need_labels("ece")
    first, second = (np.exp(log_softmax(evidence.logits(side))) for side in (0, 1))
    alpha, beta = evidence.plan.alpha, evidence.plan.beta
    truth = np.concatenate(evidence.true_rows()) if evidence.has_words else evidence.truth()
    groups = evidence.row_of_words()
    return [judge_calibration(first, second, truth, setting.limit, alpha=alpha, beta=beta, groups=groups)]


def _fairness(evidence: Evidence, setting: Setting) -> list[Check]:
    evidence.need_labels("fairness")
    by = setting.options.get("by")
    if not by:
        return [not_checked("fairness", "name the column of the groups with `by: COLUMN`")]
    truth, column = evidence.truth(), by[0]
    first, second = (evidence.classes(side) == truth for side in (0, 1))
    alpha, beta = evidence.plan.alpha, evidence.plan.beta
    found = judge_fairness(column, evidence.column(column), first, second, setting.limit, alpha=alpha, beta=beta)
    return [_of_rows(found, evidence)]


def _explanations(evidence: Evidence, setting: Setting) -> list[Check]:
    try:
        explanations = importlib.import_module("lepto.benchmarks.checks.explanations")
    except ImportError as error:
        return [not_checked("explanations", f"{error}; leave the check out of the gate file")]
    found: list[Check] = explanations.make(evidence, setting)
    return found


def _instructions(evidence: Evidence, setting: Setting) -> list[Check]:
    evidence.package(0), evidence.package(1)
    try:
        find_valgrind()
    except LeptoError as error:
        return [not_checked("instructions", str(error))]
    with evidence.bar("instructions: runs under valgrind", 4) as progress:
        runs = int(setting.options.get("samples", RUNS))
        before, after = (evidence.instructions(side, runs, progress) for side in (0, 1))
    return [judge_instructions(before, after, setting.limit)]


def _bytes(evidence: Evidence, setting: Setting) -> list[Check]:
    return [judge_bytes(evidence.bytes(0), evidence.bytes(1), setting.limit)]


REGISTRY: Final[dict[str, Kind]] = {
    "accuracy": Kind(
        _accuracy, "1%", ("%", "points"),
        f"accuracy on paired predictions, for words entity F1; rule: {' or '.join(RULES)}", ("rule",), 1, live=False,
    ),
    "worst-slice": Kind(
        _slices, "5 points", ("%", "points"), "every slice by label, length or column", ("by", "least"), 1, live=False
    ),
    "flip-rate": Kind(_flips, "2 points", ("%", "points"), "answers that differ from the source's", live=False),
    "kl": Kind(_divergence, "0.05 nats", ("nats",), "KL divergence from the source"),
    "calibration": Kind(_calibration, "2 points", ("%", "points"), "expected calibration error"),
    "fairness": Kind(
        _fairness, "2 points", ("%", "points"), "gap of the accuracy between groups of a column", ("by",), live=False
    ),
    "explanations": Kind(
        _explanations, "0.1 rank", ("rank",), "rank correlation of attributions, below what seeds give",
        ("samples", "seeds"),
    ),
    "latency": Kind(_latency, "3%", ("%",), "p50 and p90 at batch 1, in pairs", ("p50", "p90"), 2),
    "throughput": Kind(_throughput, "5%", ("%",), "samples a second in batches, in pairs", ("batch",), 1),
    "load-time": Kind(_loads("load_ms", lambda one: 1e3 * one.load_s), "20%", ("%",), "from file to session", (), 1),
    "memory": Kind(
        _loads("memory_mb", lambda one: one.memory_bytes / 1e6), "10%", ("%",), "resident memory it adds", (), 1
    ),
    "instructions": Kind(
        _instructions, "3%", ("%",), "instructions of an inference, counted by valgrind", ("samples",)
    ),
    "bytes": Kind(_bytes, "5%", ("%", "bytes"), "size of model.onnx", live=False),
}  # fmt: skip
