"""Sentence encoders: what makes one vector of a model's tokens, as sentence-transformers writes it beside a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch.nn import functional

from lepto.compiler.source import first_output, read_json
from lepto.runtime.errors import LeptoError

Mode = Literal["mean", "cls", "max"]
_MODES: Mapping[str, Mode] = {"mean": "mean", "cls": "cls", "max": "max"}
_LEGACY: Mapping[str, str] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


@dataclass(frozen=True)
class Pooling:
    """How tokens become one vector.

    Attributes:
        mode: Mean or maximum over the real tokens, or the first token.
        normalize: Whether the vector is brought to length 1.
        max_length: Longest sequence that the folder asks for; None if it does not say.
        named: Whether the folder names it; else it is assumed.
    """

    mode: Mode = "mean"
    normalize: bool = False
    max_length: int | None = None
    named: bool = False

    def __str__(self) -> str:
        """For people."""
        how = {"mean": "mean of the tokens", "cls": "first token", "max": "maximum of the tokens"}[self.mode]
        how += ", normalized" if self.normalize else ""
        return how if self.named else f"{how} (assumed: the folder has no modules.json)"


def read_pooling(folder: Path, *, lowercases: bool) -> Pooling:
    """Read ``modules.json`` and what it names.

    Args:
        folder: The model's folder.
        lowercases: Whether the tokenizer makes text lower case by itself.

    Raises:
        LeptoError: A module is there that is not known; the vector would be another one.
    """
    file = folder / "modules.json"
    if not file.exists():
        return Pooling()
    import json

    try:
        modules = json.loads(file.read_text(encoding="utf-8"))
        kinds = [(str(module["type"]).rpartition(".")[2], str(module["path"])) for module in modules]
    except (ValueError, TypeError, KeyError) as error:
        raise LeptoError(f"{file} is no list of sentence-transformers' modules: {error!r}") from error
    names = [kind for kind, _ in kinds]
    if names not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise LeptoError(f"{file} names {', '.join(names)}; known are Transformer, Pooling, Normalize in this order")
    if kinds[0][1] not in ("", "."):
        raise LeptoError(f"{file}: the Transformer lies in {kinds[0][1]!r}: give a folder that has it at its root")
    # read_json gives nothing where there is no file, which would be a pooling that nobody named.
    config_file = folder / kinds[1][1] / "config.json"
    config = read_json(config_file)
    settings = read_json(folder / "sentence_bert_config.json")
    if settings.get("do_lower_case") and not lowercases:
        raise LeptoError(
            f"{folder}: do_lower_case is set in sentence_bert_config.json, but its tokenizer keeps the case"
        )
    if prompt := read_json(folder / "config_sentence_transformers.json").get("default_prompt_name"):
        raise LeptoError(f"{folder} puts the prompt {prompt!r} before every text, which is not supported")
    length = settings.get("max_seq_length")
    return Pooling(_mode(config_file, config), "Normalize" in names, int(length) if length else None, True)


def _mode(file: Path, config: Mapping[str, Any]) -> Mode:
    given = config.get("pooling_mode")
    modes = [given] if isinstance(given, str) else list(given or [])
    modes += [mode for key, mode in _LEGACY.items() if config.get(key)]
    if len(modes) != 1 or modes[0] not in _MODES:
        raise LeptoError(f"{file}: one pooling of {', '.join(_MODES)} is supported, got {', '.join(modes) or 'none'}")
    return _MODES[modes[0]]


class SentenceEncoder(torch.nn.Module):
    """A model of tokens with its pooling: ``[B, S]`` ids to ``[B, W]``."""

    base_model_prefix = "model"
    """Where the encoder lies, as the models of transformers say it."""

    def __init__(self, model: torch.nn.Module, pooling: Pooling) -> None:
        super().__init__()
        self.model, self.pooling = model, pooling

    @property
    def config(self) -> Any:
        """The encoder's configuration."""
        return self.model.config

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor | None = None
    ) -> torch.Tensor:
        """One vector for each row."""
        kinds = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        tokens = first_output(self.model(input_ids=input_ids, attention_mask=attention_mask, **kinds))
        mask = attention_mask.unsqueeze(-1).to(tokens.dtype)
        if self.pooling.mode == "cls":
            vectors = tokens[:, 0]
        elif self.pooling.mode == "max":
            vectors = tokens.masked_fill(mask == 0, torch.finfo(tokens.dtype).min).amax(1)
        else:
            vectors = (tokens * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
        return functional.normalize(vectors, dim=1) if self.pooling.normalize else vectors
