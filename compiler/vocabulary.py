"""Trimming a tokenizer: only the tokens that the training data needs, and a way to spell everything else.

Works on ``tokenizer.json`` of the tokenizers library (its models WordPiece, BPE and Unigram). The training texts keep
exactly their tokens, and for all three models that follows from the algorithm: WordPiece takes the longest match, which
stays the longest; BPE applies the merges of a text in the same order, since those it never applied are all that is
missing; Unigram's best path stays, and is still the best. A text with other words is spelled in smaller pieces.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lepto.compiler.context import Left
from lepto.compiler.words import Words, encode_all


@dataclass(frozen=True)
class Trimmed:
    """A smaller tokenizer.

    Attributes:
        tokenizer: The text of its ``tokenizer.json``.
        kept: For each new token id the old one, ascending.
        before: How many tokens there were.
        besides: Old ids of those that no text has and nothing else needs: they were asked for.
    """

    tokenizer: str
    kept: tuple[int, ...]
    before: int
    besides: tuple[int, ...] = ()

    def renumbered(self, rows: Sequence[Sequence[int]]) -> list[list[int]]:
        """Rows of old token ids as new ones.

        Raises:
            KeyError: A token was not kept.
        """
        new = {old: index for index, old in enumerate(self.kept)}
        return [[new[token] for token in row] for row in rows]


def trim(
    tokenizer: str, texts: Sequence[str | Words], *, extra: int = 0, table: npt.NDArray[np.float32] | None = None
) -> Trimmed:
    """Keep the special tokens, the tokens of these texts, and all single characters or bytes.

    Args:
        tokenizer: The text of ``tokenizer.json``.
        texts: The training texts, or rows of words.
        extra: So many more tokens, see :func:`likeliest`.
        table: The model's embeddings ``[V, W]``; without them the first tokens by id are the likeliest.

    Returns:
        The tokenizer and what it kept.

    Raises:
        Left: The tokenizer's model is of a kind that is not known, or nothing could be left out.
    """
    from tokenizers import Tokenizer

    loaded = json.loads(tokenizer)
    model = loaded["model"]
    kind = model.get("type")
    if kind not in _PIECES:
        raise Left(f"tokenizers with the model {kind!r} are not trimmed, only {', '.join(_PIECES)}")
    vocabulary = _vocabulary(model)
    added = {item["content"]: int(item["id"]) for item in loaded.get("added_tokens", [])}
    everything = {**vocabulary, **added}
    backend = Tokenizer.from_str(tokenizer)
    backend.no_truncation()
    used = Counter(token for encoding in encode_all(backend, texts) for token in encoding.ids)
    keep = set(used) | set(added.values())
    keep |= {index for piece, index in vocabulary.items() if _PIECES[kind](piece, model)}
    if model.get("unk_token") in vocabulary:
        keep.add(vocabulary[model["unk_token"]])
    if isinstance(model.get("unk_id"), int):
        keep.add(int(model["unk_id"]))
    # Some models count positions from the id of the padding, so the ids up to it stay as they are.
    padding = [index for content, index in added.items() if "pad" in content.lower()]
    keep |= set(range(max(padding, default=-1) + 1)) & set(everything.values())
    if kind == "BPE":
        keep = _with_parts(keep, model, vocabulary)
    # Places that were left free for words to come stand first, and no text has them.
    spare = [i for piece, i in everything.items() if i not in keep and not _FREE.fullmatch(piece)]
    besides = likeliest(spare, sorted(used), table)[:extra] if extra else []
    keep |= {*besides}
    if kind == "BPE":
        keep = _with_parts(keep, model, vocabulary)
    if len(keep) >= len(set(everything.values())):
        raise Left(f"all {len(keep)} tokens are needed")
    kept = tuple(sorted(keep))
    new = {old: index for index, old in enumerate(kept)}
    _renumber(loaded, new, keep)
    result = Trimmed(
        json.dumps(loaded, ensure_ascii=False), kept, len(set(everything.values())), tuple(sorted(besides))
    )
    _check(tokenizer, result, texts)
    return result


def likeliest(tokens: Sequence[int], seen: Sequence[int], table: npt.NDArray[np.float32] | None = None) -> list[int]:
    """Tokens in the order in which texts to come may have them, and need them.

    The vocabularies of pretrained models begin with the commonest; of these the ones that mean something like the words
    of the training texts. The two ranks are added up.

    Args:
        tokens: Tokens that the training texts have not.
        seen: Those that they have.
        table: The model's embeddings ``[V, W]``; without them only the place in the vocabulary counts.
    """
    ordered = np.array(sorted(tokens), dtype=np.int64)
    if table is None or not len(ordered) or not len(seen) or max(int(ordered[-1]), *seen) >= len(table):
        return [int(token) for token in ordered]
    near = np.concatenate([np.sort(like, axis=1)[:, -3:].mean(axis=1) for _, like in likeness(table, ordered, seen)])
    ranks = np.arange(len(ordered)) + np.argsort(np.argsort(-near, kind="stable"), kind="stable")
    return [int(token) for token in ordered[np.argsort(ranks, kind="stable")]]


def likeness(
    table: npt.NDArray[np.float32], tokens: Sequence[int] | npt.NDArray[np.int64], seen: Sequence[int]
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]]:
    """How like embeddings are: cosines, once the mean of the table is taken away.

    Args:
        table: ``[V, W]``.
        tokens: N tokens.
        seen: M tokens.

    Yields:
        A part of the tokens, and their ``[n, M]``: all at once would be gigabytes for the largest tables.
    """
    mean = table.mean(axis=0)

    def unit(rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        centred = rows - mean
        return np.asarray(centred / np.linalg.norm(centred, axis=1, keepdims=True).clip(1e-12), dtype=np.float32)

    others = unit(table[np.asarray(seen, dtype=np.int64)]).T
    for part in np.array_split(np.asarray(tokens, dtype=np.int64), 1 + len(tokens) // 1024):
        yield part, unit(table[part]) @ others


def spelling_tokens(tokenizer: str) -> set[int]:
    """The special tokens, and all single characters or bytes: those that are kept in order to spell any text."""
    loaded = json.loads(tokenizer)
    model, added = loaded["model"], {int(item["id"]) for item in loaded.get("added_tokens", [])}
    if (single := _PIECES.get(model.get("type"))) is None:
        return added
    return added | {index for piece, index in _vocabulary(model).items() if single(piece, model)}


def unknown_share(tokenizer: str, texts: Sequence[str | Words]) -> float:
    """Share of the tokens of these texts that are the unknown token, in [0, 1]."""
    from tokenizers import Tokenizer

    unknown = _unknown(json.loads(tokenizer)["model"])
    ids = [i for encoding in encode_all(Tokenizer.from_str(tokenizer), texts) for i in encoding.ids]
    return sum(i == unknown for i in ids) / max(len(ids), 1)


def mean_tokens(tokenizer: str, texts: Sequence[str | Words]) -> float:
    """Mean number of tokens of these texts, special tokens included."""
    from tokenizers import Tokenizer

    backend = Tokenizer.from_str(tokenizer)
    backend.no_padding()
    return sum(len(encoding.ids) for encoding in encode_all(backend, texts)) / max(len(texts), 1)


def _vocabulary(model: Mapping[str, Any]) -> dict[str, int]:
    vocabulary = model["vocab"]
    if isinstance(vocabulary, list):  # Unigram: pieces with their scores, the id is the place
        return {piece: index for index, (piece, _) in enumerate(vocabulary)}
    return {str(piece): int(index) for piece, index in vocabulary.items()}


def _unknown(model: Mapping[str, Any]) -> int | None:
    if isinstance(model.get("unk_id"), int):
        return int(model["unk_id"])
    return _vocabulary(model).get(model.get("unk_token") or "")


def _wordpiece_single(piece: str, model: Mapping[str, Any]) -> bool:
    return len(piece.removeprefix(model.get("continuing_subword_prefix") or "##")) == 1


def _bpe_single(piece: str, model: Mapping[str, Any]) -> bool:
    bare = piece.removeprefix(model.get("continuing_subword_prefix") or "")
    bare = bare.removesuffix(model.get("end_of_word_suffix") or "")
    # Byte fallback writes bytes as <0x00> … <0xFF>.
    return len(bare) == 1 or (len(piece) == 6 and piece.startswith("<0x"))


def _unigram_single(piece: str, _model: Mapping[str, Any]) -> bool:
    return len(piece.removeprefix("▁")) <= 1 or (len(piece) == 6 and piece.startswith("<0x"))


_FREE = re.compile(r"\[unused\d+\]|<unused_?\d+>|<extra_id_\d+>")

_PIECES = {"WordPiece": _wordpiece_single, "BPE": _bpe_single, "Unigram": _unigram_single}
"""For each model whether a piece is needed to spell any text."""


def _merges(model: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Both spellings of the file: a pair, or one text with a space."""
    return [tuple(m) if isinstance(m, list) else tuple(m.split(" ", 1)) for m in model["merges"]]


