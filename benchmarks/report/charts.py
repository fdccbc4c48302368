"""Figures as plain data for plotly.js; colours are names of the page's style, and so follow light and dark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Final

import numpy as np

from lepto.runtime.evidence import Evidence
from lepto.runtime.manifest import Manifest, PassRecord

SOURCE, RESULT, MUTED, INK = "var(--source)", "var(--result)", "var(--muted)", "var(--ink)"
PANEL = "var(--panel)"
SOURCE_SOFT, RESULT_SOFT = "var(--source-soft)", "var(--result-soft)"
SOURCE_FAINT, RESULT_FAINT = "var(--source-faint)", "var(--result-faint)"
GOOD, BAD, WARN = "var(--good)", "var(--bad)", "var(--warn)"
_LABEL: Final = 34


@dataclass(frozen=True)
class View:
    """One state of a figure that has several; people choose it with buttons.

    Attributes:
        name: On the button.
        data: Traces.
    """

    name: str
    data: list[dict[str, Any]]


@dataclass(frozen=True)
class Figure:
    """One figure.

    Attributes:
        title: Above it.
        caption: What to see in it, in a sentence.
        views: One, or several to choose from.
        layout: Plotly's.
        columns: Headings of the table that says the same.
        rows: Its cells.
        height: In pixels.
        wide: Whether it takes the whole width of the page.
    """

    title: str
    caption: str
    views: list[View]
    layout: dict[str, Any]
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    height: int = 380
    wide: bool = False


def single(data: list[dict[str, Any]]) -> list[View]:
    """A figure with one state."""
    return [View("", data)]


def short(text: str, most: int = _LABEL) -> str:
    """A label that leaves room for the figure, safe for plotly's own markup."""
    return escape(text if len(text) <= most else f"{text[: most - 1]}…", quote=False)


def candidates(manifest: Manifest) -> Figure | None:
    """All candidates of a search: score against p50, bubble = bytes; without a search what the passes made."""
    found = (manifest.environment.get("search") or {}).get("candidates") or []
    search = manifest.environment.get("search") or {}
    taught = [one for one in found if one.get("epochs")]
    if taught:
        return _searched(taught, [one for one in found if not one.get("epochs")], search)
    return _passes_as_candidates(manifest)


def _searched(taught: Sequence[dict[str, Any]], rest: Sequence[dict[str, Any]], search: dict[str, Any]) -> Figure:
    winner = search.get("winner")
    front = sorted((one for one in taught if one.get("front")), key=lambda one: one["p50_ms"])
    traces: list[dict[str, Any]] = [
        {
            "type": "scatter", "mode": "lines", "name": "Pareto front", "hoverinfo": "skip",
            "x": [one["p50_ms"] for one in front], "y": [one["score"] for one in front],
            "line": {"color": RESULT, "width": 1.5, "dash": "dot"},
        }
    ]  # fmt: skip
    groups = (
        ("chosen", [o for o in taught if o["shape"] == winner], RESULT, 1.0),
        ("on the front", [o for o in front if o["shape"] != winner], RESULT, 0.45),
        ("beaten", [o for o in taught if not o.get("front") and o["shape"] != winner], SOURCE, 0.5),
    )
    traces += [_bubbles(name, own, color, opacity) for name, own, color, opacity in groups if own]
    layout = _axes("p50 of one sample, ms (log)", "score on the development samples")
    layout["xaxis"] |= _log_axis([one["p50_ms"] for one in taught])
    reference = search.get("reference")
    if reference is not None:
        layout["shapes"] = [_level(reference, MUTED, "dot"), _level(search["minimum"], BAD, "dash")]
        layout["annotations"] = [
            _said(reference, "yardstick", MUTED, 10), _said(search["minimum"], "least that was looked for", BAD, -10)
        ]  # fmt: skip
    rows = [
        [
            _standing(one, winner), one["shape"], f"{one['score']:.4f}" if one.get("epochs") else "-",
            f"{one['p50_ms']:.3f}", f"{one['p90_ms']:.3f}", f"{one['throughput']:,.0f}", f"{one['bytes'] / 1e6:.2f}",
            f"{one.get('epochs', 0):g}",
        ]
        for one in sorted([*taught, *rest], key=lambda one: one["p50_ms"])
    ]  # fmt: skip
    return Figure(
        "Candidates of the search",
        f"{len(taught)} candidates were taught, {len(rest)} were only timed. To the left is faster, up is better; "
        "a bubble's area is the file's size. All were timed side by side before any was taught.",
        single(traces),
        layout | WITH_LEGEND,
        ["", "shape", "score", "p50 ms", "p90 ms", "samples/s at 32", "MB", "epochs"],
        rows,
        460,
        True,
    )


