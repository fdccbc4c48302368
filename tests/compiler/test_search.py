"""The parts of the search that decide."""

from __future__ import annotations

import dataclasses
import inspect
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from lepto.compiler import search
from lepto.compiler.cache import Cache
from lepto.compiler.costs import Cost
from lepto.compiler.cut_encoder import EncoderCutter, encoder_shapes, kept_layers
from lepto.compiler.cutter import Shape
from lepto.compiler.data import Samples
from lepto.compiler.encoder import Sizes
from lepto.compiler.halving import (
    RUNGS,
    Rung,
    Student,
    allowed_share,
    answerable,
    front,
    gains,
    key_of,
    margin,
    portion,
    portions,
    ranked,
    rising,
    survivors,
    within,
)
from lepto.compiler.importance import Importance, gate_scores, most_important
from lepto.compiler.latency import Curve, LatencyTable, fit_to_latency
from lepto.compiler.metrics import Outcomes
from lepto.compiler.pipeline import Budget
from lepto.compiler.recipe import make_recipe, milliseconds, number_of_bytes, seconds
from lepto.compiler.setting import Setting
from lepto.compiler.source import open_source
from lepto.compiler.split import split_development
from lepto.compiler.teaching import Teaching, gentleness
from lepto.runtime.errors import LeptoError
from lepto.runtime.manifest import TEXT_CLASSIFICATION, TOKEN_CLASSIFICATION, Metric

from .conftest import Toy

TABLE = LatencyTable(Curve((1, 4), (0.1, 0.4)), Curve((64, 256), (0.05, 0.2)), Curve((64, 256), (0.01, 0.04)), 15)


FASTEST = key_of("latency")


def _student(ms: float, score: float, size: int = 1, throughput: float = 1.0) -> Student:
    cost = Cost(ms, 2 * ms, throughput, size)
    return Student(Shape(f"{ms:g} ms", ms, None), None, cost, score, score)  # type: ignore[arg-type]


def test_the_development_split_is_a_part_and_keeps_the_shares_of_the_labels() -> None:
    samples = Samples(tuple(f"text {i}" for i in range(200)), np.repeat([0, 1], [150, 50]), "here")
    train, dev = split_development(samples, 0.1, 0)
    assert set(train.inputs) | set(dev.inputs) == set(samples.inputs)
    assert not set(train.inputs) & set(dev.inputs)
    assert np.bincount(dev.labels).tolist() == [15, 5]
    again, _ = split_development(samples, 0.1, 0)
    assert again.digest == train.digest


def test_too_few_samples_cannot_be_split() -> None:
    with pytest.raises(LeptoError, match="--dev"):
        split_development(Samples(("a", "b"), np.array([0, 1]), "here"), 0.1, 0)


@pytest.mark.parametrize(("count", "keep", "kept"), [(6, 1, (0,)), (6, 2, (0, 5)), (6, 3, (0, 2, 5)), (2, 2, (0, 1))])
def test_layers_are_kept_at_the_ends_and_evenly_between(count: int, keep: int, kept: tuple[int, ...]) -> None:
    assert kept_layers(count, keep) == kept


def test_the_front_is_what_no_other_one_beats() -> None:
    fast, dominated, best = _student(0.2, 0.90), _student(0.3, 0.89), _student(0.9, 0.95)
    assert front([best, dominated, fast], FASTEST) == [fast, best]
    small = _student(5.0, 0.8, size=0)
    assert front([small, fast], key_of("size")) == [small, fast]
    assert front([fast, _student(9.0, 0.9, throughput=7.0)], key_of("throughput"))[0].cost.throughput == 7.0


def test_the_cheapest_good_one_is_judged_first_and_then_dearer_ones_by_accuracy() -> None:
    poor, pick, equal, better, best = (
        _student(0.1, 0.90), _student(0.2, 0.95), _student(0.3, 0.95), _student(0.4, 0.96), _student(0.5, 0.97)
    )  # fmt: skip
    everyone = [best, poor, equal, pick, better]
    assert ranked(everyone, 0.95, FASTEST) == (pick, best, better, equal)
    assert ranked([pick, equal], 0.95, FASTEST) == (pick, equal)  # not told apart: the dearer one is the safer one
    assert ranked(everyone, 0.99, FASTEST) == (best,)  # none is good enough
    assert ranked([equal, pick], 0.99, FASTEST) == (pick, equal)  # of equals the cheapest


