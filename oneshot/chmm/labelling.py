"""`oneshot chmm label`: a trained CHMM or tagger on sentences, one JSON object a line.

{"tokens": [...], "labels": ["O", "B-x", ...], "spans": [[start, end, type], ...],
 "posteriors": [[p(O), p(B-x), ...], ...]}
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from oneshot.chmm import data
from oneshot.chmm.batches import Examples
from oneshot.chmm.checkpoint import INFO, SavedModel, load_model
from oneshot.chmm.config import TaggerConfig
from oneshot.chmm.data import Form, Sentence
from oneshot.chmm.embeddings import embed
from oneshot.chmm.labels import Ids, LabelSpace
from oneshot.chmm.model import Predictions
from oneshot.chmm.prepare import observe
from oneshot.chmm.tagger import Tagger, hard_labels
from oneshot.chmm.tagger_source import TAGGER_SOURCE, with_tagger


def label(
    model: Path,
    dataset: Path,
    split: str,
    output: Path,
    *,
    form: Form = "auto",
    constrained: bool = True,
) -> int:
    """Labels a split and writes the lines above.

    Args:
        model: A CHMM folder (of `fit` or `alt`) or a tagger folder (of `alt`).
        dataset: Folder of weak labels, as for training; gold labels are not needed.
        split: train, valid or test.
        output: The file; replaced in one move.
        form: Format of the data set.
        constrained: Only label sequences that BIO allows (CHMM). A tagger's are always reduced to
            whole entities.

    Returns:
        Number of sentences.

    Raises:
        CheckpointError, FileNotFoundError, ValueError: No such model or data, or sources that are
            not those of the model.
    """
    if (model / INFO).exists():
        saved = load_model(model)
        names = [name for name in saved.sources if name != TAGGER_SOURCE]
        told = data.load(
            dataset, form=form, sources=names, entity_types=saved.model.labels.entity_types
        )
        labels, sentences = saved.model.labels, told.split(split)
        found = _by_chmm(saved, model, sentences, constrained)
        ids, posteriors = found.labels, found.posteriors
    else:
        tagger = _tagger(model)
        labels = tagger.labels
        told = data.load(dataset, form=form, sources="all", entity_types=labels.entity_types)
        sentences = told.split(split)
        posteriors = tagger.predict([s.tokens for s in sentences])
        ids = hard_labels(labels, posteriors)
    _write(output, labels, sentences, ids, posteriors)
    return len(sentences)


def _by_chmm(
    saved: SavedModel, folder: Path, sentences: Sequence[Sentence], constrained: bool
) -> Predictions:
    labels = saved.model.labels
    words = [s.tokens for s in sentences]
    embeddings = embed(words, saved.encoder.source, saved.encoder.max_pieces)
    examples = Examples(sentences, embeddings, observe(sentences, len(labels), saved.data))
    if TAGGER_SOURCE in saved.sources:
        probabilities = _tagger(folder / TAGGER_SOURCE).predict(words)
        examples = with_tagger(examples, probabilities, labels, saved.data, saved.soft)
    return saved.model.predict(examples, constrained=constrained)


def _tagger(folder: Path) -> Tagger:
    """A tagger with the label space that its config tells."""
    path = folder / "config.json"
    if not path.exists():
        raise FileNotFoundError(f"{folder}: neither a CHMM ({INFO}) nor a tagger (config.json)")
    config = json.loads(path.read_text(encoding="utf-8"))
    names = [name for _, name in sorted(config["id2label"].items(), key=lambda x: int(x[0]))]
    labels = LabelSpace(tuple(name[2:] for name in names[1::2]))
    if list(labels.names) != names:
        raise ValueError(f"{folder}: expected the labels O, B-x, I-x, ..., got {names}")
    longest = config.get("max_position_embeddings", 512)
    return Tagger.load(str(folder), labels, TaggerConfig(max_pieces=longest))


def _write(
    output: Path,
    labels: LabelSpace,
    sentences: Sequence[Sentence],
    ids: Sequence[Ids],
    posteriors: Sequence[npt.NDArray[np.float32]],
) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(f"{output.name}.writing")
    with temporary.open("w", encoding="utf-8") as file:
        for sentence, found, p in zip(sentences, ids, posteriors, strict=True):
            line = {
                "tokens": sentence.tokens,
                "labels": labels.to_names(found),
                "spans": labels.to_spans(found),
                "posteriors": [[round(float(x), 6) for x in row] for row in p],
            }
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    temporary.replace(output)