def _standing(one: dict[str, Any], winner: object) -> str:
    if one["shape"] == winner:
        return "chosen"
    return "front" if one.get("front") else "beaten" if one.get("epochs") else "not taught"


def _passes_as_candidates(manifest: Manifest) -> Figure | None:
    source = manifest.source
    points: list[dict[str, Any]] = [
        {"shape": r.pass_, "score": r.metric.value, "p50_ms": r.p50_ms, "bytes": r.bytes, "kept": r.kept}
        for r in manifest.passes
        if r.metric is not None and r.p50_ms
    ]
    if not points:
        return None
    kept, dropped = ([p for p in points if p["kept"] is state] for state in (True, False))
    traces = [_bubbles(n, own, c, 0.7) for n, own, c in (("kept", kept, RESULT), ("left out", dropped, WARN)) if own]
    if source.metric is not None and source.p50_ms:
        own = {"shape": "source", "score": source.metric.value, "p50_ms": source.p50_ms, "bytes": source.bytes}
        traces.insert(0, _bubbles("source", [own], SOURCE, 0.7))
        points = [own, *points]
    measured = source.metric or manifest.result.metric
    layout = _axes("p50 of one sample, ms (log)", measured.name if measured is not None else "metric")
    layout["xaxis"] |= _log_axis([float(p["p50_ms"]) for p in points])
    scores = [float(p["score"]) for p in points]
    layout["yaxis"]["range"] = [min(scores) - 0.03, max(scores) + 0.03]
    rows = [[str(p["shape"]), f"{p['score']:.4f}", f"{p['p50_ms']:.3f}", f"{p['bytes'] / 1e6:.2f}"] for p in points]
    return Figure(
        "Candidates", "No search was made: these are the source and what the passes made of it. To the left is faster, "
        "up is better; a bubble's area is the file's size.",
        single(traces), layout | WITH_LEGEND, ["what", "metric", "p50 ms", "MB"], rows, 420, True,
    )  # fmt: skip


def _bubbles(name: str, own: Sequence[dict[str, Any]], color: str, opacity: float) -> dict[str, Any]:
    return {
        "type": "scatter", "mode": "markers", "name": name,
        "x": [o["p50_ms"] for o in own], "y": [o["score"] for o in own],
        "marker": {
            "color": color, "opacity": opacity, "line": {"color": INK, "width": 1.5 if name == "chosen" else 0.5},
            "size": [8 + 5 * math.sqrt(o["bytes"] / 1e6) for o in own],
        },
        "customdata": [[short(o["shape"], 70), o["bytes"] / 1e6] for o in own],
        "hovertemplate": "%{customdata[0]}<br>%{y:.4f} at %{x:.3f} ms, %{customdata[1]:.2f} MB<extra></extra>",
    }  # fmt: skip


def passes(manifest: Manifest) -> list[Figure]:
    """What each pass bought: time, size and metric after it."""
    source, records = manifest.source, manifest.passes
    start = [("source", source.p50_ms, source.bytes, source.metric, True)]
    steps = start + [(r.pass_, r.p50_ms, r.bytes, r.metric, r.kept) for r in records]
    rows = [_pass_row(r) for r in records]
    columns = ["pass", "kept", "metric", "p50 ms", "MB", "took", "why"]
    found = []
    wanted: tuple[tuple[str, str, str, list[tuple[str, float, bool]]], ...] = (
        ("Latency after each pass", "p50, ms", ".3f", [(n, t, k) for n, t, _, _, k in steps if t]),
        ("Size after each pass", "MB", ".2f", [(n, b / 1e6, k) for n, _, b, _, k in steps]),
        ("Metric after each pass", "metric", ".4f", [(n, m.value, k) for n, _, _, m, k in steps if m is not None]),
    )
    for title, axis, form, own in wanted:
        if len(own) < 2:
            continue
        metric = axis == "metric"
        layout = _axes(axis, "")
        layout["yaxis"] |= {"automargin": True, "autorange": "reversed", "tickvals": list(range(len(own))),
                            "ticktext": [short(name, 22) for name, _, _ in own]}  # fmt: skip
        colors = [SOURCE if i == 0 and n == "source" else RESULT if k else WARN for i, (n, _, k) in enumerate(own)]
        data: list[dict[str, Any]] = [{
            "type": "scatter" if metric else "bar", "orientation": "h", "mode": "markers+text",
            "x": [v for _, v, _ in own], "y": list(range(len(own))), "marker": {"color": colors, "size": 11},
            "text": [f"{v:{form}}" for _, v, _ in own], "textposition": "top center" if metric else "auto",
            "cliponaxis": False,
            "customdata": [[short(n), "kept" if k else "left out"] for n, _, k in own],
            "hovertemplate": f"%{{customdata[0]}} (%{{customdata[1]}}): %{{x:{form}}} {axis}<extra></extra>",
            "showlegend": False, "textfont": {"color": INK},
            **({} if metric else {"insidetextfont": {"color": PANEL}}),
        }]  # fmt: skip
        if metric:
            ends = {n: (m.low, m.high) for n, _, _, m, _ in steps if m is not None}
            data[0]["error_x"] = {
                "type": "data", "symmetric": False, "color": MUTED, "thickness": 1.5, "width": 3,
                "array": [ends[n][1] - v for n, v, _ in own], "arrayminus": [v - ends[n][0] for n, v, _ in own],
            }  # fmt: skip
            layout["yaxis"] |= {"range": [len(own) - 0.6, -0.7], "autorange": False}
        if not metric:
            data[0].pop("mode")
            data[0]["marker"] = {"color": colors}
        else:
            data[0].pop("orientation")
        caption = {
            "p50, ms": "Median of one sample, measured in pairs with its input; orange was measured and left out.",
            "MB": "The model's file; the source's weights.",
            "metric": "With 95 % intervals, on the samples that judged the pass: after a search development samples.",
        }[axis]
        found.append(Figure(title, caption, single(data), layout, columns, rows, 90 + 44 * len(own)))
        columns, rows = [], []  # the table stands once
    return found


