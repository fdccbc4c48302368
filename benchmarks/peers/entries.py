"""What is to be measured: the source, the peers' models, and packages of Lepto's."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rich.markup import escape

from lepto.benchmarks.peers.environments import Environment, quiet_variables, read_peer
from lepto.benchmarks.peers.table import Role
from lepto.compiler.source import Source, Text
from lepto.runtime.console import Output
from lepto.runtime.errors import LeptoError
from lepto.runtime.package import open_package

EAGER: Final = "PyTorch eager"
CALIBRATION: Final = 300  # training texts; what NNCF's documentation recommends


@dataclass(frozen=True, slots=True)
class Settings:
    """What is compared.

    Attributes:
        source: Folder of the trained model.
        train: Training data.
        evaluation: Evaluation data.
        text_column: Column of the text.
        label_column: Column of the label.
        packages: Packages of Lepto's.
        peers: Names of the peers.
        blocks: Interleaved blocks.
        threads: Threads of every runtime.
        seed: Of all orders.
        work: Where the peers' environments and models lie.
    """

    source: Path
    train: Path
    evaluation: Path
    text_column: str
    label_column: str
    packages: tuple[Path, ...]
    peers: tuple[str, ...]
    blocks: int
    threads: int
    seed: int
    work: Path


@dataclass(frozen=True, slots=True)
class Entry:
    """One model that is to be measured.

    Attributes:
        name: As shown.
        role: What it is in the comparison.
        bytes: Size of its files.
        python: The interpreter that it runs in.
        variables: Environment variables of its process.
        load: What its worker is told to load.
        text: Its tokenizer.
        about: What is stored about how it came to be.
    """

    name: str
    role: Role
    bytes: int
    python: str
    variables: Mapping[str, str]
    load: Mapping[str, Any]
    text: Text
    about: Mapping[str, Any]


def eager_entry(settings: Settings, source: Source, text: Text) -> Entry:
    """The trained model in PyTorch."""
    load = {"kind": "eager", "options": {}, "model": str(settings.source.absolute())}
    about = {"recipe": f"{source.architecture}, eager attention, float32"}
    return Entry(EAGER, "eager", source.bytes, sys.executable, quiet_variables(), load, text, about)


def package_entries(settings: Settings, source: Source) -> list[Entry]:
    """The packages, each with its own tokenizer.

    Raises:
        LeptoError: A package cannot be opened, or answers another question than the source.
    """
    names = [path.name for path in settings.packages]
    entries = []
    for path in settings.packages:
        package = open_package(path)
        if package.labels != source.labels:
            raise LeptoError(f"{path} and {settings.source} differ in their labels: they cannot be compared")
        preprocessing, tokenizer = package.manifest.preprocessing, package.tokenizer_path
        if preprocessing is None or tokenizer is None:
            raise LeptoError(f"{path} takes no text: it cannot be compared with {settings.source}")
        load = {"kind": "onnx", "options": {}, "model": str(package.model_path.absolute())}
        entries.append(
            Entry(
                name=f"Lepto {path.name if names.count(path.name) == 1 else path}",
                role="lepto",
                bytes=package.model_path.stat().st_size,
                python=sys.executable,
                variables=quiet_variables(),
                load=load,
                text=Text(tokenizer.read_text(encoding="utf-8"), preprocessing),
                about={"recipe": " -> ".join(record.pass_ for record in package.manifest.passes if record.kept)},
            )
        )
    return entries


def peer_entries(
    settings: Settings, source: Source, text: Text, texts: Sequence[str], output: Output
) -> tuple[list[Entry], dict[str, str]]:
    """Have every peer make its models.

    Args:
        settings: Which peers, and where.
        source: The trained model.
        text: Its tokenizer.
        texts: Training texts; some of them calibrate.
        output: Shows progress.

    Returns:
        One entry for each variant of each peer, and the errors of the peers that failed.
    """
    entries: list[Entry] = []
    failed: dict[str, str] = {}
    chosen = random.Random(settings.seed).sample(list(texts), min(CALIBRATION, len(texts)))
    for peer in settings.peers:
        environment = Environment(peer, settings.work)
        try:
            with _timed(output, f"{peer}: environment"):
                environment.install()
            with _timed(output, f"{peer}: models"):
                folder = environment.produce(settings.source, source.digest, chosen, text.preprocessing.max_length)
            document = read_peer(folder)
        except (LeptoError, OSError) as error:
            failed[peer] = without_paths(str(error), settings)
            output.print(f"{peer}: [red]failed[/]: {escape(failed[peer])}")
            continue
        notes = [without_paths(note, settings) for note in document["notes"]]
        for note in notes:
            output.print(f"  {escape(note)}")
        for variant in document["variants"]:
            load = {"kind": variant["kind"], "options": variant["options"], "model": str(folder / variant["files"][0])}
            about = {"recipe": document["recipe"], "notes": notes, "seconds": document["seconds"]}
            name = f"{peer} {variant['name']}"
            python, variables = str(environment.python), environment.variables()
            entries.append(Entry(name, "peer", variant["bytes"], python, variables, load, text, about))
    return entries, failed


def without_paths(text: str, settings: Settings) -> str:
    """A message that can be stored: what is peculiar to this machine's folders is cut."""
    for folder in (settings.work.absolute(), settings.source.absolute().parent, Path.cwd(), Path.home()):
        text = text.replace(f"{folder}/", "")
    return text


@contextmanager
def _timed(output: Output, what: str) -> Iterator[None]:
    """Show that something goes on, and how long it took."""
    start = time.monotonic()
    with output.console.status(escape(what)):
        yield
    seconds = time.monotonic() - start
    output.print(f"{escape(what)} ready" + (f" after {seconds:.0f} s" if seconds >= 1.0 else ""))