def test_the_margin_is_a_share_of_the_drop_and_grows_where_samples_are_few() -> None:
    assert margin(0.01, 10_000, clean=True, strict=False) == pytest.approx(0.0025)
    assert margin(0.01, 10_000, clean=False, strict=False) == pytest.approx(0.005)
    assert margin(0.01, 10_000, clean=False, strict=False, graded=True, last=False) == pytest.approx(0.0075)
    assert margin(0.01, 10_000, clean=False, strict=False, graded=True) == pytest.approx(0.0085)
    assert margin(0.01, 10_000, clean=False, strict=True, graded=True) == pytest.approx(0.01)
    assert margin(0.01, 10_000, clean=True, strict=True) == pytest.approx(0.01)
    assert margin(0.01, 125, clean=True, strict=False) == pytest.approx(0.01)  # half of sqrt(0.05 / 125)
    assert margin(0.03, 125, clean=True, strict=False) == pytest.approx(0.02)  # sqrt(0.05 / 125)
    assert margin(0.015, 125, clean=True, strict=False) == pytest.approx(0.015)  # not better than the reference
    assert margin(0.001, 125, clean=True, strict=True) == pytest.approx(0.01)
    assert margin(0.01, 20, clean=False, strict=False) == pytest.approx(0.025)
    assert margin(0.05, 20, clean=True, strict=True, decided=False) == pytest.approx(0.005)  # vectors


@pytest.mark.parametrize(("score", "promising"), [(0.905, True), (0.895, False)])
def test_the_last_round_is_long_where_one_is_expected_to_be_safely_good_enough(score: float, promising: bool) -> None:
    # Of 0.95 with a drop of 0.05 and a margin of 0.01 at least 0.91; a tenth of the errors goes in the last round.
    of: Any = SimpleNamespace(
        clean=True,
        trials=SimpleNamespace(on_dev=lambda _: 0.95),
        setting=SimpleNamespace(root=None),
        allowed=lambda _: 0.05,
        _margin=lambda drop: 0.2 * drop,
    )
    assert search.Search._promising(of, [_student(0.1, score)], RUNGS[-1]) == promising


def test_larger_shapes_begin_where_the_candidates_end() -> None:
    sizes = Sizes((4,) * 6, (256,) * 6, 32, 128, 1000, 64)
    importance = Importance([torch.rand(4) for _ in range(6)], [torch.rand(256) for _ in range(6)], torch.rand(128))
    cutter = EncoderCutter(None, sizes, importance, TABLE, last_row_only=True)  # type: ignore[arg-type]
    costs = [shape.predicted_ms for shape in [*cutter.shapes(), *cutter.larger()]]
    assert costs == sorted(costs)
    assert max(len(shape.what.layers) for shape in cutter.larger()) == 6
    assert dataclasses.replace(cutter, strict=True).larger() == []


def test_what_keeps_more_of_the_source_is_taught_more_gently() -> None:
    whole = Sizes((12,) * 6, (1536,) * 6, 32, 384, 30_522, 512)

    def cut(heads: tuple[int, ...], neurons: tuple[int, ...], width: int = 384) -> Sizes:
        return Sizes(heads, neurons, 32, width, 6_000, 512)

    three = cut((12,) * 3, (1536,) * 3)
    assert three.share_of(whole) == pytest.approx(0.5)
    assert gentleness(three, whole) == pytest.approx(0.25)
    assert gentleness(whole, whole) == 0.25
    assert gentleness(cut((12,) * 2, (1536,) * 2), whole) == pytest.approx(0.75**2)
    assert gentleness(cut((2, 4), (128, 768)), whole) == 1.0
    # Half of the width is an eighth of the products that read and write it, and half of those of the heads.
    assert gentleness(cut((12,) * 3, (768,) * 3, 192), whole) == 1.0


