from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import pytest

from lepto.benchmarks.workloads.shop_intents import grammar
from lepto.benchmarks.workloads.shop_intents.grammar import SPLITS, Split, normalise
from lepto.benchmarks.workloads.shop_intents.templates import TEMPLATES
from lepto.benchmarks.workloads.shop_intents.workload import copy_data, data_file, examples
from lepto.runtime.errors import LeptoError


def rows(split: Split) -> list[dict[str, str]]:
    with data_file(split).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_committed_files_are_what_the_grammar_gives(tmp_path: Path) -> None:
    grammar.write(tmp_path)
    for split in SPLITS:
        assert (tmp_path / f"{split}.csv").read_bytes() == data_file(split).read_bytes(), split


def test_counts() -> None:
    sizes = {split: len(rows(split)) for split in SPLITS}
    assert 1500 <= sum(sizes.values()) <= 3000
    assert sizes["test"] >= 800  # fewer could not show a drop below one point
    for split in SPLITS:
        counts = Counter(row["label"] for row in rows(split))
        assert counts.keys() == TEMPLATES.keys()
        assert max(counts.values()) <= 1.6 * min(counts.values()), split
    assert len(TEMPLATES) >= 16


def test_no_sentence_stands_twice_and_none_in_two_splits() -> None:
    seen: dict[str, str] = {}
    for split in SPLITS:
        for row in rows(split):
            key = normalise(row["text"])
            assert key, row
            assert key not in seen, (row, seen[key])
            seen[key] = split


def test_no_template_is_shared() -> None:
    seen: dict[str, str] = {}
    for intent, splits in TEMPLATES.items():
        assert tuple(splits) == SPLITS
        for split, templates in splits.items():
            for template in templates:
                key = normalise(template)
                assert key not in seen, (template, seen[key])
                seen[key] = f"{intent}/{split}"
    for split in SPLITS:
        for row in rows(split):
            intent, of, number = row["template"].split("/")
            assert (intent, of) == (row["label"], split)
            assert int(number) < len(TEMPLATES[intent][split])


def test_no_template_says_the_same_as_one_of_another_split_but_for_its_slots() -> None:
    # "is my {item} here" and "is my {items} here" would be one sentence pattern.
    seen: dict[str, str] = {}
    for intent, splits in TEMPLATES.items():
        for split, templates in splits.items():
            for template in templates:
                key = normalise(grammar._TOKEN.sub(" ", template))
                assert seen.setdefault(key, f"{intent}/{split}") == f"{intent}/{split}", template


def test_every_template_gives_sentences() -> None:
    for split in SPLITS:
        counts = Counter(row["template"] for row in rows(split))
        for intent, splits in TEMPLATES.items():
            for number in range(len(splits[split])):
                assert counts[f"{intent}/{split}/{number}"] >= 2


def test_sentences_are_clean() -> None:
    for split in SPLITS:
        for row in rows(split):
            text = row["text"]
            assert text == " ".join(text.split())
            assert text.isascii()
            assert not set("{}[]|") & set(text)
            assert len(text) < 160


def test_another_seed_gives_other_sentences_of_the_same_templates() -> None:
    one, other = [dict.fromkeys(u.text for _, u in grammar.expand(seed)) for seed in (0, 1)]
    assert one.keys() != other.keys()
    assert {u.template for _, u in grammar.expand(0)} == {u.template for _, u in grammar.expand(1)}


def test_copy_refuses_to_overwrite(tmp_path: Path) -> None:
    copies = copy_data(tmp_path / "data")
    assert [copy.name for copy in copies] == ["train.csv", "dev.csv", "test.csv"]
    copies[1].write_text("mine")
    copies[0].unlink()
    with pytest.raises(LeptoError, match=r"dev\.csv exists"):
        copy_data(tmp_path / "data")
    assert copies[1].read_text() == "mine"
    assert not copies[0].exists()


def test_examples() -> None:
    assert len(examples("dev").texts) == len(rows("dev"))
