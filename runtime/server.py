"""Run a model repository on a real tritonserver, and keep it answering.

Triton's own health endpoints stay green when a python stub is dead and every request fails, so the supervisor asks each
model to infer, about once a second. When that fails, the whole server is restarted. When the repository has a new
production version, it is loaded beside the old one before clients are switched to it.

One thread starts, watches and stops the server; the server itself lives under a guardian process
(:mod:`lepto.runtime.guardian`) that cleans up whatever becomes of this process.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from lepto.runtime import triton_config
from lepto.runtime.control import Answer, Control
from lepto.runtime.errors import LeptoError
from lepto.runtime.incarnation import Incarnation, StoppedError, pick_ports
from lepto.runtime.manifest import Manifest
from lepto.runtime.published import CONFIG, Published, list_models
from lepto.runtime.tritonserver import ADDRESS, Ports

STOP_GRACE_S = 5.0
# A request that waits for longer in the queue of a step finds the next step gone, and its client asks again.
DRAIN_S = 10.0
# A dead stub answers 500 after a second; anything that happens once may be chance.
FAILED_PROBES = 2
RESTARTS_IN_A_ROW = 5

Say = Callable[[str], None]


class Server:
    """A supervised tritonserver on loopback. Use it as a context manager.

    Args:
        repository: The model repository; the models that ``lepto publish`` put there are served.
        http_port: Port for HTTP; 0 picks a free one.
        grpc_port: Port for gRPC; 0 picks a free one.
        metrics_port: Port for metrics; 0 picks a free one.
        say: Is told what the supervisor does, one line at a time, from its thread.
        probe_interval_s: Time between two looks at the server and the repository.
        grace_s: How long requests in flight may take when the server is stopped.
        drain_s: How long a replaced version stays loaded for requests in flight.

    Attributes:
        restarts: How often the server was restarted because it no longer answered.

    Example:
        >>> with Server("model_repository", http_port=0, grpc_port=0, metrics_port=0) as server:  # doctest: +SKIP
        ...     print(server.http_url)
    """

    def __init__(
        self,
        repository: str | Path,
        *,
        http_port: int = 8000,
        grpc_port: int = 8001,
        metrics_port: int = 8002,
        say: Say | None = None,
        probe_interval_s: float = 1.0,
        grace_s: float = STOP_GRACE_S,
        drain_s: float = DRAIN_S,
    ) -> None:
        self._repository = Path(repository)
        self._wanted = Ports(http_port, grpc_port, metrics_port)
        self._say = say or (lambda line: None)
        self._interval_s = probe_interval_s
        self._grace_s = grace_s
        self._drain_s = drain_s
        self._draining: dict[str, _Draining] = {}
        self._ports: Ports | None = None
        self._incarnation: Incarnation | None = None
        self._served: dict[str, Published] = {}
        self._manifests: dict[str, Manifest] = {}
        self._refused: dict[str, bytes] = {}
        self._failed: dict[str, int] = {}
        self._stop = threading.Event()
        self._up = threading.Event()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self.restarts = 0

    def start(self) -> Self:
        """Start the server and wait until every published model answers.

        Raises:
            LeptoError: There is no tritonserver, nothing is published, a port is in use, or a model does not load. By
                then everything is cleaned up.
        """
        if self._thread is not None:
            raise RuntimeError("this server was started before; make a new one")
        try:
            self._thread = threading.Thread(target=self._run, name="lepto-server")
            self._thread.start()
            self._up.wait()
            self._raise_failure()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Stop the server and everything it started, and remove what it left. Safe to call at any time."""
        self._stop.set()
        interrupt: KeyboardInterrupt | None = None
        while self._is_running():
            try:
                self._ended.wait(0.2)
            except KeyboardInterrupt as again:  # an impatient second Ctrl-C must not leave half of it running
                interrupt = again
        if interrupt is not None:
            raise interrupt

    def _is_running(self) -> bool:
        """Whether the supervisor's thread has work left.

        Not Thread.join and is_alive: up to Python 3.12 a thread whose join was broken off by Ctrl-C counts as ended.
        """
        return not self._ended.is_set() and self._thread in threading.enumerate()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until the server has ended.

        Returns:
            Whether it has; False after ``timeout_s``.

        Raises:
            LeptoError: It could not be kept running.
        """
        if self._is_running():
            self._ended.wait(timeout_s)
        self._raise_failure()
        return not self._is_running()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def http_url(self) -> str:
        """``host:port`` for HTTP clients."""
        return f"{ADDRESS}:{self._known_ports().http}"

    @property
    def grpc_url(self) -> str:
        """``host:port`` for gRPC clients."""
        return f"{ADDRESS}:{self._known_ports().grpc}"

    @property
    def metrics_url(self) -> str:
        """Where Prometheus finds the metrics."""
        return f"http://{ADDRESS}:{self._known_ports().metrics}/metrics"

    @property
    def models(self) -> list[Published]:
        """The published models with the versions that are served now."""
        return [self._served[name] for name in sorted(self._served)]

    @property
    def pid(self) -> int | None:
        """Process id of the tritonserver that runs now."""
        return self._incarnation.pid if self._incarnation is not None else None

    def _known_ports(self) -> Ports:
        if self._ports is None:
            raise RuntimeError("the server has not been started")
        return self._ports

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    # From here on everything runs in the supervisor's thread.

    def _run(self) -> None:
        try:
            self._supervise()
        finally:
            self._ended.set()

    def _supervise(self) -> None:
        try:
            self._ports = pick_ports(self._wanted)
            self._launch()
            self._up.set()
            while not self._stop.wait(self._interval_s):
                self._look()
        except StoppedError:
            pass
        except BaseException as error:  # handed to the thread that waits
            self._failure = error
        finally:
            if self._incarnation is not None:
                self._incarnation.end()
                self._incarnation = None
            self._remove_bytecode(self._manifests)  # a stub that was just starting
            self._up.set()

    def _launch(self) -> None:
        models = list_models(self._repository)
        if not models:
            raise LeptoError(
                f"nothing is published in {self._repository}: "
                f"`lepto publish PACKAGE --model-repository {self._repository}` comes first"
            )
        for model in models:
            if (plan := model.plan()) is not None:
                raise LeptoError(
                    f"{model.name!r} is an engine ({plan}), and the server of lepto[server] runs on CPUs: serve "
                    f"{self._repository} with NVIDIA's container on that GPU (the README has the command), or publish "
                    "a package for a CPU elsewhere"
                )
        self._manifests = {model.name: model.manifest() for model in models}
        try:
            self._incarnation = Incarnation(self._repository, models, self._known_ports(), self._grace_s)
            self._incarnation.wait_until_ready(self._stop)
        finally:
            self._remove_bytecode(self._manifests)
        for model in models:
            self._check(model, self._manifests[model.name])
        self._served = {model.name: model for model in models}
        self._failed.clear()
        self._draining = {
            model.name: _Draining(0.0, frozenset(), self._only_production(model)) for model in models if model.parts
        }
        # The configurations of an ensemble's steps name the version before as well.
        self._let_go()

    def _check(self, model: Published, manifest: Manifest) -> None:
        """Believe that a version is served when it says so and has answered once."""
        control = self._control()
        if not control.ready(model.name, model.version):
            raise LeptoError(f"version {model.version} of {model.name!r} is not ready; {self._log_tail()}")
        answer = control.probe(model.name, manifest, timeout_s=30)
        if not _alive(answer):
            raise LeptoError(f"version {model.version} of {model.name!r} does not answer: {answer.error}")

    def _look(self) -> None:
        if self._running().exit_code() is not None:
            self._restart(f"tritonserver ended with code {self._running().exit_code()}")
            return
        self._follow_repository()
        self._let_go()
        for name in self._served:
            answer = self._control().probe(name, self._manifests[name])
            while not _alive(answer) and not self._stop.is_set():
                self._failed[name] = self._failed.get(name, 0) + 1
                if self._failed[name] >= FAILED_PROBES:
                    self._restart(f"{name!r} no longer answers ({answer.error})")
                    return
                answer = self._control().probe(name, self._manifests[name])
            self._failed[name] = 0

    def _restart(self, reason: str) -> None:
        self._say(f"restarting the server: {reason}")
        self.restarts += 1
        problem: LeptoError | None = None
        for attempt in range(RESTARTS_IN_A_ROW):
            self._running().end(at_once=True)
            if self._stop.wait(0.5 * (2**attempt - 1)):
                raise StoppedError
            try:
                self._launch()
            except LeptoError as error:
                problem = error
                self._say(f"restart {attempt + 1} of {RESTARTS_IN_A_ROW} failed: {error}")
            else:
                self._say(f"the server answers again on {self.http_url}")
                return
        raise LeptoError(f"gave up after {RESTARTS_IN_A_ROW} restarts: {problem}", exit_code=1) from problem

    def _follow_repository(self) -> None:
        """Serve what the repository has in production now."""
        try:
            wanted = {model.name: model for model in list_models(self._repository)}
        except (LeptoError, OSError) as error:
            self._complain("", b"", f"cannot read the repository: {error}; serving what is loaded")
            return
        for name in [name for name in self._served if name not in wanted]:
            for part in reversed(self._served[name].models):
                self._control().unload(part)
            del self._served[name]
            self._draining.pop(name, None)
            self._say(f"{name!r} left the repository and is not served any more")
        for name, model in wanted.items():
            old = self._served.get(name)
            if old is not None and old.version == model.version:
                continue
            signature = (model.folder / CONFIG).read_bytes()
            if self._refused.get(name) == signature:
                continue
            try:
                manifest = model.manifest()
                self._load(model, old)
                self._check(model, manifest)
            except (LeptoError, OSError) as error:
                still = f"; version {old.version} goes on serving" if old is not None else ""
                self._complain(name, signature, f"version {model.version} of {name!r} is not served: {error}{still}")
                continue
            self._served[name], self._manifests[name] = model, manifest
            self._say(f"serving version {model.version} of {name!r}")

    def _load(self, model: Published, old: Published | None) -> None:
        """Load a version beside the old one and switch clients to it; the old one is let go of later.

        Every load carries its configuration: without one, Triton takes a model for unchanged that was loaded with
        another configuration before.
        """
        control = self._control()
        configs = {name: self._read_config(name) for name in model.models}
        draining = self._draining.pop(model.name, None)
        versions = {
            model.version,
            *([old.version] if old is not None else []),
            *(draining.versions if draining else []),
        }
        try:
            for part in model.parts:
                control.load(part, triton_config.set_versions(configs[part], sorted(versions)))
            control.load(model.name, configs[model.name])
        finally:
            self._remove_bytecode([model.name])
        if model.parts and old is not None:
            # Requests that are on their way through the old ensemble look its steps up one by one.
            due = time.monotonic() + self._drain_s
            self._draining[model.name] = _Draining(due, frozenset(versions), self._only_production(model))

    def _remove_bytecode(self, names: Iterable[str]) -> None:
        """Remove what Python wrote beside the tokenizers' programs; its interpreter heeds no setting against it."""
        for name in names:
            for folder in self._repository.glob(f"{name}{triton_config.TOKENIZER_SUFFIX}/[0-9]*/__pycache__"):
                shutil.rmtree(folder, ignore_errors=True)

    def _only_production(self, model: Published) -> dict[str, Any]:
        """The configurations of an ensemble's steps with no version but the one in production."""
        return {part: triton_config.set_versions(self._read_config(part), [model.version]) for part in model.parts}

    def _read_config(self, name: str) -> Any:
        path = self._repository / name / CONFIG
        return triton_config.parse(path.read_text(encoding="utf-8"), source=str(path))

    def _let_go(self) -> None:
        """Unload old steps that no request can be on its way to any more."""
        for name, draining in list(self._draining.items()):
            if time.monotonic() >= draining.due:
                del self._draining[name]
                for part, config in draining.after.items():
                    self._control().load(part, config)
                self._remove_bytecode([name])

    def _complain(self, name: str, signature: bytes, line: str) -> None:
        """Say it once, not every second."""
        if self._refused.get(name) != signature:
            self._say(line)
        self._refused[name] = signature

    def _running(self) -> Incarnation:
        if self._incarnation is None:
            raise RuntimeError("there is no server")
        return self._incarnation

    def _control(self) -> Control:
        return Control(ADDRESS, self._known_ports().http)

    def _log_tail(self) -> str:
        return self._running().log_tail()


@dataclass(frozen=True, slots=True)
class _Draining:
    """Steps of an ensemble that stay loaded for requests on their way.

    Attributes:
        due: When the last such request has been answered or refused, in the time of ``time.monotonic``.
        versions: The versions that are loaded until then.
        after: Model to the configuration that keeps only the version in production.
    """

    due: float
    versions: frozenset[int]
    after: Mapping[str, Any]


def _alive(answer: Answer) -> bool:
    """Whether an answer came from a model that works: also a refusal, or a queue that is full, is one."""
    return 200 <= answer.status < 500 or answer.status == 503
