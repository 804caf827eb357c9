"""WRENCH's JSON, CoNLL columns and spaCy's DocBin: what is read, and what is not."""

import json

import pytest

from oneshot.chmm.data import ABSTAIN, load


def write(folder, meta=None, **splits):
    if meta is not None:
        (folder / "meta.json").write_text(json.dumps(meta))
    for name, records in splits.items():
        text = json.dumps({str(i): r for i, r in enumerate(records)})
        (folder / f"{name}.json").write_text(text)
    return folder


def wrench_record(label=("B-X", "I-X", "O"), weak=(("O", "B-X"), ("O", "I-X"), ("B-Y", "O"))):
    return {
        "data": {"text": ["a", "b", "c"]},
        "label": list(label),
        "weak_labels": [list(x) for x in weak],
    }


def test_wrench(tmp_path):
    dataset = load(write(tmp_path, None, train=[wrench_record(), wrench_record()]))
    assert dataset.labels.entity_types == ("X", "Y")
    assert dataset.sources == ("source1", "source2")
    sentence = dataset.split("train")[1]
    assert sentence.votes.tolist() == [[0, 1], [0, 2], [3, 0]]  # O is said, not silence
    assert sentence.gold.tolist() == [1, 2, 0]
    meta = {"lf": ["a", "b"], "lf_rec": ["b"], "entity_types": ["Y", "X"]}
    chosen = load(write(tmp_path, meta, train=[wrench_record()]))
    assert chosen.sources == ("b",)
    assert chosen.split("train")[0].votes.tolist() == [[3], [4], [0]]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (wrench_record(weak=(("O", "O"),)), "weak_labels: expected a list for 3 tokens, got 1"),
        (wrench_record(weak=(("O", "O"), ("O",), ("O", "O"))), "token 1: expected a list for 2"),
        (wrench_record(label=("O",)), "label: expected a list for 3 tokens, got 1"),
        (wrench_record(label=("O", "O", "I-X")), "gold: token 2: I-X must .*, got 'O' before it"),
        (wrench_record(label=("O", "O", "X")), "gold: token 2: expected one of O, .*, got 'X'"),
        (wrench_record(label=("O", "-", "O")), "gold: token 1: expected a label, got none"),
        (wrench_record(weak=(("O", "O"), ("O", "I-X"), ("O", "O"))), "source2': token 1: I-X must"),
        (wrench_record(weak=(("O", 1), ("O", "O"), ("O", "O"))), "expected labels as text, got 1"),
    ],
)  # fmt: skip
def test_malformed_wrench_record_is_named(tmp_path, row, message):
    write(tmp_path, None, train=[wrench_record(), row])
    with pytest.raises(ValueError, match=rf"train\.json, record '1'(: |, ).*{message}"):
        load(tmp_path)


def test_stray_inside_can_be_a_begin(tmp_path):
    write(tmp_path, None, train=[wrench_record(label=("I-X", "I-X", "I-Y"))])
    (sentence,) = load(tmp_path, stray_inside="begin").split("train")
    assert sentence.gold.tolist() == [1, 2, 3]


def test_conll(tmp_path):
    (tmp_path / "train.conll").write_text(
        "# token lexicon  rules gold\n-DOCSTART- - - O\n\na B-X - B-X\nb I-X B-Y I-X\n\n\n# O - O\n"
    )
    (tmp_path / "valid.conll").write_text("# token lexicon rules gold\nc - B-Y -\r\nd - O -")
    dataset = load(tmp_path)
    assert dataset.sources == ("lexicon", "rules")
    first, second = dataset.split("train")
    assert first.tokens == ("a", "b")
    assert first.votes.tolist() == [[1, ABSTAIN], [2, 3]]
    assert first.gold.tolist() == [1, 2]
    assert second.tokens == ("#",)
    assert second.votes.tolist() == [[0, ABSTAIN]]
    (third,) = dataset.split("valid")
    assert third.gold is None
    assert third.votes.tolist() == [[ABSTAIN, 3], [ABSTAIN, 0]]


def test_conll_with_tabs_and_without_names(tmp_path):
    (tmp_path / "test.tsv").write_text("New York\t\tB-X\tB-X\n\t-\tI-X\tI-X\n")
    dataset = load(tmp_path)
    assert dataset.sources == ("source1", "source2")
    (sentence,) = dataset.split("test")
    assert sentence.tokens == ("New York", "[UNK]")
    assert sentence.votes.tolist() == [[ABSTAIN, 1], [ABSTAIN, 2]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a O O\n\nb O\n", r"train\.txt, line 3: expected 3 columns \(token, .*, got 2"),
        ("a O\n", r"line 1: expected 3 columns .*, got 2"),
        ("a B-X O\n\nb O O\nc I-X O\n", r"lines 3-4: source 'source1': token 1: I-X must follow"),
        ("# token gold\na O\n", "line 1: expected '# token NAME"),
        ("\n\n", r"train\.txt: no sentence in it"),
        ("a O O\n", "entity_types must be names, at least one"),
    ],
)  # fmt: skip
def test_malformed_conll(tmp_path, text, message):
    (tmp_path / "train.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        load(tmp_path)


def test_conll_files_must_agree(tmp_path):
    (tmp_path / "train.txt").write_text("a B-X O\n")
    (tmp_path / "test.txt").write_text("a B-X O O\n")
    with pytest.raises(
        ValueError, match=r"test\.txt: expected the columns of train\.txt, 1, got 2"
    ):
        load(tmp_path)
    (tmp_path / "test.txt").unlink()
    (tmp_path / "train.tsv").write_text("")
    with pytest.raises(ValueError, match="expected one file train, got"):
        load(tmp_path)


def test_skweak(tmp_path):
    spacy = pytest.importorskip("spacy", reason="needs spaCy")
    from spacy.tokens import Doc, DocBin, Span

    vocab = spacy.blank("xx").vocab
    first = Doc(vocab, ["a", "b", "c"])
    first.spans["lexicon"] = [Span(first, 0, 2, "X")]
    first.spans["rules"] = [Span(first, 2, 3, "Y"), Span(first, 0, 1, "X")]
    first.ents = [Span(first, 1, 3, "Y")]
    second = Doc(vocab, ["d"])
    second.spans["rules"] = []
    DocBin(docs=[first, second]).to_disk(tmp_path / "train.spacy")
    dataset = load(tmp_path)
    assert dataset.sources == ("lexicon", "rules")
    one, two = dataset.split("train")
    assert one.tokens == ("a", "b", "c")
    assert one.votes.tolist() == [[1, 1], [2, ABSTAIN], [ABSTAIN, 3]]
    assert one.gold.tolist() == [0, 3, 4]
    assert two.gold is None
    assert two.votes.tolist() == [[ABSTAIN, ABSTAIN]]

    first.spans["rules"] = [Span(first, 0, 2, "Y"), Span(first, 1, 3, "X")]
    DocBin(docs=[second, first]).to_disk(tmp_path / "train.spacy")
    with pytest.raises(ValueError, match=r"train\.spacy, document 1: source 'rules': .* overlaps"):
        load(tmp_path)
    (tmp_path / "train.spacy").write_bytes(b"no DocBin")
    with pytest.raises(ValueError, match=r"train\.spacy: not a DocBin file"):
        load(tmp_path)
