"""``lepto compile``, ``inspect`` and ``recipe``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from lepto.compiler.passes import PASSES
from lepto.compiler.passes.options import describe
from lepto.compiler.recipe import Recipe, load_recipe_values, make_recipe
from lepto.compiler.recipe import recipe_schema as schema_of_recipes
from lepto.compiler.training.team import current, led
from lepto.runtime.console import Output, size_text

_Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout; the rest goes to stderr.")]
_Model = "A Hugging Face directory or hub id, an ONNX file, or package.module:factory."


@led
def compile_(
    recipe: Annotated[Path | None, typer.Argument(help="A YAML recipe; flags override what it says.")] = None,
    *,
    model: Annotated[str | None, typer.Option("-m", "--model", help=_Model)] = None,
    task: Annotated[str | None, typer.Option(help="The task; by default what the model says.")] = None,
    train: Annotated[
        str | None, typer.Option(help="Training data: CSV, TSV, JSONL, Parquet, datasets id, factory.")
    ] = None,
    eval_: Annotated[str | None, typer.Option("--eval", help="Evaluation data, like --train.")] = None,
    dev: Annotated[
        str | None, typer.Option(help="Development data for the search. [default: a part of the training data]")
    ] = None,
    unlabelled: Annotated[
        str | None,
        typer.Option(help="More training inputs, without labels: students learn what the source says of them."),
    ] = None,
    text_column: Annotated[str | None, typer.Option(help="Column of the text. [default: text]")] = None,
    label_column: Annotated[str | None, typer.Option(help="Column of the label. [default: label]")] = None,
    target: Annotated[str | None, typer.Option(help="Hardware, see lepto doctor. [default: host]")] = None,
    max_drop: Annotated[
        str | None, typer.Option(help="Largest drop: 1% of the source's metric, or 0.01 absolute. [default: 1%]")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Intra-op threads. [default: 2, or the CPUs if fewer]")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of everything random. [default: 0]")] = None,
    passes: Annotated[
        str | None,
        typer.Option(
            help=f"Passes in order, with commas, of {', '.join(PASSES)}; options in parentheses, "
            "quantize-static(method=entropy); see lepto recipe passes. [default: chosen by measurement]"
        ),
    ] = None,
    search_budget: Annotated[
        str | None,
        typer.Option(
            help="Search so long for a smaller model, 0 for no search. [default: 30m with --train and --eval]"
        ),
    ] = None,
    objective: Annotated[
        str | None, typer.Option(help="What the search makes better: latency, throughput, size. [default: latency]")
    ] = None,
    latency_budget: Annotated[
        str | None, typer.Option(help="The most that the median of one sample may take: 1ms.")
    ] = None,
    size_budget: Annotated[str | None, typer.Option(help="The most that the model's file may hold: 5MB.")] = None,
    confidence: Annotated[
        float | None,
        typer.Option(help="Ask for the one-sided lower bound at this level (0.95) and not for the point estimate."),
    ] = None,
    workers: Annotated[
        str | None, typer.Option(help="Teach candidates side by side as Ray tasks: a number, or ray://host:port.")
    ] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Folder of the package.")] = None,
    publish: Annotated[str | None, typer.Option(help="Model repository to publish the package into.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the package. [default: the output folder's]")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check the request, show the plan, do nothing.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the output folder.")] = False,
    as_json: _Json = False,
) -> None:
    """Compile a trained model into a smaller, faster, verified package.

    Example: lepto compile -m ./my-model --train train.csv --eval test.csv
    --text-column text --label-column intent --max-drop 1% -o ./package
    """
    from lepto.compiler.compile import check_output, prepare, run_prepared
    from lepto.runtime.errors import LeptoError

    values, lines = load_recipe_values(recipe) if recipe is not None else ({}, {})
    flags = {
        "model": model, "task": task, "train": train, "eval": eval_, "text_column": text_column,
        "label_column": label_column, "target": target, "max_drop": max_drop, "threads": threads, "seed": seed,
        "passes": passes, "dev": dev, "search_budget": search_budget, "publish": publish, "name": name,
        "objective": objective, "latency_budget": latency_budget, "size_budget": size_budget,
        "confidence": confidence, "workers": workers, "unlabelled": unlabelled,
    }  # fmt: skip
    given = {flag: value for flag, value in flags.items() if value is not None}
    lines = {key: place for key, place in lines.items() if key not in given}
    asked = make_recipe({**values, **given}, origin=str(recipe) if recipe else "the request", lines=lines)
    if output is None and not dry_run:
        raise LeptoError("no output folder: give -o OUT")
    console = Output(as_json=as_json)
    if output is not None:
        check_output(output, force=force)
    if asked.publish:
        _check_publish(asked, output)
    with console.console.status("opening the model and the data"):
        prepared = prepare(asked)
    console.settings("lepto compile", _settings(prepared, output))
    for note in prepared.notes:
        console.print(f"note: {escape(note)}")
    if dry_run:
        console.print("dry run: nothing was computed and nothing was written")
        console.result({"dry_run": True, "recipe": prepared.recipe.model_dump(mode="json"), "plan": prepared.plan})
        return
    assert output is not None
    package = run_prepared(prepared, output, force=force, console=console)
    manifest = package.manifest
    result, source = manifest.result, manifest.source
    s = result.speedup
    speed = (
        "speed not measured, only its target could tell"
        if s is None
        else f"{s.value:.2f} x as fast as {escape(s.against)} [{s.low:.2f}, {s.high:.2f}]"
    )
    console.print(
        f"[bold green]{escape(str(package.path))}[/bold green]: {speed}, "
        f"{size_text(result.bytes)} (source {size_text(source.bytes)})"
        + (f", {result.metric.name} {result.metric.value:.4f}" if result.metric else "")
        + (f" (source {source.metric.value:.4f})" if source.metric else "")
    )
    document: dict[str, Any] = {"package": str(package.path), "manifest": json.loads(manifest.to_json())}
    if asked.publish:
        from lepto.runtime.repository import publish as publish_package

        published = publish_package(package, asked.publish, name=asked.name)
        console.print(f"published as {published.name} version {published.version} in {escape(asked.publish)}")
        document["published"] = {"name": published.name, "version": published.version, "repository": asked.publish}
    console.result(document)


def _settings(prepared: Any, output: Path | None) -> dict[str, Any]:
    recipe, source, more = prepared.recipe, prepared.source, prepared.unlabelled
    return {
        "model": f"{source.description}, {source.parameters:,} parameters, {size_text(source.bytes)}",
        "task": source.task,
        "train": f"{recipe.train} ({len(prepared.train):,} samples)" if prepared.train else None,
        **({"unlabelled": f"{recipe.unlabelled} ({len(more):,} samples)"} if more is not None else {}),
        "eval": f"{recipe.eval} ({len(prepared.evaluation):,} samples)" if prepared.evaluation else None,
        "target": f"{prepared.target.name} ({prepared.target.description})",
        "max drop": recipe.max_drop,
        "threads": recipe.threads,
        "seed": recipe.seed,
        **({"processes": current().size} if current().size > 1 else {}),
        "confidence": recipe.confidence,
        "search": _search_text(recipe) if prepared.searches else "no",
        "passes": ", ".join(prepared.plan).replace("|", " or ") + ("" if recipe.passes else " (chosen by measurement)"),
        "output": output,
        "publish": recipe.publish,
    }


def _search_text(recipe: Recipe) -> str:
    limits = [f"at most {limit}" for limit in (recipe.latency_budget, recipe.size_budget) if limit is not None]
    dev = recipe.dev or "a tenth of the training data"
    return ", ".join([f"for {recipe.objective}, up to {recipe.search_budget}", *limits, f"steered by {dev}"])


def _check_publish(asked: Recipe, output: Path | None) -> None:
    """A name that cannot be published is refused before the work, not after it."""
    from lepto.runtime.repository import check_name

    name = asked.name or (output.name if output is not None else None)
    if name is not None:
        check_name(name)


def inspect(
    model: Annotated[str, typer.Argument(help=_Model)],
    *,
    task: Annotated[str | None, typer.Option(help="The task; by default what the model says.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="Intra-op threads of the runs that prove the export.")] = 2,
    as_json: _Json = False,
) -> None:
    """Show what a model is, and which passes apply to it.

    Example: lepto inspect ./my-model
    """
    from rich.table import Table

    from lepto.compiler.inspect import applicable, bytes_by_part
    from lepto.compiler.source import open_source

    console = Output(as_json=as_json)
    console.settings("lepto inspect", {"model": model, "task": task or "as the model says", "threads": threads})
    with console.console.status("opening the model"):
        source = open_source(model, task)
        parts = bytes_by_part(source)
    with console.console.status("exporting and proving it"):
        passes = applicable(source, threads=threads)
    inputs = {
        n: {"dtype": str(a.dtype), "shape": [source.axes[n].get(i, d) for i, d in enumerate(a.shape)]}
        for n, a in source.example.items()
    }
    about = {
        "architecture": source.architecture,
        "description": source.description,
        "task": source.task,
        "parameters": f"{source.parameters:,}",
        "bytes": f"{source.bytes:,}",
        "labels": len(source.labels) if source.labels else None,
        "layers": source.layers,
        "inputs": "; ".join(f"{n} {v['dtype']} {v['shape']}" for n, v in inputs.items()),
        "digest": source.digest,
    }
    console.settings("model", about)
    table = Table(title="bytes by part", title_justify="left", box=None)
    table.add_column("part")
    table.add_column("bytes", justify="right")
    for part, size in parts.items():
        table.add_row(escape(part), f"{size:,}")
    console.print(table)
    table = Table(title="passes", title_justify="left", box=None)
    for column in ("pass", "applies", "why"):
        table.add_column(column)
    for entry in passes:
        table.add_row(entry.name, "yes" if entry.applies else "no", escape(entry.reason))
    console.print(table)
    console.result(
        {
            "model": model,
            "architecture": source.architecture,
            "description": source.description,
            "task": source.task,
            "parameters": source.parameters,
            "bytes": source.bytes,
            "bytes_by_part": parts,
            "inputs": inputs,
            "labels": source.labels,
            "layers": source.layers,
            "digest": source.digest,
            "passes": [{"pass": e.name, "applies": e.applies, "reason": e.reason} for e in passes],
        }
    )


recipe = typer.Typer(help="Recipes: what a compile asks for, as a YAML file.", no_args_is_help=True)


@recipe.command("schema")
def recipe_schema(as_json: _Json = False) -> None:
    """Print the JSON Schema of a recipe.

    Example: lepto recipe schema > recipe.schema.json
    """
    del as_json  # a JSON Schema is JSON either way
    print(json.dumps(schema_of_recipes(), indent=2))


@recipe.command("passes")
def recipe_passes(as_json: _Json = False) -> None:
    """Show the passes that a recipe can name, and their options.

    Example: lepto recipe passes
    """
    from rich.table import Table

    console = Output(as_json=as_json)
    document: dict[str, Any] = {}
    for name in PASSES:
        about, options = describe(name)
        document[name] = {
            "about": about,
            "options": {o.name: {"default": o.default, "values": o.values, "about": o.about} for o in options},
        }
        console.print(f"[bold]{name}[/bold]: {escape(about)}")
        table = Table(box=None, show_header=False, padding=(0, 2))
        for option in options:
            table.add_row(f"{option.name}={escape(option.default)}", escape(f"{option.about} ({option.values})"))
        console.print(table)
    console.result(document)


@recipe.command("check")
def recipe_check(
    path: Annotated[Path, typer.Argument(help="A YAML recipe.")],
    as_json: _Json = False,
) -> None:
    """Check a recipe and show it with its defaults.

    Example: lepto recipe check recipe.yaml
    """
    values, lines = load_recipe_values(path)
    checked = make_recipe(values, origin=str(path), lines=lines)
    console = Output(as_json=as_json)
    console.settings(str(path), checked.model_dump())
    console.result(checked.model_dump(mode="json"))
