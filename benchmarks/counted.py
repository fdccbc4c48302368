"""Run a model so often, for a program that counts instructions: a script of its own, run by path.

It imports nothing of Lepto: valgrind runs all that is imported some fifty times slower. One thread, since threads that
wait for each other spin, and what they spin is no work; the rest is as in ``lepto.runtime.session``.

Usage: counted.py MODEL.onnx FEEDS.npz COUNT, where FEEDS has arrays ``PLACE/INPUT``.
"""

import os
import sys
from typing import Any

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import numpy as np
import onnxruntime


def main(model: str, file: str, count: int) -> None:
    """Run the model ``count`` times, over the feeds in their order, again and again."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    feeds: dict[str, dict[str, np.ndarray[Any, Any]]] = {}
    with np.load(file, allow_pickle=False) as stored:
        for key in stored.files:
            place, _, name = key.partition("/")
            feeds.setdefault(place, {})[name] = stored[key]
    rows = list(feeds.values())
    for i in range(count):
        session.run(None, rows[i % len(rows)])


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
