"""``lepto kernels``: attention kernels as cubins for a device."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

kernels = typer.Typer(help="Attention kernels as cubins, for devices without Python or Triton.", no_args_is_help=True)
_Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON; everything else goes to stderr.")]


@kernels.command("list")
def kernels_list(as_json: _Json = False) -> None:
    """Show the targets that kernels can be built for.

    Example: lepto kernels list
    """
    from lepto.kernels.attention.tables import ARCHITECTURES
    from lepto.kernels.ship.manifest import TARGETS

    if as_json:
        print(json.dumps({"targets": TARGETS, "architectures": list(ARCHITECTURES)}, indent=2))
        return
    for name, architecture in TARGETS.items():
        entry = ARCHITECTURES[architecture]
        print(f"{name:12} {architecture:7} {entry.tensor_core:9} {entry.shared_bytes // 1024} KiB of shared memory")


@kernels.command("build")
def kernels_build(
    target: Annotated[str, typer.Option("--target", help="A name of `lepto kernels list`, or such as sm_87.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the files.")] = Path("kernels-out"),
    head_dim: Annotated[list[int] | None, typer.Option("--head-dim", help="Again for more; 32 and 64.")] = None,
    dtype: Annotated[list[str] | None, typer.Option("--dtype", help="float16 or bfloat16; float16.")] = None,
    as_json: _Json = False,
) -> None:
    """Cross-compile attention for a GPU that need not be here: cubins, their JSON, and a C header.

    Example: lepto kernels build --target jetson-orin --head-dim 32 -o kernels-orin
    """
    from rich.console import Console
    from rich.progress import Progress

    from lepto.kernels.ship.build import build, specifications
    from lepto.kernels.ship.manifest import CubinError

    wanted = specifications(target, head_dim or [32, 64], dtype or ["float16"])
    print(f"{target}: {len(wanted)} kernels for {wanted[0].architecture} into {output}", file=sys.stderr)
    try:
        with Progress(console=Console(stderr=True), transient=True) as progress:
            line = progress.add_task("compile", total=len(wanted))
            made = build(wanted, output, lambda _: progress.advance(line))
    except CubinError as error:
        raise ValueError(str(error)) from error
    if as_json:
        print(json.dumps([asdict(manifest) for manifest in made], indent=2))
        return
    for manifest in made:
        print(
            f"{manifest.name}: {manifest.registers} registers, {manifest.shared_bytes} bytes shared, "
            f"{manifest.stack_bytes} bytes spilled"
        )
    print(f"{output / 'lepto_kernels.h'}")
