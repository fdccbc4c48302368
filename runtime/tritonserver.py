"""Find the tritonserver that the ``nvidia-pytriton`` wheel carries, and say how it is started.

The server gets a folder of its own, because Triton launches the python stub through an unquoted ``bash -c``: whatever
the paths of the environment and the model repository look like, the server sees short safe ones. The repository is a
symbolic link; the backends are copies, since Triton refuses a backend library that a link takes out of its folder.

::

    FOLDER/backends/python/{libtriton_python.so, triton_python_backend_utils.py, triton_python_backend_stub}
    FOLDER/backends/onnxruntime/model.py      Lepto's own, for servers without the C++ backend
    FOLDER/lib/libpython3.X.so.1.0            what the stub needs of the system
    FOLDER/models                             the model repository
    FOLDER/server.log
"""

from __future__ import annotations

import ctypes
import os
import re
import secrets
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lepto.runtime.errors import LeptoError

ADDRESS = "127.0.0.1"
LOG = "server.log"
PYTHON_BACKEND_FILES = ("libtriton_python.so", "triton_python_backend_utils.py")
INSTALL_HINT = "pip install 'lepto[server]' (Python 3.11 or 3.12 on Linux x86-64)"


@dataclass(frozen=True, slots=True)
class Ports:
    """The three ports of a server, all on loopback."""

    http: int
    grpc: int
    metrics: int


@dataclass(frozen=True, slots=True)
class Installation:
    """A tritonserver that can run here.

    Attributes:
        binary: The executable.
        libraries: The folder of the shared libraries that the wheel carries.
        python_backend: The folder of the python backend.
        stub: The executable that runs python models, for this version of Python.
        libpython: The shared library that the stub needs; None if the system's loader finds it.
        python_folder: The folder of the ``python3`` whose packages the stub uses.
    """

    binary: Path
    libraries: Path
    python_backend: Path
    stub: Path
    libpython: Path | None
    python_folder: Path


def find_installation() -> Installation:
    """Find the server, its stub for this Python, and the libpython that the stub needs.

    Raises:
        LeptoError: Something is missing; the message says how to get it.
    """
    spec = find_spec("pytriton")
    locations = list(spec.submodule_search_locations or []) if spec is not None else []
    if not locations:
        raise LeptoError(f"there is no tritonserver here: {INSTALL_HINT}")
    package = Path(locations[0])
    root = package / "tritonserver"
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    binary = root / "bin" / "tritonserver"
    stub = root / "python_backend_stubs" / python / "triton_python_backend_stub"
    python_backend = root / "backends" / "python"
    libraries = package.parent / "nvidia_pytriton.libs"
    if not stub.is_file() and root.is_dir():
        there = ", ".join(sorted(entry.name for entry in stub.parents[1].glob("3.*")))
        raise LeptoError(f"the tritonserver wheel has no stub for Python {python}, only for {there}: {INSTALL_HINT}")
    for path in (binary, *(python_backend / name for name in PYTHON_BACKEND_FILES), libraries):
        if not path.exists():
            raise LeptoError(f"the installed nvidia-pytriton has no {path.name} ({path} is missing): {INSTALL_HINT}")
    # Not resolved: a virtual environment's python is a link, and only beside the link are its packages found.
    python_folder = Path(sys.executable).parent
    if not (python_folder / "python3").exists():
        raise LeptoError(f"the server's python stub starts `python3`, which is missing in {python_folder}")
    return Installation(binary, libraries, python_backend, stub, _find_libpython(python), python_folder)


def _find_libpython(python: str) -> Path | None:
    name = f"libpython{python}.so.1.0"
    for folder in (sysconfig.get_config_var("LIBDIR"), os.path.join(sys.base_prefix, "lib")):
        if folder and Path(folder, name).is_file():
            return Path(folder, name)
    try:
        ctypes.CDLL(name)
    except OSError:
        raise LeptoError(
            f"the tritonserver's python stub needs {name}, which is not on this machine: "
            f"`apt-get install libpython{python}`, or with pyenv "
            f"`PYTHON_CONFIGURE_OPTS=--enable-shared pyenv install {python}`"
        ) from None
    return None


