"""The wheel's list of packages and the folders of the project say the same."""

from __future__ import annotations

import tomllib
from importlib.metadata import entry_points, version
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PARTS = ("runtime", "compiler", "kernels", "benchmarks")


def _project() -> dict:  # type: ignore[type-arg]
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def _folders() -> set[str]:
    """Every folder of the four parts that holds Python files, and the four parts themselves."""
    found = {f"lepto.{part}" for part in PARTS}
    for part in PARTS:
        for file in (ROOT / part).rglob("*.py"):
            found.add("lepto." + ".".join(file.parent.relative_to(ROOT).parts))
    return found


def test_packages_are_the_folders() -> None:
    assert set(_project()["tool"]["setuptools"]["packages"]) == _folders()


def test_root_and_kernels_are_namespaces() -> None:
    # A regular package named kernels at the top would shadow the one that transformers imports.
    assert not (ROOT / "__init__.py").exists()
    assert not (ROOT / "kernels" / "__init__.py").exists()


@pytest.mark.parametrize("part", PARTS)
def test_every_part_is_typed(part: str) -> None:
    assert (ROOT / part / "py.typed").is_file()


def test_entry_points_lead_to_commands() -> None:
    points = list(entry_points(group="lepto.commands"))
    assert {point.name for point in points} == set(_project()["project"]["entry-points"]["lepto.commands"])
    for point in points:
        assert callable(point.load()), point.name


def test_version_comes_from_the_metadata() -> None:
    assert version("lepto") == _project()["project"]["version"]


def test_torch_is_pinned_for_the_build() -> None:
    assert "torch==2.13.0" in (ROOT / "constraints.txt").read_text().split()
