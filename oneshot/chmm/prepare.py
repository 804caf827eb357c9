"""From a config to what the models see: sentences, embeddings, observations by split."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor

from oneshot.chmm import data
from oneshot.chmm.config import ChmmConfig, DataConfig
from oneshot.chmm.dataset import Sentence, WeakDataset
from oneshot.chmm.device import device_of
from oneshot.chmm.encoder.embeddings import embed
from oneshot.chmm.label_model.batches import Examples
from oneshot.chmm.label_model.observations import observations
from oneshot.chmm.label_model.training import resolve_selection, why_not_gold

HELD_OUT = 10  # without a split valid, one sentence of so many of train takes its place


@dataclass(frozen=True)
class Prepared:
    """A data set with the examples of each of its splits."""

    dataset: WeakDataset
    examples: Mapping[str, Examples]


def prepare(config: ChmmConfig, dataset: WeakDataset | None = None) -> Prepared:
    """Reads the data (unless given), embeds the words and applies the abstention rule.

    Raises:
        ValueError: Malformed data, or data that the config cannot be run on.
    """
    dataset = read_checked(config) if dataset is None else dataset
    examples = {}
    for split, sentences in dataset.splits.items():
        embeddings = embed(
            [s.tokens for s in sentences],
            config.encoder.source,
            config.encoder.max_subwords,
            device=device_of(config.run.device),
            dtype=config.encoder.dtype,
        )
        observed = observe(sentences, len(dataset.labels), config.data)
        examples[split] = Examples(sentences, embeddings, observed)
    return Prepared(dataset, examples)


@contextmanager
def loading_bars(shown: bool) -> Iterator[None]:
    """Hides transformers' bars of weights that are read and written, unless `shown`."""
    from transformers.utils import logging

    if shown or not logging.is_progress_bar_enabled():
        yield
        return
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.enable_progress_bar()


def read_checked(config: ChmmConfig) -> WeakDataset:
    """The data set with splits train and valid, after all that can be wrong with it is seen.

    Raises:
        ValueError: Malformed data, no split train, or no gold labels to select by where the config
            asks for them.
    """
    dataset = with_valid(read(config.data), config.data.path)
    valid = dataset.split("valid")
    selection = resolve_selection(config.training, valid)
    lacking = why_not_gold(valid)
    notes = [*dataset.notes]
    if config.training.selection == "auto" and lacking is not None:
        notes.append(f"valid cannot be scored by gold labels ({lacking}): {selection} selects")
    for split in dataset.splits:
        having = sum(s.gold is not None for s in dataset.split(split))
        if 0 < having < len(dataset.split(split)):
            notes.append(
                f"split {split!r} is not scored: {having} of {len(dataset.split(split))} sentences "
                "have gold labels"
            )
    return dataclasses.replace(dataset, notes=tuple(notes))


def with_valid(dataset: WeakDataset, path: str) -> WeakDataset:
    """The data set; without a split valid, every tenth sentence of train is moved there.

    Of fewer than ten sentences it is the last one; a single sentence is in both.

    Raises:
        ValueError: No split train.
    """
    if "train" not in dataset.splits:
        raise ValueError(
            f"data.path: {path} has no file of the split 'train', only "
            f"{', '.join(dataset.splits)}; give the sentences to learn from that name"
        )
    if "valid" in dataset.splits:
        return dataset
    everything = dataset.split("train")
    held_out = everything[HELD_OUT - 1 :: HELD_OUT] or everything[-1:]
    if len(everything) < HELD_OUT:
        left = everything[:-1] or everything
    else:
        left = tuple(s for i, s in enumerate(everything, start=1) if i % HELD_OUT)
    splits = {**dataset.splits, "train": left, "valid": held_out}
    note = f"no split 'valid': {len(held_out)} of {len(everything)} sentences of train are held out"
    return dataclasses.replace(dataset, splits=splits, notes=(*dataset.notes, note))


def read(config: DataConfig) -> WeakDataset:
    """The data set with the sources that the config names."""
    return data.load(
        config.path,
        format=config.format,
        sources=config.sources,
        entity_types=config.entity_types,
        stray_inside=config.stray_inside,
        overlaps=config.overlaps,
        empty=config.empty,
        o_is_silence=config.o_is_silence,
    )


def observe(sentences: Sequence[Sentence], n_labels: int, config: DataConfig) -> list[Tensor]:
    """Observations [T, S, L] by the config's rule."""
    return observations(sentences, n_labels, config.rule)
