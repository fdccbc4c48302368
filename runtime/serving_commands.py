"""The commands around a model repository: ``lepto publish``, ``rollback``, ``serve`` and ``infer``."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from lepto.runtime.console import Output

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from lepto.runtime.tagging import Tag

AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable result on stdout; the rest goes to stderr.")]
Repository = Annotated[Path, typer.Option("--model-repository", help="Folder of the Triton model repository.")]


class Protocol(StrEnum):
    """How ``lepto infer`` talks to the server."""

    http = "http"
    grpc = "grpc"


def publish(
    package: Annotated[Path, typer.Argument(help="Folder of the package, as `lepto compile -o` wrote it.")],
    model_repository: Repository,
    name: Annotated[str | None, typer.Option(help="Name that clients call; by default the package's.")] = None,
    gate: Annotated[
        Path | None, typer.Option(metavar="GATE.YAML", help="Publish only what passes against production.")
    ] = None,
    max_queue: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Most requests that wait for a model; more get a 503. 0: no bound, and one instance instead of two. "
            "[default: as in production, else 128]",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Publish a package as the next version of a model, atomically, and put it in production.

    With --gate it is compared with the version in production first: what is worse is refused with exit code 1, what
    could not be decided with 3; the old version is kept for `lepto rollback`.

    Example:
        lepto publish out/intents --model-repository model_repository
        lepto publish out/intents --model-repository model_repository --gate gate.yaml
    """
    from lepto.runtime.repository import publish as publish_package

    output = Output(as_json=as_json)
    bound = "(as in production, else 128)" if max_queue is None else max_queue or "none"
    output.settings(
        "publish",
        {
            "package": package,
            "model repository": model_repository,
            "name": name or "(package's)",
            "gate": gate,
            "max queue": bound,
        },
    )
    if gate is None:
        model = publish_package(package, model_repository, name=name, max_queue=max_queue)
    else:
        model = _gated_publish()(package, model_repository, name, gate, output, max_queue)
    output.print(f"[green]published[/] version {model.version} of {model.name} in {escape(str(model_repository))}")
    output.print(f"[dim]serve it: lepto serve --model-repository {escape(str(model_repository))}[/]")
    output.result(_describe(model))


def _gated_publish() -> Any:
    """What judges a package before it is published; the compiler's part of Lepto brings it."""
    from importlib.metadata import entry_points

    from lepto.runtime.errors import LeptoError

    for point in entry_points(group="lepto.gates", name="publish"):
        try:
            return point.load()
        except ImportError as error:
            raise LeptoError(f"--gate cannot be used here ({error}): pip install 'lepto[compile]'") from error
    raise LeptoError("--gate needs the part of lepto that judges: install lepto again with pip")


def rollback(
    name: Annotated[str, typer.Argument(help="The published model.")],
    model_repository: Repository,
    to: Annotated[int | None, typer.Option(min=1, help="The version; by default the one before.")] = None,
    as_json: AsJson = False,
) -> None:
    """Put an earlier version of a published model back in production, atomically.

    Example:
        lepto rollback intents --model-repository model_repository --to 3
    """
    from lepto.runtime.repository import rollback as roll_back

    output = Output(as_json=as_json)
    output.settings("rollback", {"name": name, "model repository": model_repository, "to": to or "(the one before)"})
    model = roll_back(name, model_repository, to=to)
    output.print(f"[green]version {model.version}[/] of {model.name} is in production again")
    output.result(_describe(model))


def serve(
    model_repository: Repository,
    http_port: Annotated[
        int, typer.Option(min=0, max=65535, help="HTTP port on 127.0.0.1; 0 picks a free one.")
    ] = 8000,
    grpc_port: Annotated[
        int, typer.Option(min=0, max=65535, help="gRPC port on 127.0.0.1; 0 picks a free one.")
    ] = 8001,
    metrics_port: Annotated[int, typer.Option(min=0, max=65535, help="Metrics port; 0 picks a free one.")] = 8002,
    as_json: AsJson = False,
) -> None:
    """Serve a model repository with tritonserver on loopback until Ctrl-C; new versions are picked up while it runs.

    Example:
        lepto serve --model-repository model_repository --http-port 8000
    """
    from lepto.runtime.server import Server

    output = Output(as_json=as_json)
    output.settings(
        "serve",
        {
            "model repository": model_repository,
            "HTTP port": http_port or "(free)",
            "gRPC port": grpc_port or "(free)",
            "metrics port": metrics_port or "(free)",
        },
    )
    server = Server(
        model_repository,
        http_port=http_port,
        grpc_port=grpc_port,
        metrics_port=metrics_port,
        say=lambda line: output.print(escape(line)),
    )
    with _remembered_signals() as asked, server:
        if asked.is_set():
            raise KeyboardInterrupt
        _announce(output, server)
        try:
            while not asked.is_set() and not server.wait(0.5):
                pass
        except KeyboardInterrupt:  # the way to end it, also by SIGTERM; everything is cleaned up on the way out
            output.print("stopping")


