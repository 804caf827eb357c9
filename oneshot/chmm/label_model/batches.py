"""Which examples go together, and the CHMM's batches: tokens of several sentences, packed.

The networks see tokens, not sentences: packed, no matrix is ever made for padding. Only the chain
itself, [B, T, L] and [B, T - 1, L, L], is padded, inside `model.py`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from oneshot.chmm.dataset import Sentence

POOL = 8  # batches whose examples are sorted by length together


@dataclass(frozen=True)
class Examples:
    """Sentences as the model sees them.

    Attributes:
        sentences: The sentences.
        embeddings: float [T + 1, D] for each: [CLS], which stands for the begin, and the words.
        observations: float [T, S, L] for each (see `observations.py`).

    Raises:
        ValueError: The three do not belong together.
    """

    sentences: Sequence[Sentence]
    embeddings: Sequence[Tensor]
    observations: Sequence[Tensor]

    def __post_init__(self) -> None:
        if not len(self.sentences) == len(self.embeddings) == len(self.observations):
            raise ValueError(
                f"{len(self.sentences)} sentences, but {len(self.embeddings)} embeddings and "
                f"{len(self.observations)} observations"
            )
        rows = zip(self.sentences, self.embeddings, self.observations, strict=True)
        for number, (sentence, embedding, observation) in enumerate(rows):
            steps = len(sentence.tokens)
            if len(embedding) != steps + 1 or len(observation) != steps:
                raise ValueError(
                    f"sentence {number}: expected {steps + 1} embeddings and {steps} observations, "
                    f"got {len(embedding)} and {len(observation)}"
                )

    def __len__(self) -> int:
        return len(self.sentences)

    @property
    def tokens(self) -> int:
        """Number of words."""
        return sum(len(sentence.tokens) for sentence in self.sentences)


@dataclass(frozen=True)
class Batch:
    """Tokens of B sentences one after the other, N in all; each sentence begins with its [CLS].

    Attributes:
        embeddings: [N, D].
        observations: [N, S, L].
        lengths: int64 [B], steps of each sentence, the begin included; their sum is N. They stay
            on the CPU, where the positions of the sentences are computed.
    """

    embeddings: Tensor
    observations: Tensor
    lengths: Tensor

    def to(self, device: torch.device) -> Batch:
        """The same with embeddings and observations on a device."""
        return Batch(self.embeddings.to(device), self.observations.to(device), self.lengths)


def collate(examples: Examples, rows: Sequence[int]) -> Batch:
    """Packs some examples. At the begin every source says O."""
    _, sources, labels = examples.observations[rows[0]].shape
    begin = torch.zeros(1, sources, labels, dtype=examples.observations[rows[0]].dtype)
    begin[:, :, 0] = 1
    observations = [x for i in rows for x in (begin, examples.observations[i])]
    return Batch(
        torch.cat([examples.embeddings[i] for i in rows]),
        torch.cat(observations),
        torch.tensor([len(examples.embeddings[i]) for i in rows]),
    )


def shuffled(lengths: Sequence[int], batch_size: int, seed: int) -> list[list[int]]:
    """All examples in batches of similar length, in random order.

    Shuffles, sorts by length inside pools of several batches, cuts, and shuffles the batches: they
    stay random enough to learn from and even enough to waste little.

    Args:
        lengths: Of each example.
        batch_size: Examples of a batch.
        seed: The order depends on it alone.
    """
    rng = random.Random(seed)
    order = list(range(len(lengths)))
    rng.shuffle(order)
    batches = []
    for start in range(0, len(order), POOL * batch_size):
        pool = sorted(order[start : start + POOL * batch_size], key=lambda i: lengths[i])
        batches += [pool[i : i + batch_size] for i in range(0, len(pool), batch_size)]
    rng.shuffle(batches)
    return batches


def in_order(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """All examples, shortest first, in batches of at most `budget` padded steps, or of one."""
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if batch and (len(batch) + 1) * lengths[i] > budget:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch
