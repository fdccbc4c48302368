"""``make bench-perf-analyzer``: an independent client agrees with ``lepto bench`` on a served model.

A package is served by a real tritonserver; Triton's own ``perf_analyzer`` (Triton Inference Server, "Performance
Analyzer") and Lepto's single-stream scenario ask it the same texts in turn, one request at a time, over HTTP and gRPC.
Turns are short and many, since other work may come and go; compared are the two clients' neighbouring turns: the median
over the turns of the ratio of their median latencies, and of their throughputs. Both send the same texts over one kept
connection, each as soon as the one before is answered.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import typer

from lepto.compiler.statistics import hodges_lehmann, pairs_needed
from lepto.runtime.console import Output
from lepto.runtime.errors import LeptoError

# The last releases that carry the program; this one fits the libraries that the server's wheel brings.
CLIENT: Final = "tritonclient==2.51.0"
LIBRARIES: Final = {"libb64.so.0d": "libb64-*.so.0d", "libcudart.so.12": "libcudart-*.so.12*"}
BAR: Final = 0.05
WINDOWS: Final = 3  # of a turn of perf_analyzer; it wants no fewer
_STORE = Path(__file__).parent / "baselines" / "perf-analyzer.json"


@dataclasses.dataclass(frozen=True)
class Turn:
    """One turn of one client.

    Attributes:
        p50_ms: Median latency of a request.
        throughput: Requests a second.
    """

    p50_ms: float
    throughput: float


def independent(
    package: Annotated[Path, typer.Argument(help="A package that takes text.")],
    texts: Annotated[Path, typer.Option(help="A CSV file of texts.")],
    text_column: Annotated[str, typer.Option(help="Column of the text.")] = "text",
    turns: Annotated[int, typer.Option(min=1, help="Turns of each client.")] = 15,
    seconds: Annotated[float, typer.Option(min=0.5, help="How long a turn lasts.")] = 5.0,
    client: Annotated[Path, typer.Option(help="Where the older client is installed.")] = Path("build/perf-analyzer"),
    store: Annotated[Path, typer.Option(help="Where the result is written.")] = _STORE,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")] = False,
) -> None:
    """Ask a served package by two clients in turn; exit 1 if they do not agree within 5 %.

    Example: python -m lepto.benchmarks.independent package --texts test.csv
    """
    output = Output(as_json=as_json)
    output.settings("independent client", {"package": package, "texts": texts, "turns": turns, "seconds": seconds})
    program, environment = _install(client, output)
    document = _measure(package, _texts(texts, text_column), turns, seconds, program, environment, output)
    rows = [
        [
            protocol,
            what,
            f"{found['lepto']:.4g}",
            f"{found['perf_analyzer']:.4g}",
            f"{found['ratio'] - 1:+.1%}" + ("" if found["interval"] is None else _interval(found["interval"])),
            "yes" if found["agrees"] else "NO",
        ]
        for protocol, both in document["protocols"].items()
        for what, found in both["medians"].items()
    ]
    columns = ["", "", "lepto bench", "perf_analyzer", "paired difference (95 %)", "within 5 %"]
    output.table("medians over the turns", columns, rows)
    store.parent.mkdir(parents=True, exist_ok=True)
    store.write_text(json.dumps(document, indent=2) + "\n")
    output.print(f"stored in {store}")
    output.result(document)
    if any(row[-1] != "yes" for row in rows):
        raise typer.Exit(1)


def _interval(ends: Sequence[float]) -> str:
    return f" ({ends[0] - 1:+.1%} to {ends[1] - 1:+.1%})"


def _texts(file: Path, column: str, most: int = 512) -> list[str]:
    try:
        with file.open(newline="", encoding="utf-8") as opened:
            found = [row[column] for row in csv.DictReader(opened)]
    except (OSError, KeyError) as error:
        raise LeptoError(f"{file}: no texts in the column {column!r} ({error}); name it with --text-column") from error
    if not found:
        raise LeptoError(f"{file} has no rows")
    return found[:most]


def _install(folder: Path, output: Output) -> tuple[Path, dict[str, str]]:
    """The program, and an environment in which it finds its libraries."""
    from lepto.runtime.tritonserver import find_installation

    program = folder / "bin" / "perf_analyzer"
    if not program.is_file():
        output.print(f"installing {CLIENT} into {folder}")
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder), CLIENT]
        subprocess.run([*command, "--disable-pip-version-check"], check=True)
    if not program.is_file():
        raise LeptoError(f"{CLIENT} brought no bin/perf_analyzer: there is none for this platform")
    program.chmod(0o755)
    libraries = folder / "libraries"
    libraries.mkdir(exist_ok=True)
    source = find_installation().libraries
    for name, pattern in LIBRARIES.items():
        found = sorted(source.glob(pattern))
        if not found:
            raise LeptoError(
                f"{source} has no {pattern}, which perf_analyzer needs: pip install nvidia-pytriton==0.7.0"
            )
        link = libraries / name
        link.unlink(missing_ok=True)
        link.symlink_to(found[0])
    return program.resolve(), {**os.environ, "LD_LIBRARY_PATH": str(libraries.resolve())}


def _measure(
    package: Path,
    texts: Sequence[str],
    turns: int,
    seconds: float,
    program: Path,
    environment: dict[str, str],
    output: Output,
) -> dict[str, Any]:
    from lepto.compiler.compile import environment as machine
    from lepto.runtime.measure import machine_load
    from lepto.runtime.repository import publish
    from lepto.runtime.server import Server

    rng = np.random.default_rng(0)
    protocols: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="lepto-independent-") as folder:
        published = publish(package, Path(folder) / "repository", name="asked")
        data = Path(folder) / "texts.json"
        data.write_text(json.dumps({"data": [{"TEXT": {"content": [text], "shape": [1]}} for text in texts]}))
        with Server(Path(folder) / "repository", http_port=0, grpc_port=0, metrics_port=0) as server:
            addresses = {"http": server.http_url.rpartition("/")[2], "grpc": server.grpc_url.rpartition("/")[2]}
            for protocol, address in addresses.items():
                found: dict[str, list[Turn]] = {"lepto": [], "perf_analyzer": []}
                for turn in range(turns):
                    for who in rng.permutation(list(found)):
                        if who == "lepto":
                            one = _ours(protocol, address, published.name, texts, seconds)
                        else:
                            one = _theirs(program, environment, protocol, address, published.name, data, seconds)
                        found[str(who)].append(one)
                    output.print(
                        f"{protocol} {turn + 1}/{turns}: lepto {found['lepto'][-1].p50_ms:.3f} ms, "
                        f"perf_analyzer {found['perf_analyzer'][-1].p50_ms:.3f} ms"
                    )
                protocols[protocol] = {
                    "turns": {who: [dataclasses.asdict(one) for one in all_] for who, all_ in found.items()},
                    "medians": {what: _compared(found, what) for what in ("p50_ms", "throughput")},
                }
    return {
        "client": CLIENT,
        "texts": len(texts),
        "seconds": seconds,
        "load": dataclasses.asdict(machine_load()),
        "protocols": protocols,
        "environment": machine(versions()),
    }


def versions() -> dict[str, str]:
    """Of what took part."""
    import importlib.metadata

    names = ("lepto", "tritonclient", "nvidia-pytriton", "mlcommons-loadgen", "onnxruntime")
    return {name: importlib.metadata.version(name) for name in names}


def _compared(found: dict[str, list[Turn]], what: str) -> dict[str, Any]:
    ours, theirs = (np.array([getattr(one, what) for one in found[who]]) for who in ("lepto", "perf_analyzer"))
    logs = np.log(ours / theirs)
    ratio = float(np.exp(np.median(logs)))
    ends = None if len(logs) < pairs_needed() else [float(np.exp(end)) for end in hodges_lehmann(logs)[1:]]
    return {
        "lepto": float(np.median(ours)),
        "perf_analyzer": float(np.median(theirs)),
        "ratio": ratio,
        "interval": ends,
        "agrees": abs(ratio - 1) <= BAR,
    }


def _ours(protocol: str, address: str, model: str, texts: Sequence[str], seconds: float) -> Turn:
    from lepto.benchmarks.loadgen import run_scenario
    from lepto.benchmarks.targets import Served, Url
    from lepto.compiler.data import Samples

    samples = Samples(tuple(texts), np.zeros(len(texts), np.int64), "texts")
    target = Served(Url(protocol, address, model), samples)
    try:
        found = run_scenario(target, "single-stream", seconds=seconds)
    finally:
        target.close()
    return Turn(found.p50_ms, found.throughput)


def _theirs(
    program: Path, environment: dict[str, str], protocol: str, address: str, model: str, data: Path, seconds: float
) -> Turn:
    with tempfile.TemporaryDirectory(prefix="lepto-perf-") as folder:
        table = Path(folder) / "latency.csv"
        # By time: where it counts requests it looks once a second whether there are enough, and idles until then, so
        # that its throughput is too low. Its rule for times, three windows that are alike, is switched off.
        window_ms = max(100, round(1000 * seconds / WINDOWS))
        command = [
            str(program), "-m", model, "-u", address, "-i", protocol, "--input-data", str(data),
            "--concurrency-range", "1", "--measurement-mode", "time_windows", "--measurement-interval", str(window_ms),
            "--stability-percentage", "999", "--max-trials", str(WINDOWS), "--percentile", "50", "-f", str(table),
        ]  # fmt: skip
        ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
        if ran.returncode != 0 or not table.is_file():
            raise LeptoError(f"perf_analyzer failed ({ran.returncode}): {(ran.stdout + ran.stderr).strip()[-800:]}")
        with table.open(newline="") as opened:
            row = next(csv.DictReader(opened))
    return Turn(float(row["p50 latency"]) / 1e3, float(row["Inferences/Second"]))


if __name__ == "__main__":
    typer.run(independent)