def new_folder() -> Path:
    """A name for a server's folder that is free and safe on an unquoted command line. The folder is not made."""
    base = tempfile.gettempdir()
    if not re.fullmatch(r"[A-Za-z0-9_./-]+", base):
        base = "/tmp"
    return Path(base, f"lepto-server-{os.getpid()}-{secrets.token_hex(4)}")


def guardian_order(
    installation: Installation, repository: Path, models: Sequence[str], ports: Ports, *, grace_s: float
) -> dict[str, Any]:
    """Everything that the guardian needs to know to run a server.

    Args:
        installation: The server.
        repository: The model repository.
        models: The models that are loaded at start.
        ports: Where it listens.
        grace_s: How long it may take to stop.
    """
    folder = new_folder()
    prefix = f"lepto{folder.name.removeprefix('lepto-server-').replace('-', 'x')}_"
    backend = installation.python_backend
    copies = {f"backends/python/{name}": str(backend / name) for name in PYTHON_BACKEND_FILES}
    copies["backends/python/triton_python_backend_stub"] = str(installation.stub)
    copies["backends/onnxruntime/model.py"] = str(files("lepto.runtime.backends.onnxruntime").joinpath("model.py"))
    links = {"models": str(repository.resolve())}
    if installation.libpython is not None:
        links[f"lib/{installation.libpython.name}"] = str(installation.libpython.resolve())
    command = [
        str(installation.binary),
        f"--model-repository={folder / 'models'}",
        f"--backend-directory={folder / 'backends'}",
        "--model-control-mode=explicit",
        *(f"--load-model={model}" for model in models),
        # The configurations are complete; completing them would start every stub twice.
        "--disable-auto-complete-config",
        f"--http-address={ADDRESS}",
        f"--http-port={ports.http}",
        f"--grpc-address={ADDRESS}",
        f"--grpc-port={ports.grpc}",
        f"--metrics-address={ADDRESS}",
        f"--metrics-port={ports.metrics}",
        f"--exit-timeout-secs={max(1, int(grace_s) - 1)}",
        *(f"--backend-config={name},shm-region-prefix-name={prefix}" for name in ("python", "onnxruntime")),
    ]
    return {
        "folder": str(folder),
        "copies": copies,
        "links": links,
        "log": LOG,
        "command": command,
        "environment": server_environment(installation, folder),
        "shared_memory_prefix": prefix,
        "grace_s": grace_s,
    }


def server_environment(installation: Installation, folder: Path) -> dict[str, str]:
    """The environment of the server and of the stubs that it starts."""
    environment = dict(os.environ)
    # A PYTHONHOME would send the stub's Python to another installation's packages.
    environment.pop("PYTHONHOME", None)
    environment["PATH"] = os.pathsep.join([str(installation.python_folder), environment.get("PATH", os.defpath)])
    inherited = environment.get("LD_LIBRARY_PATH")
    libraries = [str(folder / "lib"), str(installation.libraries), *([inherited] if inherited else [])]
    environment["LD_LIBRARY_PATH"] = os.pathsep.join(libraries)
    return environment


def check_stub(installation: Installation) -> None:
    """Start the stub once without arguments: Triton 2.51 waits forever for a stub that cannot start.

    Raises:
        LeptoError: The stub does not start; the message has the loader's.
    """
    libraries = [str(installation.libraries)]
    if installation.libpython is not None:
        libraries.insert(0, str(installation.libpython.parent))
    ran = subprocess.run(
        [installation.stub],
        env={**os.environ, "LD_LIBRARY_PATH": os.pathsep.join(libraries)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    if ran.returncode != 1:  # the stub's answer to being called without arguments
        raise LeptoError(
            f"the tritonserver's python stub does not start (exit code {ran.returncode}): {ran.stderr.strip()}; "
            f"it needs the same Python as lepto's, with its shared library"
        )
