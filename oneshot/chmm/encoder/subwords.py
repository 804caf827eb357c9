"""Words as the subwords of an encoder: documents cut into chunks that fit, and batches of them.

A chunk is one input of the encoder. A document that does not fit is cut after the last sentence
end that does, or, without one, between two words. Words are tokenized one by one, as transformers
does with `is_split_into_words=True`. Byte-level vocabularies (RoBERTa, ModernBERT) write the blank
before a word into its first subword; there a document's subwords are those of its words joined by
blanks. (`return_overflowing_tokens` of transformers cuts at a number of subwords, also inside words
and sentences, so it cannot take the place of this.)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SENTENCE_ENDS = frozenset(".!?")


class Chunk(NamedTuple):
    """Consecutive words of one document, between the encoder's special tokens."""

    document: int  # number of the document
    start: int  # its first word here
    ids: list[int]  # ids of the subwords, special tokens included
    heads: list[int]  # for each word the position of its first subword in `ids`

    @property
    def words(self) -> slice:
        """The words of the document that are in the chunk."""
        return slice(self.start, self.start + len(self.heads))


class SubwordBatch(NamedTuple):
    """Chunks side by side."""

    ids: Tensor  # int64 [B, P]
    mask: Tensor  # int64 [B, P], 1 at subwords
    heads: Tensor  # int64 [W], positions of the words' first subwords in the flattened [B * P]

    def to(self, device: torch.device | str) -> SubwordBatch:
        """The same on a device."""
        return SubwordBatch(*(x.to(device) for x in self))


class SubwordCutter:
    """Cuts documents into chunks.

    Args:
        tokenizer: Of the encoder; puts one special token before a text and one behind it.
        max_subwords: Subwords of a chunk, special tokens included.

    Raises:
        ValueError: No room for a word, or a tokenizer with other special tokens.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_subwords: int) -> None:
        special = tokenizer("", padding=False, truncation=False)["input_ids"]
        if len(special) != 2:
            raise ValueError(
                f"the tokenizer must put one token before a text and one behind it, got {special}"
            )
        if max_subwords < 3:
            raise ValueError(f"max_subwords must be at least 3, got {max_subwords}")
        self._tokenizer = tokenizer
        self._first, self._last = special
        self._room = max_subwords - 2
        self._known: dict[str, list[int]] = {}
        self._before = " " if self._sees_blanks() else ""  # of a word that is not the first

    def chunks(self, documents: Sequence[Sequence[str]]) -> list[Chunk]:
        """All chunks of the documents, in order.

        A word of more subwords than fit into a chunk is cut: only its first subword carries a
        label. A word that the tokenizer drops becomes the unknown subword.
        """
        result = []
        for number, document in enumerate(documents):
            words = [word if t == 0 else self._before + word for t, word in enumerate(document)]
            self._learn(words)
            result += [
                self._chunk(number, words, start, end)
                for start, end in self._ranges(document, words)
            ]
        return result

    def _sees_blanks(self) -> bool:
        """Whether the subwords of a word in a text are those of the word with a blank before it."""
        alone, after, both = (
            self._tokenizer(x, add_special_tokens=False, padding=False, truncation=False)[
                "input_ids"
            ]
            for x in ("a", " a", "a a")
        )
        return bool(both == alone + after != alone + alone)

    def _learn(self, words: Iterable[str]) -> None:
        new = list(dict.fromkeys(word for word in words if word not in self._known))
        if not new:
            return
        subwords = self._tokenizer(
            [[word] for word in new],
            is_split_into_words=True,
            add_special_tokens=False,
            padding=False,
            truncation=False,
        )["input_ids"]
        for word, ids in zip(new, subwords, strict=True):
            self._known[word] = ids[: self._room] or [self._unknown(word)]

    def _unknown(self, word: str) -> int:
        unknown: int | None = self._tokenizer.unk_token_id
        if unknown is None:
            raise ValueError(
                f"the tokenizer makes no subword of the word {word!r} and has none for unknown "
                "words; take such words out of the data"
            )
        return unknown

    def _ranges(self, document: Sequence[str], words: Sequence[str]) -> Iterable[tuple[int, int]]:
        start = used = 0
        safe = 0  # where the last sentence that fits ends
        for t, word in enumerate(words):
            used += len(self._known[word])
            if used > self._room:
                cut = safe if safe > start else t
                yield start, cut
                start = cut
                used = sum(len(self._known[w]) for w in words[start : t + 1])
                if used > self._room:  # the sentence up to here and this word are too long
                    yield start, t
                    start, used = t, len(self._known[word])
            if document[t] in SENTENCE_ENDS:
                safe = t + 1
        yield start, len(document)

    def _chunk(self, number: int, words: Sequence[str], start: int, end: int) -> Chunk:
        ids, heads = [self._first], []
        for word in words[start:end]:
            heads.append(len(ids))
            ids += self._known[word]
        return Chunk(number, start, [*ids, self._last], heads)


def longest_input(model: PreTrainedModel) -> int | None:
    """Subwords that a model takes, special tokens included; None where nothing limits them.

    RoBERTa and its kin number positions from behind the padding id, so that a table of 514 has room
    for 512 subwords.
    """
    longest = getattr(model.config, "max_position_embeddings", None)
    if not isinstance(longest, int) or longest <= 0:
        return None
    for name, module in model.named_modules():
        padding = getattr(module, "padding_idx", None)
        if name.rpartition(".")[2] == "position_embeddings" and padding is not None:
            return longest - padding - 1
    return longest


def collate(chunks: Sequence[Chunk], pad: int) -> SubwordBatch:
    """Chunks as one batch, padded to the longest."""
    longest = max(len(chunk.ids) for chunk in chunks)
    ids = torch.full((len(chunks), longest), pad)
    mask = torch.zeros_like(ids)
    for row, chunk in enumerate(chunks):
        ids[row, : len(chunk.ids)] = torch.tensor(chunk.ids)
        mask[row, : len(chunk.ids)] = 1
    heads = [row * longest + head for row, chunk in enumerate(chunks) for head in chunk.heads]
    return SubwordBatch(ids, mask, torch.tensor(heads))