def test_gently_is_at_a_lower_rate(toy: Toy, tmp_path: Path) -> None:
    root = open_source(str(toy.model))
    setting = Setting(root, 1, 0, Cache(tmp_path), {}, "here", 60.0)
    nothing: Any = SimpleNamespace(digest="", beyond=False)
    lessons = Teaching(setting, nothing, None)
    student = Student(Shape("all of it", 1.0, None), root, Cost(1.0, 1.0, 1.0, 1))

    def rate() -> float:
        key, _ = lessons.round_of(student, 1.0, 0, 1e-3, lambda _: None, lambda *_: None)
        return float(key["schedule"]["learning_rate"])

    assert rate() == 1e-3
    student.gently = True
    assert rate() == pytest.approx(2.5e-4)


@pytest.mark.parametrize(
    ("scores", "rung", "still"),
    [
        # What students of one to three layers of MiniLM-L6 had, the dearest last; the drop is one percent.
        (
            (0.8963, 0.8923, 0.9053, 0.8993, 0.9182, 0.9282, 0.9153, 0.9282),
            RUNGS[1],
            False,
        ),  # BANKING77, a larger vocabulary
        ((0.9232, 0.9342, 0.9352, 0.9372), RUNGS[2], False),
        ((0.8933, 0.8943, 0.9053, 0.8943, 0.9083, 0.9153), RUNGS[1], False),  # BANKING77, 0.7 and 1.75 epochs
        ((0.9023, 0.9103, 0.9242, 0.9272), RUNGS[2], False),
        ((0.9194, 0.9155, 0.9244, 0.9194, 0.9332, 0.9411), RUNGS[1], False),  # HWU64
        ((0.9342, 0.9391, 0.9430, 0.9450), RUNGS[2], False),
        ((0.9607, 0.9647, 0.9693, 0.9660, 0.9700, 0.9713), RUNGS[1], False),  # CLINC150
        ((0.9680, 0.9713, 0.9727, 0.9787), RUNGS[2], True),
        ((0.8574, 0.8763, 0.8473, 0.8898, 0.9130), RUNGS[1], True),  # CoNLL-2003
        ((0.9169, 0.9289), RUNGS[2], True),
        ((0.95,), RUNGS[1], False),  # nothing to compare it with
        ((0.97, 0.95), RUNGS[1], False),  # the dearest is not the best
    ],
)
def test_whether_students_still_gain_with_their_size(scores: tuple[float, ...], rung: Rung, still: bool) -> None:
    students = [_student(place + 1.0, score) for place, score in enumerate(scores)]
    assert rising(students[::-1], lambda score: 0.01 * score, rung) == still


@pytest.mark.parametrize(
    ("scores", "labels", "still"),
    [
        # After two rounds: on copies that lack words, and by the labels of the held-out texts.
        ((0.9287, 0.9326, 0.9453, 0.9509), (0.9242, 0.9242, 0.9372, 0.9382), False),  # DistilBERT's architecture
        ((0.9541, 0.9615, 0.9635, 0.9704), (0.9673, 0.9700, 0.9780, 0.9813), True),  # CLINC150
        ((0.9294, 0.9359, 0.9440, 0.9467), (0.9172, 0.9194, 0.9283, 0.9305), False),  # HWU64
        ((0.9635, 0.9704), (0.9780, 0.9780), False),  # the labels say nothing of it
        ((0.9635, 0.9650), (0.9780, 0.9880), False),  # nor do the copies
    ],
)
def test_size_pays_where_copies_and_labels_say_so(
    scores: tuple[float, ...], labels: tuple[float, ...], still: bool
) -> None:
    students = [_student(place + 1.0, score) for place, score in enumerate(scores)]
    for student, right in zip(students, labels, strict=True):
        student.right = right
    assert rising(students, lambda score: 0.01 * score, RUNGS[2]) == still


@pytest.mark.parametrize(
    ("larger", "reached", "pays"),
    [
        # What larger students had, in turn, and what the largest of the others was expected to reach.
        ((0.9452, 0.9422), 0.9426, False),  # BANKING77
        ((0.9432,), 0.9444, False),  # the same by DistilBERT's architecture
        ((0.9847,), 0.9868, False),  # Snips
        ((0.9820, 0.9833, 0.9840), 0.9808, True),  # CLINC150
        # Made up.
        ((), 0.9, False),
        ((0.91, 0.905), 0.9, True),
        ((0.905,), 0.9, True),
        ((0.904,), 0.9, False),
    ],
)
def test_larger_students_show_that_size_pays(larger: tuple[float, ...], reached: float, pays: bool) -> None:
    assert gains([_student(1.0 + place, score) for place, score in enumerate(larger)], reached, 0.0047) == pays


