"""A tiny classifier that was really trained, its data, and a cache that is nobody else's."""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from lepto.compiler import afterwards, costs, cut_channels, cut_encoder, evaluate, groundwork, search, trials
from lepto.compiler.costs import Cost
from lepto.compiler.cutter import Shape
from lepto.compiler.encoder import Sizes
from lepto.compiler.halving import Student
from lepto.compiler.latency import Curve, LatencyTable
from lepto.compiler.source import Source
from lepto.runtime import cli

LABELS = ("track order", "cancel order", "get refund")
_OPENINGS = ("please", "hello", "now", "i want to", "can you")
_MIDDLES = (
    ("track", "where is", "follow", "locate"),
    ("cancel", "stop", "undo", "forget"),
    ("refund", "return money for", "pay back", "reimburse"),
)
_ENDINGS = ("my order", "the parcel", "it", "this purchase", "our last order")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


def toy_rows() -> list[tuple[str, str]]:
    """300 texts and labels, mixed."""
    rows = [
        (f"{opening} {middle} {ending}", LABELS[index])
        for opening, ending in itertools.product(_OPENINGS, _ENDINGS)
        for index, middles in enumerate(_MIDDLES)
        for middle in middles
    ]
    return rows[::7] + [row for i, row in enumerate(rows) if i % 7]


def write_csv(path: Path, rows: Iterable[Sequence[str]], header: Sequence[str] = ("text", "label")) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def make_tokenizer(*, pad: int = 0) -> PreTrainedTokenizerFast:
    # No text has the first two: a trimmed vocabulary counts otherwise.
    words = ["aardvark", "abacus", *sorted({word for text, _ in toy_rows() for word in text.split()})]
    special = list(SPECIAL)
    if pad == 1:  # as RoBERTa has it
        special[0], special[1] = special[1], special[0]
    vocabulary = {word: i for i, word in enumerate([*special, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=32,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def train(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerFast,
    rows: Sequence[tuple[str, str]],
    learning_rate: float = 1e-2,
) -> None:
    batch = tokenizer([text for text, _ in rows], padding=True, return_tensors="pt")
    names = ("input_ids", "attention_mask")
    labels = torch.tensor([LABELS.index(label) for _, label in rows])
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    torch.set_num_threads(1)
    model.train()
    for _ in range(40):
        loss = model(**{name: batch[name] for name in names}, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()


SIZES = {
    "vocab_size": 60,
    "id2label": dict(enumerate(LABELS)),
    "label2id": {label: i for i, label in enumerate(LABELS)},
}


@dataclass(frozen=True)
class Toy:
    """A trained classifier and its data."""

    model: Path
    train: Path
    eval: Path
    cache: Path

    def flags(self, **changes: str) -> list[str]:
        values = {
            "model": str(self.model),
            "train": str(self.train),
            "eval": str(self.eval),
            "threads": "1",
            "max-drop": "10%",
            "search-budget": "0",
        } | changes
        return [part for name, value in values.items() for part in (f"--{name}", value)]


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    folder = tmp_path_factory.mktemp("toy")
    torch.manual_seed(0)
    rows = toy_rows()
    model = BertForSequenceClassification(
        BertConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=64,
            max_position_embeddings=32,
            hidden_dropout_prob=0.0,
            **SIZES,
        )
    )
    tokenizer = make_tokenizer()
    train(model, tokenizer, rows[60:])
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return Toy(
        folder / "model",
        write_csv(folder / "train.csv", rows[60:]),
        write_csv(folder / "eval.csv", rows[:60]),
        folder / "cache",
    )


@pytest.fixture(scope="session")
def other_architectures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Random RoBERTa and DistilBERT classifiers."""
    folder = tmp_path_factory.mktemp("architectures")
    torch.manual_seed(1)
    made: dict[str, tuple[torch.nn.Module, int]] = {
        "roberta": (
            RobertaForSequenceClassification(
                RobertaConfig(
                    hidden_size=32,
                    num_hidden_layers=2,
                    num_attention_heads=4,
                    intermediate_size=64,
                    max_position_embeddings=20,
                    type_vocab_size=1,
                    pad_token_id=1,
                    **SIZES,
                )
            ),
            1,
        ),
        "distilbert": (
            DistilBertForSequenceClassification(
                DistilBertConfig(dim=32, n_layers=3, n_heads=4, hidden_dim=64, max_position_embeddings=24, **SIZES)
            ),
            0,
        ),
    }
    for name, (model, pad) in made.items():
        model.save_pretrained(folder / name)  # type: ignore[operator]
        make_tokenizer(pad=pad).save_pretrained(folder / name)
    return {name: folder / name for name in made}


@pytest.fixture(autouse=True)
def cache_folder(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> Path:
    """All tests share one cache, so that the export is done once; a test that counts work takes its own.

    Comparisons of speed are short here: what they find on a toy is of no interest.
    """
    monkeypatch.setenv("LEPTO_CACHE", str(toy.cache))
    monkeypatch.setattr(evaluate, "BLOCKS", 6)
    monkeypatch.setattr(evaluate, "PER_BLOCK", 6)
    return toy.cache


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LEPTO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str

    def document(self) -> Any:
        return json.loads(self.out)


Lepto = Callable[..., Ran]


@pytest.fixture
def lepto(capsys: pytest.CaptureFixture[str]) -> Lepto:
    """Run the real command line in this process."""

    def run(*arguments: object) -> Ran:
        capsys.readouterr()
        code = cli.run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return Ran(code, captured.out, captured.err)

    return run


@pytest.fixture
def short_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few candidates and little teaching: these models learn in seconds."""
    monkeypatch.setattr(search, "portion", lambda count: min(2 * count, 1000))
    monkeypatch.setattr(search, "LONGER", 1.0)
    monkeypatch.setattr(afterwards, "MOST_CUTS", 0)
    monkeypatch.setattr(cut_encoder, "_SHARES", (1.0,))
    monkeypatch.setattr(cut_encoder, "_UNIT", 10**6)  # no candidate of half the width
    monkeypatch.setattr(cut_channels, "_SHARES", (0.5,))
    monkeypatch.setattr(cut_channels, "_EVEN", (0.5,))
    monkeypatch.setattr(costs, "_BLOCKS", 3)


@pytest.fixture
def known_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Costs by size instead of measured ones: on a busy machine a small model may be timed as slower than a large one.

    For tests that say which candidate comes next. What is not timed is not exported, which would take most of the time.
    """

    def table(sizes: Sizes, *, rows: int, **_: Any) -> LatencyTable:
        heads, neurons = (1, max(sizes.heads)), (16, max(sizes.neurons))
        dear = Curve(neurons, tuple(n / 1000 for n in neurons))
        cheap = Curve(neurons, tuple(n / 10_000 for n in neurons))
        return LatencyTable(Curve(heads, tuple(h / 10 for h in heads)), dear, cheap, rows)

    def by_size(_self: trials.Trials, _base: Source, found: Sequence[tuple[Shape, Source]], _notes: list[str]) -> Any:
        bytes_ = [4 * source.parameters for _, source in found]
        return [Student(*pair, Cost(n / 1e6, n / 5e5, 1e9 / n, n)) for pair, n in zip(found, bytes_, strict=True)]

    monkeypatch.setattr(groundwork, "measure_table", table)
    monkeypatch.setattr(trials.Trials, "measured", by_size)
