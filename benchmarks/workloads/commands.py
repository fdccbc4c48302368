"""``lepto workload``: the applications that Lepto is measured on, and that it is shown with."""

from __future__ import annotations

import importlib
import pkgutil
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from lepto.runtime.console import Output

AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable result on stdout; the rest goes to stderr.")]


class Name(StrEnum):
    """The workloads there are."""

    shop_intents = "shop_intents"


Workload = Annotated[Name, typer.Argument(help="The workload.", metavar="WORKLOAD", show_default=False)]

workload = typer.Typer(help="List the workloads, write their data, train their models.", no_args_is_help=True)


@workload.command("list")
def list_(as_json: AsJson = False) -> None:
    """List the workloads.

    Example:
        lepto workload list
    """
    from lepto.benchmarks import workloads

    output = Output(as_json=as_json)
    found = {}
    for module in pkgutil.iter_modules(workloads.__path__):
        if module.ispkg:
            found[module.name] = (importlib.import_module(f"{workloads.__name__}.{module.name}").__doc__ or "").strip()
    output.table("workloads", ["name", "what it is"], [[name, text] for name, text in found.items()])
    output.result({"workloads": found})


@workload.command("data")
def data(
    name: Workload,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the files.")],
    as_json: AsJson = False,
) -> None:
    """Write a workload's train.csv, dev.csv and test.csv.

    Example:
        lepto workload data shop_intents -o data
    """
    from lepto.benchmarks.workloads.shop_intents.workload import copy_data

    output = Output(as_json=as_json)
    output.settings("workload data", {"workload": name.value, "out": out})
    copies = copy_data(out)
    for copy in copies:
        output.print(escape(str(copy)))
    output.result({"files": [str(copy) for copy in copies]})


@workload.command("train")
def train(
    name: Workload,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the Hugging Face model; must be new.")],
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the data; by default the workload's.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Of torch; by default its own choice.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of everything random.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Fine-tune a workload's model, for `lepto compile`.

    Example:
        lepto workload train shop_intents -o out/model
    """
    from dataclasses import replace

    from lepto.benchmarks.workloads.shop_intents import workload as intents

    output = Output(as_json=as_json)
    schedule = replace(intents.SCHEDULE, seed=seed, epochs=epochs or intents.SCHEDULE.epochs)
    output.settings(
        "workload train",
        {"workload": name.value, "out": out, "epochs": schedule.epochs, "threads": threads, "seed": seed},
    )
    result = intents.train(out, schedule, threads=threads, output=output)
    output.result(
        {
            "model": str(out),
            "weights": result.weights.source,
            "dev_accuracy": result.trained.dev_accuracy,
            "epoch": result.trained.epoch,
            "losses": list(result.trained.losses),
        }
    )


@workload.command("demo")
def demo(
    model_repository: Annotated[Path, typer.Option(help="Where the model is published.")] = Path("model_repository"),
    threads: Annotated[int, typer.Option(min=1, help="Of training and of the compiled model.")] = 2,
    seed: Annotated[int, typer.Option(min=0, help="Of everything random.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Show the whole road: train, compile, gate, publish, serve with tritonserver, ask three questions.

    Takes some minutes. Only the published model is left behind; the next run publishes the next version.

    Example:
        lepto workload demo --model-repository model_repository
    """
    from lepto.benchmarks.demo import run

    output = Output(as_json=as_json)
    output.settings("demo", {"model repository": model_repository, "threads": threads, "seed": seed})
    output.result(run(model_repository, output, threads=threads, seed=seed))
