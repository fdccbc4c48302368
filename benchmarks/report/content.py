"""What stands on the page, in order: sections of figures, tables and notes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lepto.benchmarks.report import charts, charts_quality
from lepto.benchmarks.report.charts import Figure
from lepto.benchmarks.report.measured import Explained, Known
from lepto.benchmarks.report.quality import divergence, length_slices, reliability, roc, slices
from lepto.runtime.console import size_text
from lepto.runtime.manifest import TOKEN_CLASSIFICATION


@dataclass(frozen=True)
class Card:
    """One number that people look for first.

    Attributes:
        name: What it is.
        value: As shown, large.
        note: Beneath it.
        tone: ``good``, ``bad``, ``warn`` or empty.
    """

    name: str
    value: str
    note: str
    tone: str = ""


@dataclass(frozen=True)
class Table:
    """Rows of text."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Section:
    """One part of the page.

    Attributes:
        title: Its heading.
        intro: A sentence or two.
        cards: Numbers.
        figures: Figures.
        flips: Samples that changed their answer.
        tables: Tables.
        verdicts: The gate's checks.
    """

    title: str
    intro: str = ""
    cards: Sequence[Card] = ()
    figures: Sequence[Figure] = ()
    flips: Sequence[Explained] = ()
    tables: Sequence[Table] = ()
    verdicts: Sequence[Mapping[str, Any]] = ()
    names: Sequence[str] = field(default=())


def package_sections(known: Known) -> list[Section]:
    """Everything about one package."""
    manifest = known.package.manifest
    front = charts.candidates(manifest)
    speed = manifest.result.speedup
    found = [
        Section("At a glance", manifest.source.description, cards=_cards(known)),
        Section("Candidates", figures=[front] if front else []),
        Section("What each pass bought", figures=charts.passes(manifest)),
        Section("Latency", figures=charts.latency(known.evidence, speed.against if speed else "the source")),
        *_quality(known),
    ]
    if layers := charts.layers(known.evidence):
        found.append(Section("Layers", figures=[layers]))
    found.append(Section("Versions and hardware", tables=[_environment(known)]))
    return [part for part in found if part.cards or part.figures or part.flips or part.tables or part.intro]


def _quality(known: Known) -> list[Section]:
    evidence = known.evidence
    if evidence.labels is None or evidence.result is None:
        return [Section("Answers", f"Answers are {known.origin}.")]
    both = charts_quality.sides(evidence.source, evidence.result)
    figures = [
        charts_quality.confusion_figure(evidence.labels, known.names, both),
        charts_quality.roc_figure(evidence.labels, both),
        charts_quality.reliability_figure(evidence.labels, both),
    ]
    what = "words" if known.package.manifest.task == TOKEN_CLASSIFICATION else "samples"
    intro = f"{len(evidence.labels):,} labelled {what}; the answers are {known.origin}."
    found = [Section("Answers", intro, figures=[figure for figure in figures if figure is not None])]
    if evidence.source is None:
        return found
    decisions = evidence.labels, evidence.source.decisions, evidence.result.decisions
    parts = [("label", [known.names[label] for label in evidence.labels]), *known.columns.items()]
    if evidence.tokens is not None:
        parts.insert(1, ("length", length_slices(evidence.tokens)))
    found.append(Section("Slices", figures=[
        charts_quality.slices_figure(name, slices(name, values, *decisions)) for name, values in parts
    ]))  # fmt: skip
    kinds = [one.flip.kind for one in known.flips]
    shown = "" if known.changed == len(kinds) else f" The first {len(kinds)} are shown, broken ones before others."
    how = ""
    if any(one.result is not None for one in known.flips):
        how = (
            " Colour shows what the probability of each side's own answer loses (green) or gains (red) when a part is "
            "left out (captum, feature ablation)."
        )
    found.append(Section(
        "Answers that changed",
        f"{known.changed:,} of {len(evidence.labels):,} {what} ({known.changed / len(evidence.labels):.1%}) are "
        f"answered otherwise than by the source.{shown}{how}", flips=known.flips, names=known.names,
    ))  # fmt: skip
    return found


