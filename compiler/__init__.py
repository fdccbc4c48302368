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

# oneDNN, which makes torch's products in bfloat16, keeps what it has compiled for each of 1,024 shapes, and torch as
# much again. Texts have many lengths and students many shapes: searches held gigabytes of it. It is read when the first
# of these is made. With 64 kept a search of BANKING77 held 2.0 GB in place of 3.5, but teaching took 1.5 times as long.
for _cache in ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY"):
    os.environ.setdefault(_cache, "256")


def __getattr__(name: str) -> Any:
    # Loaded when first used: reading a recipe must not load torch.
    if name == "compile_model":
        from lepto.compiler.compile import compile_model

        return compile_model
    if name == "Recipe":
        from lepto.compiler.recipe import Recipe

        return Recipe
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
