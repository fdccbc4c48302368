from __future__ import annotations

import itertools
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lepto.benchmarks.training import Examples, Schedule, Trained, _batches, _collate, fine_tune
from lepto.runtime.errors import LeptoError, is_full_disk

WORDS = ("order", "refund", "person", "please", "my", "want", "a", "the")
LABELS = ("order", "person", "refund")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random BERT with a word-level tokenizer."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("encoder")
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=5 + len(WORDS),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
    )
    BertModel(config).save_pretrained(folder)
    BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def examples() -> Examples:
    texts = [f"{before} {label} {after}" for label in LABELS for before in WORDS[3:] for after in WORDS[3:]]
    return Examples(texts, [text.split()[1] for text in texts])


SCHEDULE = Schedule(epochs=4, batch_size=8, learning_rate=3e-3, seed=1)


@pytest.fixture(scope="module")
def trained(encoder: Path, examples: Examples, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return fine_tune(encoder, examples, examples, tmp_path_factory.mktemp("model") / "out", SCHEDULE)


def test_learns(trained: Trained) -> None:
    assert trained.dev_accuracy > 0.9
    assert trained.losses[-1] < trained.losses[0]
    assert 1 <= trained.epoch <= SCHEDULE.epochs


def test_saved_model_gives_the_told_accuracy(trained: Trained, examples: Examples) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    assert not list(trained.folder.glob("*.bin"))
    model = AutoModelForSequenceClassification.from_pretrained(trained.folder, use_safetensors=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(trained.folder)
    assert model.config.id2label == dict(enumerate(LABELS))
    with torch.inference_mode():
        logits = model(**tokenizer(list(examples.texts), padding=True, return_tensors="pt")).logits
    right = [LABELS[i] == label for i, label in zip(logits.argmax(-1).tolist(), examples.labels, strict=True)]
    assert np.mean(right) == pytest.approx(trained.dev_accuracy)


def test_same_seed_same_weights(encoder: Path, examples: Examples, trained: Trained, tmp_path: Path) -> None:
    again = fine_tune(encoder, examples, examples, tmp_path / "out", SCHEDULE)
    assert again.losses == trained.losses
    assert (again.folder / "model.safetensors").read_bytes() == (trained.folder / "model.safetensors").read_bytes()


def test_encoder_is_left_alone_and_progress_told(encoder: Path, examples: Examples, tmp_path: Path) -> None:
    before = (encoder / "model.safetensors").read_bytes()
    told: list[tuple[int, int, str]] = []
    fine_tune(
        encoder,
        examples,
        examples,
        tmp_path / "out",
        Schedule(epochs=1, batch_size=25),
        progress=lambda done, steps, words: told.append((done, steps, words)),
    )
    assert [done for done, _, _ in told] == [1, 2, 3, 3]
    assert told[-1][2].startswith("epoch 1, held out")
    assert (encoder / "model.safetensors").read_bytes() == before


def test_refuses_a_folder_that_is_in_use(encoder: Path, examples: Examples, tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    with pytest.raises(LeptoError, match="not empty"):
        fine_tune(encoder, examples, examples, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_refuses_an_unknown_label(encoder: Path, examples: Examples, tmp_path: Path) -> None:
    with pytest.raises(LeptoError, match="'parcel', which no training example has"):
        fine_tune(encoder, examples, Examples(["x"], ["parcel"]), tmp_path / "out")


def test_diverging_loss_stops(encoder: Path, examples: Examples, tmp_path: Path) -> None:
    with pytest.raises(LeptoError, match="lower the learning rate"):
        fine_tune(encoder, examples, examples, tmp_path / "out", Schedule(epochs=3, batch_size=8, learning_rate=1e30))
    assert not (tmp_path / "out").exists()


def test_rate_rises_and_falls() -> None:
    rates = [Schedule(warmup=0.1).rate(step, 100) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == 1.0
    assert rates[100] == 0.0
    assert all(a >= b for a, b in itertools.pairwise(rates[9:]))


def test_batches_hold_every_row_once_and_like_lengths() -> None:
    lengths = np.random.default_rng(0).integers(1, 60, 500).tolist()
    batches = _batches(lengths, 16, np.random.default_rng(0))
    assert sorted(i for batch in batches for i in batch) == list(range(500))
    padded = sum(len(batch) * max(lengths[i] for i in batch) for batch in batches)
    assert padded < 1.3 * sum(lengths)


def test_collate_pads_to_the_longest_of_the_batch() -> None:
    batch = _collate([[2, 9, 3], [2, 3]], pad_id=7)
    assert batch["input_ids"].tolist() == [[2, 9, 3], [2, 3, 7]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]


@pytest.mark.parametrize("wrong", [{"epochs": 0}, {"batch_size": 0}, {"learning_rate": 0.0}, {"warmup": 1.0}])
def test_schedule_refuses(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be"):
        Schedule(**wrong)  # type: ignore[arg-type]


def test_examples_refuse() -> None:
    with pytest.raises(ValueError, match="pair up"):
        Examples(["a"], [])
    with pytest.raises(ValueError, match="no example"):
        Examples([], [])


def test_a_disk_that_is_full_leaves_no_half_a_model(encoder: Path, tmp_path: Path) -> None:
    data = Examples(("my order", "a refund", "the person"), LABELS)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, before[1]))
    try:
        with pytest.raises(Exception, match=r"os error|File too large") as caught:  # safetensors raises its own
            fine_tune(encoder, data, data, tmp_path / "out" / "model", Schedule(epochs=1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert is_full_disk(caught.value)
    assert [*tmp_path.iterdir()] == []


def test_torch_keeps_its_files_in_the_cache(tmp_path: Path) -> None:
    """It makes a folder among the temporary files otherwise, and leaves it."""
    environment = {name: value for name, value in os.environ.items() if name != "TORCHINDUCTOR_CACHE_DIR"}
    code = "import lepto.benchmarks.training, os; print(os.environ['TORCHINDUCTOR_CACHE_DIR'])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment | {"LEPTO_CACHE": str(tmp_path)},
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == str(tmp_path / "torchinductor")


def test_a_folder_that_is_filled_meanwhile_is_left_alone(encoder: Path, examples: Examples, tmp_path: Path) -> None:
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "model.safetensors").write_text("precious")

    def meddle(*_: object) -> None:
        if not (tmp_path / "out").exists():
            (tmp_path / "out").symlink_to(tmp_path / "others")

    with pytest.raises(OSError, match="Not a directory"):
        fine_tune(encoder, examples, examples, tmp_path / "out", Schedule(epochs=1, batch_size=25), progress=meddle)
    assert (tmp_path / "others" / "model.safetensors").read_text() == "precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["others", "out"]
