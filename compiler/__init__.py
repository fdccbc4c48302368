"""Trained model in, verified package out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lepto.compiler.compile import compile_model
    from lepto.compiler.recipe import Recipe

__all__ = ["Recipe", "compile_model"]


def __getattr__(name: str) -> Any:
    # Loaded when first used: reading a recipe must not load torch.
    if name == "compile_model":
        from lepto.compiler.compile import compile_model

        return compile_model
    if name == "Recipe":
        from lepto.compiler.recipe import Recipe

        return Recipe
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
