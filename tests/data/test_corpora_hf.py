"""Hugging Face data sets, made on disk: every way of storing them gives the same documents."""

import json

import pytest

from lmlab.data.corpora import HuggingFace

datasets = pytest.importorskip("datasets")

ROWS = {"train": ["A first text.", "两行\n的文本", "", "the last"], "test": ["one", "two"]}


def hf(path, **given):
    settings = {
        "name": None,
        "revision": None,
        "streaming": False,
        "text_field": "body",
        "train": "train",
        "val": None,
        "test": "test",
    }
    return HuggingFace(str(path), **settings | given)


def texts(corpus, split):
    return ["".join(document.pieces) for document in corpus.documents(split)]


@pytest.fixture
def saved(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    datasets.disable_progress_bars()
    whole = datasets.DatasetDict(
        {
            split: datasets.Dataset.from_dict({"body": rows, "id": list(range(len(rows)))})
            for split, rows in ROWS.items()
        }
    )
    whole.save_to_disk(tmp_path / "saved")
    (tmp_path / "jsonl").mkdir()
    for split, rows in ROWS.items():
        lines = (json.dumps({"body": row}) for row in rows)
        (tmp_path / "jsonl" / f"{split}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize(("folder", "streaming"), [("saved", False), ("jsonl", False), ("jsonl", True)])
def test_rows_are_documents_however_they_are_stored(saved, folder, streaming):
    corpus = hf(saved / folder, streaming=streaming)
    assert corpus.splits == ("train", "test")
    assert texts(corpus, "train") == ["A first text.", "两行\n的文本", "the last"]
    assert texts(corpus, "train") == texts(corpus, "train")
    assert [document.name for document in corpus.documents("test")] == ["test:0", "test:1"]


@pytest.mark.parametrize("streaming", [False, True])
def test_a_row_keeps_the_columns_that_are_named_beside_its_text(saved, streaming):
    rows = [{"body": "one", "year": 1850}, {"body": "", "year": 1851}, {"body": "three", "year": None}]
    (saved / "jsonl" / "test.jsonl").write_text("\n".join(map(json.dumps, rows)))
    given = {"train": None, "streaming": streaming}
    (saved / "jsonl" / "train.jsonl").unlink()
    corpus, without = (hf(saved / "jsonl", meta_fields=fields, **given) for fields in (["year"], []))
    assert [document.meta for document in corpus.documents("test")] == [{"year": 1850}, {}]
    assert without.fingerprint() == hf(saved / "jsonl", **given).fingerprint() != corpus.fingerprint()
    with pytest.raises(ValueError, match=r"test, has no 'day', it has .*; choose with corpus\.meta_fields="):
        next(hf(saved / "jsonl", meta_fields="day", **given).documents("test"))


def test_slices_make_the_splits_that_a_data_set_lacks(saved):
    corpus = hf(saved / "jsonl", train="train[:2]", val="train[2:]", test="test")
    assert texts(corpus, "train") == ["A first text.", "两行\n的文本"]
    assert texts(corpus, "val") == ["the last"]


def test_a_fingerprint_follows_the_content_and_the_choice(saved):
    first = hf(saved / "jsonl").fingerprint()
    assert hf(saved / "jsonl").fingerprint() == first
    assert hf(saved / "jsonl", text_field="id").fingerprint() != first
    assert hf(saved / "jsonl", test=None).fingerprint() != first
    with (saved / "jsonl" / "test.jsonl").open("a") as file:
        file.write('\n{"body": "three"}')
    assert hf(saved / "jsonl").fingerprint() != first


def test_a_fingerprint_stays_when_the_folder_is_used(saved):
    before = [hf(saved / folder).fingerprint() for folder in ("saved", "jsonl")]
    datasets.load_from_disk(saved / "saved")["train"].map(lambda row: {"n": len(row["body"])})
    assert list((saved / "saved" / "train").glob("cache-*.arrow"))
    (saved / "jsonl" / ".cache" / "huggingface").mkdir(parents=True)
    (saved / "jsonl" / ".cache" / "huggingface" / "train.jsonl.metadata").write_text("a commit, a time")
    assert [hf(saved / folder).fingerprint() for folder in ("saved", "jsonl")] == before


def test_a_commit_is_a_fingerprint_without_network():
    one, two = "1" * 40, "2" * 40
    assert hf("some/set", revision=one).fingerprint() == hf("some/set", revision=one).fingerprint()
    assert hf("some/set", revision=one).fingerprint() != hf("some/set", revision=two).fingerprint()


@pytest.mark.parametrize("folder", ["saved", "jsonl"])
def test_a_split_or_field_that_is_not_there_is_named_with_what_is(saved, folder):
    with pytest.raises(ValueError, match=r"dev.*train") as caught:
        texts(hf(saved / folder, val="dev"), "val")
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"has no 'text', it has 'body'.*corpus\.text_field="):
        texts(hf(saved / folder, text_field="text"), "test")
    with pytest.raises(ValueError, match="split='val' is not in corpus hf"):
        texts(hf(saved / folder), "val")


@pytest.mark.parametrize(("folder", "streaming"), [("saved", False), ("jsonl", False), ("jsonl", True)])
def test_a_missing_split_or_field_is_told_before_any_text_is_read(saved, folder, streaming):
    with pytest.raises(ValueError, match=r"dev.*corpus\.val=null leaves it out") as caught:
        next(hf(saved / folder, streaming=streaming, val="dev").documents("train"))
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"train, has no 'text', it has 'body'"):
        next(hf(saved / folder, streaming=streaming, text_field="text").documents("test"))


