"""Words to pieces: long documents are cut where they may be, and every word keeps its label."""

import chmm_tiny
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from oneshot.chmm.encoder.subwords import SubwordCutter, collate, longest_input


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return chmm_tiny.make_tokenizer()


def words_of(chunk, documents):
    return documents[chunk.document][chunk.words]


def test_a_short_document_is_one_chunk_as_transformers_would_make_it(tokenizer):
    documents = [["a", "red", "car", "."]]
    (chunk,) = SubwordCutter(tokenizer, 32).chunks(documents)
    expected = tokenizer(documents[0], is_split_into_words=True, padding=False, truncation=False)
    assert chunk.ids == expected["input_ids"]
    first = [expected.word_ids().index(word) for word in range(4)]
    assert chunk.heads == first
    assert (chunk.document, chunk.start) == (0, 0)


def test_cut_after_the_last_sentence_end_that_fits(tokenizer):
    documents = [["ab", ".", "cd", "e", ".", "fgh", "i"]]  # 2+1, 2+1+1, 3+1 pieces
    chunks = SubwordCutter(tokenizer, 2 + 7).chunks(documents)
    assert [words_of(c, documents) for c in chunks] == [
        ["ab", ".", "cd", "e", "."],
        ["fgh", "i"],
    ]
    chunks = SubwordCutter(tokenizer, 2 + 6).chunks(documents)
    assert [words_of(c, documents) for c in chunks] == [["ab", "."], ["cd", "e", "."], ["fgh", "i"]]


def test_cut_between_words_where_no_sentence_ends(tokenizer):
    documents = [["abc"], ["abc", "de", "fg", "h", "."]]
    chunks = SubwordCutter(tokenizer, 2 + 5).chunks(documents)
    assert [words_of(c, documents) for c in chunks] == [
        ["abc"],
        ["abc", "de"],
        ["fg", "h", "."],
    ]
    assert [c.document for c in chunks] == [0, 1, 1]


def test_a_rest_that_is_too_long_with_the_next_word_is_cut_again(tokenizer):
    documents = [["a", ".", "bcd", "efgh"]]
    chunks = SubwordCutter(tokenizer, 2 + 5).chunks(documents)
    assert [words_of(c, documents) for c in chunks] == [["a", "."], ["bcd"], ["efgh"]]


def test_a_word_longer_than_a_chunk_keeps_its_first_pieces(tokenizer):
    documents = [["a", "bcdefghij", "k"]]
    chunks = SubwordCutter(tokenizer, 2 + 4).chunks(documents)
    assert [words_of(c, documents) for c in chunks] == [["a"], ["bcdefghij"], ["k"]]
    assert len(chunks[1].ids) == 6


def test_a_word_that_the_tokenizer_drops_becomes_unknown(tokenizer):
    (chunk,) = SubwordCutter(tokenizer, 9).chunks([["a", "\u200b", "b"]])
    assert chunk.ids == [2, tokenizer.vocab["a"], tokenizer.unk_token_id, tokenizer.vocab["b"], 3]


@pytest.mark.parametrize("room", [1, 2, 3, 7, 30])
def test_chunks_are_a_partition_of_every_document(tokenizer, room):
    generator = torch.Generator().manual_seed(room)
    documents = []
    for length in (1, 7, 63):
        sizes = torch.randint(1, 6, (length,), generator=generator).tolist()
        documents.append(["." if size == 1 else "abcde"[:size] for size in sizes])
    chunks = SubwordCutter(tokenizer, 2 + room).chunks(documents)
    for number, document in enumerate(documents):
        found = [w for c in chunks if c.document == number for w in words_of(c, documents)]
        assert found == document
    assert all(len(c.ids) <= 2 + room and c.heads for c in chunks)


