"""Without a GPU nothing is measured, and that is said; what needs none is right."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

from lepto.benchmarks.kernels_cases import padded_contenders
from lepto.benchmarks.kernels_encoder import batch_of, contenders, make_encoder
from lepto.benchmarks.kernels_shapes import (
    _BANKING77,
    Shape,
    decode_bytes,
    draw_lengths,
    judge,
    table,
    varlen_flop,
)
from lepto.benchmarks.kernels_timing import largest_error
from lepto.kernels.attention.reference import reference

SHARED = Path(__file__).parents[3] / "shared"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_benchmark_says_what_is_missing(tmp_path):
    output = tmp_path / "kernels.json"
    command = [sys.executable, "-m", "lepto.benchmarks.kernels", "--output", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode != 0
    assert "bench-kernels needs an NVIDIA GPU with compute capability 8.0 or later: none was found" in done.stderr
    assert "Traceback" not in done.stderr
    assert not output.exists()


def test_work_is_counted_as_the_papers_do():
    assert Shape("long", 2, 3, 10, 8).flop == 4 * 2 * 3 * 100 * 8
    assert Shape("long", 2, 3, 10, 8, causal=True).flop == 2 * 2 * 3 * 100 * 8
    assert varlen_flop([10, 10], 3, 8) == Shape("varlen", 2, 3, 10, 8).flop
    assert decode_bytes(Shape("decode", 2, 32, 100, 128), kv_heads=8) == 2 * 2 * 100 * 8 * 128 * 2


def test_lengths_are_those_of_real_sentences():
    sizes = draw_lengths("banking77", 3000)
    assert sum(_BANKING77.values()) == 3080
    assert 14.5 < sum(sizes) / 3000 < 15.6
    assert max(sizes) <= 82
    longer = draw_lengths("mean128", 3000)
    assert 120 < sum(longer) / 3000 < 136
    assert max(longer) == 512
    assert draw_lengths("mean128", 3000) == longer
    with pytest.raises(ValueError, match="distribution must be one of banking77, mean128, got 'squad'"):
        draw_lengths("squad", 1)


@pytest.mark.skipif(not SHARED.exists(), reason="the shared data is not here")
def test_the_stored_lengths_are_what_the_tokenizer_makes_of_the_test_set():
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(SHARED / "models" / "minilm-banking77" / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    with (SHARED / "data" / "banking77" / "test.csv").open(newline="") as file:
        texts = [row["text"] for row in csv.DictReader(file)]
    assert Counter(len(entry.ids) for entry in tokenizer.encode_batch(texts)) == _BANKING77


def test_bars():
    def row(name: str, ms: float, **more: float) -> dict:
        return {"implementation": name, "median_ms": ms, **more}

    results = [
        {"kind": "varlen", "shape": "v", "head_dim": 64, "length": 82, "rows": [
            row("lepto varlen", 1.0), row("lepto", 9.0), row("sdpa flash", 1.6), row("flex", 0.1),
            {"implementation": "sdpa cudnn", "refused": "no"}]},
        {"kind": "encoder", "shape": "e", "head_dim": 64, "length": 128, "rows": [
            row("lepto", 1.0), row("sdpa", 0.99)]},
        {"kind": "encoder", "shape": "other", "head_dim": 32, "length": 128, "rows": [row("lepto", 9.0)]},
        {"kind": "long", "shape": "l", "head_dim": 64, "length": 1024, "rows": [
            row("lepto", 2.0), row("lepto hopper", 1.0), row("sdpa", 0.95)]},
        {"kind": "decode", "shape": "d", "head_dim": 128, "length": 1024, "rows": [
            row("lepto decode", 1.0, bandwidth_share=0.89)]},
        {"kind": "long", "shape": "refused", "head_dim": 64, "length": 1024, "rows": [
            {"implementation": "lepto", "refused": "out of memory"}, row("sdpa", 1.0)]},
        {"kind": "model", "shape": "m", "rows": [row("lepto", 1.0)]},
    ]  # fmt: skip
    verdicts = {verdict["what"]: (verdict["ratio"], verdict["kept"]) for verdict in judge(results)}
    assert verdicts == {
        "v": (1.6, True), "e": (0.99, False), "l": (0.95, True), "d": (0.89, False), "refused": (None, False)
    }  # fmt: skip
    text = table(results)
    assert "| v | sdpa cudnn | no |" in text
    assert "| d | lepto decode | 1.0000 |  | 89.0% |  |" in text


def test_the_stored_table_is_judged_by_the_same_bars():
    stored = json.loads((Path(__file__).parents[2] / "benchmarks" / "baselines" / "kernels.json").read_text())
    assert judge(stored["results"]) == stored["bars"]
    rows = [row for result in stored["results"] for row in result["rows"] if row["implementation"].startswith("lepto")]
    assert all(row["max_error"] < 2e-2 for row in rows)


def test_errors_are_taken_against_float64():
    qkv = [torch.randn(2, 3, 5, 16, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    exact, _ = reference(*qkv, scale=0.25, window=(-1, 0))
    assert largest_error(exact, qkv, causal=True) < 1e-5
    exact[1, 2, 4, 3] += 0.5  # in the last head, which is one of those that are looked at
    assert largest_error(exact, qkv, causal=True) == pytest.approx(0.5, abs=1e-4)


@pytest.mark.parametrize(("causal", "lengths"), [(True, None), (False, [9, 4])])
def test_contenders_compute_the_same(causal, lengths):
    shape = Shape("encoder", 2, 2, 9, 16, causal)
    qkv = [torch.randn(2, 2, 9, 16, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    given = None if lengths is None else torch.tensor(lengths, dtype=torch.int32)
    found = padded_contenders(shape, qkv, given)
    assert {"lepto", "sdpa flash_attention", "sdpa cudnn_attention", "sdpa math", "flex"} < set(found)
    assert ("lepto hopper" in found) == (lengths is None)
    exact = found["lepto"]()
    torch.testing.assert_close(found["sdpa math"](), exact, atol=1e-5, rtol=1e-5)


def test_an_encoder_without_padding_is_the_padded_one():
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    model = make_encoder(small | {"vocab_size": 50}, "cpu", torch.float32)
    ids, mask = batch_of([9, 2, 5], 50, "cpu")
    found = contenders(model, ids, mask)
    compiled = ["torch.compile, sdpa", "torch.compile, lepto without padding"]
    assert list(found) == ["lepto without padding", "lepto padded", "eager", "sdpa", *compiled]
    outs = {}
    with torch.inference_mode():
        for name in ("lepto without padding", "lepto padded", "eager", "sdpa"):
            attention, run = found[name]
            model.set_attn_implementation(attention)
            outs[name] = run()
    for out in outs.values():
        torch.testing.assert_close(out, outs["eager"], atol=1e-5, rtol=1e-4)
    assert (outs["eager"][0] - outs["eager"][1]).abs().max() > 0.1