def test_survivors_are_the_fastest_that_may_reach_it_and_the_best() -> None:
    hopeless, fast, dominated, best = (
        _student(0.1, 0.70), _student(0.2, 0.90), _student(0.3, 0.89), _student(0.9, 0.95)
    )  # fmt: skip
    rung = Rung(1, 3, promise=0.5, slack=1.0, learning_rate=1e-3)
    # Half of the errors are expected to go: 0.95 and 0.975, and two drops of 0.02 lie between them.
    assert survivors([best, dominated, fast, hopeless], lambda _: 0.02, rung, FASTEST) == [fast, best]
    assert survivors([best, fast], lambda _: 0.01, rung, FASTEST) == [best]
    # With time to spare those that are beaten so far go on, too, but not the hopeless.
    every = [best, dominated, fast, hopeless]
    assert survivors(every, lambda _: 0.02, rung, FASTEST, room=9) == [fast, best, dominated]
    assert survivors(every, lambda _: 0.02, rung, FASTEST, room=2) == [fast, best]
    only = dataclasses.replace(rung, most=1)
    assert survivors([best, fast], lambda _: 0.02, only, FASTEST) == [best]


def test_with_two_places_the_likely_winner_and_a_bold_one_go_on_and_not_the_best() -> None:
    bold, likely, best = _student(1, 0.92), _student(2, 0.932), _student(4, 0.935)
    rung = Rung(1, 2, promise=0.9, slack=0.5, learning_rate=1e-3)
    assert survivors([best, likely, bold], lambda score: 0.01 * score, rung, FASTEST) == [bold, likely]
    # Likely is who is expected to be good enough at the end, which is more than to be within the drop.
    surer = _student(3, 0.934)
    four = partial(survivors, [best, surer, likely, bold], lambda score: 0.01 * score, rung, FASTEST)
    assert four() == [bold, likely]
    assert four(margin=lambda drop: 0.8 * drop) == [bold, surer]
    # Where the best alone may be good enough it is the likely one: few samples make the margin larger than the drop.
    assert four(margin=lambda drop: 2 * drop) == [bold, best]
    # If the cheapest is likely itself, the best is what it is measured by.
    assert survivors([best, likely], lambda score: 0.01 * score, rung, FASTEST) == [likely, best]


def test_a_plan_is_cut_in_steps_to_the_time_that_is_left() -> None:
    assert allowed_share(100, 100) == 1.0
    assert allowed_share(100, 99) == 0.7
    assert allowed_share(100, 1) == 0.0
    assert allowed_share(100, 1000) == 1.0
    assert [allowed_share(100, left, 2.0) for left in (200, 199, 139, 99)] == [2.0, 1.4, 1.0, 0.7]
    assert portion(10) < portion(10_000) < portion(10**6) == portion(10**7)
    assert portions(20, 0) == sum(rung.portions * rung.most for rung in RUNGS)
    assert portions(1, 1) == sum(rung.portions for rung in RUNGS[1:])


def test_greedy_fit_keeps_what_matters_and_meets_the_budget() -> None:
    heads = [np.array([9.0, 1, 1, 1]), np.array([1.0, 1, 1, 1])]
    neurons = [np.ones(256), np.concatenate([np.full(64, 50.0), np.zeros(192)])]
    kept_heads, kept_neurons = fit_to_latency(TABLE, heads, neurons, 0.6, last_row_only=False)
    cost = sum(TABLE.layer_ms(h, n, last_row_only=False) for h, n in zip(kept_heads, kept_neurons, strict=True))
    assert cost <= 0.6
    assert kept_neurons[1] == 64
    assert fit_to_latency(TABLE, heads, neurons, 9.0, last_row_only=False) == ((4, 4), (256, 256))


