"""A worker's protocol, in this process and in one of its own."""

from __future__ import annotations

import gc
import io
import json
import os
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from lepto.benchmarks.peers.client import Worker
from lepto.benchmarks.peers.worker import batch, serve, time_batches
from lepto.runtime.errors import LeptoError

ROWS = [[2, 7, 3], [2, 3], [2, 9, 9, 3]]


def load(model, threads, options):
    """Answers with the number of tokens of each sample, as a class."""
    if model == "broken":
        raise RuntimeError("no such model\nand more")
    scale = np.nan if model == "nan" else 1.0
    return lambda feed: scale * np.eye(8)[feed["attention_mask"].sum(axis=1)], frozenset(
        {"input_ids", "attention_mask"}
    )


@pytest.fixture(autouse=True)
def _collector() -> Iterator[None]:
    """A worker turns the garbage collector off, which is not for this process."""
    yield
    gc.unfreeze()
    gc.enable()


def ask(*requests: object) -> list[dict]:  # type: ignore[type-arg]
    lines = io.StringIO("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in requests))
    answers = io.StringIO()
    serve(lines, answers, {"trivial": load})
    return [json.loads(line) for line in answers.getvalue().splitlines()]


LOAD = {"do": "load", "kind": "trivial", "model": "m", "threads": 1, "options": {}}
TAKE = {"do": "rows", "rows": ROWS, "pad_id": 0}


def test_load_take_answer_and_time():
    loaded, taken, answered, timed = ask(
        LOAD, TAKE, {"do": "answers", "batches": [[0], [1, 2]]}, {"do": "time", "batches": [[0], [1], [2, 0]]}
    )
    assert loaded["versions"]["numpy"] == np.__version__
    assert taken == {"count": 3}
    assert answered == {"classes": [3, 2, 4]}
    assert len(timed["seconds"]) == 3
    assert min(timed["seconds"]) > 0


@pytest.mark.parametrize(
    ("requests", "message"),
    [
        ([{**LOAD, "model": "broken"}], "RuntimeError: no such model"),
        ([{**LOAD, "kind": "other"}], "ValueError: kind must be one of trivial, got 'other'"),
        ([{"do": "dance"}], "ValueError: do must be one of load, rows, time, answers, got 'dance'"),
        ([{"do": "time", "batches": [[0]]}], "ValueError: nothing is loaded yet"),
        ([{**LOAD, "model": "nan"}, TAKE, {"do": "answers", "batches": [[0]]}], "ValueError: an answer is not finite"),
        (["no JSON"], "JSONDecodeError: Expecting value: line 1 column 1 (char 0)"),
    ],
)
def test_what_goes_wrong_is_answered(requests: list[object], message: str):
    assert ask(*requests)[-1] == {"error": message}


def test_a_worker_goes_on_after_an_error():
    assert "versions" in ask({"do": "dance"}, LOAD)[1]


def test_a_batch_is_padded_to_its_longest_row():
    feed = batch(ROWS[:2], 9, frozenset({"input_ids", "attention_mask", "token_type_ids"}))
    assert feed["input_ids"].tolist() == [[2, 7, 3], [2, 3, 9]]
    assert feed["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert feed["token_type_ids"].tolist() == [[0, 0, 0], [0, 0, 0]]
    assert {array.dtype for array in feed.values()} == {np.dtype(np.int64)}


def test_a_batch_has_only_what_the_model_takes():
    assert set(batch(ROWS, 0, frozenset({"input_ids"}))) == {"input_ids"}
    with pytest.raises(ValueError, match="the model takes pixel_values, which a text does not give"):
        batch(ROWS, 0, frozenset({"pixel_values"}))


def test_each_turn_begins_with_a_run_that_is_not_measured():
    seen = []
    seconds = time_batches(lambda feed: seen.append(feed), ["a", "b"])  # type: ignore[arg-type, func-returns-value]
    assert seen == ["a", "a", "b"]
    assert len(seconds) == 2


SCRIPT = textwrap.dedent(
    """
    import os, sys, time
    import numpy as np
    from lepto.benchmarks.peers.worker import main

    def load(model, threads, options):
        print("a library talks on stdout", flush=True)
        def run(feed):
            if model == "dies":
                print("segmentation fault, say", file=sys.stderr, flush=True)
                os._exit(7)
            if model == "hangs":
                time.sleep(60)
            return np.eye(8)[feed["attention_mask"].sum(axis=1)]
        return run, frozenset({"input_ids", "attention_mask"})

    main({"trivial": load})
    """
)


@pytest.fixture
def start(tmp_path: Path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    workers: list[Worker] = []

    def start(model: str) -> Worker:
        command = [sys.executable, "-P", str(script)]
        worker = Worker("it", command, log=tmp_path / "it.log", variables=os.environ)
        workers.append(worker)
        worker.ask("load", kind="trivial", model=model, threads=1, options={})
        worker.ask("rows", rows=ROWS, pad_id=0)
        return worker

    yield start
    for worker in workers:
        worker.close()


def test_a_process_answers_and_ends(start, tmp_path: Path):
    with start("m") as worker:
        assert worker.ask("answers", batches=[[2], [0, 1]]) == {"classes": [4, 3, 2]}
        assert len(worker.ask("time", batches=[[i % 3] for i in range(500)])["seconds"]) == 500
        with pytest.raises(LeptoError, match="it: ValueError: do must be one of"):
            worker.ask("dance")
    assert not Path(f"/proc/{worker.pid}").exists()
    assert "a library talks on stdout" in (tmp_path / "it.log").read_text()


def test_a_process_that_dies_is_reported_with_its_last_words(start):
    worker = start("dies")
    for _ in range(2):
        with pytest.raises(LeptoError, match="it: its worker ended with exit code 7: segmentation fault, say"):
            worker.ask("time", batches=[[0]])


def test_a_process_that_does_not_answer_is_ended(start):
    with pytest.raises(LeptoError, match="it: no answer within 0 s; its worker was ended"):
        start("hangs").ask("time", batches=[[0]], timeout_s=0.3)


def test_a_program_that_is_not_there_is_reported(tmp_path: Path):
    with pytest.raises(LeptoError, match="it: its worker cannot be started"):
        Worker("it", [str(tmp_path / "nothing")], log=tmp_path / "it.log", variables={})
