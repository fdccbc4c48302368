"""The project's own intent data: a small grammar, expanded the same way on every machine.

No random generator is involved: each choice is a digest of (seed, template, draw), so the files do not depend on the
version of Python. ``python -m lepto.benchmarks.workloads.shop_intents.grammar DIR`` writes them again.
"""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, get_args

from lepto.benchmarks.workloads.shop_intents.templates import OPENINGS, SLOTS, TEMPLATES

Split = Literal["train", "dev", "test"]
SPLITS: Final[tuple[Split, ...]] = get_args(Split)
COLUMNS: Final = ("text", "label", "template")

SEED: Final = 0
PER_TEMPLATE: Final[dict[Split, int]] = {"train": 4, "dev": 7, "test": 7}
# Shares of the sentences that get a greeting, a typing error, a capital, a final mark.
OPENING_RATE, TYPO_RATE, CAPITAL_RATE, MARK_RATE = 0.15, 0.14, 0.5, 0.55
_ATTEMPTS: Final = 6  # draws for one more distinct sentence before a template counts as exhausted

_TOKEN = re.compile(r"\{(?P<slot>\w+)\}|\[(?P<choice>[^\[\]]*)\]")
_QUESTION = re.compile(
    r"(?:^|[,:] )(?:(?:at|from|until) )?"
    r"(?:where|when|what|why|who|which|how|can|could|do|does|did|is|are|am|has|will|would|any)\b"
)


@dataclass(frozen=True, slots=True)
class Utterance:
    """One labelled sentence.

    Attributes:
        text: What the customer writes.
        label: The intent.
        template: Name of the template it was made from, ``intent/split/number``.
    """

    text: str
    label: str
    template: str


class _Draws:
    """An endless deterministic sequence of choices for one key."""

    def __init__(self, *key: object) -> None:
        self._key = "\x1f".join(str(part) for part in key)
        self._count = itertools.count()

    def number(self) -> float:
        """The next number in [0, 1)."""
        digest = hashlib.sha256(f"{self._key}\x1f{next(self._count)}".encode()).digest()
        return int.from_bytes(digest[:6], "big") / 2**48

    def choice(self, options: Sequence[str]) -> str:
        """The next choice."""
        return options[int(self.number() * len(options))]


def normalise(text: str) -> str:
    """Lower case, letters and digits only: two texts that normalise alike count as the same sentence."""
    return " ".join(re.findall(r"[a-z0-9]+", text.lower()))


def _fill(template: str, draws: _Draws) -> str:
    used: set[str] = set()

    def replace(match: re.Match[str]) -> str:
        if match["slot"] is None:
            return _fill(draws.choice(match["choice"].split("|")), draws)
        # A slot that stands twice in a template gets two different values.
        value = draws.choice([value for value in SLOTS[match["slot"]] if value not in used])
        used.add(value)
        return value

    text = " ".join(_TOKEN.sub(replace, template).split()).replace(" ,", ",")
    return re.sub(r"\b([Aa]) (?=[aeiou]|X[SL])", r"\1n ", text)


def _misspell(text: str, draws: _Draws) -> str:
    """One slip of the finger in one longer word: two letters swapped, one lost, or one doubled."""
    words = text.split(" ")
    longer = [i for i, word in enumerate(words) if len(word) >= 5 and word.isalpha() and word.islower()]
    if not longer:
        return text
    i = longer[int(draws.number() * len(longer))]
    word = words[i]
    at = 1 + int(draws.number() * (len(word) - 2))
    words[i] = draws.choice(
        (
            word[:at] + word[at + 1] + word[at] + word[at + 2 :],
            word[:at] + word[at + 1 :],
            word[:at] + word[at] + word[at:],
        )
    )
    return " ".join(words)


def _finish(text: str, draws: _Draws) -> str:
    is_question = "?" not in text and _QUESTION.search(text) is not None
    if draws.number() < TYPO_RATE:
        text = _misspell(text, draws)
    if draws.number() < OPENING_RATE:
        text = f"{draws.choice(OPENINGS)} {text}"
    if draws.number() < CAPITAL_RATE:
        text = text[0].upper() + text[1:]
    if draws.number() < MARK_RATE and text[-1].isalnum():
        text += "?" if is_question else "."
    return text


def expand(seed: int = SEED) -> Iterator[tuple[Split, Utterance]]:
    """Every sentence of every split, in the order of the templates.

    Args:
        seed: Another seed gives other sentences from the same templates.

    Yields:
        The split and the sentence. No two sentences of the whole set normalise alike.
    """
    seen: set[str] = set()
    for intent, splits in TEMPLATES.items():
        for split in SPLITS:
            for number, template in enumerate(splits[split]):
                for copy in range(PER_TEMPLATE[split]):
                    for attempt in range(_ATTEMPTS):
                        draws = _Draws(seed, template, copy, attempt)
                        text = _finish(_fill(template, draws), draws)
                        if normalise(text) not in seen:
                            seen.add(normalise(text))
                            yield split, Utterance(text=text, label=intent, template=f"{intent}/{split}/{number}")
                            break


def as_csv(utterances: Sequence[Utterance]) -> str:
    """The text of a CSV file with a header, rows in an order that mixes the intents."""
    mixed = sorted(utterances, key=lambda one: hashlib.sha256(one.text.encode()).digest())
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows((one.text, one.label, one.template) for one in mixed)
    return text.getvalue()


def write(folder: Path, seed: int = SEED) -> dict[Split, int]:
    """Write ``train.csv``, ``dev.csv`` and ``test.csv``.

    Args:
        folder: Where to; made if it does not exist.
        seed: See :func:`expand`.

    Returns:
        The number of sentences in each split.
    """
    rows: dict[Split, list[Utterance]] = {split: [] for split in SPLITS}
    for split, utterance in expand(seed):
        rows[split].append(utterance)
    folder.mkdir(parents=True, exist_ok=True)
    for split, utterances in rows.items():
        (folder / f"{split}.csv").write_text(as_csv(utterances), encoding="utf-8", newline="")
    return {split: len(utterances) for split, utterances in rows.items()}


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m lepto.benchmarks.workloads.shop_intents.grammar DIR")
    print(write(Path(sys.argv[1])))
