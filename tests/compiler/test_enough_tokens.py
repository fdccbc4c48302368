"""A vocabulary is trimmed as far as the source's answers allow, and students meet every token that is kept."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from lepto.compiler import enough_tokens
from lepto.compiler.cache import Cache
from lepto.compiler.context import Context, Left
from lepto.compiler.data import Samples
from lepto.compiler.derived import load, save
from lepto.compiler.enough_tokens import strange_share, with_enough_tokens
from lepto.compiler.passes.trim_vocabulary import TrimVocabulary
from lepto.compiler.source import Source, open_source
from lepto.compiler.training.augment import near_tokens, replace_by_near
from lepto.compiler.training.lesson import prepare_lesson
from lepto.compiler.verify import logits_in_batches
from lepto.compiler.vocabulary import spelling_tokens

from .conftest import LABELS, SPECIAL, toy_rows, train

WORDS = sorted({word for text, _ in toy_rows() for word in text.split()})
LETTERS = [mark + letter for mark in ("", "##") for letter in "abcdefghijklmnopqrstuvwxyz"]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """A classifier that reads pieces of words."""
    folder = tmp_path_factory.mktemp("pieces")
    pieces = [*SPECIAL, "[unused0]", "[unused1]", *LETTERS, *[word for word in WORDS if len(word) > 1], "aardvark"]
    tokenizer = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        model_max_length=32, model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )  # fmt: skip
    torch.manual_seed(0)
    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=len(pieces), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
            max_position_embeddings=32, hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0, initializer_range=0.1, id2label=dict(enumerate(LABELS)),
            label2id={label: i for i, label in enumerate(LABELS)},
        )
    )  # fmt: skip
    train(model, fast, toy_rows(), learning_rate=2e-3)
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return open_source(str(folder))


def samples(rows: list[tuple[str, str]], origin: str) -> Samples:
    labels = np.array([LABELS.index(label) for _, label in rows], dtype=np.int64)
    return Samples(tuple(text for text, _ in rows), labels, origin)


RARE = ("stop", "refund", "locate")
TRAIN = samples([row for row in toy_rows() if not set(row[0].split()) & {*RARE}], "train")
DEV = samples(toy_rows()[:150], "dev")


def accuracy(source: Source, some: Samples) -> float:
    logits = logits_in_batches(source.runner(1), some, source.text, lambda _: None)
    return float((logits.argmax(-1) == some.labels).mean())


@pytest.fixture
def context(monkeypatch: pytest.MonkeyPatch) -> Context:
    monkeypatch.setattr(enough_tokens, "STEPS", (0, 1, 3))
    return Context(threads=1, seed=0, train=TRAIN)


def test_words_that_the_training_texts_have_not_are_kept_as_far_as_they_matter(
    source: Source, context: Context, tmp_path: Path
) -> None:
    assert accuracy(source, DEV) == 1.0
    fewest = TrimVocabulary()(source, Context(threads=1, seed=0, train=TRAIN))
    lost = 1.0 - accuracy(fewest, DEV)
    assert lost > 0.02  # spelled in letters, which the source has never seen
    base = with_enough_tokens(source, context, DEV, accuracy, lambda _: 0.0)
    assert accuracy(base, DEV) == 1.0
    assert fewest.kept_tokens is not None
    assert base.kept_tokens is not None
    assert len(base.kept_tokens) == len(fewest.kept_tokens) + 3
    share = np.mean([bool(set(text.split()) & {*RARE}) for text in DEV.inputs])
    assert context.notes[-1] == (
        f"{share:.1%} of the development samples have tokens that the training texts have not; the 3 likeliest "
        "besides: read in pieces, they cost 0.0000"
    )
    assert len(context.notes) == 2  # not those of the vocabularies that were too small
    assert len(base.besides) == 3
    save(base, tmp_path)
    assert load(source, tmp_path).besides == base.besides
    # As many as are needed: where all that is lost may be lost, none.
    same = with_enough_tokens(source, Context(threads=1, seed=0, train=TRAIN), DEV, accuracy, lambda _: lost)
    assert same.kept_tokens == fewest.kept_tokens


def test_what_is_no_mean_over_texts_is_asked_about_all_of_them(source: Source, context: Context) -> None:
    """F1 of some texts says nothing of that of all: a tagger earns nothing where there is nothing to find."""
    words = dataclasses.replace(DEV, inputs=tuple(tuple(text.split()) for text in DEV.inputs))
    asked: list[int] = []

    def f1(_: Source, some: Samples) -> float:
        asked.append(len(some))
        return (1.0, 0.75, 1.0)[len(asked) - 1]

    base = with_enough_tokens(source, context, words, f1, lambda _: 0.1)
    assert asked == [len(words)] * 3  # the source, none besides, one besides
    assert len(base.besides) == 1


def test_where_that_is_not_enough_all_are_kept(
    source: Source, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(enough_tokens, "STEPS", (0, 1))
    with pytest.raises(Left, match=r"with the 1 likeliest tokens besides .* the score would still fall by 0[.]"):
        with_enough_tokens(source, context, DEV, accuracy, lambda _: 0.0)


def test_texts_without_such_words_are_not_asked_about(source: Source, context: Context) -> None:
    def never(*_: object) -> float:
        raise AssertionError("nothing is read otherwise")

    base = with_enough_tokens(source, context, TRAIN, never, lambda _: 0.0)
    assert base.kept_tokens is not None


def test_how_many_texts_have_tokens_that_the_training_texts_have_not(source: Source) -> None:
    share = np.mean([bool(set(text.split()) & {*RARE}) for text in DEV.inputs])
    assert 0.1 < share < 0.9
    assert strange_share(source, TRAIN, DEV) == pytest.approx(share)
    assert strange_share(source, TRAIN, TRAIN) == 0.0
    words = dataclasses.replace(DEV, inputs=tuple(tuple(text.split()) for text in DEV.inputs))
    assert strange_share(source, TRAIN, words) == pytest.approx(share)
    arrays = dataclasses.replace(DEV, inputs={"x": np.zeros((len(DEV), 2))})
    assert strange_share(source, arrays, arrays) == 0.0


def test_a_student_meets_what_is_kept_besides(source: Source, context: Context, tmp_path: Path) -> None:
    assert source.text is not None
    vocabulary = Tokenizer.from_str(source.text.tokenizer).get_vocab()
    rare = {vocabulary[word] for word in RARE}

    def met(base: Source) -> set[int]:
        lesson = prepare_lesson(
            source, base, TRAIN, copies=4, seed=0, cache=Cache(tmp_path / str(len(base.kept_tokens or ()))), versions={}
        )
        assert lesson.beyond == (base is not fewest)  # then the tables stay as they are
        found = set[int]()
        for pool, own in zip(lesson.augmented, lesson.student[1:], strict=True):
            rows = range(len(pool))
            theirs = pool.collate(rows)["input_ids"]
            ours = own.collate(rows)["input_ids"]
            kept = torch.tensor(base.kept_tokens)
            assert torch.equal(kept[ours], theirs)  # teacher and student read the same
            found |= set(theirs.flatten().tolist())
        return found

    fewest = TrimVocabulary()(source, Context(threads=1, seed=0, train=TRAIN))
    base = with_enough_tokens(source, context, DEV, accuracy, lambda _: 0.0)
    assert rare <= {*(base.kept_tokens or ())}
    assert rare & met(base)
    assert not rare & met(fewest)


def test_near_tokens_are_those_of_the_table() -> None:
    table = np.array([[1, 0.1], [0.9, 0.2], [-1, 0], [-0.9, 0.1], [0, -3], [0, 3]], np.float32)
    assert near_tokens(table, [0, 2], [1, 3], most=1) == {0: (1,), 2: (3,)}
    assert near_tokens(table, [0, 2], [4], least=0.99) == {}
    assert near_tokens(table, [], [1]) == {}


def test_only_tokens_with_a_neighbour_are_replaced() -> None:
    rng = np.random.default_rng(0)
    tokens = [7, 8] * 500
    made = replace_by_near(tokens, 0.2, {7: (70, 71)}, rng)
    assert made[1::2] == [8] * 500
    assert {*made[::2]} == {7, 70, 71}
    assert 60 < sum(token != 7 for token in made[::2]) < 140
    assert replace_by_near(tokens, 0.0, {7: (70,)}, rng) == tokens


def test_what_spells_is_known(source: Source) -> None:
    assert source.text is not None
    vocabulary = Tokenizer.from_str(source.text.tokenizer).get_vocab()
    spelling = spelling_tokens(source.text.tokenizer)
    assert {vocabulary[piece] for piece in (*SPECIAL, *LETTERS)} == spelling