@contextlib.contextmanager
def _remembered_signals() -> Iterator[threading.Event]:
    """Remember that SIGINT or SIGTERM came, besides raising.

    The exception alone can be lost: Python drops one that is raised within a finalizer or a weak reference's callback,
    and imports run for seconds here.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def remember(number: int, frame: FrameType | None) -> None:
        asked.set()
        handler = before[signal.Signals(number)]
        if callable(handler):
            handler(number, frame)

    for number, handler in before.items():
        if callable(handler):  # an ignored signal stays ignored
            signal.signal(number, remember)
    try:
        yield asked
    finally:
        for number, handler in before.items():
            if callable(handler) and signal.getsignal(number) is remember:
                signal.signal(number, handler)


def infer(
    name: Annotated[str, typer.Argument(help="The published model.")],
    texts: Annotated[list[str], typer.Argument(metavar="TEXT...", help="One or more texts.")],
    url: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Server; by default 127.0.0.1:8000 (gRPC: 8001).")
    ] = None,
    protocol: Annotated[Protocol, typer.Option(help="How to talk to it.")] = Protocol.http,
    top: Annotated[int, typer.Option(min=1, help="How many labels for each text.")] = 1,
    timeout_s: Annotated[float, typer.Option(min=0.001, help="How long one request may take, in seconds.")] = 30.0,
    as_json: AsJson = False,
) -> None:
    """Send texts to a published model and print the labels; where words have labels, each word with its own.

    A sentence encoder's vectors are in the result of --json; for people, how alike each text is to the first.

    Example:
        lepto infer intents "where is my parcel?" --top 3
    """
    from lepto.runtime.client import TextClient
    from lepto.runtime.client_api import DEFAULT_URLS

    url = url or DEFAULT_URLS[protocol.value]
    output = Output(as_json=as_json)
    output.settings("infer", {"name": name, "url": url, "protocol": protocol.value, "top": top})
    with TextClient(url, name, protocol=protocol.value, timeout_s=timeout_s) as client:
        if client.word_labels() is not None:
            _show_tags(output, name, url, texts, client.tag(texts))
            return
        if client.gives_vectors():
            _show_vectors(output, name, url, texts, client.embed(texts))
            return
        answers = client.classify(texts, top=top)
    for text, predictions in zip(texts, answers, strict=True):
        labels = ", ".join(f"[bold]{escape(one.label)}[/] {one.score:.4f}" for one in predictions)
        output.print(f"{escape(text)} → {labels}")
    output.result(
        {
            "name": name,
            "url": url,
            "answers": [
                {"text": text, "predictions": [asdict(one) for one in predictions]}
                for text, predictions in zip(texts, answers, strict=True)
            ],
        }
    )


def _show_tags(output: Output, name: str, url: str, texts: list[str], answers: list[list[Tag]]) -> None:
    for text, words in zip(texts, answers, strict=True):
        shown = ", ".join(f"{escape(one.word)} [bold]{escape(one.label or '-')}[/] {one.score:.4f}" for one in words)
        output.print(f"{escape(text)} → {shown}")
    found = [
        {"text": text, "words": [asdict(one) for one in words]} for text, words in zip(texts, answers, strict=True)
    ]
    output.result({"name": name, "url": url, "answers": found})


def _show_vectors(output: Output, name: str, url: str, texts: list[str], vectors: NDArray[np.float32]) -> None:
    import numpy as np

    lengths = np.linalg.norm(vectors, axis=1)
    alike = (vectors @ vectors[0]) / np.maximum(lengths * lengths[0], 1e-12)
    for row, text in enumerate(texts):
        beside = f", cosine to the first [bold]{alike[row]:.4f}[/]" if row else ""
        output.print(f"{escape(text)} → {vectors.shape[1]} values, length {lengths[row]:.4f}{beside}")
    found = [{"text": text, "vector": vector} for text, vector in zip(texts, vectors.tolist(), strict=True)]
    output.result({"name": name, "url": url, "answers": found})


def _announce(output: Output, server: Any) -> None:
    names = ", ".join(f"{model.name} (version {model.version})" for model in server.models)
    output.print(f"[green]ready[/]: {escape(names)}")
    output.print(f"  HTTP    {server.http_url}\n  gRPC    {server.grpc_url}\n  metrics {server.metrics_url}")
    text = next((model.name for model in server.models if model.text), None)
    if text is not None:
        output.print(f'[dim]try: lepto infer {text} "where is my order?" --url {server.http_url}[/]')
    output.print("[dim]Ctrl-C stops it[/]")
    output.result(
        {
            "http_url": server.http_url,
            "grpc_url": server.grpc_url,
            "metrics_url": server.metrics_url,
            "models": [_describe(model) for model in server.models],
        }
    )


def _describe(model: Any) -> dict[str, Any]:
    return {
        "name": model.name,
        "version": model.version,
        "versions": list(model.versions),
        "text": model.text,
        "folder": str(model.folder),
    }
