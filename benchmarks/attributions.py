"""Which words or patches an answer hangs on, by captum, for any two models in the same terms.

A feature is a word of a text or a patch of an image, and is there or left out; a model is a black box from such masks
to probabilities. So the attributions of a PyTorch model and of its int8 graph can be laid side by side, which gradients
could not: an integer graph has none. Source: Kokhlikyan et al., "Captum: A unified and generic model interpretability
library for PyTorch", arXiv 2009.07896; left-out features as in its ``FeatureAblation``, Shapley values by sampling
permutations (Castro et al., 2009) as in its ``ShapleyValueSampling``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from lepto.compiler.data import Samples
from lepto.runtime.errors import LeptoError
from lepto.runtime.package import Package
from lepto.runtime.session import Session
from lepto.runtime.text import TextEncoder

Floats = npt.NDArray[np.float64]
Score = Callable[[Any], npt.NDArray[np.float32]]
"""From raw samples (a list of texts, or arrays ``[B, ...]`` by name) to probabilities ``[B, L]``."""

PATCHES: Final = 7
"""An image is cut into at most so many patches each way."""

_WORD: Final = re.compile(r"\w+(?:['\u2019-]\w+)*|[^\w\s]")


@dataclass(frozen=True)
class Features:
    """A sample in parts that can be left out.

    Attributes:
        names: ``F`` words; of an image empty strings.
        without: From masks ``[B, F]`` of 0 and 1 to raw samples in which the parts at 0 are left out.
        grid: Rows and columns of patches, for an image.
        image: ``[H, W]`` or ``[H, W, 3]`` in [0, 1], to be shown.
    """

    names: tuple[str, ...]
    without: Callable[[npt.NDArray[np.int64]], Any]
    grid: tuple[int, int] | None = None
    image: Floats | None = None

    @property
    def count(self) -> int:
        """F."""
        return len(self.names)


def text_features(text: str) -> Features:
    """The words of a text and the marks between them; a word that is left out leaves no trace."""
    spans = [match.span() for match in _WORD.finditer(text)]

    def without(masks: npt.NDArray[np.int64]) -> list[str]:
        made = []
        for mask in masks:
            parts, end = [], 0
            for (start, stop), keep in zip(spans, mask, strict=True):
                parts.append(text[end:start])
                if keep:
                    parts.append(text[start:stop])
                end = stop
            made.append("".join([*parts, text[end:]]))
        return made

    return Features(tuple(text[start:stop] for start, stop in spans), without)


def image_features(sample: Mapping[str, npt.NDArray[Any]]) -> Features | None:
    """The patches of a sample ``[1, C, H, W]``; what is left out becomes the image's mean. None if it is no image."""
    if len(sample) != 1:
        return None
    ((name, array),) = sample.items()
    if array.ndim != 4 or array.shape[1] not in (1, 3) or min(array.shape[2:]) < 2:
        return None
    height, width = array.shape[2:]
    rows, columns = min(PATCHES, height), min(PATCHES, width)
    patch = (np.arange(height) * rows // height)[:, None] * columns + np.arange(width) * columns // width
    mean = array.mean(axis=(2, 3), keepdims=True)

    def without(masks: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[Any]]:
        keep = masks.astype(bool)[:, patch][:, None]  # [B, 1, H, W]
        return {name: np.where(keep, array, mean).astype(array.dtype)}

    low, high = float(array.min()), float(array.max())
    shown = ((array[0].astype(np.float64) - low) / max(high - low, 1e-12)).transpose(1, 2, 0)
    return Features(("",) * (rows * columns), without, (rows, columns), shown[..., 0] if shown.shape[2] == 1 else shown)


def attribute(
    score: Score,
    features: Features,
    target: int,
    *,
    method: Literal["ablation", "shapley"] = "ablation",
    permutations: int = 25,
    seed: int = 0,
) -> Floats:
    """How much each feature adds to the probability of one class.

    Args:
        score: The model.
        features: Of one sample.
        target: The class.
        method: ``ablation`` leaves out one feature at a time; ``shapley`` samples orders of leaving out.
        permutations: How many orders.
        seed: Of the orders.

    Returns:
        ``[F]`` changes of the probability; positive speaks for the class.

    Raises:
        LeptoError: captum is not installed.
        ValueError: There is no feature.
    """
    if not features.count:
        raise ValueError("there is nothing to attribute an answer to: the sample has no word")
    try:
        import torch
        from captum.attr import FeatureAblation, ShapleyValueSampling
    except ModuleNotFoundError as error:
        raise LeptoError(f"attributions need captum ({error}): pip install 'lepto[report]'") from error

    def forward(masks: Any) -> Any:
        return torch.from_numpy(np.array(score(features.without(masks.numpy().astype(np.int64))), np.float32))

    present = torch.ones(1, features.count)
    absent = torch.zeros(1, features.count)
    if method == "ablation":
        found = FeatureAblation(forward).attribute(present, absent, target=target, perturbations_per_eval=16)
    else:
        state = torch.random.get_rng_state()
        torch.manual_seed(seed)
        try:
            found = ShapleyValueSampling(forward).attribute(
                present, absent, target=target, n_samples=permutations, perturbations_per_eval=16
            )
        finally:
            torch.random.set_rng_state(state)
    values: Floats = found[0].double().numpy()
    return values


def package_score(session: Any, encode: Callable[[Any], Sequence[Mapping[str, npt.NDArray[Any]]]]) -> Score:
    """Probabilities of a package, each sample run alone, as a request is served.

    Args:
        session: A :class:`lepto.runtime.session.Session`.
        encode: From raw samples to inputs of batch 1.
    """
    names = {tensor.name for tensor in session.outputs}
    first = session.outputs[0].name
    output = "scores" if "scores" in names else "logits" if "logits" in names else first

    def score(samples: Any) -> npt.NDArray[np.float32]:
        outputs = np.concatenate([session.run(feed)[output] for feed in encode(samples)]).astype(np.float32)
        return outputs if output == "scores" else softmax(outputs)

    return score


def score_of(package: Package, threads: int | None = None) -> Score:
    """Probabilities of a package for raw samples: texts, or arrays by name."""
    session = Session(package, threads=threads)
    preprocessing, tokenizer = package.manifest.preprocessing, package.tokenizer_path
    if preprocessing is not None and tokenizer is not None:
        encoder = TextEncoder(tokenizer, preprocessing)
        return package_score(session, lambda texts: [encoder.encode([text]) for text in texts])
    return package_score(session, rows_of)


def rows_of(arrays: Mapping[str, npt.NDArray[Any]]) -> list[dict[str, npt.NDArray[Any]]]:
    """Arrays ``[B, ...]`` by name as B inputs of batch 1."""
    count = len(next(iter(arrays.values())))
    return [{name: array[i : i + 1] for name, array in arrays.items()} for i in range(count)]


def features_of(samples: Samples, row: int) -> Features | None:
    """The words or patches of one sample; None where it is neither a text nor an image."""
    if isinstance(samples.inputs, Mapping):
        return image_features({name: array[row : row + 1] for name, array in samples.inputs.items()})
    text = samples.inputs[row]
    return text_features(text) if isinstance(text, str) else None


def softmax(logits: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """``[B, L]`` probabilities."""
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    probabilities: npt.NDArray[np.float32] = (powers / powers.sum(axis=-1, keepdims=True)).astype(np.float32)
    return probabilities
