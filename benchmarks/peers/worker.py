"""A process that holds one model and answers the measuring process; runs in the environment of a peer.

One JSON object a line comes on stdin, one goes back on stdout. It only works while it is asked to, so that several of
them can wait beside each other. Requests (``do``), with what they need and what they answer:

======== ============================================ ==========================
load     kind, model, threads, options                versions
rows     rows (token ids of each sample), pad_id      count
time     batches (sample numbers)                     seconds of each batch
answers  batches                                      class of each sample
======== ============================================ ==========================

Anything that goes wrong is answered with ``error``. The end of stdin ends the process.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from time import perf_counter
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from lepto.benchmarks.peers.produced import first_line, versions

Feed = dict[str, NDArray[np.int64]]
Run = Callable[[Feed], NDArray[Any]]
# A loader takes model, threads and options, and gives a function and the names of the inputs that it takes.
Loader = Callable[[str, int, Mapping[str, str]], tuple[Run, frozenset[str]]]


def load_eager(model: str, threads: int, options: Mapping[str, str]) -> tuple[Run, frozenset[str]]:
    """The trained model in PyTorch, as it is used today; in the project's own environment."""
    from lepto.compiler.source import open_source

    source = open_source(model)
    if source.text is None:
        raise ValueError(f"{source.description} takes no text")
    return source.runner(threads), frozenset(source.text.preprocessing.inputs)


def load_onnx(model: str, threads: int, options: Mapping[str, str]) -> tuple[Run, frozenset[str]]:
    """An ONNX model on ONNX Runtime, set up alike for every tool: ``threads`` intra-op, one inter-op."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.inter_op_num_threads = 1
    settings.log_severity_level = 3
    for name, value in options.items():
        settings.add_session_config_entry(name, value)
    session = onnxruntime.InferenceSession(model, settings, providers=["CPUExecutionProvider"])
    outputs = [session.get_outputs()[0].name]
    return lambda feed: session.run(outputs, feed)[0], frozenset(value.name for value in session.get_inputs())


def load_openvino(model: str, threads: int, options: Mapping[str, str]) -> tuple[Run, frozenset[str]]:
    """An OpenVINO model, one stream, tuned for latency."""
    import openvino  # type: ignore[import-not-found]  # in the peer's environment only

    settings = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY", **options}
    compiled = openvino.Core().compile_model(model, "CPU", settings)
    request = compiled.create_infer_request()
    output = compiled.output(0)
    names = frozenset(name for value in compiled.inputs for name in value.get_names())
    return lambda feed: request.infer(feed, share_inputs=True)[output], names


LOADERS: Mapping[str, Loader] = {"eager": load_eager, "onnx": load_onnx, "openvino": load_openvino}


def batch(rows: Sequence[Sequence[int]], pad_id: int, names: frozenset[str]) -> Feed:
    """One batch ``[B, S]``, int64, padded at the end to its longest row; the inputs that the model takes.

    Raises:
        ValueError: The model takes something that is not made of tokens.
    """
    ids = np.full((len(rows), max(map(len, rows))), pad_id, dtype=np.int64)
    mask = np.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
        mask[i, : len(row)] = 1
    made = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    if unknown := sorted(names - made.keys()):
        raise ValueError(f"the model takes {', '.join(unknown)}, which a text does not give")
    return {name: made[name] for name in made if name in names}


def time_batches(run: Run, feeds: Sequence[Feed]) -> list[float]:
    """Seconds of each run, after one that is not measured: the caches are still another process's."""
    seconds = []
    run(feeds[0])
    for feed in feeds:
        start = perf_counter()
        run(feed)
        seconds.append(perf_counter() - start)
    return seconds


class Host:
    """What a worker holds between two requests.

    Args:
        loaders: By kind.
    """

    def __init__(self, loaders: Mapping[str, Loader]) -> None:
        self._loaders = loaders
        self._run: Run | None = None
        self._names: frozenset[str] = frozenset()
        self._rows: list[list[int]] = []
        self._pad_id = 0

    def answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Do what is asked.

        Raises:
            ValueError: It is not known, or comes before its time.
        """
        known: dict[str, Callable[..., dict[str, Any]]] = {
            "load": self._load,
            "rows": self._take,
            "time": self._time,
            "answers": self._answers,
        }
        do = request.get("do")
        if do not in known:
            raise ValueError(f"do must be one of {', '.join(known)}, got {do!r}")
        return known[do](**{name: value for name, value in request.items() if name != "do"})

    def _load(self, kind: str, model: str, threads: int, options: Mapping[str, str]) -> dict[str, Any]:
        if kind not in self._loaders:
            raise ValueError(f"kind must be one of {', '.join(self._loaders)}, got {kind!r}")
        self._run, self._names = self._loaders[kind](model, threads, options)
        gc.collect()
        gc.freeze()  # a framework's modules take long to walk
        gc.disable()  # collected after each request instead
        return {"versions": versions()}

    def _take(self, rows: list[list[int]], pad_id: int) -> dict[str, Any]:
        self._rows, self._pad_id = rows, pad_id
        return {"count": len(rows)}

    def _time(self, batches: list[list[int]]) -> dict[str, Any]:
        return {"seconds": time_batches(self._loaded(), self._feeds(batches))}

    def _answers(self, batches: list[list[int]]) -> dict[str, Any]:
        run = self._loaded()
        classes: list[int] = []
        for feed in self._feeds(batches):
            logits = run(feed)
            if not np.isfinite(logits).all():
                raise ValueError("an answer is not finite")
            classes.extend(map(int, np.argmax(logits, axis=-1)))
        return {"classes": classes}

    def _feeds(self, batches: list[list[int]]) -> list[Feed]:
        return [batch([self._rows[i] for i in indices], self._pad_id, self._names) for indices in batches]

    def _loaded(self) -> Run:
        if self._run is None:
            raise ValueError("nothing is loaded yet")
        return self._run


def serve(requests: TextIO, answers: TextIO, loaders: Mapping[str, Loader] = LOADERS) -> None:
    """Answer requests until there are no more."""
    host = Host(loaders)
    for line in requests:
        try:
            answer = host.answer(json.loads(line))
        except Exception as error:  # whatever a tool raises is its answer
            answer = {"error": first_line(error)}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
        gc.collect()


def main(loaders: Mapping[str, Loader] = LOADERS) -> None:
    """Serve on stdin and stdout; what the libraries print goes to stderr."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)
        serve(sys.stdin, answers, loaders)


if __name__ == "__main__":
    main()
