"""`oneshot chmm label`: a trained CHMM or tagger on sentences, one JSON object per line.

{"id": "17", "tokens": [...], "labels": ["O", "B-x", ...], "spans": [[start, end, type], ...],
 "label_names": ["O", "B-x", ...], "posteriors": [[p(O), p(B-x), ...], ...]}

`id` is the name of the record in its file, `tokens` are the file's own. `posteriors` has a row for
each token and a column for each of `label_names`, with seven significant digits.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from oneshot.chmm import data
from oneshot.chmm.checkpoint import INFO, SavedModel, load_model
from oneshot.chmm.dataset import TAGGER_SOURCE, Sentence, WeakDataset
from oneshot.chmm.device import device_of
from oneshot.chmm.encoder.embeddings import embed
from oneshot.chmm.label_model.batches import Examples
from oneshot.chmm.labels import Ids, LabelSpace
from oneshot.chmm.model import Predictions
from oneshot.chmm.prepare import observe
from oneshot.chmm.readers import files
from oneshot.chmm.readers.registry import Format
from oneshot.chmm.tagger.model import Tagger, hard_labels
from oneshot.chmm.tagger.source import with_tagger

BLANKS = re.compile("[ \t]+")
# Line ends for some readers that JSON may leave as they are.
SEPARATORS = {"\x85": "\\u0085", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def label(
    model: Path,
    dataset: str | Path,
    split: str | None,
    output: Path,
    *,
    format: Format = "auto",
    device: str = "auto",
    constrained: bool = True,
    say: Callable[[str], object] = lambda _: None,
) -> int:
    """Labels a split, or a text, and writes the lines above.

    Args:
        model: A CHMM folder (of `fit` or `alt`) or a tagger folder (of `alt`).
        dataset: Folder of weak labels, read as for training; gold labels are not needed, and a
            tagger does not look at the votes. For a tagger also a text file: a sentence per line,
            tokens divided by blanks or tabs.
        split: train, valid or test. Default: test, or the only split there is.
        output: The file; replaced in one move.
        format: Format of the data set.
        device: Where the model computes, as `run.device`.
        constrained: Only label sequences that BIO allows (CHMM). A tagger's are always reduced to
            whole entities.
        say: Receives what was assumed about the data.

    Returns:
        Number of sentences.

    Raises:
        CheckpointError, FileNotFoundError, ValueError: No such model, data or device, or sources
            that are not those of the model.
    """
    where = device_of(device)
    dataset = Path(dataset)
    if (model / INFO).exists():
        if dataset.is_file():
            raise ValueError(
                f"{dataset}: a CHMM needs the votes of its sources, expected a folder of weak "
                "labels; text alone can be labelled with a tagger"
            )
        saved = load_model(model)
        labels = saved.model.labels
        sentences = _chmm_sentences(saved, dataset, split, format, say)
        predicted = _by_chmm(saved, model, sentences, constrained, where)
        _write(output, labels, sentences, predicted.labels, predicted.posteriors)
        return len(sentences)
    if not (model / "config.json").exists():
        raise FileNotFoundError(f"{model}: neither a CHMM ({INFO}) nor a tagger (config.json)")
    tagger = Tagger.open(model, where)
    sentences = _tagger_sentences(tagger, dataset, split, format, say)
    posteriors = tagger.predict([s.tokens for s in sentences])
    _write(output, tagger.labels, sentences, hard_labels(tagger.labels, posteriors), posteriors)
    return len(sentences)


def _chmm_sentences(
    saved: SavedModel, folder: Path, split: str | None, format: Format, say: Callable[[str], object]
) -> Sequence[Sentence]:
    dataset = data.load(
        folder,
        format=format,
        sources=[name for name in saved.sources if name != TAGGER_SOURCE],
        entity_types=saved.model.labels.entity_types,
        stray_inside=saved.data.stray_inside,
        overlaps=saved.data.overlaps,
        empty=saved.data.empty,
        o_is_silence=saved.data.o_is_silence,
    )
    return _chosen(dataset, split, say)


def _tagger_sentences(
    tagger: Tagger, path: Path, split: str | None, format: Format, say: Callable[[str], object]
) -> Sequence[Sentence]:
    """Sentences of a text, or of a data set, whose votes play no part: nothing in them is wrong."""
    if path.is_file():
        return read_text(path)
    dataset = data.load(
        path,
        format=format,
        sources="all",
        entity_types=tagger.labels.entity_types,
        stray_inside="begin",
        overlaps="first",
        empty="skip",
    )
    return _chosen(dataset, split, say)


def _chosen(
    dataset: WeakDataset, split: str | None, say: Callable[[str], object]
) -> Sequence[Sentence]:
    if split is None:
        split = next(iter(dataset.splits)) if len(dataset.splits) == 1 else "test"
    for note in (*dataset.notes, f"split {split!r}"):
        say(note)
    return dataset.split(split)


def read_text(path: Path) -> list[Sentence]:
    """The sentences of a text file, one per line; the id is the number of the line, from 1.

    Raises:
        ValueError: No UTF-8 text, or no token in it.
    """
    sentences = []
    for number, line in enumerate(files.read_text(path).split("\n"), start=1):
        if tokens := tuple(x for x in BLANKS.split(line) if x):
            votes = np.empty((len(tokens), 0), np.int64)
            sentences.append(Sentence(tokens, votes, id=str(number)))
    if not sentences:
        raise ValueError(f"{path}: no token in it")
    return sentences


def _by_chmm(
    saved: SavedModel,
    folder: Path,
    sentences: Sequence[Sentence],
    constrained: bool,
    device: torch.device,
) -> Predictions:
    labels = saved.model.labels
    words = [s.tokens for s in sentences]
    embeddings = embed(
        words,
        saved.encoder.source,
        saved.encoder.max_subwords,
        device=device,
        dtype=saved.encoder.dtype,
    )
    examples = Examples(sentences, embeddings, observe(sentences, len(labels), saved.data))
    if TAGGER_SOURCE in saved.sources:
        probabilities = Tagger.open(folder / TAGGER_SOURCE, device).predict(words)
        examples = with_tagger(examples, probabilities, labels, saved.data, saved.soft)
    return saved.model.to(device).predict(examples, constrained=constrained)


def _write(
    output: Path,
    labels: LabelSpace,
    sentences: Sequence[Sentence],
    ids: Sequence[Ids],
    posteriors: Sequence[npt.NDArray[np.floating]],
) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(f"{output.name}.writing")
    with temporary.open("w", encoding="utf-8") as file:
        for sentence, label_ids, p in zip(sentences, ids, posteriors, strict=True):
            line = {
                "id": sentence.id,
                "tokens": sentence.tokens,
                "labels": labels.to_names(label_ids),
                "spans": labels.to_spans(label_ids),
                "label_names": labels.names,
                "posteriors": [[float(f"{x:.7g}") for x in row] for row in p],
            }
            text = json.dumps(line, ensure_ascii=False)
            for character, escaped in SEPARATORS.items():
                text = text.replace(character, escaped)
            file.write(text + "\n")
    temporary.replace(output)