def test_a_field_that_one_split_lacks_is_told_before_any_text_is_read(saved):
    datasets.Dataset.from_dict({"line": ["some text"]}).save_to_disk(saved / "saved" / "test")
    with pytest.raises(ValueError, match=r"test, has no 'body', it has 'line'; choose with corpus\.text_field="):
        next(hf(saved / "saved").documents("train"))


def test_what_is_no_text_is_named(saved):
    with pytest.raises(ValueError, match=r"row 0: id=0 is not text"):
        texts(hf(saved / "saved", text_field="id"), "test")
    with pytest.raises(ValueError, match="cannot be sliced"):
        texts(hf(saved / "saved", train="train[:1]"), "train")


def test_a_data_set_that_cannot_be_reached_is_named_in_one_line():
    with pytest.raises(FileNotFoundError, match=r"corpus\.path=nobody/nothing could not be loaded") as caught:
        texts(hf("nobody/nothing"), "train")
    assert "\n" not in str(caught.value)


SAME = [
    ("train", "train"),
    ("train", "train[:5%]"),
    ("train+validation", "validation"),
    ("train[:95%] + validation", "test+validation[:10]"),
    ("train[:90%]", "train[80%:]"),
    ("train[:95%]", "train[-10%:]"),
    ("train[:1_000]", "train[999:2000]"),
    ("train[-100:]", "train[-200:-99]"),
    ("train[:100]", "train[0:5%]"),
    ("train[-100:]", "train[99%:]"),
    ("train[-100:]", "all"),
    ("train[10%:20%](pct1_dropremainder)", "train[15%:]"),
]
APART = [
    ("train", "validation"),
    ("train[5%:]", "train[:5%]"),
    ("train[:-10%]", "train[90%:]"),
    ("train[100:]", "train[:100]"),
    ("train[:-100]", "train[-100:]"),
    ("train[:50%]+validation", "train[50%:]+test"),
    # Of 20,000 rows these are apart, of 10,000 they are not.
    ("train[:90%]", "train[10000:11000]"),
]


@pytest.mark.parametrize(("train", "val"), SAME)
def test_the_same_rows_in_two_splits_are_refused(train, val):
    for pair in ({"train": train, "val": val}, {"train": val, "val": train}):
        with pytest.raises(ValueError, match=r"name the same rows; slice them apart, as in \w+\[5%:\]") as caught:
            hf("some/set", test=None, **pair)
        assert f"corpus.val={pair['val']} " in str(caught.value)


@pytest.mark.parametrize(("train", "val"), APART)
def test_slices_that_lie_apart_or_may_do_so_are_taken(train, val):
    assert hf("some/set", train=train, val=val, test=None).splits == ("train", "val")