def test_collate_pads_and_points_at_first_pieces(tokenizer):
    documents = [["abc", "d"], ["e"]]
    batch = collate(SubwordCutter(tokenizer, 9).chunks(documents), pad=0)
    assert batch.ids.shape == (2, 6)
    assert batch.mask.tolist() == [[1] * 6, [1, 1, 1, 0, 0, 0]]
    firsts = [tokenizer.vocab[x] for x in ("a", "d", "e")]
    assert batch.ids.flatten()[batch.heads].tolist() == firsts


def test_wrong_input_is_refused(tokenizer):
    with pytest.raises(ValueError, match="max_subwords must be at least 3, got 2"):
        SubwordCutter(tokenizer, 2)
    bare = chmm_tiny.make_tokenizer()
    from tokenizers import processors

    bare.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A [SEP]", special_tokens=[("[SEP]", 3)]
    )
    with pytest.raises(ValueError, match="one token before a text and one behind it"):
        SubwordCutter(bare, 9)


def byte_level(kind):
    """Vocabularies that know where a word begins by the blank before it, or by a sign for it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    table = Tokenizer(models.BPE(unk_token="<unk>"))
    table.pre_tokenizer = {
        "bytes": pre_tokenizers.ByteLevel(add_prefix_space=False),
        "bytes, prefix": pre_tokenizers.ByteLevel(add_prefix_space=True),
        "bytes in a sequence": pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        ),
        "sign": pre_tokenizers.Sequence(
            [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
        ),
    }[kind]
    table.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    table.train_from_iterator(["Anna met Bob and met Anna in Paris ."] * 9, trainer)
    table.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    names = dict(zip(("bos_token", "pad_token", "eos_token", "unk_token"), special, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=table, **names)


@pytest.mark.parametrize("kind", ["bytes", "bytes, prefix", "bytes in a sequence", "sign"])
@pytest.mark.parametrize("text", ["Anna met Bob .", "a", "Paris 2 a b", "é met \u200d in", "( met"])
def test_words_are_the_pieces_of_the_text_they_make(kind, text):
    """RoBERTa and ModernBERT were trained on texts, not on words without blanks."""
    tokenizer = byte_level(kind)
    words = text.split(" ")
    expected = tokenizer(text)["input_ids"]
    (chunk,) = SubwordCutter(tokenizer, 64).chunks([words])
    assert chunk.ids == expected
    assert len(chunk.heads) == len(words)
    cutter = SubwordCutter(tokenizer, 64)
    # A word pieces of which are known from the begin of a text is another one inside it.
    both = cutter.chunks([words, [*words, *words]])
    assert both[1].ids == tokenizer(f"{text} {text}")["input_ids"]
    parts = SubwordCutter(tokenizer, 8).chunks([words * 3])
    assert [i for part in parts for i in part.ids[1:-1]] == (
        tokenizer(" ".join(words * 3))["input_ids"][1:-1]
    )


ENCODERS = {
    "Bert": {},
    "DistilBert": {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 16},
    "Electra": {"embedding_size": 16},
    "Roberta": {},
    "XLMRoberta": {},
    "Camembert": {},
    "MPNet": {},
    "Data2VecText": {},
    "Roberta, pad 3": {"pad_token_id": 3},
}


@pytest.mark.parametrize("name", ENCODERS)
def test_the_longest_input_is_what_the_model_takes(name):
    import transformers

    kind = name.partition(",")[0]
    config = getattr(transformers, f"{kind}Config")(
        **{"vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
           "intermediate_size": 16, "max_position_embeddings": 20, **ENCODERS[name]}
    )  # fmt: skip
    model = getattr(transformers, f"{kind}Model")(config).eval()
    longest = longest_input(model)
    offset = config.pad_token_id + 1 if kind not in ("Bert", "DistilBert", "Electra") else 0
    assert longest == 20 - offset
    ids = torch.full((1, longest + 1), 7)
    assert model(input_ids=ids[:, 1:]).last_hidden_state.shape[1] == longest
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=ids)


def test_relative_positions_have_no_longest_input():
    model = torch.nn.Linear(1, 1)
    for value in (None, -1, 0):
        model.config = type("Config", (), {"max_position_embeddings": value})
        assert longest_input(model) is None