def _pass_row(record: PassRecord) -> list[str]:
    metric = record.metric
    return [
        record.pass_, "yes" if record.kept else "no",
        f"{metric.value:.4f} [{metric.low:.4f}, {metric.high:.4f}], n = {metric.n:,}" if metric else "-",
        f"{record.p50_ms:.3f}" if record.p50_ms is not None else "-", f"{record.bytes / 1e6:.2f}",
        f"{record.seconds:.1f} s{' (cached)' if record.cached else ''}", record.reason,
    ]  # fmt: skip


def latency(evidence: Evidence, against: str) -> list[Figure]:
    """How long single samples take: distribution of both sides, and their ratio block by block."""
    if evidence.result_seconds is None:
        return []
    sides = [("result", RESULT, evidence.result_seconds)]
    if evidence.source_seconds is not None:
        sides.insert(0, ("source", SOURCE, evidence.source_seconds))
    traces, rows = [], []
    for name, color, seconds in sides:
        ms = np.sort(1e3 * seconds.ravel())
        picked = np.unique(np.linspace(0, ms.size - 1, 240).astype(int))
        traces.append({
            "type": "scatter", "mode": "lines", "name": name, "x": ms[picked].tolist(),
            "y": ((picked + 1) / ms.size).tolist(), "line": {"color": color, "width": 2.5, "shape": "hv"},
            "hovertemplate": f"{name}: %{{y:.0%}} take at most %{{x:.3f}} ms<extra></extra>",
        })  # fmt: skip
        quantiles = np.quantile(ms, [0.5, 0.9, 0.99])
        traces.append({
            "type": "scatter", "mode": "markers", "name": f"{name}: p50, p90, p99", "showlegend": False,
            "x": quantiles.tolist(), "y": [0.5, 0.9, 0.99], "marker": {"color": color, "size": 10},
            "hovertemplate": f"{name}: p%{{customdata}} = %{{x:.3f}} ms<extra></extra>", "customdata": [50, 90, 99],
        })  # fmt: skip
        rows.append(
            [name, *(f"{q:.3f}" for q in quantiles), f"{ms.mean():.3f}", f"{1e3 / ms.mean():,.0f}", f"{ms.size:,}"]
        )
    layout = _axes("one sample, ms (log)", "share of samples")
    layout["xaxis"] |= _log_axis([float(1e3 * v) for _, _, s in sides for v in (s.min(), s.max())])
    layout["yaxis"] |= {"tickformat": ".0%", "range": [0, 1.02]}
    found = [Figure(
        "Latency of single samples", f"Share of samples that are done in so many milliseconds; the dots are p50, p90 "
        f"and p99. The source is {against}.", single(traces), layout | WITH_LEGEND,
        ["side", "p50 ms", "p90 ms", "p99 ms", "mean ms", "samples/s", "runs"], rows,
    )]  # fmt: skip
    if evidence.source_seconds is not None:
        found.append(_blocks(evidence.source_seconds, evidence.result_seconds))
    return found