def _cards(known: Known) -> list[Card]:
    manifest = known.package.manifest
    source, result = manifest.source, manifest.result
    cards = []
    if result.metric is not None:
        before = f"{source.metric.value:.2%} → " if source.metric else ""
        bound = manifest.environment.get("paired_difference")
        note = f"95 % interval {result.metric.low:.2%} to {result.metric.high:.2%}, n = {result.metric.n:,}"
        if bound:
            note += f"; difference {100 * bound['value']:+.2f} points, at worst {100 * bound['low_95_one_sided']:+.2f}"
        cards.append(Card(result.metric.name, f"{before}{result.metric.value:.2%}", note))
    if result.p50_ms is not None:
        before = f"{source.p50_ms:.2f} → " if source.p50_ms is not None else ""
        cards.append(Card("p50, one sample", f"{before}{result.p50_ms:.2f} ms", f"{manifest.threads} threads"))
    if result.speedup is not None:
        s = result.speedup
        cards.append(Card("times as fast", f"{s.value:.1f} x", f"{s.low:.1f} to {s.high:.1f}, than {s.against}"))
    note = f"{source.bytes / max(result.bytes, 1):.1f} times smaller; {source.parameters:,} parameters went in"
    cards.append(Card("size", f"{size_text(source.bytes)} → {size_text(result.bytes)}", note))
    if result.agreement is not None:
        cards.append(Card("same answer as the source", f"{result.agreement:.2%}", "on the evaluation samples"))
    numbers = summary(known)
    if "ece" in numbers:
        ece = numbers["ece"]
        shown = " → ".join(f"{ece[side]:.2%}" for side in ("source", "result") if side in ece)
        cards.append(Card("calibration error", shown, "expected calibration error, 15 bins"))
    return cards


def summary(known: Known) -> dict[str, Any]:
    """The figures of the page as numbers, for ``--json``."""
    evidence, document = known.evidence, {"package": str(known.package.path), "name": known.package.manifest.name}
    found: dict[str, Any] = {**document, "answers": known.origin}
    if evidence.labels is None or evidence.result is None:
        return found
    labels = evidence.labels
    both = [(name, answers) for name, _, answers in charts_quality.sides(evidence.source, evidence.result)]
    found["n"] = len(labels)
    found["accuracy"] = {name: float((answers.decisions == labels).mean()) for name, answers in both}
    found["ece"] = {
        name: reliability(answers.scores.max(axis=1), answers.decisions == labels).ece for name, answers in both
    }
    if len(set(labels.tolist())) > 1:
        found["auc"] = {name: roc(labels, answers.scores).auc for name, answers in both}
    if evidence.source is not None:
        found["flips"] = known.changed
        found["flip_rate"] = known.changed / len(labels)
        found["kl_divergence_nats"] = divergence(evidence.source.scores, evidence.result.scores)
    return found


def results_section(name: str, document: Mapping[str, Any]) -> Section:
    """A stored result of ``lepto gate --json`` or ``lepto bench --json``."""
    if "checks" in document:
        verdict = str(document.get("verdict", "unknown"))
        tone = {"pass": "good", "regression": "bad"}.get(verdict, "warn")
        sides = f"{document.get('candidate', '')} against {document.get('baseline', '')}".strip()
        figure = charts_quality.gate_figure(document["checks"])
        why = (document.get("blame") or {}).get("lines") or []
        return Section(
            "Gate",
            sides if document.get("baseline") else name,
            cards=[Card("verdict", verdict, f"{len(document['checks'])} checks", tone)],
            figures=[figure] if figure else [],
            verdicts=document["checks"],
            tables=[Table(["why"], [[line] for line in why])] if why else [],
        )
    rows = [[str(key), _shown(value)] for key, value in document.items()]
    return Section(f"Results: {name}", tables=[Table(["what", "value"], rows)])


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, indent=1, ensure_ascii=False)


def _environment(known: Known) -> Table:
    manifest = known.package.manifest
    environment = manifest.environment
    rows = [
        ["package", f"{manifest.name}, {manifest.schema_}"],
        ["target", manifest.target],
        ["processor", f"{environment.get('cpu', 'unknown')}, {environment.get('cpus', '?')} CPUs"],
        ["memory", f"{environment['memory_bytes'] / 2**30:.1f} GiB" if "memory_bytes" in environment else "unknown"],
        ["system", f"{environment.get('system', '')}, Python {environment.get('python', '?')}"],
        *([name, str(version)] for name, version in environment.get("versions", {}).items()),
        ["source", f"{manifest.source.description} (digest {manifest.source.digest[:16]}…)"],
        ["result", f"digest {manifest.result.digest[:16]}…"],
        *([f"recipe: {key}", str(value)] for key, value in manifest.recipe.items() if value is not None),
    ]
    if search := environment.get("search"):
        rows.append(["search", f"{search['seconds']:.0f} s for {search['objective']}, chose {search['winner']}"])
    return Table(["what", "value"], [row for row in rows if row[1]])
