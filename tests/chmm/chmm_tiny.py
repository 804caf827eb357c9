"""A tiny random BERT that reads letters, and a small set of sentences for it."""

import json
import string
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from oneshot.chmm.config import ChmmConfig
from oneshot.training.config import load

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Every letter is a piece of its own."""
    letters = string.ascii_lowercase + "."
    symbols = [*SPECIAL, *letters, *(f"##{x}" for x in letters)]
    table = Tokenizer(models.WordPiece({s: i for i, s in enumerate(symbols)}, unk_token="[UNK]"))
    table.normalizer = normalizers.BertNormalizer()
    table.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    table.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=table,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=512,
    )


def write_bert(folder: Path, *, layers: int = 2, positions: int = 64) -> str:
    torch.manual_seed(5)
    tokenizer = make_tokenizer()
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=positions,
        pad_token_id=0,
        initializer_range=0.3,
    )
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


# Colours follow "in"; a source knows the first half of them, another takes "in" for the beginning.
COLOURS = ["red", "blue", "green", "grey", "pink", "white"]
SOURCES = ["lexicon", "pattern", "noise"]


def write_data(folder: Path, train: int = 24, valid: int = 8, test: int = 8) -> str:
    """A data set in the CHMM-ALT format: sentences such as "a car in dark red ."."""
    generator = torch.Generator().manual_seed(3)

    def draw(n: int) -> int:
        return int(torch.randint(n, (1,), generator=generator))

    folder.mkdir(parents=True)
    meta = {"lf": SOURCES, "lf_rec": SOURCES, "entity_types": ["COLOUR"], "num_lf": len(SOURCES)}
    (folder / "meta.json").write_text(json.dumps(meta))
    for split, size in {"train": train, "valid": valid, "test": test}.items():
        records = {}
        for number in range(size):
            colour = COLOURS[draw(len(COLOURS))]
            before = [["a", "the", "one"][draw(3)], ["car", "cat", "hat", "boat"][draw(4)]]
            phrase = ["dark", colour] if draw(2) else [colour]
            text = [*before, "in", *phrase, *(["and", "no", "more"] * draw(3)), "."]
            span = [3, 3 + len(phrase), "COLOUR"]
            known = COLOURS.index(colour) < 3
            records[str(number)] = {
                "data": {"text": text},
                "label": [span],
                "weak_labels": [
                    [[span[1] - 1, span[1], "COLOUR"]] if known else [],
                    [span] if draw(4) else [],
                    [[1, 2, "COLOUR"]] if draw(5) == 0 else [],
                ],
            }
        (folder / f"{split}.json").write_text(json.dumps(records))
    return str(folder)


def write_all(folder: Path) -> None:
    """`folder/bert` and `folder/data`."""
    write_bert(folder / "bert")
    write_data(folder / "data")


def config(folder: Path, output: Path, *overrides: str) -> ChmmConfig:
    """A run of a few epochs on `write_all`'s folder."""
    return load(
        ChmmConfig,
        None,
        [
            f"--data.path={folder / 'data'}",
            f"--encoder.source={folder / 'bert'}",
            "--encoder.max_subwords=64",
            f"--run.output={output}",
            "--run.device=cpu",
            "--run.threads=1",
            "--run.progress=false",
            "--training.epochs=4",
            "--training.batch_size=8",
            "--training.nn_lr=0.01",
            "--tagger.epochs=3",
            "--tagger.batch_size=8",
            "--tagger.lr=0.01",
            "--tagger.max_subwords=24",
            "--alternate.loops=2",
            "--alternate.epochs=2",
            "--alternate.one_update_per_epoch=false",
            *overrides,
        ],
    )