def _blocks(source: Any, result: Any) -> Figure:
    ratio = np.median(source, axis=1) / np.median(result, axis=1)
    places = list(range(1, ratio.size + 1))
    layout = _axes("block of interleaved runs", "times as fast")
    layout["yaxis"] |= {"rangemode": "tozero"}
    layout["shapes"] = [_level(1.0, MUTED, "dot"), _level(float(np.median(ratio)), RESULT, "dash")]
    data = [{
        "type": "bar", "x": places, "y": ratio.tolist(), "marker": {"color": RESULT}, "showlegend": False,
        "hovertemplate": "block %{x}: %{y:.2f} times as fast<extra></extra>",
    }]  # fmt: skip
    rows = [
        [str(i), f"{1e3 * np.median(a):.3f}", f"{1e3 * np.median(b):.3f}", f"{r:.2f}"]
        for i, a, b, r in zip(places, source, result, ratio, strict=True)
    ]
    return Figure(
        "Speed-up, block by block",
        "Source over result, medians of each block. Both sides run in every block, so that a busy minute hits both.",
        single(data), layout, ["block", "source, ms", "result, ms", "ratio"], rows,
    )  # fmt: skip


def layers(evidence: Evidence) -> Figure | None:
    """How far each layer's output lies from the float graph's."""
    if evidence.layer_error is None or not len(evidence.layer_error):
        return None
    names, errors = evidence.layers, evidence.layer_error
    layout = _axes("layer, in order of computation", "relative error")
    layout["xaxis"] |= {"tickvals": [], "title": {"text": "layers, in order of computation"}}
    layout["yaxis"] |= {"rangemode": "tozero", "tickformat": ".1%"}
    worst = int(errors.argmax())
    layout["annotations"] = [{
        "x": worst, "y": float(errors[worst]), "text": short(names[worst], 44), "showarrow": True, "arrowcolor": MUTED,
        "font": {"color": INK}, "ay": -26, "ax": -60 if worst > len(names) / 2 else 60,
    }]  # fmt: skip
    data = [{
        "type": "bar", "x": list(range(len(names))), "y": errors.tolist(), "marker": {"color": RESULT},
        "customdata": [short(n, 70) for n in names], "showlegend": False,
        "hovertemplate": "%{customdata}: %{y:.2%}<extra></extra>",
    }]  # fmt: skip
    rows = [[name, f"{error:.3%}"] for name, error in zip(names, errors, strict=True)]
    return Figure(
        "Error of each layer", "Root mean square of the difference to the float graph over that of its output, on "
        "evaluation samples. A jump names the layer that loses most.", single(data), layout,
        ["layer", "relative error"], rows, 340, True,
    )  # fmt: skip


WITH_LEGEND: Final[dict[str, Any]] = {
    "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
    "margin": {"l": 10, "r": 12, "t": 40, "b": 10},
}


def _axes(x: str, y: str) -> dict[str, Any]:
    return {
        "xaxis": {"title": {"text": x, "standoff": 6}, "automargin": True},
        "yaxis": {"title": {"text": y, "standoff": 10}, "automargin": True},
        "margin": {"l": 10, "r": 12, "t": 8, "b": 10},
    }


def _log_axis(values: Sequence[float]) -> dict[str, Any]:
    """A logarithmic axis with ticks at 1, 2 and 5, a little wider than the values."""
    positive = [value for value in values if value > 0]
    low, high = math.log10(min(positive)), math.log10(max(positive))
    room = 0.15 * max(high - low, 0.3)  # for half a bubble on a phone, too
    ticks = [k * 10.0**e for e in range(math.floor(low) - 1, math.ceil(high) + 1) for k in (1, 2, 5)]
    shown = [tick for tick in ticks if low - room <= math.log10(tick) <= high + room]
    if len(shown) > 9:
        shown = [tick for tick in shown if f"{tick:e}".startswith("1.0")]
    return {
        "type": "log", "range": [low - room, high + room], "tickvals": shown,
        "ticktext": [f"{tick:g}" for tick in shown],
    }  # fmt: skip


def _level(y: float, color: str, dash: str) -> dict[str, Any]:
    line = {"color": color, "width": 1.5, "dash": dash}
    return {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": y, "y1": y, "line": line}


def _said(y: float, text: str, color: str, shift: int) -> dict[str, Any]:
    return {
        "xref": "paper", "x": 1, "xanchor": "right", "y": y, "yshift": shift, "text": text, "showarrow": False,
        "font": {"color": color, "size": 11},
    }  # fmt: skip
