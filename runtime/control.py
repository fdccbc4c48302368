"""Triton's control endpoints over plain HTTP: readiness, load, and one probe inference.

The supervisor asks these every second from its own thread, so they are kept to the standard library: tritonclient's
HTTP client brings gevent into the process and may not change threads.
"""

from __future__ import annotations

import http.client
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from google.protobuf import json_format
from tritonclient.utils import np_to_triton_dtype  # type: ignore[import-untyped]  # ships no types

from lepto.runtime.errors import LeptoError
from lepto.runtime.manifest import Manifest
from lepto.runtime.triton_config import TEXT_INPUT

PROBE_TEXT = "lepto probe"


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer of the server.

    Attributes:
        status: The HTTP status; 0 if the server did not answer.
        text: The body, or why there is none.
    """

    status: int
    text: str

    @property
    def ok(self) -> bool:
        """Whether the server did what was asked."""
        return self.status == 200

    @property
    def error(self) -> str:
        """What went wrong, in the server's words."""
        try:
            return str(json.loads(self.text)["error"])
        except (ValueError, KeyError, TypeError):
            return self.text.strip() or f"HTTP status {self.status}"


class Control:
    """Talks to one server.

    Args:
        address: Host.
        port: HTTP port.
    """

    def __init__(self, address: str, port: int) -> None:
        self._address = address
        self._port = port

    def ready(self, model: str | None = None, version: int | None = None) -> bool:
        """Whether the server, or one version of a model, says it is ready. It may say so with dead stubs."""
        path = "/v2/health/ready" if model is None else f"/v2/models/{model}/versions/{version}/ready"
        return self._ask("GET", path, timeout_s=5).ok

    def load(self, model: str, config: Any | None = None, *, timeout_s: float = 120.0) -> None:
        """Load a model as the repository has it now, or with another configuration.

        Raises:
            LeptoError: The server could not; what it served before goes on.
        """
        body: dict[str, Any] = {}
        if config is not None:
            body["parameters"] = {"config": json_format.MessageToJson(config, preserving_proto_field_name=True)}
        answer = self._ask(
            "POST", f"/v2/repository/models/{model}/load", json.dumps(body).encode(), timeout_s=timeout_s
        )
        if not answer.ok:
            raise LeptoError(f"the server cannot load {model!r}: {answer.error}")

    def unload(self, model: str) -> None:
        """Stop serving a model."""
        self._ask("POST", f"/v2/repository/models/{model}/unload", b"{}", timeout_s=30)

    def probe(self, model: str, manifest: Manifest, *, version: int | None = None, timeout_s: float = 5.0) -> Answer:
        """Run one small inference: a fixed text, or zeros of the right shapes."""
        inputs: list[dict[str, Any]] = []
        data: list[bytes] = []
        if manifest.preprocessing is not None:
            text = PROBE_TEXT.encode()
            data.append(len(text).to_bytes(4, "little") + text)
            inputs.append({"name": TEXT_INPUT, "shape": [1, 1], "datatype": "BYTES"})
        else:
            for tensor in manifest.inputs:
                shape = [axis if isinstance(axis, int) else 1 for axis in tensor.shape]
                zeros = np.zeros(shape, tensor.dtype)
                data.append(zeros.tobytes())
                # A vector [B] goes over the wire as [B, 1], see triton_config.
                shape = shape if len(shape) > 1 else [1, 1]
                inputs.append({"name": tensor.name, "shape": shape, "datatype": np_to_triton_dtype(zeros.dtype)})
        for entry, chunk in zip(inputs, data, strict=True):
            entry["parameters"] = {"binary_data_size": len(chunk)}
        header = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
        path = f"/v2/models/{model}" + (f"/versions/{version}" if version is not None else "") + "/infer"
        headers = {
            "Inference-Header-Content-Length": str(len(header)),
            "Content-Type": "application/octet-stream",
        }
        return self._ask("POST", path, header + b"".join(data), headers, timeout_s=timeout_s)

    def _ask(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
        *,
        timeout_s: float,
    ) -> Answer:
        connection = http.client.HTTPConnection(self._address, self._port, timeout=timeout_s)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return Answer(response.status, response.read().decode("utf-8", "replace"))
        except (OSError, http.client.HTTPException) as error:
            return Answer(0, str(error) or type(error).__name__)
        finally:
            connection.close()
