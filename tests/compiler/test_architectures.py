"""Encoders that are not BERT's kin, through the whole compile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    ModernBertConfig,
    ModernBertForSequenceClassification,
)

from lepto.compiler import Recipe, compile_model
from lepto.compiler.context import Context
from lepto.compiler.export.onnx import export_onnx
from lepto.compiler.passes.fuse import Fuse
from lepto.compiler.source import open_source
from lepto.runtime import TextClassifier

from .conftest import SIZES, Toy, make_tokenizer, toy_rows, train

_SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


def modern_bert() -> Any:
    """The second layer looks at a window of four tokens on each side."""
    config = ModernBertConfig(
        **_SHAPE, **SIZES, max_position_embeddings=32, local_attention=8, global_attn_every_n_layers=2,
        pad_token_id=0, bos_token_id=2, cls_token_id=2, eos_token_id=3, sep_token_id=3,
    )  # fmt: skip
    return ModernBertForSequenceClassification(config)


def deberta() -> Any:
    config = DebertaV2Config(
        **_SHAPE | {"num_hidden_layers": 1}, **SIZES, max_position_embeddings=32, relative_attention=True,
        position_buckets=8,
        pos_att_type=["p2c", "c2p"], hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return DebertaV2ForSequenceClassification(config)


def test_modern_bert_is_compiled(toy: Toy, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, tokenizer, rows = modern_bert(), make_tokenizer(), toy_rows()
    train(model, tokenizer, rows[60:])
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    recipe = Recipe(
        model=str(tmp_path / "model"), train=str(toy.train), eval=str(toy.eval), threads=1, max_drop="10%",
        passes=("fuse", "quantize-dynamic"),
    )  # fmt: skip
    package = compile_model(recipe, tmp_path / "package")
    source, result = package.manifest.source, package.manifest.result
    assert source.metric is not None
    assert result.metric is not None
    assert result.metric.value >= 0.9 * source.metric.value > 0.6
    fuse = next(record for record in package.manifest.passes if record.pass_ == "fuse")
    assert "0 x attention, 2 left (" in fuse.reason  # rotated queries and keys: told, not fused
    texts = [text for text, _ in rows[:60]]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.inference_mode():
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    own = [found[0].index for found in TextClassifier(package).predict(texts)]
    assert sum(a == b for a, b in zip(own, logits.argmax(-1).tolist(), strict=True)) >= 57


def test_relative_attention_is_told_where_it_stays(tmp_path: Path) -> None:
    torch.manual_seed(0)
    deberta().save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    exported = export_onnx(open_source(str(tmp_path)), threads=1)
    context = Context(layers=1)
    fused = Fuse()(exported.model, context)
    assert "0 x attention, 1 left (softmax: no product of queries and keys before the softmax)" in context.notes[0]
    assert fused.operators()["Attention"] == 0
    assert fused.operators()["SkipSimplifiedLayerNormalization"] > 0
