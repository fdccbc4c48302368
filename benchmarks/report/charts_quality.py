"""Figures of what both sides answer, and of what a gate said; see :mod:`lepto.benchmarks.report.charts`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lepto.benchmarks.report.charts import (
    BAD,
    GOOD,
    INK,
    MUTED,
    RESULT,
    RESULT_FAINT,
    RESULT_SOFT,
    SOURCE,
    SOURCE_FAINT,
    SOURCE_SOFT,
    WARN,
    WITH_LEGEND,
    Figure,
    View,
    _axes,
    short,
    single,
)
from lepto.benchmarks.report.quality import Slice, confusion, reliability, roc
from lepto.runtime.evidence import Answers, Ints

_SLICES = 24
_WRITTEN = 12  # classes up to which counts stand in the cells
_CELLS = 400

Sides = Sequence[tuple[str, str, Answers]]
"""Name, colour and answers of each side that was measured."""


def sides(source: Answers | None, result: Answers | None) -> Sides:
    """The sides that are there."""
    both = (("source", SOURCE, source), ("result", RESULT, result))
    return [(name, color, answers) for name, color, answers in both if answers is not None]


def confusion_figure(labels: Ints, names: Sequence[str], found: Sides) -> Figure:
    """Right class by decision, in shares of the right class; and what the result changed."""
    # Classes that nobody has and nobody is taken for would only make the others small.
    there = np.zeros(len(names), bool)
    for classes in (labels, *(answers.decisions for _, _, answers in found)):
        there[classes] = True
    kept, absent = np.flatnonzero(there), int((~there).sum())
    names, place = [names[i] for i in kept], np.cumsum(there) - 1
    labels = place[labels]
    counts = {name: confusion(labels, place[answers.decisions], len(names)) for name, _, answers in found}
    total = np.maximum(np.bincount(labels, minlength=len(names)), 1)[:, None]
    shown = [short(name, 22) for name in names]
    views = []
    for name, color, _ in reversed(found):
        # Few of a row's samples must be seen beside the many on the diagonal.
        soft, faint = (SOURCE_SOFT, SOURCE_FAINT) if name == "source" else (RESULT_SOFT, RESULT_FAINT)
        # Where counts are written into the cells, these stay light enough for ink, in the dark dark enough.
        full = soft if len(names) <= _WRITTEN else color
        views.append(
            View(
                name,
                [
                    _heat(
                        counts[name] / total,
                        counts[name],
                        shown,
                        [[0, "var(--panel)"], [0.001, faint], [0.2, soft], [1, full]],
                    )
                ],
            )
        )
    if len(found) == 2:
        change = counts["result"] - counts["source"]
        scale = [[0, BAD], [0.5, "var(--panel)"], [1, GOOD]]
        # More on the diagonal is good, more beside it is bad.
        signed = np.where(np.eye(len(names), dtype=bool), change, -change)
        most = max(1, int(np.abs(change).max()))
        heat = _heat(signed.astype(float), change, shown, scale) | {"zmin": -most, "zmax": most}
        heat["hovertemplate"] = "%{y} called %{x}: %{customdata:+d} samples<extra></extra>"
        views.append(View("change", [heat]))
    layout = _axes("decision", "right class")
    ticks: dict[str, Any] = {"showgrid": False, "zeroline": False}
    if len(names) > 30:
        ticks["showticklabels"] = False
    layout["xaxis"] |= ticks | {"tickangle": -45, "constrain": "domain"}
    layout["yaxis"] |= ticks | {"autorange": "reversed"}
    off = [
        (int(counts[found[-1][0]][i, j]), i, j)
        for i in range(len(names))
        for j in range(len(names))
        if i != j and counts[found[-1][0]][i, j]
    ]
    rows = [
        [names[i], names[j], *(str(counts[name][i, j]) for name, _, _ in found)]
        for _, i, j in sorted(off, key=lambda item: -item[0])[:_CELLS]
    ]
    return Figure(
        "Confusion matrix",
        "Each row is a right class, each column a decision; the darker, the larger the share of the row. The table "
        "lists the confusions of the result, the most frequent first."
        + (f" {absent} classes that no sample has, and no answer, are left out." if absent else ""),
        views, layout, ["right class", "decision", *(f"{name}, samples" for name, _, _ in found)], rows,
        min(640, 300 + 14 * len(names)),
    )  # fmt: skip


def _heat(values: Any, counts: Any, names: Sequence[str], scale: Any) -> dict[str, Any]:
    trace: dict[str, Any] = {
        "type": "heatmap", "z": np.round(values, 4).tolist(), "x": list(names), "y": list(names),
        "customdata": counts.tolist(), "colorscale": scale, "showscale": False, "xgap": 0.5, "ygap": 0.5,
        "hovertemplate": "%{y} called %{x}: %{z:.1%}, %{customdata} samples<extra></extra>",
    }  # fmt: skip
    if len(set(names)) < len(names):  # shortened alike: plotly would merge them
        trace |= {"x": [f"{i} {n}" for i, n in enumerate(names)], "y": [f"{i} {n}" for i, n in enumerate(names)]}
    if len(names) <= _WRITTEN:
        trace |= {"text": counts.tolist(), "texttemplate": "%{text}", "textfont": {"color": INK}}
    return trace


def roc_figure(labels: Ints, found: Sides) -> Figure | None:
    """Receiver operating characteristic of both sides."""
    traces, rows, what = [], [], ""
    for name, color, answers in found:
        try:
            curve = roc(labels, answers.scores)
        except ValueError:
            return None
        what = curve.what
        traces.append({
            "type": "scatter", "mode": "lines", "name": f"{name}, area {curve.auc:.4f}", "x": curve.fpr.tolist(),
            "y": curve.tpr.tolist(), 
            "line": {"color": color, "width": 2.5, "dash": "solid" if name == "result" else "dash"},
            "hovertemplate": f"{name}: %{{y:.1%}} found at %{{x:.2%}} false<extra></extra>",
        })  # fmt: skip
        at = [float(np.interp(x, curve.fpr, curve.tpr)) for x in (0.001, 0.01, 0.1)]
        rows.append([name, f"{curve.auc:.5f}", *(f"{y:.2%}" for y in at)])
    layout = _axes("false positive rate", "true positive rate")
    layout["xaxis"] |= {"tickformat": ".1~%", "range": [-0.01, 1.01]}
    layout["yaxis"] |= {"tickformat": ".0%", "range": [0, 1.02]}
    if float(min(row[1] for row in rows)) > 0.98:  # the corner is what there is to see
        layout["xaxis"]["range"], layout["yaxis"]["range"] = [-0.0005, 0.05], [0.6, 1.01]
    return Figure(
        "ROC curves", f"The {what}. Closer to the upper left corner is better; double-click shows the whole curve.",
        single(traces), layout | WITH_LEGEND,
        ["side", "area under the curve", "found at 0.1 % false", "at 1 %", "at 10 %"], rows,
    )  # fmt: skip


def reliability_figure(labels: Ints, found: Sides) -> Figure:
    """Whether both sides are right as often as they say."""
    traces: list[dict[str, Any]] = [{
        "type": "scatter", "mode": "lines", "x": [0, 1], "y": [0, 1], "hoverinfo": "skip", "name": "perfect",
        "line": {"color": MUTED, "width": 1, "dash": "dot"},
    }]  # fmt: skip
    rows = []
    for name, color, answers in found:
        curve = reliability(answers.scores.max(axis=1), answers.decisions == labels)
        traces.append({
            "type": "scatter", "mode": "lines+markers", "name": f"{name}, ECE {curve.ece:.2%}",
            "x": curve.confidence.tolist(), "y": curve.accuracy.tolist(), "customdata": curve.count.tolist(),
            "error_y": {
                "type": "data", "symmetric": False, "array": (curve.high - curve.accuracy).tolist(),
                "arrayminus": (curve.accuracy - curve.low).tolist(), "color": color, "thickness": 1, "width": 2,
            },
            "marker": {"color": color, "size": 7}, "line": {"color": color, "width": 2},
            "hovertemplate": f"{name}: says %{{x:.1%}}, right %{{y:.1%}} of %{{customdata}}<extra></extra>",
        })  # fmt: skip
        rows += [
            [name, f"{low:.2f} to {high:.2f}", f"{n:,}", f"{sure:.2%}", f"{right:.2%}"]
            for (low, high), n, sure, right in zip(
                curve.edges, curve.count, curve.confidence, curve.accuracy, strict=True
            )
        ]
        soft = SOURCE_SOFT if name == "source" else RESULT_SOFT
        traces.append({
            "type": "bar", "x": curve.edges.mean(axis=1).tolist(), "y": (curve.count / curve.count.sum()).tolist(),
            "width": 0.028, "offset": -0.029 if name == "source" else 0.001,
            "marker": {"color": soft}, "name": f"{name}: share of samples", "showlegend": False,
            "hovertemplate": f"{name}: %{{y:.1%}} of the samples<extra></extra>", "yaxis": "y2",
        })  # fmt: skip
    layout = _axes("probability of the answer", "share of right answers")
    layout["xaxis"] |= {"tickformat": ".0%", "range": [0, 1.02], "anchor": "y2"}
    layout["yaxis"] |= {"tickformat": ".0%", "range": [-0.02, 1.05], "domain": [0.28, 1]}
    layout["yaxis2"] = {"domain": [0, 0.2], "tickformat": ".0%", "title": {"text": "samples"}, "automargin": True}
    return Figure(
        "Reliability",
        "On the diagonal a model is right as often as it says. Bars below: how many samples are that sure. ECE is the "
        "mean distance from the diagonal, over all samples, in 15 bins.",
        single(traces), layout | WITH_LEGEND | {"barmode": "overlay"},
        ["side", "bin", "samples", "mean probability", "right"], rows, 440,
    )  # fmt: skip


def slices_figure(column: str, found: Sequence[Slice]) -> Figure:
    """Accuracy of both sides for the worst slices of one column."""
    worst = found[:_SLICES]
    place = list(range(len(worst)))
    traces: list[dict[str, Any]] = []
    for offset, (name, color) in zip((-0.14, 0.14), (("source", SOURCE), ("result", RESULT)), strict=True):
        values = [getattr(part, name) for part in worst]
        traces.append({
            "type": "scatter", "mode": "markers", "name": name, "x": [v[0] for v in values],
            "y": [i + offset for i in place], "marker": {"color": color, "size": 8},
            "error_x": {
                "type": "data", "symmetric": False, "array": [v[2] - v[0] for v in values],
                "arrayminus": [v[0] - v[1] for v in values], "color": color, "thickness": 1.2, "width": 0,
            },
            "customdata": [[short(part.value, 50), part.n] for part in worst],
            "hovertemplate": f"%{{customdata[0]}}, {name}: %{{x:.1%}} of %{{customdata[1]}} samples<extra></extra>",
        })  # fmt: skip
    layout = _axes("accuracy (95 %)", "")
    layout["xaxis"] |= {"tickformat": ".0%", "nticks": 5, "tickangle": 0}
    layout["yaxis"] |= {"tickvals": place, "ticktext": [short(part.value, 26) for part in worst],
                        "range": [len(worst) - 0.4, -0.6], "zeroline": False}  # fmt: skip
    rows = [
        [part.value, f"{part.n:,}", 
         *(f"{v:.2%} [{low:.2%}, {high:.2%}]" for v, low, high in (part.source, part.result)),
         f"{100 * (part.result[0] - part.source[0]):+.2f}"]
        for part in found
    ]  # fmt: skip
    more = (
        "" if len(found) <= len(worst) else f" The worst {len(worst)} of {len(found)} are drawn, all are in the table."
    )
    return Figure(
        f"Accuracy by {column}", f"The worst first.{more} Small slices have wide intervals: they show little.",
        single(traces), layout | WITH_LEGEND, [column, "samples", "source", "result", "change, points"], rows,
        120 + 24 * len(worst),
    )  # fmt: skip


def gate_figure(checks: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Each check's change with its interval, where it has one."""
    drawn = [c for c in checks if c.get("change") is not None]
    if not drawn:
        return None
    colors = {"pass": GOOD, "regression": BAD}
    place = list(range(len(drawn)))
    trace = {
        "type": "scatter", "mode": "markers", "x": [c["change"] for c in drawn], "y": place, "showlegend": False,
        "marker": {"color": [colors.get(str(c["verdict"]), WARN) for c in drawn], "size": 11},
        "error_x": {
            "type": "data", "symmetric": False, "color": MUTED, "thickness": 2, "width": 4,
            "array": [max(0.0, (c["change"] if c.get("high") is None else c["high"]) - c["change"]) for c in drawn],
            "arrayminus": [max(0.0, c["change"] - (c["change"] if c.get("low") is None else c["low"])) for c in drawn],
        },
        "customdata": [[short(str(c["name"])), str(c["verdict"]), str(c.get("limit") or "-")] for c in drawn],
        "hovertemplate": "%{customdata[0]}: %{x:+.2%}, limit %{customdata[2]}: %{customdata[1]}<extra></extra>",
    }  # fmt: skip
    bounds = [(c["allowed"], i) for i, c in enumerate(drawn) if c.get("allowed") is not None]
    limits = {
        "type": "scatter", "mode": "markers", "name": "limit", "showlegend": False, "x": [x for x, _ in bounds],
        "y": [y for _, y in bounds], "marker": {"symbol": "line-ns", "size": 22, "line": {"color": BAD, "width": 2.5}},
        "hovertemplate": "limit %{x:+.2%}<extra></extra>",
    }  # fmt: skip
    layout = _axes("change from the baseline", "")
    layout["xaxis"] |= {"tickformat": "+.0%", "zeroline": True, "zerolinecolor": MUTED}
    layout["yaxis"] |= {"tickvals": place, "ticktext": [short(str(c["name"])) for c in drawn],
                        "range": [len(drawn) - 0.5, -0.5], "zeroline": False}  # fmt: skip
    return Figure(
        "Changes that the gate has seen", "Times and bytes in shares of the baseline's, accuracy in points; bars are "
        "95 % intervals, red lines the limits.", single([trace, limits] if bounds else [trace]), layout,
        height=110 + 40 * len(drawn), wide=True,
    )  # fmt: skip
