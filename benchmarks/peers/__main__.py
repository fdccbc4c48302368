"""``make bench-peers``: other tools on the same model, side by side, in one run; the table is stored."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from lepto.benchmarks.peers.environments import PEERS
from lepto.runtime.cli import help_text
from lepto.runtime.console import Output
from lepto.runtime.errors import LeptoError

_SHARED = Path(__file__).parents[3] / "shared"
_SOURCE = _SHARED / "models" / "minilm-banking77"
_TRAIN, _EVAL = (_SHARED / "data" / "banking77" / name for name in ("train.csv", "test.csv"))
_STORE = Path(__file__).parents[1] / "baselines" / "peers.json"


def peers(
    source: Annotated[
        Path | None, typer.Option(envvar="LEPTO_PEERS_SOURCE", help="Folder of the trained model, a text classifier.")
    ] = None,
    train: Annotated[
        Path | None, typer.Option(envvar="LEPTO_PEERS_TRAIN", help="Training data; for calibration.")
    ] = None,
    eval_: Annotated[
        Path | None, typer.Option("--eval", envvar="LEPTO_PEERS_EVAL", help="Evaluation data; measured on.")
    ] = None,
    text_column: Annotated[str, typer.Option(envvar="LEPTO_PEERS_TEXT", help="Column of the text.")] = "text",
    label_column: Annotated[str, typer.Option(envvar="LEPTO_PEERS_LABEL", help="Column of the label.")] = "category",
    package: Annotated[list[Path] | None, typer.Option(help="A package of Lepto's to measure; repeatable.")] = None,
    names: Annotated[str, typer.Option("--peers", help="Which peers, separated by commas.")] = ",".join(PEERS),
    blocks: Annotated[int, typer.Option(min=6, help="Interleaved blocks at batch 1, and at most so many at 32.")] = 40,
    threads: Annotated[int, typer.Option(min=1, help="Threads of every runtime.")] = 2,
    seed: Annotated[int, typer.Option(min=0, help="Of all orders.")] = 0,
    work: Annotated[Path, typer.Option(help="Where the peers' environments and models lie.")] = Path("build/peers"),
    output: Annotated[Path, typer.Option(help="Where the result is stored.")] = _STORE,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result on stdout; the rest on stderr.")] = False,
) -> None:
    """Make the best model of each peer tool from one source, and measure all of them in one run.

    Every peer has its own pinned environment; every model its own process, and one runs at a time, in interleaved
    blocks. Measured are p50 and p90 at batch 1 over the evaluation data's real lengths, samples a second at batch 32
    sorted by length, accuracy (each sample alone) and bytes, with 95 % intervals on the ratios to PyTorch eager and to
    the best peer. A peer that fails is in the table with its error; the exit code is then 1.

    Example:
        python -m lepto.benchmarks.peers --source ./model --train train.csv --eval test.csv --label-column label
        python -m lepto.benchmarks.peers --package out/package --peers olive,openvino --blocks 12
    """
    console = Output(as_json=as_json)
    if source is None and not _SOURCE.is_dir():
        reason = "there is no model to compare on: name it with --source, --train and --eval, or LEPTO_PEERS_SOURCE, …"
        console.print(f"skipped: {reason}")
        console.result({"skipped": reason})
        return
    if source is not None and (train is None or eval_ is None):
        raise LeptoError("--source needs its data: give --train and --eval")
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    for name in wanted:
        if name not in PEERS:
            raise LeptoError(f"--peers must be some of {', '.join(PEERS)}, got {name!r}")

    from lepto.benchmarks.peers.compare import compare
    from lepto.benchmarks.peers.entries import Settings

    document = compare(
        Settings(
            source=source or _SOURCE,
            train=train or _TRAIN,
            evaluation=eval_ or _EVAL,
            text_column=text_column,
            label_column=label_column,
            packages=tuple(package or ()),
            peers=tuple(dict.fromkeys(wanted)),
            blocks=blocks,
            threads=threads,
            seed=seed,
            work=work,
        ),
        console,
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(document, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    console.print(f"stored in {output}")
    console.result(document)
    if document["failed"]:
        raise typer.Exit(1)


def main() -> None:
    """Run, with messages instead of tracebacks."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")
    app.command(help=help_text(peers))(peers)
    try:
        app(prog_name="python -m lepto.benchmarks.peers")
    except LeptoError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
