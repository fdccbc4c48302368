"""Trim the vocabulary: tokenizer and embedding together."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

from lepto.compiler.context import Context, Left
from lepto.compiler.derived import copy_module, derive
from lepto.compiler.encoder import Encoder, with_tokens
from lepto.compiler.source import Source
from lepto.compiler.vocabulary import mean_tokens, trim


@dataclass(frozen=True, slots=True)
class TrimVocabulary:
    """Keep the tokens that the training data needs and all single characters or bytes, and only reachable positions.

    The training texts keep their tokens exactly; other texts may be spelled in more tokens.

    Attributes:
        extra: So many more tokens: the commonest, and of these the ones nearest to the words of the training data.
    """

    name: ClassVar[str] = "trim-vocabulary"
    preserves_function: ClassVar[bool] = False
    reads: ClassVar[tuple[str, ...]] = ("labels",)
    on_source: ClassVar[bool] = True

    extra: int = 0

    def __post_init__(self) -> None:
        """Check the options."""
        if self.extra < 0:
            raise ValueError(f"extra must not be negative, got {self.extra}")

    def __call__(self, source: Source, context: Context) -> Source:
        """Return the source with a smaller tokenizer and embedding table.

        Raises:
            Left: The model reads no text, is no known encoder, or there is no training data.
        """
        if source.text is None or context.train is None or not isinstance(context.train.inputs, tuple):
            raise Left("a vocabulary is trimmed to training texts, and there are none: give --train")
        module = copy_module(source)
        encoder = Encoder.of(module)
        if encoder is None:
            raise Left(f"{source.architecture} is no encoder whose tables are known")
        if source.kept_tokens is not None:
            raise Left("the vocabulary was trimmed before")
        texts = context.train.inputs
        trimmed = trim(source.text.tokenizer, texts, extra=self.extra, table=encoder.table())
        sizes = encoder.sizes()
        positions = min(sizes.positions, source.text.preprocessing.max_length + encoder.first_position())
        if max(trimmed.kept) >= sizes.tokens:
            raise Left(f"the tokenizer has the token {max(trimmed.kept)}, but the table has {sizes.tokens} rows")
        encoder.cut(with_tokens(encoder.whole(), trimmed.kept, positions))
        text = dataclasses.replace(
            source.text,
            tokenizer=trimmed.tokenizer,
            preprocessing=source.text.preprocessing.model_copy(
                update={"pad_id": trimmed.kept.index(source.text.preprocessing.pad_id)}
            ),
        )
        context.note(
            f"{trimmed.before:,} → {len(trimmed.kept):,} tokens; the training texts keep theirs "
            f"({mean_tokens(text.tokenizer, texts):.1f} on average)"
        )
        return derive(source, module, text=text, kept_tokens=trimmed.kept, besides=trimmed.besides)
