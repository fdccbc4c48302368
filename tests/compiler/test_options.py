from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lepto.compiler.passes import PASSES
from lepto.compiler.passes.options import (
    Named,
    alternatives,
    describe,
    make_pass,
    parse_pass,
    pass_class,
    split_outside,
    write_pass,
)
from lepto.compiler.passes.order import check_order
from lepto.compiler.passes.quantize_static import QuantizeStatic
from lepto.compiler.passes.quantize_weights import QuantizeWeights
from lepto.compiler.pipeline import plan


@pytest.mark.parametrize("name", PASSES)
def test_every_pass_has_what_the_pipeline_asks_for(name: str) -> None:
    step = make_pass(name)
    assert step.name == name
    assert isinstance(step.preserves_function, bool)
    assert set(step.reads) <= {"calibration", "labels", "machine"}
    assert dataclasses.is_dataclass(step)
    about, options = describe(name)
    assert about.endswith(".")
    assert [option.name for option in options] == [field.name for field in dataclasses.fields(pass_class(name))]
    assert all(option.about for option in options), name
    check_order([[name]])


def test_values_have_the_types_of_the_fields() -> None:
    step = make_pass("quantize-static(method=entropy,samples=128,symmetric=yes,format=qdq,exclude=[a, 'b,c'])")
    assert step == QuantizeStatic(method="entropy", samples=128, symmetric=True, format="qdq", exclude=("a", "b,c"))
    assert make_pass("quantize-weights(bits=8,block-size=32)") == QuantizeWeights(bits=8, block_size=32)
    assert make_pass("smooth(alpha=1)").alpha == 1.0
    assert make_pass("quantize-static(exclude=one)").exclude == ("one",)


def test_the_target_decides_what_the_text_leaves_open() -> None:
    assert plan("quantize-static", reduce_range=True)[0].reduce_range  # type: ignore[attr-defined]
    assert not plan("quantize-static(reduce_range=no)", reduce_range=True)[0].reduce_range  # type: ignore[attr-defined]
    static, mixed = plan("quantize-static|mixed-precision(worst=2)", max_drop="3%")
    assert (static.name, mixed.name, mixed.max_drop) == ("quantize-static", "mixed-precision", "3%")  # type: ignore[attr-defined]


@given(st.lists(st.text(max_size=8), max_size=3), st.text(max_size=12))
def test_what_is_written_is_read_again(names: list[str], value: str) -> None:
    named = Named("quantize-static", {"exclude": names, "method": value})
    assert parse_pass(str(named)) == named


def test_brackets_and_quotes_hold_separators() -> None:
    assert split_outside("a, b(c,d=[e,f]), 'g,h'", ",") == ["a", "b(c,d=[e,f])", "'g,h'"]
    assert alternatives("a(b=[x|y])|c") == ["a(b=[x|y])", "c"]
    for broken in ("a(b", "a)b", "a([b)]", "'a"):
        with pytest.raises(ValueError, match=r"closed|closes nothing"):
            split_outside(broken, ",")


def test_alternatives_may_differ_in_options_alone() -> None:
    assert write_pass("quantize-static(method=mse) | quantize-static( method = entropy )") == (
        "quantize-static(method=mse)|quantize-static(method=entropy)"
    )
    check_order([["fuse"], ["smooth"], ["quantize-embeddings"], ["quantize-weights"], ["quantize-static"] * 2])
    check_order([["quantize-weights"], ["quantize-embeddings"]])
    with pytest.raises(ValueError, match="fuse twice"):
        check_order([["fuse"], ["fuse"]])
