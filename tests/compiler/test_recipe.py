from __future__ import annotations

from pathlib import Path

import pytest

from lepto.compiler import Recipe
from lepto.compiler.recipe import load_recipe_values, make_recipe
from lepto.runtime.errors import LeptoError


@pytest.mark.parametrize(
    ("drop", "allowed"), [("1%", 0.008), ("0.01", 0.01), (".5 %", 0.004), (0.02, 0.02), (0, 0.0), ("0%", 0.0)]
)
def test_a_share_is_of_the_sources_metric_and_a_number_is_absolute(drop: object, allowed: float) -> None:
    recipe = make_recipe({"model": "m", "max-drop": drop})
    assert recipe.allowed_drop(0.8) == pytest.approx(allowed)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, r"'model' is missing: give it in the recipe or as --model"),
        ({"model": "m", "modell": "x"}, r"unknown key 'modell'; did you mean 'model'\?"),
        ({"model": "m", "passes": "fuse,quantise-dynamic"}, r"unknown pass 'quantise-dynamic'; did you mean 'quantize"),
        ({"model": "m", "passes": "fuse,fuse"}, "may stand once"),
        ({"model": "m", "passes": "quantize-static,quantize-dynamic"}, "only one quantization"),
        ({"model": "m", "passes": "quantize-dynamic,fuse"}, "fuse must come before quantize-dynamic"),
        (
            {"model": "m", "passes": "quantize-static,smooth"},
            "smooth must come before quantize-static: it changes float",
        ),
        ({"model": "m", "passes": "quantize-static,quantize-embeddings"}, "quantize-embeddings must come before"),
        ({"model": "m", "passes": "quantize-dynamic,mixed-precision"}, "joined by '|' they are alternatives"),
        (
            {"model": "m", "passes": "quantize-static(metod=mse)"},
            r"quantize-static: unknown option 'metod'; did you mean 'method'\?; its options: samples, reduce_range,",
        ),
        ({"model": "m", "passes": "quantize-static(method=best)"}, "quantize-static: method must be one of min-max, "),
        ({"model": "m", "passes": "quantize-static(samples=many)"}, "samples must be a whole number, got 'many'"),
        ({"model": "m", "passes": "quantize-weights(bits=3)"}, "quantize-weights: bits must be 4 or 8, got"),
        ({"model": "m", "passes": "smooth(residuals=1)"}, "smooth: residuals must be true or false, got '1'"),
        ({"model": "m", "passes": "smooth(alpha=0.5,alpha=1)"}, "smooth: option 'alpha' stands twice"),
        ({"model": "m", "passes": "smooth(alpha)"}, "smooth: an option is written as name=value, got 'alpha'"),
        ({"model": "m", "passes": "smooth(alpha=0.5"}, r"'\(' is not closed in"),
        ({"model": "m", "passes": "smooth(alpha=[1,2])"}, r"alpha must be one value, got \[1,2\]"),
        ({"model": "m", "passes": [{"smooth": {}, "fuse": {}}]}, "a pass is a name, "),
        ({"model": "m", "passes": [{"smooth": {"alfa": 1}}]}, "unknown option 'alfa'; did you mean 'alpha'"),
        ({"model": "m", "passes": "mixed-precision(max_drop=much)"}, "mixed-precision: max_drop must be a share like"),
        ({"model": "m", "target": "x86-64-v44"}, r"unknown target 'x86-64-v44'; did you mean 'x86-64-v4'\?"),
        ({"model": "m", "max_drop": "1"}, r"must be below 1, got '1': did you mean 1%\?"),
        ({"model": "m", "max_drop": "little"}, "must be a share like 1%"),
        ({"model": "m", "max_drop": "-1%"}, "must be a share like 1%"),
        ({"model": "m", "max_drop": True}, "max_drop"),
        ({"model": "m", "threads": 0}, "threads: input should be greater than or equal to 1"),
        ({"model": "m", "name": "../up"}, r"name must match \[A-Za-z0-9_.-\]\+"),
        ({"model": ""}, "model"),
    ],
)
def test_what_is_wrong_is_named(values: dict[str, object], said: str) -> None:
    with pytest.raises(LeptoError, match=said) as caught:
        make_recipe(values)
    assert caught.value.exit_code == 2


