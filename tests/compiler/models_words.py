"""A tiny token classifier that was really trained, and its sentences."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertForTokenClassification,
    DistilBertConfig,
    DistilBertForTokenClassification,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForTokenClassification,
)

from lepto.compiler.huggingface import text_of
from lepto.compiler.verify import pad
from lepto.compiler.words import read_words, token_labels

TAGS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC", "B-ORD")
Sentence = tuple[list[str], list[str]]


def sentences(count: int, seed: int = 0) -> list[Sentence]:
    """Who, where, and which order: the same word can begin an entity and continue one, and orders have many tokens."""
    rng = random.Random(seed)
    made = []
    for _ in range(count):
        words: list[str] = []
        tags: list[str] = []
        for kind in rng.sample(["who", "where", "order"], rng.randint(1, 3)):
            if kind == "who":
                last = rng.random() < 0.5
                words += [rng.choice(["ada", "bob", "york"]), *([rng.choice(["stone", "walker"])] if last else [])]
                tags += ["B-PER", *(["I-PER"] if last else []), "O"]
                words.append(rng.choice(["lives", "works", "waits"]))
            elif kind == "where":
                place = rng.choice([["london"], ["new", "york"], ["rome"]])
                words += [rng.choice(["in", "near"]), *place]
                tags += ["O", "B-LOC", *["I-LOC"] * (len(place) - 1)]
            else:
                words += ["order", f"{rng.randint(10, 99)}-{rng.randint(10, 99)}"]
                tags += ["O", "B-ORD"]
        made.append(([*words, "."], [*tags, "O"]))
    return made


def write_jsonl(path: Path, rows: Sequence[Sentence]) -> Path:
    path.write_text("".join(json.dumps({"tokens": words, "tags": tags}) + "\n" for words, tags in rows))
    return path


def word_tokenizer() -> PreTrainedTokenizerFast:
    """WordPiece: numbers fall into digits."""
    words = sorted({word for row, _ in sentences(200) for word in row if "-" not in word})
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "-", *words, *"0123456789", *(f"##{d}" for d in "0123456789")]
    tokenizer = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=32,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes in pairs, as RoBERTa has it, and as it is often saved: without a space before the first word."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=340, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([" ".join(words) for words, _ in sentences(200)], trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        cls_token="<s>",
        sep_token="</s>",
        model_max_length=48,
    )


def token_classifier(kind: str, folder: Path, *, steps: int = 40) -> Path:
    """Train a ``bert``, ``distilbert`` or ``roberta`` and save it with its tokenizer."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    tokenizer = byte_tokenizer() if kind == "roberta" else word_tokenizer()
    sizes: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "id2label": dict(enumerate(TAGS)),
        "label2id": {label: i for i, label in enumerate(TAGS)},
    }
    plain: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "hidden_dropout_prob": 0.0,
        **sizes,
    }
    model: Any
    if kind == "bert":
        model = BertForTokenClassification(BertConfig(max_position_embeddings=32, **plain))
    elif kind == "roberta":
        model = RobertaForTokenClassification(
            RobertaConfig(max_position_embeddings=50, pad_token_id=1, type_vocab_size=1, **plain)
        )
    else:
        model = DistilBertForTokenClassification(
            DistilBertConfig(
                dim=32, n_layers=2, n_heads=4, hidden_dim=64, max_position_embeddings=32, dropout=0.0, **sizes
            )
        )
    tokenizer.save_pretrained(folder)
    rows = sentences(200)
    text = text_of(folder, ("input_ids", "attention_mask"), 32, words=True)
    readings = read_words([tuple(words) for words, _ in rows], text)
    labels = [np.array([TAGS.index(tag) for tag in tags]) for _, tags in rows]
    feed = {n: torch.from_numpy(np.asarray(a)) for n, a in pad([r.ids for r in readings], text).items()}
    longest = feed["input_ids"].shape[1]
    targets = torch.tensor([[*r, *[-100] * (longest - len(r))] for r in token_labels(readings, labels, -100)])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    model.train()
    for _ in range(steps):
        loss = model(**feed, labels=targets).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(folder)
    return folder
