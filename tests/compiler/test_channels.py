from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable, Mapping

import models_images as images
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from lepto.compiler.channel_importance import magnitude_importance, measure_channels
from lepto.compiler.channels import Cut, find_groups, least, prune_channels, rebuild, rounded
from lepto.compiler.context import Left
from lepto.compiler.export.onnx import export_onnx
from lepto.compiler.source import Source, open_source
from lepto.compiler.training.loop import Schedule, train
from lepto.compiler.training.pool import Pool, array_collate, head_path, teach
from lepto.compiler.verify import runner

Example = Mapping[str, torch.Tensor]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def pixels(channels: int = 1, side: int = 8, rows: int = 2) -> Example:
    return {"x": torch.rand(rows, channels, side, side, generator=torch.Generator().manual_seed(0))}


def untrained() -> dict[str, tuple[nn.Module, Example]]:
    torch.manual_seed(0)
    digits, row = images.example(images.digits_train()), images.example(images.table_train())
    made: dict[str, tuple[nn.Module, Example]] = {
        "resnet": (images.ResNet(10), digits),
        "mobilenet": (images.MobileNet(10), digits),
        "flat": (images.Flat(10), digits),
        "table": (images.Table(30, 2), row),
        "concat": (Concat(), pixels()),
        "grouped": (Grouped(), pixels()),
        "transposed": (Transposed(), pixels()),
        "scaled": (Scaled(), pixels()),
    }
    for module, _ in made.values():
        statistics(module)
    return made


def statistics(module: nn.Module) -> None:
    """Normalizations that do something, so that a misplaced one shows."""
    for layer in module.modules():
        for name in ("weight", "bias", "running_mean", "running_var"):
            tensor = getattr(layer, name, None)
            if tensor is not None and tensor.ndim == 1:
                tensor.detach().uniform_(0.5, 1.5)


