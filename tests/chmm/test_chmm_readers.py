"""WRENCH's JSON, CoNLL columns and spaCy's DocBin: what is read, and what is not."""

import json

import pytest

from oneshot.chmm.data import load
from oneshot.chmm.labels import ABSTAIN
from oneshot.chmm.readers.registry import detect


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
    # The format has one sign for O and silence, as spans have none for either.
    assert sentence.votes.tolist() == [[-1, 1], [-1, 2], [3, -1]]
    assert sentence.id == "1"
    said = load(tmp_path, o_is_silence=False).split("train")[1]
    assert said.votes.tolist() == [[0, 1], [0, 2], [3, 0]]
    assert sentence.gold.tolist() == [1, 2, 0]
    meta = {"lf": ["a", "b"], "lf_rec": ["b"], "entity_types": ["Y", "X"]}
    chosen = load(write(tmp_path, meta, train=[wrench_record()]))
    assert chosen.sources == ("b",)
    assert chosen.split("train")[0].votes.tolist() == [[3], [4], [ABSTAIN]]


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


def test_a_sign_for_silence_makes_o_a_vote(tmp_path):
    weak = (("O", "B-X"), ("-", "I-X"), ("B-Y", "O"))
    dataset = load(write(tmp_path, None, train=[wrench_record(weak=weak)]))
    assert not dataset.o_is_silence
    assert dataset.split("train")[0].votes.tolist() == [[0, 1], [-1, 2], [3, 0]]
    silent = load(tmp_path, o_is_silence=True)
    assert silent.split("train")[0].votes.tolist() == [[-1, 1], [-1, 2], [3, -1]]


def test_both_kinds_of_json_are_the_same_data(tmp_path):
    """The same votes as spans and as names: every baseline sees the same set."""
    (tmp_path / "spans").mkdir()
    (tmp_path / "names").mkdir()
    meta = {"lf": ["a", "b"], "entity_types": ["X", "Y"]}
    spans = {"data": {"text": ["a", "b", "c"]}, "label": [[0, 2, "X"]],
             "weak_labels": [[[2, 3, "Y"]], [[0, 2, "X"]]]}  # fmt: skip
    one = load(write(tmp_path / "spans", meta, train=[spans]))
    other = load(write(tmp_path / "names", meta, train=[wrench_record()]))
    assert one.digest() == other.digest()
    assert any("O is read as silence" in note for note in other.notes)


@pytest.mark.parametrize(
    ("record", "format"),
    [
        ({"weak_labels": [["O", "B-X"]], "label": None}, "wrench"),
        ({"weak_labels": [["O", "B-X"]]}, "wrench"),
        ({"weak_labels": [["-", "-"]], "label": []}, "wrench"),
        ({"weak_labels": [[[0, 1, "X"]], []]}, "chmm_json"),
        ({"weak_labels": [[], [[0, 1, "X"]]]}, "chmm_json"),
        ({"weak_labels": [[], []], "label": [[0, 1, "X"]]}, "chmm_json"),
    ],
)
def test_json_without_gold_is_told_apart_by_its_votes(tmp_path, record, format):
    """A first record without a vote or a label decides nothing."""
    silent = {"data": {"text": ["a"]}, "weak_labels": [[], []]}
    write(tmp_path, None, train=[silent, {"data": {"text": ["a"]}, **record}])
    assert detect(tmp_path) == format


@pytest.mark.parametrize("bom", ["", "\ufeff"])
def test_byte_order_mark_and_separators_inside_tokens(tmp_path, bom):
    """Only blanks and tabs divide columns, only line ends divide lines."""
    words = ["10\u00a0000", "می\u200cخواهم", "a\u2028b", "c\u0085d", "\u3000"]
    text = bom + "# token one two gold\n" + "".join(f"{w}  B-X - O\n" for w in words)
    (tmp_path / "train.txt").write_text(text, encoding="utf-8")
    dataset = load(tmp_path)
    assert dataset.sources == ("one", "two")
    assert dataset.split("train")[0].tokens == tuple(words)
    assert any("divided by white space" in note for note in dataset.notes)
    (tmp_path / "train.txt").unlink()
    record = {"data": {"text": words}, "weak_labels": [[[0, 1, "X"]]]}
    (tmp_path / "meta.json").write_text(json.dumps({"lf": ["a"], "entity_types": ["X"]}))
    text = bom + json.dumps({"k": record}, ensure_ascii=False)
    (tmp_path / "train.json").write_text(text, encoding="utf-8")
    (sentence,) = load(tmp_path).split("train")
    assert (sentence.tokens, sentence.id) == (tuple(words), "k")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("validation.json", r"validation\.json: rename it to valid\.json"),
        ("dev.json", r"dev\.json: rename it to valid\.json"),
        ("VAL.json", r"rename it to valid\.json"),
        ("validation.jsonl", r"rename it to valid\.jsonl"),
    ],
)
def test_splits_under_other_names_are_not_passed_over(tmp_path, name, message):
    write(tmp_path, None, train=[wrench_record()])
    (tmp_path / name).write_text("{}")
    with pytest.raises(ValueError, match=message):
        load(tmp_path)


def test_files_that_are_not_read_are_named(tmp_path):
    (tmp_path / "train.jsonl").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"found none; there is train\.jsonl"):
        load(tmp_path)
    write(tmp_path, None, train=[wrench_record()], valid=[wrench_record()], dev=[wrench_record()])
    notes = load(tmp_path).notes
    assert {"dev.json is no split and is not read", "train.jsonl is no split and is not read"} <= (
        set(notes)
    )
    with pytest.raises(FileNotFoundError, match="expected a folder that holds train, valid, test"):
        load(tmp_path / "train.json")


@pytest.mark.parametrize("name", ["train.json", "train.txt", "train.spacy"])
def test_a_pointer_of_git_lfs_is_named(tmp_path, name):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n"
    (tmp_path / name).write_text(pointer)
    with pytest.raises(ValueError, match=rf"{name}: a pointer of Git LFS.*git lfs pull"):
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
    assert sentence.tokens == ("New York", "")
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

    # spaCy marks tokens that nobody annotated: they are not O.
    for missing in ([first[1:2]], [first[0:1]], [first[1:3]]):
        first.set_ents([], missing=missing, default="outside")
        DocBin(docs=[first, second]).to_disk(tmp_path / "train.spacy")
        token = missing[0].start
        with pytest.raises(ValueError, match=rf"document 0: ents: token {token}: expected an ann"):
            load(tmp_path)
    first.set_ents([Span(first, 1, 3, "Y")], default="outside")

    first.spans["rules"] = [Span(first, 0, 2, "Y"), Span(first, 1, 3, "X")]
    DocBin(docs=[second, first]).to_disk(tmp_path / "train.spacy")
    with pytest.raises(ValueError, match=r"train\.spacy, document 1: source 'rules': .* overlaps"):
        load(tmp_path)
    (tmp_path / "train.spacy").write_bytes(b"no DocBin")
    with pytest.raises(ValueError, match=r"train\.spacy: not a DocBin file"):
        load(tmp_path)