def test_candidates_ascend_in_cost_and_none_comes_twice() -> None:
    sizes = Sizes((4,) * 6, (256,) * 6, 32, 128, 1000, 64)
    importance = Importance([torch.rand(4) for _ in range(6)], [torch.rand(256) for _ in range(6)], torch.rand(128))
    found = encoder_shapes(sizes, importance, TABLE, last_row_only=True)
    costs = [shape.predicted_ms for shape in found]
    assert costs == sorted(costs)
    assert len({s.what for s in found}) == len({s.name for s in found}) == len(found) >= 8
    assert {s.what.width for s in found} == {128, 64}
    strict = encoder_shapes(sizes, importance, TABLE, last_row_only=True, strict=True)
    assert {len(s.what.layers) for s in strict} == {2, 3, 5, 6}
    assert strict[-1].predicted_ms > found[-1].predicted_ms


def test_gate_scores_are_the_squared_derivative_by_a_gate() -> None:
    torch.manual_seed(0)
    values = torch.randn(3, 2, 4)
    gates = torch.ones(3, 2, requires_grad=True)
    weight = torch.randn(4)
    loss = ((values.view(3, 2, 2, 2) * gates[:, None, :, None]).reshape(3, 2, 4) * weight).sin().sum()
    loss.backward()  # type: ignore[no-untyped-call]
    leaf = values.clone().requires_grad_(True)
    (leaf * weight).sin().sum().backward()  # type: ignore[no-untyped-call]
    assert leaf.grad is not None
    assert gates.grad is not None
    torch.testing.assert_close(gate_scores(values, leaf.grad, 2), gates.grad.square().sum(0))


def test_the_most_important_are_kept_in_order() -> None:
    assert most_important(torch.tensor([0.1, 3.0, 2.0, 3.0]), 2) == (1, 3)
    with pytest.raises(ValueError, match="keep"):
        most_important(torch.ones(2), 3)


def test_evaluation_samples_are_no_argument_of_a_search() -> None:
    assert not [name for name in inspect.signature(search.Search).parameters if "eval" in name]


@pytest.mark.parametrize(("text", "value"), [("90s", 90), ("30m", 1800), ("1.5h", 5400), ("7", 7)])
def test_durations(text: str, value: float) -> None:
    assert seconds(text) == value


@pytest.mark.parametrize("text", ["", "soon", "0m", "-1s", "3d"])
def test_wrong_durations(text: str) -> None:
    with pytest.raises(ValueError, match="duration"):
        seconds(text)


@pytest.mark.parametrize(("text", "value"), [("1ms", 1), ("0.5 ms", 0.5), ("800us", 0.8), (".01s", 10)])
def test_latencies(text: str, value: float) -> None:
    assert milliseconds(text) == pytest.approx(value)


@pytest.mark.parametrize(("text", "value"), [("5MB", 5e6), ("800kB", 8e5), ("4MiB", 4 * 2**20), ("1.5 GB", 1.5e9)])
def test_sizes(text: str, value: float) -> None:
    assert number_of_bytes(text) == value


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"latency_budget": "fast"}, "latency_budget: must be a time like 1ms"),
        ({"size_budget": "-1MB"}, "size_budget: must be a size like 5MB"),
        ({"size_budget": "5MB", "passes": "fuse"}, "leave either it or passes out"),
        ({"size_budget": "5MB", "search_budget": "0"}, "leave search_budget: 0 out"),
        ({"search_budget": "30m", "passes": "fuse"}, "leave either it or passes out"),
        ({"objective": "beauty"}, "latency"),
        ({"confidence": 1.5}, "confidence"),
    ],
)
def test_contradictions_are_told(values: dict[str, Any], message: str) -> None:
    with pytest.raises(LeptoError, match=message):
        make_recipe({"model": "here", **values})


def test_a_bound_asks_for_more_than_a_point_estimate() -> None:
    metric = Metric(name="accuracy", value=0.9, low=0.88, high=0.92, n=1000)
    right = np.arange(1000) < 900
    other = right.copy()
    other[:30], other[900:925] = False, True  # 30 lost, 25 won
    before, after = (Outcomes("accuracy", r.astype(float), np.ones(1000), decided=True) for r in (right, other))
    worse = metric.model_copy(update={"value": 0.895})
    assert Budget(metric, 0.009).keeps(worse, after)
    strict = Budget(metric, 0.009, 0.95, before)
    assert not strict.keeps(worse, after)
    assert strict.keeps(metric, before)
    assert "samples would decide" in strict.said(worse, after)
    assert "95% lower bound -0.0" in strict.said(worse, after)


