"""Stored results, one file each, by name and time; they know their hardware."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from lepto.benchmarks.sides import RESULT_SCHEMA
from lepto.runtime.errors import LeptoError
from lepto.runtime.published import check_name

FOLDER: Final = Path("benchmarks/baselines")
LEAST_BETWEEN_CHANGES: Final = 3
# Numbers that depend on the machine, and those that do not.
TIMES: Final = ("p50_ms", "p90_ms", "throughput", "load_ms", "memory_bytes", "cpu_ms")
FACTS: Final = ("accuracy", "f1", "bytes")


@dataclass(frozen=True)
class Stored:
    """One stored result.

    Attributes:
        path: Its file.
        when: When it was measured, UTC, ISO 8601.
        hardware: On what.
        values: Numbers by name.
    """

    path: Path
    when: str
    hardware: str
    values: dict[str, float]


def store(document: Mapping[str, Any], folder: Path) -> Path:
    """Write one result below ``folder/NAME/``; nothing is overwritten.

    Raises:
        LeptoError: It cannot be written.
    """
    when = datetime.datetime.now(datetime.UTC)
    name = check_name(str(document["name"]))
    path = folder / name / f"{when:%Y%m%dT%H%M%S%f}Z.json"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            text = json.dumps({**document, "when": when.isoformat(timespec="seconds")}, default=str, allow_nan=False)
            file.write(text + "\n")
    except OSError as error:
        raise LeptoError(f"cannot store the result in {path}: {error.strerror}; choose another --results") from error
    return path


def read_history(name: str, folder: Path) -> list[Stored]:
    """All stored results of a name, oldest first.

    Raises:
        LeptoError: There are none, or one is broken.
    """
    files = sorted((folder / check_name(name)).glob("*.json"))
    if not files:
        there = ", ".join(sorted({path.parent.name for path in folder.glob("*/*.json")})) or "nothing"
        raise LeptoError(
            f"no results of {name!r} are stored in {folder}; stored there: {there}. "
            "`lepto bench PACKAGE --store` stores one"
        )
    found = []
    for path in files:
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            if document.get("schema") != RESULT_SCHEMA:
                raise ValueError(f"its schema is not {RESULT_SCHEMA!r}")
            values = {
                key: float(document[key]) for key in (*TIMES, *FACTS) if isinstance(document.get(key), int | float)
            }
            found.append(Stored(path, str(document["when"]), str(document["hardware"]), values))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise LeptoError(f"{path} is no stored result ({error}); remove it") from error
    return sorted(found, key=lambda one: one.when)


def change_points(values: Sequence[float]) -> list[int]:
    """Where a series of positive numbers changes its level: places of the first value of each new level.

    PELT with a squared-error cost on the logarithms and a BIC penalty; the noise is estimated from the differences of
    neighbours, so that a change of level does not count as noise. Source: Killick, Fearnhead & Eckley, "Optimal
    detection of changepoints with a linear computational cost", JASA 107 (2012), 1590-1598.

    Raises:
        LeptoError: ``ruptures`` is not installed.
    """
    series = np.log(np.asarray(values, dtype=np.float64))
    if len(series) < 2 * LEAST_BETWEEN_CHANGES or not np.isfinite(series).all():
        return []
    try:
        import ruptures  # type: ignore[import-untyped,unused-ignore]  # optional, untyped
    except ImportError as error:
        raise LeptoError(f"change points need ruptures ({error}): pip install 'lepto[bench]'") from error
    steps = np.diff(series)
    noise = max(1.4826 * float(np.median(np.abs(steps - np.median(steps)))) / np.sqrt(2), 1e-4)
    scaled: npt.NDArray[np.float64] = (series / noise).reshape(-1, 1)
    penalty = 6.0 * np.log(len(series))  # the noise itself is only estimated
    found = ruptures.Pelt(model="l2", min_size=LEAST_BETWEEN_CHANGES, jump=1).fit(scaled).predict(pen=penalty)
    return [int(place) for place in found[:-1]]


def draw(values: Sequence[float], changes: Sequence[int], height: int = 8) -> list[str]:
    """A plot of lines of text, oldest left; a bar stands where the level changed."""
    if not values:
        return []
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    width = max(10, len(f"{high:.4g}"), len(f"{low:.4g}"))
    rows = [[" "] * len(values) for _ in range(height)]
    for place, value in enumerate(values):
        rows[height - 1 - round((value - low) / span * (height - 1))][place] = "●"
        if place in changes:
            for row in rows:
                row[place] = "┊" if row[place] == " " else row[place]
    labels = {0: f"{high:.4g}", height - 1: f"{low:.4g}"}
    return [f"{labels.get(i, ''):>{width}} ┤{''.join(row)}" for i, row in enumerate(rows)]
