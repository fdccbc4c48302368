"""What is decided before the first pass: the target, and the CPU that stands in for it."""

from __future__ import annotations

import dataclasses

import pytest

from lepto.compiler import prepare
from lepto.runtime.errors import LeptoError
from lepto.runtime.machine import Machine
from lepto.runtime.targets import TARGETS

V3 = Machine("Linux", "x86_64", "some CPU", 2, 2, ("x86-64-v2", "x86-64-v3"), ("avx2",), 2**32, ())
ARM = dataclasses.replace(V3, architecture="arm64", isa_levels=("arm64",), instruction_sets=("neon",))


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch):
    def _on(machine: Machine) -> None:
        monkeypatch.setattr(prepare, "this_machine", lambda: machine)

    return _on


def test_the_host_is_the_best_level(on) -> None:
    on(V3)
    assert prepare.resolve_target("host").name == "x86-64-v3"
    on(ARM)
    assert prepare.resolve_target("host").name == "arm64"


def test_an_older_cpu_stands_in_for_a_newer_one_of_its_family(on) -> None:
    on(V3)
    assert prepare.resolve_target("x86-64-v4").name == "x86-64-v4"
    assert prepare.stand_in(TARGETS["x86-64-v4"]) == "x86-64-v3"
    assert prepare.stand_in(TARGETS["x86-64-v3"]) is None
    assert prepare.stand_in(TARGETS["x86-64-v2"]) is None
    assert prepare.stand_in(TARGETS["l4"]) is None


def test_another_family_is_refused(on) -> None:
    on(V3)
    with pytest.raises(LeptoError, match="target 'arm64' cannot be measured here: this CPU"):
        prepare.resolve_target("arm64")
    on(ARM)
    with pytest.raises(LeptoError, match="target 'x86-64-v3' cannot be measured here: this CPU"):
        prepare.resolve_target("x86-64-v3")
    assert prepare.stand_in(TARGETS["x86-64-v4"]) is None
