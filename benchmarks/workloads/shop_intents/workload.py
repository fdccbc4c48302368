"""The workload as the other parts use it: its files, and its model trained from them."""

from __future__ import annotations

import csv
import shutil
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Final

from rich.markup import escape

from lepto.benchmarks.training import Examples, Schedule, Trained, fine_tune
from lepto.benchmarks.weights import Weights, find
from lepto.benchmarks.workloads.shop_intents.grammar import SPLITS, Split
from lepto.runtime.console import Output
from lepto.runtime.errors import LeptoError

NAME: Final = "shop_intents"
SCHEDULE: Final = Schedule()
SENTENCES: Final = (
    "Where is my parcel? I ordered a kettle last week",
    "the jacket is too small, can I swap it for a large",
    "my card was declined at the checkout",
)


@dataclass(frozen=True, slots=True)
class Result:
    """A trained model and where its weights came from.

    Attributes:
        weights: The pretrained encoder.
        trained: The classifier.
    """

    weights: Weights
    trained: Trained


def data_file(split: Split) -> Path:
    """The CSV file of a split, with the columns text, label and template."""
    return Path(str(files(__package__) / f"{split}.csv"))


def examples(split: Split) -> Examples:
    """The sentences of a split with their labels."""
    with data_file(split).open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return Examples([row["text"] for row in rows], [row["label"] for row in rows])


def copy_data(folder: Path) -> list[Path]:
    """Copy the CSV files into a folder.

    Args:
        folder: Made if it does not exist.

    Returns:
        The copies.

    Raises:
        LeptoError: A file of that name is there already.
    """
    copies = [folder / f"{split}.csv" for split in SPLITS]
    for copy in copies:
        if copy.exists():
            raise LeptoError(f"{copy} exists: remove it or choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    for split, copy in zip(SPLITS, copies, strict=True):
        shutil.copyfile(data_file(split), copy)
    return copies


def train(folder: Path, schedule: Schedule = SCHEDULE, *, threads: int | None = None, output: Output) -> Result:
    """Fine-tune all-MiniLM-L6-v2 on the workload.

    Args:
        folder: Where the model is saved; must not exist or be empty.
        schedule: How long and how fast.
        threads: Of torch; its own choice unless given.
        output: Shows where the weights came from, a progress bar, and every epoch.

    Raises:
        LeptoError: No source has the pinned weights, or the folder is not empty.
    """
    weights = find()
    output.print(f"weights from {escape(weights.source)}")
    with output.progress() as bar:
        task = bar.add_task("training", total=None)
        said = ""

        def show(done: int, steps: int, words: str) -> None:
            nonlocal said
            bar.update(task, completed=done, total=steps)
            if words != said:
                said = words
                output.print(f"  {words}")  # also where there is no terminal for the bar

        trained = fine_tune(
            weights.folder, examples("train"), examples("dev"), folder, schedule, threads=threads, progress=show
        )
    output.print(f"{trained.dev_accuracy:.1%} on the held-out sentences (epoch {trained.epoch} kept)")
    return Result(weights, trained)
