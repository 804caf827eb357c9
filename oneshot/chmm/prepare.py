"""From a config to what the models see: sentences, embeddings, observations by split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from oneshot.chmm import data
from oneshot.chmm.batches import Examples
from oneshot.chmm.config import ChmmConfig, DataConfig
from oneshot.chmm.data import Sentence, WeakDataset
from oneshot.chmm.embeddings import embed
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
