"""Run, verify, publish and serve packages; no torch in here.

The names below are loaded on first use, so that importing this package costs next to nothing::

    from lepto.runtime import TextClassifier

    classify = TextClassifier("out/intents")
    print(classify("where is my parcel?"))
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lepto.runtime.embedding import TextEmbedder
    from lepto.runtime.errors import LeptoError
    from lepto.runtime.manifest import Manifest
    from lepto.runtime.package import Package, open_package, write_package
    from lepto.runtime.session import Session
    from lepto.runtime.tagging import Tag, TokenClassifier
    from lepto.runtime.text import Prediction, TextClassifier, TextEncoder

# Official builds of onnxruntime from 1.29 report what they run to their maker, digests of the models included, unless
# they are told not to before they are first imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__all__ = [
    "LeptoError",
    "Manifest",
    "Package",
    "Prediction",
    "Session",
    "Tag",
    "TextClassifier",
    "TextEmbedder",
    "TextEncoder",
    "TokenClassifier",
    "open_package",
    "write_package",
]

_HOMES = {
    "LeptoError": "errors",
    "Manifest": "manifest",
    "Package": "package",
    "Prediction": "text",
    "Session": "session",
    "Tag": "tagging",
    "TextClassifier": "text",
    "TextEmbedder": "embedding",
    "TextEncoder": "text",
    "TokenClassifier": "tagging",
    "open_package": "package",
    "write_package": "package",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
