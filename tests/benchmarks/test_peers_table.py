"""Judging and laying out made-up measurements."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from lepto.benchmarks.peers import table
from lepto.benchmarks.peers.table import Measured, Role, judge, latency_rows, throughput_rows


def measured(role: Role, ms: float, *, right: int = 90, batch_ms: float = 10.0, size: int = 1_000_000) -> Measured:
    noise = 1 + 0.01 * np.random.default_rng(0).standard_normal((10, 20))
    return Measured(
        role=role,
        bytes=size,
        right=np.arange(100) < right,
        single_s=(1e-3 * ms * noise).tolist(),
        batches_s=[[1e-3 * batch_ms, 1e-3 * batch_ms] for _ in range(8)],
        batch_samples=16 * 32,
    )


ALL = {
    "Lepto out": measured("lepto", 0.5, right=89, batch_ms=2.0),
    "olive int8": measured("peer", 1.5, batch_ms=5.0),
    "openvino int8": measured("peer", 2.0, batch_ms=4.0),
    "PyTorch eager": measured("eager", 10.0, batch_ms=20.0),
}


def test_rows_stand_in_the_order_eager_peers_lepto():
    assert [row.role for row in judge(ALL).rows.values()] == ["eager", "peer", "peer", "lepto"]


def test_the_best_peer_may_differ_between_latency_and_throughput():
    judged = judge(ALL)
    assert judged.best_latency == "olive int8"
    assert judged.best_throughput == "openvino int8"


def test_lepto_is_never_the_best_peer():
    assert judge(ALL).best_latency != "Lepto out"


def test_ratios_are_the_made_up_ones_with_intervals_around_them():
    row = judge(ALL).rows["Lepto out"]
    for ratio, value in (
        (row.latency["eager"], 20.0),
        (row.latency["best peer"], 3.0),
        (row.throughput["eager"], 10.0),
        (row.throughput["best peer"], 2.0),
    ):
        assert ratio.value == pytest.approx(value)
        assert ratio.low <= ratio.value <= ratio.high


def test_the_best_peer_is_not_compared_with_itself_nor_eager_with_itself():
    rows = judge(ALL).rows
    assert set(rows["olive int8"].latency) == {"eager"}
    assert set(rows["PyTorch eager"].latency) == {"best peer"}
    assert rows["PyTorch eager"].difference is None


def test_accuracy_is_compared_sample_by_sample():
    row = judge(ALL).rows["Lepto out"]
    assert row.accuracy == pytest.approx(0.89)
    assert row.difference is not None
    assert (row.difference.n10, row.difference.n01) == (1, 0)
    assert row.difference.low < row.difference.value == pytest.approx(-0.01)


def test_throughput_counts_all_samples_and_all_time():
    assert judge(ALL).rows["PyTorch eager"].samples_per_s == pytest.approx(16 * 32 / (16 * 0.02))


def test_blocks_of_unequal_size_are_compared_by_their_sums():
    ragged = {
        name: dataclasses.replace(one, batches_s=[[one.batches_s[0][0]] * (1 + k % 2) for k in range(8)])
        for name, one in ALL.items()
    }
    assert judge(ragged).rows["Lepto out"].throughput["eager"].value == pytest.approx(10.0)


def test_without_any_peer_there_is_no_best_one():
    judged = judge({name: one for name, one in ALL.items() if one.role != "peer"})
    assert judged.best_latency is None
    assert latency_rows(judged, {})[1][-1] == "-"


def test_there_must_be_one_eager_model():
    with pytest.raises(ValueError, match="one model must be eager, got 0"):
        judge({name: one for name, one in ALL.items() if one.role != "eager"})


def test_too_few_blocks_are_refused():
    with pytest.raises(ValueError, match="at least 6 pairs"):
        judge({name: dataclasses.replace(one, single_s=one.single_s[:5]) for name, one in ALL.items()})


def test_cells_fill_the_columns_and_what_failed_has_a_row():
    judged = judge(ALL)
    failed = {"optimum": "RuntimeError: Unable to find data type"}
    for columns, rows in (
        (table.LATENCY_COLUMNS, latency_rows(judged, failed)),
        (table.THROUGHPUT_COLUMNS, throughput_rows(judged, failed)),
    ):
        assert {len(row) for row in rows} == {len(columns)}
        assert rows[-1][:2] == ["optimum", "failed"]
        assert set(rows[-1][2:]) == {"-"}


def test_cells_say_what_was_measured():
    rows = {row[0]: row for row in latency_rows(judge(ALL), {})}
    assert rows["Lepto out"][1].startswith("89.00% (-1.00, at least -")
    assert rows["Lepto out"][2] == "1.0 MB"
    assert rows["Lepto out"][5].startswith("20.00 (")
    assert rows["olive int8"][6] == "the best"


def test_the_result_is_plain_json():
    document = json.loads(json.dumps(judge(ALL).as_json(), allow_nan=False))
    assert document["rows"]["Lepto out"]["latency"]["best peer"]["n"] == 10