def _joined(left: str, right: str, model: Mapping[str, Any]) -> str:
    return left + right.removeprefix(model.get("continuing_subword_prefix") or "")


def _with_parts(keep: set[int], model: Mapping[str, Any], vocabulary: Mapping[str, int]) -> set[int]:
    """Close a set of BPE tokens under every merge that can make one of them."""
    pieces = {index: piece for piece, index in vocabulary.items()}
    makes: dict[str, list[tuple[str, str]]] = {}
    for left, right in _merges(model):
        makes.setdefault(_joined(left, right, model), []).append((left, right))
    closed, open_ = set(keep), [pieces[index] for index in keep if index in pieces]
    while open_:
        for pair in makes.get(open_.pop(), ()):
            for part in pair:
                index = vocabulary.get(part)
                if index is not None and index not in closed:
                    closed.add(index)
                    open_.append(part)
    return closed


def _renumber(loaded: dict[str, Any], new: Mapping[int, int], keep: set[int]) -> None:
    """Write the new ids wherever the file has ids."""
    model = loaded["model"]
    if isinstance(model["vocab"], list):
        model["vocab"] = [entry for index, entry in enumerate(model["vocab"]) if index in keep]
        if isinstance(model.get("unk_id"), int):
            model["unk_id"] = new[model["unk_id"]]
    else:
        model["vocab"] = {piece: new[index] for piece, index in model["vocab"].items() if index in keep}
    if "merges" in model:
        known = model["vocab"]
        model["merges"] = [
            merge
            for merge, (left, right) in zip(model["merges"], _merges(model), strict=True)
            if left in known and right in known and _joined(left, right, model) in known
        ]
    for item in loaded.get("added_tokens", []):
        item["id"] = new[int(item["id"])]
    if loaded.get("padding"):
        loaded["padding"]["pad_id"] = new[int(loaded["padding"]["pad_id"])]
    _renumber_processor(loaded.get("post_processor"), new)


def _renumber_processor(processor: Any, new: Mapping[int, int]) -> None:
    if not isinstance(processor, dict):
        return
    for part in processor.get("processors", []):
        _renumber_processor(part, new)
    for special in (processor.get("special_tokens") or {}).values():
        special["ids"] = [new[int(index)] for index in special["ids"]]
    for name in ("sep", "cls"):  # BertProcessing and RobertaProcessing: [token, id]
        if isinstance(processor.get(name), list):
            processor[name][1] = new[int(processor[name][1])]


def _check(tokenizer: str, trimmed: Trimmed, texts: Sequence[str | Words]) -> None:
    """The promise itself, on every training text."""
    from tokenizers import Tokenizer

    before, after = Tokenizer.from_str(tokenizer), Tokenizer.from_str(trimmed.tokenizer)
    for backend in (before, after):
        backend.no_padding()
        backend.no_truncation()
    old = [encoding.ids for encoding in encode_all(before, texts)]
    new = [[trimmed.kept[i] for i in encoding.ids] for encoding in encode_all(after, texts)]
    for text, a, b in zip(texts, old, new, strict=True):
        if a != b:
            raise Left(f"the trimmed tokenizer would read the training text {str(text)[:60]!r} as other tokens")
