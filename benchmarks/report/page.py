"""From sections to one file of HTML that needs nothing else: style, script, plotly.js and figures are inside."""

from __future__ import annotations

import base64
import json
import re
import struct
import zlib
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from typing import Any

import numpy as np

from lepto.benchmarks.report.charts import Figure
from lepto.benchmarks.report.content import Card, Section, Table
from lepto.benchmarks.report.measured import Explained
from lepto.runtime.errors import LeptoError

# Nothing may be fetched from anywhere, whatever a label or a text says.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data: blob:"


def render(title: str, lead: str, parts: Sequence[tuple[str, Sequence[Section]]], made: str) -> tuple[str, list[str]]:
    """Write the page.

    Args:
        title: Heading of the page.
        lead: Beneath it.
        parts: Heading and sections of each package or result; an empty heading for the only one.
        made: By what and when, for the foot.

    Returns:
        The page, and the titles of its figures.

    Raises:
        LeptoError: plotly is not installed.
    """
    figures: list[dict[str, Any]] = []
    titles: list[str] = []
    body, links = [], []
    for number, (heading, sections) in enumerate(parts):
        if heading:
            body.append(f'<h2 class="package" id="part{number}">{escape(heading)}</h2>')
            links.append((f"part{number}", heading))
        for section in sections:
            anchor = f"s{number}-{re.sub(r'[^a-z]+', '-', section.title.lower())}"
            if not heading:
                links.append((anchor, section.title))
            body.append(_section(section, anchor, figures, titles))
    menu = "".join(f'<li><a href="#{anchor}">{escape(name)}</a></li>' for anchor, name in links)
    data = json.dumps(figures, allow_nan=False, ensure_ascii=True).replace("<", "\\u003c")
    page = f"""<!doctype html>
<html lang="en" data-theme="light">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<title>{escape(title)}</title>
<link rel="icon" href="data:,">
<style>{_asset("page.css")}</style>
</head>
<body>
<a class="skip" href="#content">Skip to the content</a>
<header class="top"><div><h1>{escape(title)}</h1><p class="lead">{escape(lead)}</p></div>
<button id="theme" type="button">Colours: auto</button></header>
<nav aria-label="Sections"><ul>{menu}</ul></nav>
<main id="content">
{"".join(body)}
<footer>{escape(made)}. In a figure that has the focus the arrow keys walk through its points; each figure has a table
of its numbers.</footer>
</main>
<div id="live" class="live" aria-live="polite"></div>
<script type="application/json" id="figures">{data}</script>
<script>{_plotly()}</script>
<script>{_asset("page.js")}</script>
</body>
</html>
"""
    return page, titles


def _section(section: Section, anchor: str, figures: list[dict[str, Any]], titles: list[str]) -> str:
    parts = [f'<section id="{anchor}" aria-labelledby="{anchor}-h"><h2 id="{anchor}-h">{escape(section.title)}</h2>']
    if section.intro:
        parts.append(f'<p class="intro">{escape(section.intro)}</p>')
    if section.cards:
        parts.append(f'<dl class="cards">{"".join(map(_card, section.cards))}</dl>')
    if section.figures:
        drawn = "".join(_figure(figure, figures, titles) for figure in section.figures)
        three = " three" if len(section.figures) == 3 and not any(figure.wide for figure in section.figures) else ""
        three = "" if any(_tall(figure) for figure in section.figures) else three
        parts.append(f'<div class="figures{three}">{drawn}</div>')
    if section.verdicts:
        parts.append(_verdicts(section))
    if section.flips:
        parts.append(f'<ul class="flips">{"".join(_flip(one, section.names) for one in section.flips)}</ul>')
    parts.extend(f'<div class="panel plain">{_table(table)}</div>' for table in section.tables)
    return "".join([*parts, "</section>"])


def _card(card: Card) -> str:
    return (
        f'<div class="card"><dt>{escape(card.name)}</dt><dd class="value {card.tone}">{escape(card.value)}</dd>'
        f'<dd class="note">{escape(card.note)}</dd></div>'
    )


def _figure(figure: Figure, figures: list[dict[str, Any]], titles: list[str]) -> str:
    number = len(figures)
    identity = f"figure{number}"
    views = [{"name": view.name, "data": view.data} for view in figure.views]
    figures.append({"id": identity, "height": figure.height, "layout": figure.layout, "views": _plain(views)})
    titles.append(figure.title)
    buttons = ""
    if len(figure.views) > 1:
        made = "".join(
            f'<button type="button" aria-pressed="{"true" if i == 0 else "false"}">{escape(view.name)}</button>'
            for i, view in enumerate(figure.views)
        )
        buttons = f'<div class="views" role="group" aria-label="What is shown" data-figure="{number}">{made}</div>'
    table = ""
    if figure.rows:
        inside = _table(Table(figure.columns, figure.rows))
        table = f"<details><summary>The numbers</summary>{inside}</details>"
    kind = "wide" if figure.wide else "tall" if _tall(figure) else ""
    return (
        f'<figure class="{kind}"><figcaption><h3>{escape(figure.title)}</h3>'
        f"<p>{escape(figure.caption)}</p></figcaption>{buttons}"
        f'<div class="plot" id="{identity}" tabindex="0" role="img" aria-label="{escape(figure.title)}: figure; '
        f'arrow keys walk through its points" style="min-height:{figure.height}px"></div>{table}</figure>'
    )


