"""SEntFiN's headlines as a tagging set: the entities in them and what is said of each; a tagger, trained here."""

from __future__ import annotations

import ast
import csv
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

SENTFIN = Path(__file__).parents[2] / "shared" / "data" / "sentfin" / "SEntFiN.csv"

Row = tuple[list[str], list[str]]
"""Words, and a label for each."""


def headline(text: str, entities: dict[str, str]) -> Row | None:
    """Words with BIO labels (Ramshaw and Marcus 1995): ``B-positive``, ``I-positive``, ``O`` and so on.

    Args:
        text: A headline.
        entities: From an entity to what is said of it.

    Returns:
        None where an entity does not stand in the text as whole words.
    """
    words = text.split()
    plain = [word.strip(",.:;'\"!?()").removesuffix("'s").lower() for word in words]
    labels = ["O"] * len(words)
    for entity, polarity in sorted(entities.items(), key=lambda item: -len(item[0])):
        wanted = [word.strip(",.:;'\"!?()").removesuffix("'s").lower() for word in entity.split()]
        free = (
            at
            for at in range(len(words) - len(wanted) + 1)
            if plain[at : at + len(wanted)] == wanted and set(labels[at : at + len(wanted)]) == {"O"}
        )
        if not wanted or (at := next(free, None)) is None:
            return None
        labels[at : at + len(wanted)] = [f"B-{polarity}", *[f"I-{polarity}"] * (len(wanted) - 1)]
    return words, labels


def rows() -> dict[str, list[Row]]:
    """Train, dev and test; the same text never stands in two of them."""
    found: dict[str, list[Row]] = {"train": [], "dev": [], "test": []}
    with SENTFIN.open(newline="", encoding="utf-8") as opened:
        for row in csv.DictReader(opened):
            try:
                entities = ast.literal_eval(row["Decisions"])
            except (SyntaxError, ValueError):  # an apostrophe in a name
                continue
            if (made := headline(row["Title"], entities)) is not None:
                digest = int(hashlib.md5(" ".join(made[0]).lower().encode(), usedforsecurity=False).hexdigest(), 16)
                found[{0: "test", 1: "dev"}.get(digest % 10, "train")].append(made)
    return found


def write(folder: Path) -> dict[str, Path]:
    """The three parts as JSON lines with ``words`` and ``labels``."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for name, part in rows().items():
        files[name] = folder / f"{name}.jsonl"
        lines = [json.dumps({"words": words, "labels": labels}) for words, labels in part]
        files[name].write_text("\n".join(lines) + "\n", encoding="utf-8")
    return files


def fit(weights: Path, part: list[Row], folder: Path, *, epochs: int = 3, seed: int = 0) -> None:
    """Train a tagger on top of an encoder and save it as a Hugging Face folder; one that is there is kept."""
    import torch
    from transformers import AutoModelForTokenClassification, AutoTokenizer

    if (folder / "config.json").is_file():
        return
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    names = sorted({label for _, labels in part for label in labels})
    tokenizer = AutoTokenizer.from_pretrained(weights, local_files_only=True)
    model: Any = AutoModelForTokenClassification.from_pretrained(
        weights, num_labels=len(names), id2label=dict(enumerate(names)), label2id={n: i for i, n in enumerate(names)},
        local_files_only=True, use_safetensors=True, dtype=torch.float32,
    )  # fmt: skip
    encoded = tokenizer([words for words, _ in part], is_split_into_words=True, truncation=True, max_length=128)
    targets = []
    for at, (_, labels) in enumerate(part):
        places, before = [], None
        for word in encoded.word_ids(at):  # only a word's first token says what the word is
            places.append(-100 if word is None or word == before else names.index(labels[word]))
            before = word
        targets.append(places)
    order = sorted(range(len(part)), key=lambda at: len(targets[at]))
    batches = [order[at : at + 32] for at in range(0, len(order), 32)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-4, weight_decay=0.01)
    decay = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-4, total_steps=epochs * len(batches))
    model.train()
    for _ in range(epochs):
        for index in rng.permutation(len(batches)):
            batch = batches[index]
            inputs = tokenizer.pad({k: [encoded[k][at] for at in batch] for k in encoded}, return_tensors="pt")
            width = inputs["input_ids"].shape[1]
            wanted = torch.tensor([[*targets[at], *[-100] * (width - len(targets[at]))] for at in batch])
            logits = model(**inputs).logits
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), wanted.flatten(), ignore_index=-100)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch gives it no types
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            decay.step()
    tokenizer.model_max_length = 512
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
