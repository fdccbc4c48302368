"""Quantization-aware training on scikit-learn's digits: an 8x8 image, ten classes, a small MLP."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper
from sklearn.datasets import load_digits
from torch import nn

from lepto.compiler import Recipe, compile_model
from lepto.compiler.context import Context
from lepto.compiler.derived import derive, load, save
from lepto.compiler.model import OnnxModel
from lepto.compiler.passes.learned import LearnedRanges, same_values
from lepto.compiler.passes.quantization_aware import QuantizationAware
from lepto.compiler.passes.quantize_static import QuantizeStatic
from lepto.compiler.source import Source
from lepto.compiler.training.loop import Schedule, train
from lepto.compiler.training.pool import Pool, array_collate, teach
from lepto.compiler.training.qat import fake_quantize_activation, fake_quantize_weight, quantization_aware
from lepto.compiler.verify import runner

from .conftest import Toy

WIDTH, SHOWN = 48, 1200


class Digits(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Linear(64, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self.b(self.a(x).relu()).relu()
        out: torch.Tensor = self.c(hidden)
        return out


def exported(module: Digits) -> OnnxModel:
    proto = onnx.parser.parse_model(
        """<ir_version: 9, opset_import: ["" : 18]> g (float[n,64] x) => (float[n,10] y) {
        a1 = MatMul(x, aw)  a2 = Add(a1, ab)  a3 = Relu(a2)
        b1 = MatMul(a3, bw)  b2 = Add(b1, bb)  b3 = Relu(b2)
        c1 = MatMul(b3, cw)  y = Add(c1, cb) }"""
    )
    for name in "abc":
        layer = module.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        proto.graph.initializer.append(numpy_helper.from_array(layer.weight.detach().numpy().T.copy(), f"{name}w"))
        proto.graph.initializer.append(numpy_helper.from_array(layer.bias.detach().numpy(), f"{name}b"))
    return OnnxModel.from_proto(proto)


@pytest.fixture(scope="module")
def digits() -> tuple[npt.NDArray[np.float32], npt.NDArray[Any]]:
    x, y = load_digits(return_X_y=True)
    return (x / 16).astype(np.float32), y


@pytest.fixture(scope="module")
def loud(digits: tuple[npt.NDArray[np.float32], npt.NDArray[Any]]) -> Digits:
    """A trained model, two channels of each hidden layer 400 times as large as the others: the same function."""
    x, y = torch.from_numpy(digits[0][:SHOWN]), torch.from_numpy(digits[1][:SHOWN])
    module, generator = Digits(), torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3)
    for _ in range(300):
        rows = torch.randint(0, SHOWN, (64,), generator=generator)
        loss = nn.functional.cross_entropy(module(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    rng = np.random.default_rng(0)
    with torch.no_grad():
        for before, after in ((module.a, module.b), (module.b, module.c)):
            scales = torch.ones(WIDTH)
            scales[torch.from_numpy(rng.permutation(WIDTH)[:2])] = 400
            before.weight *= scales[:, None]
            before.bias *= scales
            after.weight /= scales
    return module.eval()


def test_it_recovers_what_post_training_quantization_loses(
    loud: Digits, digits: tuple[npt.NDArray[np.float32], npt.NDArray[Any]]
) -> None:
    x, y = digits
    calibration = [{"x": row[None]} for row in x[:256]]

    def accuracy(model: OnnxModel) -> float:
        return float((runner(model, 1)({"x": x[SHOWN:]}).argmax(1) == y[SHOWN:]).mean())

    collate = array_collate({"x": x[:SHOWN]})
    pool = Pool(collate, [1] * SHOWN, y[:SHOWN].tolist(), teach(copy.deepcopy(loud), "c", [1] * SHOWN, collate))
    student = copy.deepcopy(loud)
    names = list(student.state_dict())
    with quantization_aware(student) as rounding:
        train(student, "c", pool, [], Schedule(epochs=12, learning_rate=4e-3, features=0))
    assert list(student.state_dict()) == names
    assert all("forward" not in vars(layer) for layer in student.modules())
    learned = rounding.learned({"x": x[:2]})
    whole, plain = (
        accuracy(exported(loud)),
        accuracy(QuantizeStatic()(exported(loud), Context(calibration=calibration))),
    )
    context = Context(calibration=calibration, learned=learned)
    trained = accuracy(QuantizeStatic()(exported(student), context))
    assert "3 of 3 ranges trained" in context.notes[0]
    assert whole > 0.9
    assert plain < whole - 0.3
    assert trained > plain + 0.5 * (whole - plain)


def test_afterwards_the_module_is_as_it_was(loud: Digits, digits: Any) -> None:
    x = torch.from_numpy(digits[0][:32])
    before, weights = loud(x).detach(), {name: tensor.clone() for name, tensor in loud.state_dict().items()}
    with quantization_aware(loud) as rounding:
        assert rounding.ranges() == {}
        rounded = loud(x).detach()
        low, high = rounding.ranges()["b"]
        assert low == 0.0  # after a ReLU
        assert high == pytest.approx(float(loud.a(x).detach().relu().max()), rel=0.1)
    with pytest.raises(ZeroDivisionError), quantization_aware(loud):
        raise ZeroDivisionError
    assert not torch.equal(before, rounded)
    assert torch.equal(before, loud(x))
    assert all(torch.equal(tensor, weights[name]) for name, tensor in loud.state_dict().items())


def test_ranges_move_in_training_only_and_dynamic_ones_follow_each_batch(digits: Any) -> None:
    module, x = Digits().eval(), torch.from_numpy(digits[0][:8])
    with quantization_aware(module, momentum=0.5) as rounding:
        module(x)
        module(10 * x)
        assert rounding.ranges()["a"] == (0.0, float(x.max()))  # evaluation: the first batch alone
        module.train()
        module(3 * x)
        assert rounding.ranges()["a"] == pytest.approx((0.0, 2 * float(x.max())))
    with quantization_aware(module, dynamic=True):
        near = module(10 * x)
    want = module(10 * x)
    assert (near - want).abs().max() < 0.05 * want.abs().max()


def test_excluded_layers_stay_in_float_and_mistakes_are_named() -> None:
    module = Digits().eval()
    x = torch.rand(4, 64, generator=torch.Generator().manual_seed(0))
    with quantization_aware(module, exclude=["a", "b"]) as rounding:
        module(x)
        assert [*rounding.ranges()] == ["c"]
        with (
            pytest.raises(ValueError, match="forward of layer 'c' is replaced already"),
            quantization_aware(module, exclude=["a", "b"]),
        ):
            pass
    for wrong, said in (
        ({"exclude": ["d"]}, "'d' is no linear layer; those that are: a, b, c"),
        ({"exclude": ["a", "b", "c"]}, "no linear layer"),
        ({"momentum": 1.0}, "momentum"),
    ):
        with pytest.raises(ValueError, match=said), quantization_aware(module, **wrong):  # type: ignore[arg-type]
            pass


def test_it_is_a_pass_that_a_user_can_name(toy: Toy, own_cache: Path, tmp_path: Path) -> None:
    asked = Recipe(
        model=str(toy.model),
        train=str(toy.train),
        eval=str(toy.eval),
        threads=1,
        max_drop="10%",
        passes=("quantization-aware(epochs=1,exclude=[classifier])", "fuse", "quantize-static"),
    )
    package = compile_model(asked, tmp_path / "out")
    records = {record.pass_: record for record in package.manifest.passes}
    assert [*records] == ["quantization-aware", "export", "fuse", "quantize-static"]
    assert records["quantization-aware"].kept
    # Six linear layers in each of two encoder layers, and the pooler.
    assert "13 linear layers learned with 8-bit weights and static 8-bit inputs" in records["quantization-aware"].reason
    static = records["quantize-static"]
    assert static.metric is not None
    assert static.metric.value > 0.9
    # Fusions leave most inputs of linear layers as tensors of the graph; those have the ranges that were trained.
    trained = re.search(r"(\d+) of (\d+) ranges trained", static.reason)
    assert trained is not None
    assert 0 < int(trained[1]) <= int(trained[2])


def test_learned_ranges_stay_with_the_weights_that_learned_them(digits: Any, tmp_path: Path) -> None:
    images, _ = digits
    module = Digits().eval()
    with quantization_aware(module) as rounding:
        module(torch.from_numpy(images[:64]))
    root = Source(
        "factory", "digits", "digits", "Digits", "image-classification", "0" * 64, 1, 4, None, None,
        {"x": {0: "batch"}}, {"x": images[:2]}, load_module=lambda: module,
    )  # fmt: skip
    source = derive(root, module, learned=rounding.learned({"x": images[:1]}))
    save(source, tmp_path)
    back = load(root, tmp_path)
    assert back.learned is not None
    assert source.learned is not None
    assert back.learned.digest == source.learned.digest
    assert derive(back, Digits().eval()).learned is None


@pytest.mark.parametrize("wrong", [{"epochs": 0}, {"activations": "none"}, {"copies": -1}])
def test_options_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        QuantizationAware(**wrong)


@given(st.integers(0, 10_000), st.sampled_from([127, 64]))
def test_weights_round_to_the_nearest_of_their_levels(seed: int, largest: int) -> None:
    weight = torch.randn(5, 9, generator=torch.Generator().manual_seed(seed)).requires_grad_()
    scale = weight.detach().abs().amax(1, keepdim=True) / largest
    rounded = fake_quantize_weight(weight, largest)
    assert ((rounded - weight).abs() <= scale * 0.501).all()
    levels = rounded / scale
    assert (levels - levels.round()).abs().max() < 1e-3
    assert levels.abs().max() <= largest + 1e-3
    rounded.sum().backward()
    assert torch.equal(weight.grad, torch.ones_like(weight))


def test_the_gradient_stops_outside_of_the_range() -> None:
    x = torch.tensor([-3.0, -1.0, 0.0, 0.3, 2.0, 5.0], requires_grad=True)
    rounded = fake_quantize_activation(x, torch.tensor(-1.0), torch.tensor(2.0))
    assert rounded[2] == 0
    torch.testing.assert_close(rounded.detach(), x.detach().clamp(-1, 2), atol=3 / 255, rtol=0)
    rounded.sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0, 1, 1, 1, 1, 0]


def test_ranges_belong_to_tensors_with_the_same_values(digits: Any) -> None:
    module = Digits().eval()
    model, feed = exported(module), {"x": digits[0][:2]}
    with quantization_aware(module) as rounding:
        module(torch.from_numpy(digits[0][:64]))
    learned = rounding.learned(feed)
    found = learned.of(model, ["x", "a2", "a3", "b3"], 1)
    assert set(found) == {"x", "a3", "b3"}  # a2 comes before the ReLU: no layer reads it
    assert found["a3"] == rounding.ranges()["b"]
    other = LearnedRanges({**learned.ranges, "b": (0.0, 9.0)}, learned.feed, learned.inputs)
    assert other.digest != learned.digest
    assert not same_values(np.ones((1, 2), np.float32), np.ones((2, 1), np.float32))
