"""The JSON of CHMM-ALT: what is read, and what a malformed file is told."""

import json

import pytest

from oneshot.chmm.data import load
from oneshot.chmm.labels import ABSTAIN

META = {
    "lf": ["tag-a", "tag-b", "link-c"],
    "lf_rec": ["link-c", "tag-a"],
    "num_lf": 3,
    "entity_types": ["X", "Y"],
    "train_size": 2,
    "test_size ": 1,
    "priors": {"tag-a": {"X": [0.9, 0.5]}, "tag-b": {"Y": [0.7, 1]}},
}


def record(label=((0, 2, "X"),), weak=(((0, 1, "X"), (1, 2, "Y")), (), ((1, 3, "Y"),))):
    return {"data": {"text": ["a", "b", "c"]}, "label": list(label), "weak_labels": list(weak)}


def write(folder, meta=META, **splits):
    if meta is not None:
        (folder / "meta.json").write_text(json.dumps(meta))
    for name, records in (splits or {"train": [record(), record()], "test": [record()]}).items():
        text = json.dumps({str(i): r for i, r in enumerate(records)})
        (folder / f"{name}.json").write_text(text)
    return folder


def test_chmm_json(tmp_path):
    dataset = load(write(tmp_path))
    assert dataset.sources == ("link-c", "tag-a")
    assert {name: len(x) for name, x in dataset.splits.items()} == {"train": 2, "test": 1}
    (sentence,) = dataset.split("test")
    assert sentence.tokens == ("a", "b", "c")
    assert sentence.votes.tolist() == [[ABSTAIN, 1], [3, 3], [4, ABSTAIN]]
    assert sentence.gold.tolist() == [1, 2, 0]
    assert dataset.priors == {"tag-a": {"X": (0.9, 0.5)}}
    everything = load(tmp_path, sources="all")
    assert everything.sources == ("tag-a", "tag-b", "link-c")
    assert everything.split("test")[0].votes[:, 1].tolist() == [ABSTAIN] * 3
    assert load(tmp_path, sources=["tag-b"]).sources == ("tag-b",)
    assert load(tmp_path, entity_types=["Y", "X"]).split("test")[0].gold.tolist() == [3, 4, 0]


def test_arrays_are_read_only(tmp_path):
    (sentence,) = load(write(tmp_path)).split("test")
    with pytest.raises(ValueError, match="read-only"):
        sentence.votes[0, 0] = 1
    with pytest.raises(ValueError, match="read-only"):
        sentence.gold[0] = 1


def test_tokens_stay_as_they_are_and_gold_is_optional(tmp_path):
    row = record()
    row["data"]["text"] = ["a\u200bb", "\u00ad\x07", " "]
    del row["label"]
    (sentence,) = load(
        write(tmp_path, {"lf": META["lf"], "entity_types": ["X", "Y"]}, train=[row])
    ).split("train")
    assert sentence.tokens == ("a\u200bb", "\u00ad\x07", " ")
    assert sentence.gold is None


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (record(weak=((), ())), "weak_labels: expected a list for 3 sources, got 2"),
        (record(weak=((), ((0, 4, "X"),), ())), r"source 'tag-b': span \[0, 4, 'X'\]: exp"),
        (record(weak=((), ((0, 1, "Z"),), ())), "source 'tag-b': span .* a type of X, Y, got 'Z'"),
        (record(weak=((), (), ((0, 2, "X"), (1, 2, "X")))), "source 'link-c': span .* overlaps"),
        (record(weak=((), (), {})), "source 'link-c': expected a list of spans, got {}"),
        (record(label=((2, 1, "X"),)), r"label: span \[2, 1, 'X'\]"),
        ({"data": {"text": ["a"]}, "label": []}, r"no field 'weak_labels'; there is \['data'"),
        ({"data": {}, "weak_labels": []}, "no field 'data.text'"),
        ({"data": [], "weak_labels": []}, "expected an object, got list"),
        ({"data": {"text": []}}, r"expected a list of tokens, at least one, got \[\]"),
        ({"data": {"text": "abc"}}, "expected a list of tokens, at least one, got 'abc'"),
        ({"data": {"text": ["a", 3]}}, "expected tokens that are text, got 3"),
        ([], "expected an object, got list"),
    ],
)  # fmt: skip
def test_malformed_record_is_named(tmp_path, row, message):
    write(tmp_path, train=[record(), row])
    with pytest.raises(ValueError, match=rf"train\.json, record '1': .*{message}"):
        load(tmp_path, format="chmm_json")


