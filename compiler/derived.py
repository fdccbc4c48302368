"""A source after something was cut or taught: a new source that remembers where it came from.

Passes on PyTorch modules take a :class:`~lepto.compiler.source.Source` and return another one. The result is stored as
weights, sizes and tokenizer; the module is built again by cutting the original to those sizes.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lepto.compiler.channels import Cut, rebuild
from lepto.compiler.context import Feed
from lepto.compiler.encoder import Encoder, Sizes, shaped
from lepto.compiler.passes.learned import LearnedRanges
from lepto.compiler.source import Source, Text, text_digest

if TYPE_CHECKING:
    import torch


def derive(
    source: Source,
    module: torch.nn.Module,
    *,
    text: Text | None = None,
    kept_tokens: Sequence[int] | None = None,
    besides: Sequence[int] | None = None,
    cut: Cut | None = None,
    learned: LearnedRanges | None = None,
) -> Source:
    """A source with another module, and for text another tokenizer.

    Args:
        source: What it came from.
        module: The new module; not copied.
        text: The new tokenizer; by default that of ``source``.
        kept_tokens: For each new token id the original one; by default as in ``source``.
        besides: Original ids of tokens that are kept for texts to come; by default as in ``source``.
        cut: The channels that are left of it; by default as in ``source``.
        learned: Ranges that were trained with these very weights; those of ``source`` do not hold for them.
    """
    text = text or source.text
    digest = hashlib.sha256(text_digest(text))
    digest.update(source.task.encode())
    state = module.state_dict()
    for name in sorted(state):
        digest.update(f"{name}{tuple(state[name].shape)}".encode())
        digest.update(np.ascontiguousarray(state[name].detach().cpu().numpy()).tobytes())
    parameters = list(module.parameters())
    encoder = Encoder.of(module)
    sizes = None if encoder is None else encoder.sizes()
    module.eval()
    return dataclasses.replace(
        source,
        digest=digest.hexdigest(),
        parameters=sum(p.numel() for p in parameters),
        bytes=sum(p.numel() * p.element_size() for p in parameters),
        text=text,
        example=_example(source, sizes),
        layers=source.layers if sizes is None else sizes.layers,
        load_module=lambda: module,
        anew=False,
        kept_tokens=source.kept_tokens if kept_tokens is None else tuple(kept_tokens),
        besides=source.besides if besides is None else tuple(besides),
        cut=source.cut if cut is None else cut,
        learned=learned,
        _made={},
    )


def copy_module(source: Source) -> torch.nn.Module:
    """A copy of a source's module that may be changed."""
    return copy.deepcopy(source.module())


def made_anew(make: Callable[[], Source]) -> Source:
    """A source that does not hold its module: it is made again for each use.

    Args:
        make: Gives the same source each time.
    """
    return dataclasses.replace(make(), load_module=lambda: make().module(), anew=True, _made={})


def held(source: Source) -> Source:
    """The same source with its module in memory: it needs no file, and can be sent to another machine."""
    module = source.module()
    return dataclasses.replace(source, load_module=lambda: module, anew=False, _made={})


def save(source: Source, folder: Path) -> None:
    """Store a derived source: what :func:`load` reads."""
    from safetensors.torch import save_file

    encoder = Encoder.of(source.module())
    state = {name: tensor.detach().clone().contiguous() for name, tensor in source.module().state_dict().items()}
    save_file(state, folder / "weights.safetensors")
    about: dict[str, Any] = {name: getattr(source, name) for name in _PLAIN}
    if encoder is not None:
        about["sizes"] = encoder.sizes().to_json()
    if source.cut is not None:
        about["cut"] = source.cut.to_json()
    if source.learned is not None:
        about["ranges"] = dict(source.learned.ranges)
        np.savez(folder / "learned.npz", **source.learned.arrays())
    if source.text is not None:
        about["tokenizer"] = source.text.tokenizer
        about["preprocessing"] = source.text.preprocessing.model_dump(mode="json")
    (folder / "derived.json").write_text(json.dumps(about))


def load(root: Source, folder: Path) -> Source:
    """Read what :func:`save` wrote; the weights when they are asked for: a search has many students and uses one.

    Args:
        root: The original that it was cut from.
        folder: Where it lies, and stays.
    """
    from lepto.runtime.manifest import Preprocessing

    about = json.loads((folder / "derived.json").read_text())
    text = None
    if "tokenizer" in about:
        text = Text(about["tokenizer"], Preprocessing.model_validate(about["preprocessing"]))
    sizes = Sizes.from_json(about["sizes"]) if "sizes" in about else None
    cut = Cut.from_json(about["cut"]) if "cut" in about else None
    learned = None
    if "ranges" in about:
        with np.load(folder / "learned.npz", allow_pickle=False) as arrays:
            learned = LearnedRanges.of_arrays(about["ranges"], arrays)
    tokens = about["kept_tokens"]
    return dataclasses.replace(
        root,
        digest=about["digest"],
        parameters=about["parameters"],
        bytes=about["bytes"],
        text=text or root.text,
        example=_example(root, sizes),
        layers=root.layers if sizes is None else sizes.layers,
        load_module=lambda: _module(root, folder, sizes, cut),
        anew=True,
        kept_tokens=root.kept_tokens if tokens is None else tuple(tokens),
        besides=tuple(about["besides"]),
        cut=cut or root.cut,
        learned=learned,
        _made={},
    )


_PLAIN = ("digest", "parameters", "bytes", "kept_tokens", "besides")
"""What is stored of a source as it is: known without its weights."""


def _example(source: Source, sizes: Sizes | None) -> Feed:
    """A source's example for a table of fewer tokens: the pad token keeps its id, the others must lie within."""
    example = dict(source.example)
    if sizes is not None and "input_ids" in example:
        example["input_ids"] = np.minimum(example["input_ids"], sizes.tokens - 1)
    return example


def _module(root: Source, folder: Path, sizes: Sizes | None, cut: Cut | None) -> torch.nn.Module:
    from safetensors.torch import load_file

    module = copy_module(root)
    if sizes is not None:
        encoder = Encoder.of(module)
        assert encoder is not None
        encoder.cut(shaped(sizes, encoder.sizes()))
    if cut is not None:
        import torch

        example = {name: torch.from_numpy(np.array(array)) for name, array in root.example.items()}
        module = rebuild(module, example, cut)
    module.load_state_dict(load_file(folder / "weights.safetensors"))
    return module
