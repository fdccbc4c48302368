"""Trained model in, verified package out."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from lepto.compiler.cache import cache_folder

if TYPE_CHECKING:
    from lepto.compiler.compile import compile_model
    from lepto.compiler.recipe import Recipe

__all__ = ["Recipe", "compile_model"]

# Importing torch's exporter makes a folder for compiled kernels, by default among the temporary files, and leaves it.
os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "torchinductor"))


def __getattr__(name: str) -> Any:
    # Loaded when first used: reading a recipe must not load torch.
    if name == "compile_model":
        from lepto.compiler.compile import compile_model

        return compile_model
    if name == "Recipe":
        from lepto.compiler.recipe import Recipe

        return Recipe
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
