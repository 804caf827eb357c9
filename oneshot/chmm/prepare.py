"""From a config to what the models see: sentences, embeddings, observations by split."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from oneshot.chmm import data
from oneshot.chmm.batches import Examples
from oneshot.chmm.config import ChmmConfig, DataConfig
from oneshot.chmm.data import Sentence, WeakDataset
from oneshot.chmm.embeddings import embed
from oneshot.chmm.labels import Ids
from oneshot.chmm.observations import observations


@dataclass(frozen=True)
class Prepared:
    """A data set with the examples of each of its splits."""

    dataset: WeakDataset
    examples: Mapping[str, Examples]


def prepare(config: ChmmConfig, dataset: WeakDataset | None = None) -> Prepared:
    """Reads the data (unless given), embeds the words and applies the abstention rule.

    Raises:
        ValueError: Malformed data, or no split train or valid.
    """
    dataset = dataset or read(config.data)
    for split in ("train", "valid"):
        dataset.split(split)
    examples = {}
    for split, sentences in dataset.splits.items():
        embeddings = embed(
            [s.tokens for s in sentences], config.encoder.source, config.encoder.max_pieces
        )
        observed = observe(sentences, len(dataset.labels), config.data)
        examples[split] = Examples(sentences, embeddings, observed)
    return Prepared(dataset, examples)


def read(config: DataConfig) -> WeakDataset:
    """The data set with the sources that the config names."""
    return data.load(
        config.path,
        form=config.form,
        sources=config.sources,
        entity_types=config.entity_types,
        stray_inside=config.stray_inside,
    )


def observe(sentences: Sequence[Sentence], n_labels: int, config: DataConfig) -> list[Tensor]:
    """Observations [T, S, L] by the config's rule."""
    return observations(sentences, n_labels, config.rule, o_is_silence=config.o_is_silence)


def with_source(
    examples: Examples,
    hard: Sequence[Ids],
    soft: Sequence[np.ndarray] | None,
    n_labels: int,
    config: DataConfig,
) -> Examples:
    """The examples with one more source, its votes in the last column.

    Args:
        examples: Without it.
        hard: Its label ids [T]; they take part in the abstention rule like any other votes.
        soft: Its distributions [T, L]. They replace its one-hot rows; rows that the rule makes
            (almost) silent stay so.
        n_labels: L.
        config: The rule.
    """
    sentences = [
        dataclasses.replace(s, votes=np.column_stack([s.votes, ids]))
        for s, ids in zip(examples.sentences, hard, strict=True)
    ]
    observed = observe(sentences, n_labels, config)
    if soft is not None:
        for x, p in zip(observed, soft, strict=True):
            spoken = x[:, -1].amax(-1, keepdim=True) == 1
            x[:, -1] = torch.where(spoken, torch.from_numpy(p).to(x), x[:, -1])
    return Examples(sentences, examples.embeddings, observed)
