"""A token classifier on any BERT: the second half of CHMM-ALT.

The first subword of a word carries the word's label; the other subwords count for nothing.
Documents that do not fit into the encoder are cut (`encoder.subwords`) and put together again.

What it leaves out: several devices, gradient checkpointing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from oneshot import models
from oneshot.chmm.config import Precision, TaggerConfig
from oneshot.chmm.device import autocast
from oneshot.chmm.encoder.subwords import Chunk, SubwordCutter, collate, longest_input
from oneshot.chmm.label_model.batches import in_order
from oneshot.chmm.labels import Ids, LabelSpace

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Documents = Sequence[Sequence[str]]

OPTIONS = "tagger.json"  # in the folder of a saved tagger: max_subwords, dtype
PREDICTION_SUBWORDS = 4096  # padded subwords of a batch that needs no gradient


class Tagger:
    """A model with its tokenizer and label space.

    Args:
        model: A token classifier with len(labels) outputs.
        tokenizer: Its tokenizer.
        labels: The label space.
        max_subwords: Subwords of one input, special tokens included.
        dtype: "mixed" runs the matrix products in bfloat16 (autocast).
        device: Where the model computes.

    Raises:
        ValueError: `max_subwords` is more than the model can take.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        labels: LabelSpace,
        *,
        max_subwords: int = 512,
        dtype: Precision = "float32",
        device: torch.device | str = "cpu",
    ) -> None:
        module: torch.nn.Module = model
        module.to(device)
        self.model, self.tokenizer, self.labels = model, tokenizer, labels
        longest = longest_input(model)
        if longest is not None and max_subwords > longest:
            raise ValueError(f"tagger.max_subwords must be at most {longest}, got {max_subwords}")
        self.max_subwords = max_subwords
        self._cutter = SubwordCutter(tokenizer, max_subwords)
        self._dtype: Precision = dtype
        self._pad = tokenizer.pad_token_id or 0

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self.model.device

    @classmethod
    def load(
        cls,
        source: str,
        labels: LabelSpace,
        config: TaggerConfig,
        device: torch.device | str = "cpu",
    ) -> Tagger:
        """Any encoder, or a tagger that was saved; a new head comes from torch's generator.

        Raises:
            ValueError: `config.frozen_layers` does not fit the model.
            FileNotFoundError, ModuleNotFoundError, OSError: As `models.load_tagger`.
        """
        model = models.load_tagger(source, labels.names)
        if config.frozen_layers is not None:
            _freeze(model, config.frozen_layers)
        return cls(
            model,
            models.load_tokenizer(source),
            labels,
            max_subwords=config.max_subwords,
            dtype=config.dtype,
            device=device,
        )

    @classmethod
    def open(cls, folder: Path, device: torch.device | str = "cpu") -> Tagger:
        """A saved tagger, with the label space and the options that it was saved with.

        A token classifier from elsewhere is one too, if its labels are O, B-x, I-x, ...

        Raises:
            FileNotFoundError: The folder has no config.json.
            ValueError: Other labels.
        """
        path = folder / "config.json"
        if not path.exists():
            raise FileNotFoundError(f"{folder}: no tagger (it has no config.json)")
        names = json.loads(path.read_text(encoding="utf-8")).get("id2label", {})
        names = [name for _, name in sorted(names.items(), key=lambda x: int(x[0]))]
        types = tuple(dict.fromkeys(name[2:] for name in names[1::2]))
        if not types or list(LabelSpace(types).names) != names:
            raise ValueError(f"{folder}: expected the labels O, B-x, I-x, ..., got {names}")
        labels = LabelSpace(types)
        model, tokenizer = (
            models.load_tagger(str(folder), labels.names),
            models.load_tokenizer(str(folder)),
        )
        options: dict[str, Any] = {
            "max_subwords": longest_input(model) or TaggerConfig.max_subwords
        }
        if (folder / OPTIONS).exists():
            options = json.loads((folder / OPTIONS).read_text(encoding="utf-8"))
        return cls(model, tokenizer, labels, **options, device=device)

    def save(self, folder: Path) -> None:
        """Writes a folder in the Hugging Face layout, and the options of inputs beside it."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        options = {"max_subwords": self.max_subwords, "dtype": self._dtype}
        (folder / OPTIONS).write_text(json.dumps(options) + "\n", encoding="utf-8")

    def chunks(self, documents: Documents) -> list[Chunk]:
        """Inputs of the model."""
        return self._cutter.chunks(documents)

    def log_probabilities(self, chunks: Sequence[Chunk]) -> Tensor:
        """[words, L] of all the words of some chunks, float32."""
        batch = collate(chunks, self._pad).to(self.device)
        with autocast(self.device, self._dtype):
            logits = self.model(input_ids=batch.ids, attention_mask=batch.mask).logits
        return logits.flatten(0, 1)[batch.heads].float().log_softmax(-1)

    def predict(self, documents: Documents) -> list[npt.NDArray[np.float32]]:
        """Label probabilities [T, L] of each document."""
        self.model.eval()
        chunks = self.chunks(documents)
        result = [np.empty((len(document), len(self.labels)), np.float32) for document in documents]
        with torch.inference_mode():
            for rows in in_order([len(chunk.ids) for chunk in chunks], PREDICTION_SUBWORDS):
                batch = [chunks[i] for i in rows]
                probabilities = self.log_probabilities(batch).exp().cpu()
                sizes = [len(chunk.heads) for chunk in batch]
                for chunk, part in zip(batch, probabilities.split(sizes), strict=True):
                    result[chunk.document][chunk.words] = part.numpy()
        return result


def hard_labels(labels: LabelSpace, probabilities: Sequence[npt.NDArray[np.floating]]) -> list[Ids]:
    """Most probable labels, reduced to whole entities: an I- that continues none becomes O."""
    result = []
    for p in probabilities:
        ids = p.argmax(-1).astype(np.int64)
        result.append(labels.from_spans(labels.to_spans(ids), len(ids)))
    return result


def _freeze(model: PreTrainedModel, layers: int) -> None:
    """Excludes the embeddings and the first layers from training."""
    base = model.base_model
    stack = getattr(getattr(base, "encoder", None), "layer", None)
    if stack is None or not hasattr(base, "embeddings") or layers > len(stack):
        known = "no layers that are known" if stack is None else f"{len(stack)} layers"
        raise ValueError(f"tagger.frozen_layers: got {layers}, but the model has {known}")
    for part in (base.embeddings, *stack[:layers]):
        part.requires_grad_(False)
