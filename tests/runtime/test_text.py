import numpy as np
import pytest

from lepto.runtime import LeptoError, Prediction, TextClassifier, TextEncoder, open_package
from lepto.runtime.manifest import Preprocessing

TEXTS = ["order", "please cancel my order", "refund", "where is my refund", "", "hello world"]


@pytest.fixture
def classifier(tiny_text_package) -> TextClassifier:
    return TextClassifier(tiny_text_package)


@pytest.fixture
def encoder(classifier) -> TextEncoder:
    return classifier.encoder


def test_classifies(classifier):
    assert [best.label for [best] in classifier.predict(["order", "cancel", "REFUND!"])] == [
        "place_order",
        "cancel_order",
        "get_refund",
    ]


def test_one_text(classifier):
    prediction = classifier("refund please")
    assert prediction == classifier.predict(["refund please"])[0][0]
    assert prediction == Prediction("get_refund", prediction.score, 2)
    assert 0.5 < prediction.score <= 1


def test_top_is_sorted_and_ties_go_to_the_first_label(classifier):
    [best] = classifier.predict(["refund"], top=3)
    assert [p.index for p in best] == [2, 0, 1]
    assert [p.score for p in best] == sorted((p.score for p in best), reverse=True)
    assert best[1].score == best[2].score


@pytest.mark.parametrize("top", [0, -1, 4])
def test_top_out_of_range(classifier, top):
    with pytest.raises(ValueError, match=rf"top must be in \[1, 3\], the number of labels, got {top}"):
        classifier.predict(["order"], top=top)


def test_scores_are_probabilities(classifier):
    scores = classifier.scores(TEXTS)
    assert scores.shape == (len(TEXTS), 3)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores.sum(axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 2, 4, 100])
def test_batches_answer_like_single_texts(classifier, batch_size):
    one = np.concatenate([classifier.scores([text]) for text in TEXTS])
    np.testing.assert_allclose(classifier.scores(TEXTS, batch_size=batch_size), one, atol=1e-6)


@pytest.mark.parametrize("batch_size", [0, -3])
def test_batch_size_out_of_range(classifier, batch_size):
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        classifier.scores(TEXTS, batch_size=batch_size)


def test_no_texts(classifier):
    assert classifier.predict([]) == []
    assert classifier.scores([]).shape == (0, 3)


@pytest.mark.parametrize("texts", ["order", b"order"])
def test_one_string_is_not_taken_for_a_list_of_letters(classifier, texts):
    with pytest.raises(TypeError, match="put it in a list"):
        classifier.predict(texts)


@pytest.mark.parametrize("value", [None, 3, b"order", ["order"]])
def test_texts_must_be_strings(classifier, value):
    with pytest.raises(TypeError, match=r"texts\[1\] must be a string"):
        classifier.predict(["order", value])
    with pytest.raises(TypeError, match="text must be a string"):
        classifier(value)


def test_invalid_unicode_is_named(classifier):
    with pytest.raises(ValueError, match=r"texts\[1\] is no valid Unicode"):
        classifier.predict(["order", "bad \ud800"])


def test_encoding_pads_to_the_longest(encoder):
    arrays = encoder.encode(["order", "cancel my order"])
    assert list(arrays) == ["input_ids", "attention_mask"]
    assert arrays["input_ids"].tolist() == [[2, 4, 3, 0, 0], [2, 5, 9, 4, 3]]
    assert arrays["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert {array.dtype for array in arrays.values()} == {np.dtype(np.int64)}


def test_encoding_cuts_long_texts_and_keeps_the_end_mark(encoder):
    ids = encoder.encode(["order " * 100])["input_ids"]
    assert ids.shape == (1, 16)
    assert ids[0, -1] == 3


def test_encoding_nothing(encoder):
    with pytest.raises(ValueError, match="at least one text"):
        encoder.encode([])


def preprocessing(**options) -> Preprocessing:
    return Preprocessing(**({"max_length": 8, "pad_id": 0, "pad_token": "[PAD]", "inputs": ("input_ids",)} | options))


def test_only_the_inputs_of_the_model(tiny_text_package):
    path = open_package(tiny_text_package).tokenizer_path
    inputs = ("token_type_ids", "input_ids")
    arrays = TextEncoder(path, preprocessing(inputs=inputs, pad_type_id=1)).encode(["order", "cancel order"])
    assert list(arrays) == list(inputs)
    assert arrays["token_type_ids"].tolist() == [[0, 0, 0, 1], [0, 0, 0, 0]]


def test_max_length_that_leaves_no_room(tiny_text_package):
    path = open_package(tiny_text_package).tokenizer_path
    with pytest.raises(LeptoError, match="max_length must be above 2"):
        TextEncoder(path, preprocessing(max_length=2))


def test_empty_text_without_special_tokens_is_one_padding(tmp_path):
    from tokenizers import Tokenizer, models

    Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1}, unk_token="[UNK]")).save(str(tmp_path / "tokenizer.json"))
    encoder = TextEncoder(
        tmp_path / "tokenizer.json", preprocessing(inputs=("input_ids", "attention_mask", "token_type_ids"))
    )
    arrays = {name: array.tolist() for name, array in encoder.encode([""]).items()}
    assert arrays == {"input_ids": [[0]], "attention_mask": [[1]], "token_type_ids": [[0]]}


def test_broken_tokenizer(tmp_path):
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0"}')
    with pytest.raises(LeptoError, match="is no tokenizer"):
        TextEncoder(tmp_path / "tokenizer.json", preprocessing())


def test_package_for_tensors_is_refused(tiny_tensor_package):
    with pytest.raises(LeptoError, match="for task 'tensor', not 'text-classification': use Session"):
        TextClassifier(tiny_tensor_package)
