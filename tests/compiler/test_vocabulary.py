"""Trimming a tokenizer: training texts keep their tokens, other texts can still be spelled."""

from __future__ import annotations

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from lepto.compiler.context import Left
from lepto.compiler.vocabulary import likeliest, trim, unknown_share

TEXTS = ["where is my order", "cancel my order please", "the parcel is lost", "when will the parcel arrive"] * 3
TRAIN = ["where is my order", "cancel the order"]


def _tokenizer(kind: str) -> str:
    if kind == "WordPiece":
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        trainer = trainers.WordPieceTrainer(vocab_size=120, special_tokens=["[PAD]", "[UNK]"], show_progress=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    elif kind == "BPE":
        tokenizer = Tokenizer(models.BPE())
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=330, special_tokens=["<s>", "<pad>"], initial_alphabet=alphabet, show_progress=False
        )
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    else:
        tokenizer = Tokenizer(models.Unigram())
        trainer = trainers.UnigramTrainer(
            vocab_size=90, special_tokens=["<pad>", "<unk>"], unk_token="<unk>", show_progress=False
        )
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer.to_str()


@pytest.mark.parametrize("kind", ["WordPiece", "BPE", "Unigram"])
def test_training_texts_keep_their_tokens_and_others_are_spelled(kind: str) -> None:
    before = _tokenizer(kind)
    trimmed = trim(before, TRAIN)
    assert len(trimmed.kept) < trimmed.before
    old, new = Tokenizer.from_str(before), Tokenizer.from_str(trimmed.tokenizer)
    for text in TRAIN:
        assert [trimmed.kept[i] for i in new.encode(text).ids] == old.encode(text).ids
        assert trimmed.renumbered([old.encode(text).ids]) == [new.encode(text).ids]
    other = "the parcel is lost"
    assert new.encode(other).ids
    assert unknown_share(trimmed.tokenizer, [other]) <= unknown_share(before, [other])
    assert len(new.encode(other).ids) >= len(old.encode(other).ids)


def test_trimming_twice_leaves_nothing_to_do() -> None:
    trimmed = trim(_tokenizer("WordPiece"), TRAIN)
    with pytest.raises(Left, match="tokens are needed"):
        trim(trimmed.tokenizer, TRAIN)


def test_extra_tokens_are_the_first_of_the_vocabulary() -> None:
    before = _tokenizer("WordPiece")
    few, more = trim(before, TRAIN), trim(before, TRAIN, extra=3)
    added = sorted(set(more.kept) - set(few.kept))
    assert added == [i for i in range(few.before) if i not in few.kept][:3]
    assert few.besides == ()
    assert more.besides == tuple(added)


def test_parts_of_merges_were_not_asked_for() -> None:
    before = _tokenizer("BPE")
    used = {token for text in TRAIN for token in Tokenizer.from_str(before).encode(text).ids}
    trimmed, more = trim(before, TRAIN), trim(before, TRAIN, extra=2)
    single = {i for i in trimmed.kept if len(Tokenizer.from_str(before).id_to_token(i)) == 1}
    assert set(trimmed.kept) - used - single - {0, 1}  # parts that no text has
    assert trimmed.besides == ()
    assert len(more.besides) == 2
    assert not {*more.besides} & {*trimmed.kept}


def test_the_likeliest_are_common_and_near_to_what_was_seen() -> None:
    # Tokens 2 to 5 were not seen: 2 is the commonest and far from all, 3 is near, 5 is near and rare.
    table = np.array([[1, 0], [0.9, 0.1], [-1, 0.2], [1, 0.1], [-0.9, -0.4], [0.95, 0]], np.float32)
    assert likeliest([5, 4, 3, 2], [0, 1]) == [2, 3, 4, 5]
    assert likeliest([5, 4, 3, 2], [0, 1], table) == [3, 2, 5, 4]
    assert likeliest([5, 4, 3, 2], [0, 9], table) == [2, 3, 4, 5]  # the table has no such row
    assert likeliest([], [0], table) == []


def test_an_unknown_kind_is_left_alone() -> None:
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    with pytest.raises(Left, match="WordLevel"):
        trim(tokenizer.to_str(), ["a"])
