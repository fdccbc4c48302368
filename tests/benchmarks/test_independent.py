"""What is compared with an independent client; the comparison itself is ``make bench-perf-analyzer``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lepto.benchmarks.independent import Turn, _compared, _texts
from lepto.runtime.errors import LeptoError


def test_medians_agree_within_five_percent() -> None:
    ours = [Turn(1.04, 900.0), Turn(9.0, 100.0), Turn(1.0, 940.0)]
    theirs = [Turn(1.0, 1000.0), Turn(1.0, 1000.0), Turn(1.0, 1000.0)]
    found = {"lepto": ours, "perf_analyzer": theirs}
    latency = _compared(found, "p50_ms")
    assert latency == {
        "lepto": 1.04, "perf_analyzer": 1.0, "ratio": pytest.approx(1.04), "interval": None, "agrees": True,
    }  # fmt: skip
    assert not _compared(found, "throughput")["agrees"]


def test_turns_are_compared_with_their_neighbours() -> None:
    """A machine that gets ten times slower half-way slows down both."""
    times = np.array([1.0] * 5 + [10.0] * 4)
    found = {
        "lepto": [Turn(1.02 * time, 1.0) for time in times],
        "perf_analyzer": [Turn(time, 1.0) for time in times],
    }
    compared = _compared(found, "p50_ms")
    assert compared["ratio"] == pytest.approx(1.02)
    assert compared["interval"] == pytest.approx([1.02, 1.02])


def test_texts_are_read_and_what_is_missing_is_named(tmp_path: Path) -> None:
    file = tmp_path / "texts.csv"
    file.write_text('text,label\n"a\nb",x\nc,y\n')
    assert _texts(file, "text") == ["a\nb", "c"]
    with pytest.raises(LeptoError, match=r"no texts in the column 'utterance'.*--text-column"):
        _texts(file, "utterance")
    file.write_text("text\n")
    with pytest.raises(LeptoError, match="has no rows"):
        _texts(file, "text")
