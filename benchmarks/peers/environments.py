"""The peers' own environments: created, pinned, and used to make their models."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from lepto.benchmarks.peers.produced import PEER_FILE
from lepto.runtime.errors import LeptoError

PEERS: Final = ("olive", "optimum", "ort", "openvino")
_HERE = Path(__file__).parent.resolve()
_INSTALLED = ".installed"
_LONGEST_S = 1800.0
# No tool may ask a hub for anything, nor tell anyone that it ran; CI is what OpenVINO's telemetry looks at.
_QUIET = {
    "CI": "true",
    "CUDA_VISIBLE_DEVICES": "",
    "HF_HUB_OFFLINE": "1",
    "OLIVE_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
}


@dataclass(frozen=True, slots=True)
class Environment:
    """The virtual environment of one peer.

    Attributes:
        peer: Whose it is.
        work: Where all peers lie; this one in the folder of its name.
    """

    peer: str
    work: Path

    @property
    def folder(self) -> Path:
        """Everything of this peer."""
        return self.work / self.peer

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder.absolute() / "venv" / "bin" / "python"

    @property
    def requirements(self) -> Path:
        """Its pins."""
        return _HERE / "requirements" / f"{self.peer}.txt"

    def install(self) -> bool:
        """Create it as pinned, unless it is there already.

        Returns:
            Whether something was done.

        Raises:
            LeptoError: It cannot be installed; the message is pip's.
        """
        if not self.requirements.is_file():
            raise LeptoError(f"{self.requirements} is missing: run from the project's folder, not from a wheel")
        wanted = f"{sys.version_info[:2]}\n{self.requirements.read_text(encoding='utf-8')}"
        stamp = self.folder / "venv" / _INSTALLED
        if stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted:
            return False
        shutil.rmtree(self.folder / "venv", ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        log = self.folder / "install.log"
        _run([sys.executable, "-m", "venv", str(self.folder.absolute() / "venv")], self.folder, log, os.environ)
        pip = [str(self.python), "-m", "pip", "install", "--disable-pip-version-check", "--no-input", "-q"]
        _run([*pip, "-r", str(self.requirements)], self.folder, log, os.environ)
        stamp.write_text(wanted, encoding="utf-8")
        return True

    def variables(self) -> dict[str, str]:
        """Environment variables for what runs in it: it sees this folder of Lepto, and nothing else of Lepto."""
        path = self.work.absolute() / "path"
        here = path / "lepto" / "benchmarks" / "peers"
        here.parent.mkdir(parents=True, exist_ok=True)
        if not here.is_symlink() or here.resolve() != _HERE:
            here.unlink(missing_ok=True)
            here.symlink_to(_HERE)
        return {**quiet_variables(), "PYTHONPATH": str(path)}

    def produce(self, source: Path, source_digest: str, texts: Sequence[str], max_length: int) -> Path:
        """Make this peer's models, unless the same ones are there already.

        Args:
            source: Folder of the trained model.
            source_digest: Of everything in it that matters.
            texts: Training texts for calibration.
            max_length: Tokens that a text is cut at.

        Returns:
            The folder with ``peer.json``.

        Raises:
            LeptoError: The tool failed; the message is its own.
        """
        scripts = [_HERE / f"produce_{self.peer}.py", _HERE / "produced.py", self.requirements]
        key = hashlib.sha256(
            json.dumps([source_digest, list(texts), max_length, *(file.read_text() for file in scripts)]).encode()
        ).hexdigest()[:16]
        made = self.folder.absolute() / "models" / key
        if (made / PEER_FILE).is_file():
            return made
        staged = made.with_name(f"{key}.part")
        shutil.rmtree(staged, ignore_errors=True)
        staged.mkdir(parents=True)
        (self.folder / "texts.json").write_text(json.dumps(list(texts)), encoding="utf-8")
        command = [
            *(str(self.python), "-P", "-m", f"lepto.benchmarks.peers.produce_{self.peer}"),
            *("--source", str(source.absolute()), "--texts", str(self.folder.absolute() / "texts.json")),
            *("--max-length", str(max_length), "--output", str(staged)),
        ]
        _run(command, staged, self.folder / "produce.log", self.variables())
        if not (staged / PEER_FILE).is_file():
            raise LeptoError(f"the producer of {self.peer} ended without {PEER_FILE}; see {self.folder}/produce.log")
        staged.rename(made)
        return made


def quiet_variables() -> dict[str, str]:
    """Environment variables for every process that is started here."""
    return {**os.environ, **_QUIET}


def read_peer(folder: Path) -> dict[str, Any]:
    """What a peer made.

    Raises:
        LeptoError: The folder has no ``peer.json``, or a file that it names is missing.
    """
    try:
        document: dict[str, Any] = json.loads((folder / PEER_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LeptoError(f"{folder} holds no peer's models: {error}") from error
    for variant in document["variants"]:
        for name in variant["files"]:
            if not (folder / name).is_file():
                raise LeptoError(f"{folder} lacks {name}, which its {PEER_FILE} names: remove the folder and run again")
    return document


def _run(command: Sequence[str], folder: Path, log: Path, variables: Mapping[str, str]) -> None:
    """Run to the end with everything that it prints in a log.

    Raises:
        LeptoError: It failed; the message is the last error in its log.
    """
    with log.open("wb") as file:
        try:
            done = subprocess.run(
                command,
                cwd=folder,
                env=dict(variables),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                timeout=_LONGEST_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise LeptoError(f"took longer than {_LONGEST_S:.0f} s") from None
    if done.returncode != 0:
        what = last_error(log.read_text(encoding="utf-8", errors="replace")) or f"exit code {done.returncode}"
        raise LeptoError(what)


def last_error(text: str) -> str:
    """The line of a log that says what went wrong: pip's ``ERROR:``, else the last one that is not indented."""
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")]
    plain = [line for line in lines if not line[0].isspace()]
    return (errors or plain or [""])[-1]