def test_costs_are_the_lower_convex_hull_of_what_was_measured() -> None:
    noisy = Curve((384, 768, 1152, 1536), (0.046, 0.073, 0.073, 0.126))
    assert noisy(1152) == 0.073
    assert noisy(768) == pytest.approx((0.046 + 0.073) / 2)  # a plateau is no price without end
    assert noisy(192) == pytest.approx(0.046 - 0.5 * (0.073 - 0.046) / 2)
    assert noisy(3072) == pytest.approx(2 * 0.126)
    steps = np.diff([noisy(n) for n in range(64, 1537, 64)])
    assert (steps > 0).all()
    assert (np.diff(steps) > -1e-9).all()
    assert Curve((1, 2, 3), (0.3, 0.2, 0.2))(1) == 0.2  # a size costs no more than a larger one
    assert Curve((2, 4), (0.1, 0.8))(1) == 0.05  # and never less than its share


def test_a_fit_stops_at_what_a_layer_may_lose() -> None:
    scores = [np.ones(4), np.arange(4.0)], [np.ones(256), np.arange(256.0)]
    kept = fit_to_latency(TABLE, *scores, 0.0, last_row_only=False, least_heads=[2, 3], least_neurons=[128, 64])
    assert kept == ((2, 3), (128, 64))


def test_the_budget_of_nobody_names_the_closest() -> None:
    near, far = _student(0.06, 0.0, size=11), _student(5.0, 0.0, size=1)
    with pytest.raises(LeptoError, match=r"(?s)--latency-budget 0.05 ms and --size-budget.*closest is 0.06 ms") as told:
        within([near, far], 0.05, 10)
    assert told.value.exit_code == 1
    assert within([near, far], 0.1, 20) == (
        [near],
        "1 of 2 candidates keep --latency-budget 0.1 ms and --size-budget 2e-05 MB",
    )
    assert within([near, far], None, None) == ([near, far], "")


@pytest.mark.parametrize(
    ("count", "copies", "most", "expected"),
    [
        (10_000, 5, 60_000, (10_000, 5)),  # all of it fits
        (10_000, 5, 45_000, (10_000, 3)),  # copies are given up first
        (10_000, 5, 20_000, (10_000, 1)),
        (120_000, 4, 200_000, (84_000, 1)),  # then samples, in steps
        (120_000, 4, 15_000, (6_000, 1)),
        (120_000, 4, 100, (2_400, 1)),
        (300, 30, 10, (300, 1)),  # few samples are never thinned
    ],
)
def test_a_slow_source_is_asked_about_fewer_samples(
    count: int, copies: int, most: float, expected: tuple[int, int]
) -> None:
    assert answerable(count, copies, most) == expected


@pytest.mark.parametrize(
    ("task", "clean", "most"),
    [
        (TEXT_CLASSIFICATION, True, 0.5 * 0.008),
        (TEXT_CLASSIFICATION, False, 0.5 * 0.009),
        (TOKEN_CLASSIFICATION, True, 0.25 * 0.009),
        (TOKEN_CLASSIFICATION, False, 0.25 * 0.009),
    ],
)
def test_what_a_vocabulary_may_cost(task: str, clean: bool, most: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the drop; where the source has learned the texts it is asked about copies of them."""
    given: list[tuple[Any, ...]] = []

    def enough(*arguments: Any) -> Any:
        given.append(arguments)
        return arguments[-1](0.9)

    monkeypatch.setattr(search, "with_enough_tokens", enough)
    learned = task == TEXT_CLASSIFICATION and not clean
    asked = SimpleNamespace(score="score", near="near", copies="copies" if learned else None, on_dev=lambda _: 0.8)
    of: Any = SimpleNamespace(clean=clean, allowed=lambda score: 0.01 * score, dev="dev", trials=asked)
    root: Any = SimpleNamespace(task=task)
    context: Any = None
    assert search.Search._trimmed(of, root, context) == pytest.approx(most)
    assert given[0][2:4] == (("copies", "near") if learned else ("dev", "score"))