def test_passes_come_as_text_or_list() -> None:
    assert make_recipe({"model": "m", "passes": "fuse, quantize-dynamic"}).passes == ("fuse", "quantize-dynamic")
    assert make_recipe({"model": "m", "passes": ["fuse"]}).passes == ("fuse",)
    assert make_recipe({"model": "m"}).passes is None


def test_options_come_in_parentheses_or_as_mappings(tmp_path: Path) -> None:
    text = "fuse, smooth( alpha = 0.7 ), quantize-static(method=entropy, exclude=[a, /b/c.d], samples=16)"
    wanted = ("fuse", "smooth(alpha=0.7)", "quantize-static(method=entropy,exclude=[a,/b/c.d],samples=16)")
    assert make_recipe({"model": "m", "passes": text}).passes == wanted
    file = tmp_path / "r.yaml"
    file.write_text(
        "model: m\npasses:\n  - fuse\n  - smooth: {alpha: 0.7}\n"
        "  - quantize-static: {method: entropy, exclude: [a, /b/c.d], samples: 16}\n"
    )
    assert read(file).passes == wanted
    file.write_text("model: m\npasses: [fuse, smooth(alpha=0.7), 'quantize-static(samples=16)|quantize-dynamic']\n")
    assert read(file).passes == ("fuse", "smooth(alpha=0.7)", "quantize-static(samples=16)|quantize-dynamic")
    again = Recipe.model_validate_json(make_recipe({"model": "m", "passes": text}).model_dump_json())
    assert again.passes == wanted


def test_a_recipe_is_read_with_the_place_of_each_key(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text("# mine\nmodel: m\ntext-column: body\npasses:\n  - fuse\nmax_drop: 1%\n")
    values, lines = load_recipe_values(file)
    assert make_recipe(values) == Recipe(model="m", text_column="body", passes=("fuse",), max_drop="1%")
    assert lines["text_column"] == ", line 3, column 1"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model: m\ntreads: 2\n", r"r\.yaml, line 2, column 1: unknown key 'treads'; did you mean 'threads'"),
        (
            "model: m\nthreads: two\n",
            r"line 2, column 1: threads: input should be a valid integer, .* got 'two'$",
        ),
        ("model: [\n", r"line 2, column 1: no valid YAML"),
        ("model: m\nmodel: n\n", r"line 2, column 1: no valid YAML"),
        ("model: m\ntext-column: a\ntext_column: b\n", r"line 3, column 1: 'text_column' stands twice"),
        ("", "is empty"),
        ("- model\n", "must hold a mapping of names to values, .* got a list"),
        ("just words\n", "got only .just words.$"),
        ("model: !!python/object/apply:os.system ['true']\n", "model"),
    ],
)
def test_a_broken_recipe_names_line_and_column(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(text)
    with pytest.raises(LeptoError, match=said):
        read(file)


def read(file: Path) -> Recipe:
    values, lines = load_recipe_values(file)
    return make_recipe(values, origin=str(file), lines=lines)


def test_a_recipe_that_is_not_there_or_no_text(tmp_path: Path) -> None:
    with pytest.raises(LeptoError, match="does not exist"):
        load_recipe_values(tmp_path / "none.yaml")
    for model in (tmp_path, tmp_path / "model.onnx"):
        with pytest.raises(LeptoError, match=f"{model} is no recipe, .* a model is given with --model {model}"):
            load_recipe_values(model)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(LeptoError, match="no valid YAML"):
        load_recipe_values(tmp_path / "binary.yaml")
