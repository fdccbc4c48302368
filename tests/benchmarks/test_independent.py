"""What is compared with an independent client; the comparison itself is ``make bench-perf-analyzer``."""

from __future__ import annotations

from pathlib import Path

import pytest

from lepto.benchmarks.independent import Turn, _compared, _texts
from lepto.runtime.errors import LeptoError


def test_medians_agree_within_five_percent() -> None:
    ours = [Turn(1.04, 900.0), Turn(9.0, 100.0), Turn(1.0, 940.0)]
    theirs = [Turn(1.0, 1000.0), Turn(1.0, 1000.0), Turn(1.0, 1000.0)]
    found = {"lepto": ours, "perf_analyzer": theirs}
    assert _compared(found, "p50_ms") == {"lepto": 1.04, "perf_analyzer": 1.0, "ratio": 1.04, "agrees": True}
    assert not _compared(found, "throughput")["agrees"]


def test_texts_are_read_and_what_is_missing_is_named(tmp_path: Path) -> None:
    file = tmp_path / "texts.csv"
    file.write_text('text,label\n"a\nb",x\nc,y\n')
    assert _texts(file, "text") == ["a\nb", "c"]
    with pytest.raises(LeptoError, match=r"no texts in the column 'utterance'.*--text-column"):
        _texts(file, "utterance")
    file.write_text("text\n")
    with pytest.raises(LeptoError, match="has no rows"):
        _texts(file, "text")