class Concat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(1, 32, 3, padding=1)
        self.norm = nn.BatchNorm2d(48)
        self.c = nn.Conv2d(48, 16, 1)
        self.head = nn.Linear(32, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = self.a(x).relu()
        y = self.c(self.norm(torch.cat([a, self.b(x).relu()], 1)))
        return self.head(torch.cat([y, a], 1).mean((2, 3)))


class Grouped(nn.Module):
    def __init__(self, groups: int = 4) -> None:
        super().__init__()
        self.a = nn.Conv2d(1, 32, 3, padding=1)
        self.norm = nn.GroupNorm(8, 32)
        self.b = nn.Conv2d(32, 48, 3, padding=1, groups=groups)
        self.act = nn.PReLU(48)
        self.head = nn.Linear(48, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.act(self.b(self.norm(self.a(x)).relu())).mean((2, 3)))


class Transposed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(1, 16, 3, 2, 1)
        self.norm = nn.InstanceNorm2d(16, affine=True)
        self.up = nn.ConvTranspose2d(16, 32, 2, 2)
        self.head = nn.Conv2d(32, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.up(self.norm(self.a(x)).relu()).relu())


class Scaled(nn.Module):
    """A bare parameter on the channels, two inputs to one sum, two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(1, 16, 1)
        self.scale = nn.Parameter(torch.rand(16, 1, 1))
        self.act = nn.PReLU()
        self.head, self.second = nn.Linear(16, 3), nn.Linear(16, 2)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        y = self.act(self.a(x) * self.scale + self.b(x)).mean((2, 3))
        return {"first": self.head(y), "second": self.second(y)}


def outputs(module: nn.Module, example: Example) -> list[torch.Tensor]:
    with torch.no_grad():
        made = copy.deepcopy(module).eval()(**example)
    return list(made.values()) if isinstance(made, dict) else [made]


def state(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def equal(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("name", untrained())
def test_couplings_hold_and_the_input_is_untouched(name: str) -> None:
    module, example = untrained()[name]
    module.train()
    before = state(module)
    groups = find_groups(module, example)
    importance = magnitude_importance(module, groups)
    pruned, cut = prune_channels(module, example, groups, importance, keep=0.5)
    assert equal(before, state(module))
    assert module.training
    assert pruned.training
    assert all(not p.grad_fn and p.grad is None for p in module.parameters())
    assert cut.groups == {g.name: (g.channels // 2, g.channels) for g in groups.groups}
    assert sum(p.numel() for p in pruned.parameters()) < 0.65 * sum(p.numel() for p in module.parameters())
    for rows in (1, 5):
        wider = {key: value[:1].repeat(rows, *[1] * (value.ndim - 1)) for key, value in example.items()}
        for a, b in zip(outputs(module, wider), outputs(pruned, wider), strict=True):
            assert a.shape == b.shape


@pytest.mark.parametrize("name", ["resnet", "mobilenet", "flat", "concat", "transposed", "scaled"])
def test_removing_channels_is_zeroing_what_reads_them(name: str) -> None:
    module, example = untrained()[name]
    groups = find_groups(module, example)
    scores = {group.name: torch.arange(group.units).float() for group in groups.groups}
    pruned, _ = prune_channels(module, example, groups, scores, keep=0.5)
    # The zeroing is written once more, by hand, for the plain cases: a linear layer or a convolution without groups.
    zeroed = copy.deepcopy(module)
    for group in groups.groups:
        for member in group.readers():
            layer = zeroed.get_submodule(member.path)
            gone = [i for i, unit in zip(member.index, member.unit, strict=True) if unit < group.units // 2]
            axis = 0 if isinstance(layer, nn.ConvTranspose2d) else 1
            layer.weight.data.index_fill_(axis, torch.tensor(gone), 0.0)  # type: ignore[operator, union-attr]
    for a, b, c in zip(*(outputs(m, example) for m in (zeroed, pruned, module)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(a.abs().max()))
        assert not torch.allclose(a, c, rtol=1e-3)


@pytest.mark.parametrize("name", untrained())
def test_keeping_everything_is_identity(name: str) -> None:
    module, example = untrained()[name]
    groups = find_groups(module, example)
    same, cut = prune_channels(module, example, groups, magnitude_importance(module, groups), keep=1)
    assert same is not module
    assert equal(state(module), state(same))
    assert cut == Cut({}, {})
    assert str(cut) == "nothing cut"


@pytest.mark.parametrize("name", untrained())
def test_rebuilt_shapes_take_the_weights(name: str) -> None:
    module, example = untrained()[name]
    groups = find_groups(module, example)
    pruned, cut = prune_channels(module, example, groups, magnitude_importance(module, groups), keep=0.5, round_to=4)
    read = Cut.from_json(json.loads(json.dumps(cut.to_json())))
    assert read == cut
    assert len(json.dumps(cut.to_json())) < 4000
    again = rebuild(module, example, read)
    again.load_state_dict(state(pruned))
    for a, b in zip(outputs(pruned, example), outputs(again, example), strict=True):
        assert torch.equal(a, b)
    assert repr(again) == repr(pruned)  # the layers know their sizes
    with pytest.raises(ValueError, match="does not fit"):
        rebuild(nn.Sequential(nn.Linear(2, 2)), {"input": torch.zeros(2, 2)}, cut)


@pytest.mark.parametrize("name", untrained())
def test_a_second_cut_goes_on_from_the_first(name: str) -> None:
    module, example = untrained()[name]
    once, twice, cuts = module, module, []
    for keep in (0.75, 0.5):
        once, groups = twice, find_groups(twice, example)
        twice, cut = prune_channels(once, example, groups, magnitude_importance(once, groups), keep=keep, round_to=4)
        cuts.append(cut)
    both = cuts[0].then(cuts[1])
    again = rebuild(module, example, Cut.from_json(json.loads(json.dumps(both.to_json()))))
    again.load_state_dict(state(twice))
    for a, b in zip(outputs(twice, example), outputs(again, example), strict=True):
        assert torch.equal(a, b)
    for group, (kept, of) in both.groups.items():
        if group in cuts[0].groups and group in cuts[1].groups:
            assert (kept, of) == (cuts[1].groups[group][0], cuts[0].groups[group][1])


def test_groups_are_the_couplings_of_the_network() -> None:
    module, example = untrained()["mobilenet"]
    groups = {group.name: group for group in find_groups(module, example).groups}
    inner = next(g for g in groups.values() if any(m.path == "blocks.2.depthwise.0" for m in g.members))
    assert {(m.path, m.side) for m in inner.members} == {
        ("blocks.2.expand.0", "out"),
        ("blocks.2.expand.1", "out"),
        ("blocks.2.depthwise.0", "out"),
        ("blocks.2.depthwise.1", "out"),
        ("blocks.2.squeeze.1", "in"),
        ("blocks.2.squeeze.3", "out"),
        ("blocks.2.project.0", "in"),
    }
    flat, example = untrained()["flat"]
    last = next(g for g in find_groups(flat, example).groups if g.name == "features.3")
    reader = next(m for m in last.members if m.path == "head.1")
    assert reader.unit == tuple(i // 16 for i in range(512))


def test_outputs_and_ignored_layers_stay() -> None:
    module, example = untrained()["resnet"]
    found = find_groups(module, example, ignore=["stem", "blocks.1"])
    assert "output" in found.left["head"]
    pruned, cut = prune_channels(module, example, found, magnitude_importance(module, found), keep=0.25)
    layers = dict(pruned.named_modules())
    assert layers["stem.0"].out_channels == 16
    assert layers["blocks.1.conv1"].out_channels == 32
    assert layers["blocks.2.conv1"].out_channels == 16
    assert layers["head"].out_features == 10
    assert set(cut.groups) == {"blocks.0.conv1", "blocks.2.conv1", "blocks.2.shortcut.0"}
    with pytest.raises(ValueError, match=r"ignore names 'stam'"):
        find_groups(module, example, ignore=["stam"])


class Rolled(nn.Module):
    """What torch-pruning takes for elementwise, and is not."""

    def __init__(self, mix: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 16, 3), nn.Conv2d(16, 16, 3)
        self.head = nn.Linear(16, 3)
        self.mix = mix

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.b(self.mix(self.a(x))).relu().mean((2, 3)))


class Flipped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: torch.Tensor) -> torch.Tensor:
        return x.flip(1)

    @staticmethod
    def backward(ctx: object, gradient: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return gradient.flip(1)


@pytest.mark.parametrize(
    ("mix", "reason"),
    [
        (lambda x: Flipped.apply(x), "something else depends on them"),
        (lambda x: x.roll(1, 1), "something else depends on them"),
        (lambda x: functional.normalize(x, dim=1), "something else depends on them"),
        (lambda x: x.view(-1, 4, 4, 6, 6).transpose(1, 2).reshape(-1, 16, 6, 6), "does not run"),
        (lambda x: torch.cat(x.split([8, 8], 1)[::-1], 1), ""),
    ],
    ids=["custom", "roll", "normalize", "shuffle", "split"],
)
def test_what_is_not_understood_is_left_with_the_reason(
    mix: Callable[[torch.Tensor], torch.Tensor], reason: str
) -> None:
    torch.manual_seed(0)
    found = find_groups(Rolled(mix), pixels())
    assert [group.name for group in found.groups] == ["b"]
    assert reason in found.left["a"]


def test_a_network_with_nothing_to_prune_is_left() -> None:
    with pytest.raises(Left, match="it is an output of the model"):
        find_groups(nn.Linear(4, 3), {"input": torch.rand(2, 4)})
    with pytest.raises(Left, match="no convolution and no linear layer"):
        find_groups(nn.Flatten(), {"input": torch.rand(2, 4)})
    torch.manual_seed(0)
    with pytest.raises(Left, match="leave none to remove"):
        find_groups(nn.Sequential(nn.Conv2d(1, 8, 3), nn.GroupNorm(8, 8), nn.Conv2d(8, 2, 3)), {"input": pixels()["x"]})
    with pytest.raises(Left, match="cannot be traced"):
        find_groups(images.Flat(10), {"pixels": torch.rand(2, 3, 8, 8)})
    first, second = nn.Linear(8, 8), nn.Linear(8, 8)
    second.weight = first.weight
    with pytest.raises(Left, match="shares a parameter"):
        find_groups(nn.Sequential(first, nn.ReLU(), second), {"input": torch.rand(2, 8)})


def test_grouped_convolutions_lose_the_same_channels_in_every_group() -> None:
    module, example = untrained()["grouped"]
    groups = {group.name: group for group in find_groups(module, example).groups}
    assert (groups["a"].channels, groups["a"].units, groups["a"].tied) == (32, 4, 8)  # 8 of GroupNorm, 4 of b
    assert (groups["b"].channels, groups["b"].units) == (48, 12)
    left = find_groups(Grouped(groups=16), example).left
    assert set(left) == {"a", "head"} or "a" not in left


def test_rounding() -> None:
    assert rounded(64, 0.5, 16) == 32
    assert rounded(64, 0.6, 16) == 32
    assert rounded(64, 0.65, 16) == 48
    assert rounded(64, 0.01, 16) == 16
    assert rounded(16, 0.5, 16) == 8  # a small layer is rounded to less
    assert rounded(3, 0.5, 8) == 2
    assert rounded(1, 0.5, 8) == 1
    assert rounded(100, 1.0, 8) == 100
    assert rounded(48, 0.5, 8, tied=12) == 24
    assert rounded(36, 0.5, 8, tied=12) == 24
    for bad in ((64, 0.0, 8), (64, 1.1, 8), (64, 0.5, 0)):
        with pytest.raises(ValueError, match="must be"):
            rounded(*bad)
    assert least(torch.tensor([3.0, 1.0, 2.0, 1.0]), 2) == (1, 3)
    assert least(torch.tensor([1.0, 1.0, 1.0]), 1) == (2,)


def test_keep_and_importance_are_checked() -> None:
    module, example = untrained()["flat"]
    groups = find_groups(module, example)
    scores = magnitude_importance(module, groups)
    with pytest.raises(ValueError, match="keep must be"):
        prune_channels(module, example, groups, scores, keep=0.0)
    with pytest.raises(ValueError, match="groups that do not exist: nowhere"):
        prune_channels(module, example, groups, scores, keep={"nowhere": 4})
    with pytest.raises(ValueError, match=r"keep must be a multiple of 1 in \[1, 16\] for 'features.0', got 17"):
        prune_channels(module, example, groups, scores, keep={"features.0": 17})
    with pytest.raises(ValueError, match=r"importance of 'features\.0'"):
        prune_channels(module, example, groups, scores | {"features.0": torch.full((16,), torch.nan)}, keep=0.5)
    pruned, cut = prune_channels(module, example, groups, scores, keep={"features.0": 5})
    assert cut.groups == {"features.0": (5, 16)}
    assert pruned.get_submodule("features.3").weight.shape == (32, 5, 3, 3)


def pool(teacher: nn.Module, data: images.Arrays) -> tuple[Pool, str | None]:
    inputs, labels = data
    collate, sizes = array_collate(inputs), [1] * len(labels)
    path = head_path(teacher, images.example(data))
    return Pool(collate, sizes, labels.tolist(), teach(teacher, path, sizes, collate)), path


def factory(name: str, module: nn.Module) -> Source:
    source = open_source(f"models_images:{name}")
    return dataclasses.replace(source, load_module=lambda: module, _made={})


@pytest.mark.parametrize(
    ("made", "train_data", "eval_data", "epochs", "keep"),
    [
        (images.trained_resnet, images.digits_train, images.digits_eval, 6, 0.5),
        (images.trained_mobilenet, images.digits_train, images.digits_eval, 8, 0.5),
        (images.trained_table, images.table_train, images.table_eval, 10, 0.25),
    ],
    ids=["resnet", "mobilenet", "table"],
)
def test_half_the_channels_recover_and_export(
    made: Callable[[], nn.Module],
    train_data: Callable[[], images.Arrays],
    eval_data: Callable[[], images.Arrays],
    epochs: int,
    keep: float,
) -> None:
    module, data = made(), train_data()
    example = images.example(data)
    before, (lessons, path) = state(module), pool(module, data)
    groups = find_groups(module, example)
    importance = measure_channels(module, groups, lessons, samples=256)
    assert equal(before, state(module))
    assert all(p.grad is None for p in module.parameters())
    student, cut = prune_channels(module, example, groups, importance, keep=keep)
    losses = train(student, path, lessons, [], Schedule(epochs=epochs, learning_rate=3e-3, batch_size=64))
    assert losses[-1] < losses[0]
    again = rebuild(module, example, cut)
    again.load_state_dict(student.state_dict())
    reference, reached = images.accuracy(module, eval_data()), images.accuracy(again.eval(), eval_data())
    assert reached >= reference - 0.02, (reference, reached, str(cut))
    exported = export_onnx(factory(made.__name__.removeprefix("trained_"), again), threads=1)
    assert exported.proof.ok
    inputs, _ = eval_data()
    feed = {name: array[:7] for name, array in inputs.items()}
    with torch.no_grad():
        wanted = again(**{name: torch.from_numpy(array) for name, array in feed.items()}).numpy()
    np.testing.assert_allclose(runner(exported.model, 1)(feed), wanted, rtol=1e-3, atol=1e-4)