def test_empty_documents_and_overlapping_spans_can_be_left_out(tmp_path):
    spans = ((0, 1, "X"), (0, 2, "Y"), (1, 3, "Y"), (0, 2, "Y"))
    empty = {"data": {"text": []}, "weak_labels": [[], [], []], "label": []}
    write(tmp_path, train=[empty, record(weak=(spans, (), ()))])
    with pytest.raises(ValueError, match=r"record '0': .*data\.empty: skip"):
        load(tmp_path)
    with pytest.raises(ValueError, match=r"source 'tag-a': .*data\.overlaps: first or longest"):
        load(tmp_path, empty="skip")
    expected = {"first": [1, 3, 4], "longest": [3, 4, ABSTAIN]}
    for overlaps, votes in expected.items():
        dataset = load(tmp_path, empty="skip", overlaps=overlaps, sources=["tag-a"])
        (sentence,) = dataset.split("train")
        assert sentence.votes[:, 0].tolist() == votes
        assert sentence.id == "1"  # as in the file, so that outputs find their document again
        left_out = f"source 'tag-a': spans that overlap the {overlaps} one, left out: "
        assert f"{left_out}{4 - len({(v + 1) // 2 for v in votes if v > 0})}" in dataset.notes
        assert "documents without a token, left out: 1" in dataset.notes
    write(tmp_path, train=[record(label=((0, 2, "X"), (1, 3, "X")))] * 2)
    with pytest.raises(ValueError, match=r"label: span .* overlaps"):
        load(tmp_path, overlaps="first")
    write(tmp_path, META | {"train_size": 1}, train=[empty])
    with pytest.raises(ValueError, match="split 'train' has no sentence"):
        load(tmp_path, empty="skip")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lf": None}, "lf must be a list of names, got None"),
        ({"lf": ["a", "a", "b"], "priors": None}, "sources must be different names"),
        ({"lf_rec": ["tag-z"]}, "no source 'tag-z'; the data set has tag-a, tag-b, link-c"),
        ({"num_lf": 4}, "num_lf: meta.json says 4, but there are 3"),
        ({"test_size ": 2}, r"test_size: meta.json says 2, but there are 1; .*delete test_size"),
        ({"entity_types": []}, "entity_types must be names"),
        ({"priors": {"tag-z": {}}}, "priors: 'tag-z' is no source of lf"),
        ({"priors": {"tag-a": {"Z": [1, 1]}}}, "priors: 'tag-a': 'Z' is no entity type"),
        ({"priors": {"tag-a": {"X": [1, 2]}}}, r"'tag-a', 'X': expected \[precision, recall\]"),
        ({"priors": {"tag-a": 1}}, "priors: expected an object, got int"),
    ],
)  # fmt: skip
def test_malformed_meta(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        load(write(tmp_path, META | change))


def test_files_that_are_missing_or_no_json(tmp_path):
    with pytest.raises(FileNotFoundError, match="none: no such folder of weak labels"):
        load(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r"expected train, valid, test \(or some of them\)"):
        load(tmp_path)
    write(tmp_path)
    (tmp_path / "meta.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"meta\.json: no such file"):
        load(tmp_path)
    for text, message in {
        '{"0": {]}': r"test\.json: not JSON \(.*line 1 column 8",
        "[]": r"test\.json: expected an object, got list",
        "{}": r"test\.json: expected records, got an empty object",
    }.items():
        write(tmp_path)
        (tmp_path / "test.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            load(tmp_path)
    (tmp_path / "test.json").write_bytes(b'{"\xff": 1}')
    with pytest.raises(ValueError, match=r"test\.json: not UTF-8 text"):
        load(tmp_path)
    with pytest.raises(
        ValueError, match="format must be auto, wrench, chmm_json, skweak, conll, got"
    ):
        load(tmp_path, format="xml")
    with pytest.raises(ValueError, match="sources must be 'recommended', 'all' or a list"):
        load(tmp_path, sources="some")
    with pytest.raises(ValueError, match="stray_inside must be 'error' or 'begin', got 'drop'"):
        load(tmp_path, format="chmm_json", stray_inside="drop")
    with pytest.raises(ValueError, match="overlaps must be 'error' or 'first' or 'longest', got 1"):
        load(tmp_path, overlaps=1)
    with pytest.raises(ValueError, match="empty must be 'error' or 'skip', got 'keep'"):
        load(tmp_path, empty="keep")
