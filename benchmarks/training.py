"""Fine-tune a pretrained encoder for text classification: plain torch, moved and stepped by accelerate."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lepto.runtime.errors import LeptoError
from lepto.runtime.staging import replace_folder, staged_folder

if TYPE_CHECKING:
    import torch

Progress = Callable[[int, int, str], None]
"""Called with steps done, steps in all, and a few words."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long and how fast to train.

    Attributes:
        epochs: Passes over the training set, at least 1.
        batch_size: Sentences in a step, at least 1.
        learning_rate: Peak of AdamW's learning rate, for the encoder.
        head_factor: The new classification head learns this many times faster.
        warmup: Share of the steps in which the rate rises linearly; it then falls linearly to zero. In [0, 1).
        weight_decay: Of AdamW, on matrices only.
        max_length: Sentences are cut after this many tokens.
        seed: Of the head's first weights, the order of the batches and dropout.
    """

    epochs: int = 4
    batch_size: int = 32
    learning_rate: float = 2e-4
    head_factor: float = 10.0
    warmup: float = 0.1
    weight_decay: float = 0.01
    max_length: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the fields."""
        for name in ("epochs", "batch_size", "max_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("learning_rate", "head_factor"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        if not 0.0 <= self.warmup < 1.0:
            raise ValueError(f"warmup must be in [0, 1), got {self.warmup}")

    def rate(self, step: int, steps: int) -> float:
        """Factor on the learning rate at a step: linear warm-up, then linear decay to zero."""
        rising = max(1, round(self.warmup * steps))
        if step < rising:
            return (step + 1) / rising
        return max(0.0, (steps - step) / max(1, steps - rising))


@dataclass(frozen=True, slots=True)
class Trained:
    """What training gives.

    Attributes:
        folder: A Hugging Face model folder: safetensors, tokenizer, config with id2label.
        dev_accuracy: On the held-out part, of the epoch that was kept.
        epoch: Which epoch was kept, from 1.
        losses: Mean training loss of every epoch.
    """

    folder: Path
    dev_accuracy: float
    epoch: int
    losses: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Examples:
    """Sentences with their labels.

    Attributes:
        texts: N sentences.
        labels: N labels.
    """

    texts: Sequence[str]
    labels: Sequence[str]

    def __post_init__(self) -> None:
        """Check the fields."""
        if len(self.texts) != len(self.labels):
            raise ValueError(f"texts and labels must pair up, got {len(self.texts)} and {len(self.labels)}")
        if not self.texts:
            raise ValueError("there is no example")


@contextmanager
def _quiet() -> Iterator[None]:
    """No bars of the library's own, and no warning that the classification head is new: it is meant to be."""
    from transformers.utils import logging

    library: Any = logging  # its functions are not annotated
    verbosity, bars = library.get_verbosity(), library.is_progress_bar_enabled()
    library.set_verbosity_error()
    library.disable_progress_bar()
    try:
        yield
    finally:
        library.set_verbosity(verbosity)
        if bars:
            library.enable_progress_bar()


def _batches(lengths: Sequence[int], size: int, generator: np.random.Generator) -> list[list[int]]:
    """Shuffled batches of sentences of like length: shuffle, sort inside windows of eight batches, shuffle again."""
    order = generator.permutation(len(lengths))
    window = size * 8
    batches: list[list[int]] = []
    for start in range(0, len(order), window):
        chunk = sorted(order[start : start + window].tolist(), key=lambda i: lengths[i])
        batches.extend(chunk[i : i + size] for i in range(0, len(chunk), size))
    return [batches[i] for i in generator.permutation(len(batches))]


def _collate(tokens: Sequence[Sequence[int]], pad_id: int) -> dict[str, torch.Tensor]:
    """Pad to the longest of the batch, [B, S], and no further."""
    import torch

    width = max(len(one) for one in tokens)
    ids = torch.full((len(tokens), width), pad_id, dtype=torch.int64)
    mask = torch.zeros((len(tokens), width), dtype=torch.int64)
    for row, one in enumerate(tokens):
        ids[row, : len(one)] = torch.tensor(one)
        mask[row, : len(one)] = 1
    return {"input_ids": ids, "attention_mask": mask}


def _groups(model: Any, schedule: Schedule) -> list[dict[str, Any]]:
    groups: dict[tuple[bool, bool], list[Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        groups.setdefault((name.startswith("classifier"), parameter.ndim >= 2), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": schedule.learning_rate * (schedule.head_factor if head else 1.0),
            # Biases and normalisation are not decayed (Devlin et al. 2019, appendix A.2, and their released code).
            "weight_decay": schedule.weight_decay if matrix else 0.0,
        }
        for (head, matrix), parameters in groups.items()
    ]


def _accuracy(model: Any, tokens: Sequence[Sequence[int]], targets: Sequence[int], pad_id: int, size: int) -> float:
    import torch

    model.eval()
    right = 0
    with torch.inference_mode():
        for start in range(0, len(tokens), size):
            logits = model(**_collate(tokens[start : start + size], pad_id)).logits
            right += int((logits.argmax(-1) == torch.tensor(targets[start : start + size])).sum())
    return right / len(tokens)


def fine_tune(
    weights: Path,
    train: Examples,
    dev: Examples,
    folder: Path,
    schedule: Schedule | None = None,
    *,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Trained:
    """Train a classifier on top of an encoder and keep the epoch that is best on the held-out part.

    Args:
        weights: A Hugging Face model folder with safetensors and a fast tokenizer.
        train: What is learned from; its labels, sorted, become the classes.
        dev: Chooses the epoch; never trained on.
        folder: Where the model is saved; must not exist or be empty.
        schedule: How long and how fast.
        threads: Of torch; its own choice unless given.
        progress: Told after every step.

    Returns:
        Where the model is and how good it is on the held-out part.

    Raises:
        LeptoError: If the folder is not empty, a label of `dev` is not in `train`, or the loss is not finite.
    """
    import torch
    from accelerate import Accelerator  # type: ignore[import-untyped]  # it ships no types
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    schedule = schedule or Schedule()
    if folder.exists() and any(folder.iterdir()):
        raise LeptoError(f"the output folder {folder} exists and is not empty: remove it or choose another")
    labels = sorted(set(train.labels))
    index = {label: i for i, label in enumerate(labels)}
    if unknown := sorted(set(dev.labels) - set(labels)):
        raise LeptoError(f"the held-out part has the label {unknown[0]!r}, which no training example has")

    if threads is not None:
        torch.set_num_threads(threads)
    random.seed(schedule.seed)
    torch.manual_seed(schedule.seed)
    generator = np.random.default_rng(schedule.seed)

    with _quiet():
        tokenizer = AutoTokenizer.from_pretrained(weights, local_files_only=True)
        model = AutoModelForSequenceClassification.from_pretrained(
            weights,
            num_labels=len(labels),
            id2label=dict(enumerate(labels)),
            label2id=index,
            local_files_only=True,
            use_safetensors=True,
            dtype=torch.float32,
        )

    # Word embeddings stay as they are: words that the few training sentences lack keep their place among those that
    # they have, and half of the parameters need neither gradient nor optimizer state.
    model.get_input_embeddings().weight.requires_grad_(False)

    def encode(texts: Sequence[str]) -> list[list[int]]:
        encoded: list[list[int]] = tokenizer(list(texts), truncation=True, max_length=schedule.max_length)["input_ids"]
        return encoded

    train_tokens, dev_tokens = encode(train.texts), encode(dev.texts)
    train_targets, dev_targets = [index[one] for one in train.labels], [index[one] for one in dev.labels]
    pad_id = int(tokenizer.pad_token_id)

    per_epoch = -(-len(train_tokens) // schedule.batch_size)
    steps = per_epoch * schedule.epochs
    accelerator = Accelerator(cpu=True)
    optimizer = torch.optim.AdamW(_groups(model, schedule))
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: schedule.rate(step, steps))
    model, optimizer, decay = accelerator.prepare(model, optimizer, decay)

    best, best_epoch, best_state, losses, done = -1.0, 0, None, [], 0
    words = ""
    for epoch in range(1, schedule.epochs + 1):
        model.train()
        total = 0.0
        for rows in _batches([len(one) for one in train_tokens], schedule.batch_size, generator):
            batch = _collate([train_tokens[i] for i in rows], pad_id)
            loss = torch.nn.functional.cross_entropy(
                model(**batch).logits, torch.tensor([train_targets[i] for i in rows]), label_smoothing=0.05
            )
            if not bool(torch.isfinite(loss)):
                raise LeptoError(
                    f"the loss became {loss.item()} in epoch {epoch}: "
                    f"lower the learning rate ({schedule.learning_rate})"
                )
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            decay.step()
            optimizer.zero_grad(set_to_none=True)
            total += loss.item() * len(rows)
            done += 1
            if progress is not None:
                progress(done, steps, words)
        losses.append(total / len(train_tokens))
        accuracy = _accuracy(model, dev_tokens, dev_targets, pad_id, schedule.batch_size)
        words = f"epoch {epoch}, held out {accuracy:.1%}"
        if accuracy >= best:
            best, best_epoch = accuracy, epoch
            best_state = {
                name: value.detach().clone() for name, value in accelerator.unwrap_model(model).state_dict().items()
            }
    if progress is not None:
        progress(steps, steps, words)

    final = accelerator.unwrap_model(model)
    assert best_state is not None  # epochs >= 1, and accuracy >= 0 beats the start
    final.load_state_dict(best_state)
    tokenizer.model_max_length = min(int(tokenizer.model_max_length), 512)
    with staged_folder(folder) as stage, _quiet():
        final.save_pretrained(stage)
        tokenizer.save_pretrained(stage)
        if folder.exists():  # it was there, and empty
            folder.rmdir()
        replace_folder(stage, folder, force=False)
    return Trained(folder=folder, dev_accuracy=best, epoch=best_epoch, losses=tuple(losses))
