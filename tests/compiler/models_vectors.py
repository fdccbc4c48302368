"""Tiny sentence encoders in the form that sentence-transformers writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import BertConfig, BertForSequenceClassification, BertModel, DistilBertConfig, DistilBertModel

from .conftest import SIZES, make_tokenizer, toy_rows, train

MEAN = {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}
CLS = {"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}
MAX = {"pooling_mode_max_tokens": True}


def write_modules(folder: Path, pooling: dict[str, Any], *, normalize: bool = True) -> Path:
    """``modules.json`` and the pooling that it names."""
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), *([("2_Normalize", "Normalize")] if normalize else [])]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 32, **pooling}))
    return folder


def bert(folder: Path, pooling: dict[str, Any] = MEAN, *, normalize: bool = True) -> Path:
    """Four layers of a classifier that was really trained, without its head."""
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=32, num_hidden_layers=4, num_attention_heads=4, intermediate_size=64, max_position_embeddings=32,
        hidden_dropout_prob=0.0, **SIZES,
    )  # fmt: skip
    model, tokenizer = BertForSequenceClassification(config), make_tokenizer()
    train(model, tokenizer, toy_rows()[60:], learning_rate=3e-3)
    body = BertModel(config, add_pooling_layer=False)
    body.load_state_dict({k: v for k, v in model.bert.state_dict().items() if not k.startswith("pooler")})
    body.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return write_modules(folder, pooling, normalize=normalize)


def distilbert(folder: Path, pooling: dict[str, Any] = MEAN) -> Path:
    """Random, three layers."""
    torch.manual_seed(1)
    config = DistilBertConfig(
        vocab_size=60, dim=32, n_layers=3, n_heads=4, hidden_dim=64, max_position_embeddings=24,
    )  # fmt: skip
    DistilBertModel(config).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return write_modules(folder, pooling)