def _tall(figure: Figure) -> bool:
    return figure.height > 520


def _plain(value: Any) -> Any:
    """Numbers as JSON has them: rounded to what can be seen, and null for what is none."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return float(f"{value:.6g}") if np.isfinite(value) else None
    return value


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in table.columns)
    rows = "".join(f"<tr>{''.join(f'<td>{escape(str(cell))}</td>' for cell in row)}</tr>" for row in table.rows)
    return f'<div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _verdicts(section: Section) -> str:
    tones = {"pass": "good", "regression": "bad"}
    rows = "".join(
        f'<tr><td class="{tones.get(str(c["verdict"]), "warn")}"><b>{escape(str(c["verdict"]))}</b></td>'
        f"<td>{escape(str(c['name']))}</td><td>{escape(str(c['message']))}</td></tr>"
        for c in section.verdicts
    )
    head = '<th scope="col">verdict</th><th scope="col">check</th><th scope="col">what was found</th>'
    return (
        f'<div class="panel"><div class="scroll" tabindex="0"><table class="verdicts"><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div></div>"
    )


def _flip(one: Explained, names: Sequence[str]) -> str:
    flip = one.flip
    said = {"broken": "broken: only the source is right", "repaired": "repaired: only the result is right"}
    kind = said.get(flip.kind, "both are wrong")
    sides = []
    for side, (label, score), weights in (("source", flip.source, one.source), ("result", flip.result, one.result)):
        shown = ""
        if one.features is not None and (weights is not None or side == "source"):
            shown = _shown(one, weights)
        answer = f"{side}: <b>{escape(names[label])}</b> {score:.1%}"
        sides.append(f'<div class="side"><div class="answer">{answer}</div>{shown}</div>')
    inside = "".join(sides)
    if one.features is not None and one.features.image is not None:
        inside = f'<div class="sides">{inside}</div>'
    return (
        f'<li class="flip {flip.kind}"><header><span>{kind}</span><span>sample {flip.row}</span></header>'
        f'<div class="answer">right: <b>{escape(names[flip.label])}</b></div>{inside}</li>'
    )


def _shown(one: Explained, weights: Any) -> str:
    features = one.features
    assert features is not None
    largest = max(float(np.abs(weights).max()), 1e-9) if weights is not None else 1.0
    if features.image is not None:
        how = "" if weights is None else ", tinted by what the answer hangs on"
        return f'<img alt="the sample{how}" src="{_png(features, weights, largest)}">'
    words = []
    for place, word in enumerate(features.names):
        weight = 0.0 if weights is None else float(weights[place])
        share = round(55 * abs(weight) / largest)
        color = "var(--good)" if weight > 0 else "var(--bad)"
        style = f' style="background:color-mix(in srgb,{color} {share}%,transparent)"' if share >= 4 else ""
        title = "" if weights is None else f' title="{weight:+.3f}"'
        words.append(f"<span{style}{title}>{escape(word)}</span>")
    return f'<div class="words">{" ".join(words)}</div>'


def _png(features: Any, weights: Any, largest: float) -> str:
    """The image as a data URL, tinted by the weights of its patches."""
    image = features.image if features.image.ndim == 3 else np.repeat(features.image[..., None], 3, axis=2)
    if weights is not None:
        height, width = image.shape[:2]
        rows, columns = features.grid
        patch = (np.arange(height) * rows // height)[:, None] * columns + np.arange(width) * columns // width
        share = np.clip(np.asarray(weights)[patch] / largest, -1, 1)[..., None]
        tint = np.where(share > 0, np.array([0.1, 0.75, 0.45]), np.array([0.9, 0.2, 0.25]))
        image = image * (1 - 0.55 * np.abs(share)) + tint * 0.55 * np.abs(share)
    pixels = np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)
    height, width = pixels.shape[:2]
    raw = b"".join(b"\0" + pixels[row].tobytes() for row in range(height))

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    # PNG specification, third edition: signature, IHDR (8 bits, RGB), IDAT, IEND.
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def _asset(name: str) -> str:
    return files("lepto.benchmarks.report").joinpath(name).read_text(encoding="utf-8")


def _plotly() -> str:
    try:
        from plotly.offline import get_plotlyjs
    except ModuleNotFoundError as error:
        raise LeptoError(f"a report needs plotly ({error}): pip install 'lepto[report]'") from error
    # What would end the script early inside a page.
    return str(get_plotlyjs()).replace("</script", "<\\/script")
