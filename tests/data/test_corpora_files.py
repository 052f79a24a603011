"""Files, folders and globs: every format gives the same documents, splits do not overlap, bad input is named."""

import csv
import gzip
import json
import lzma
import os
import tracemalloc
from itertools import chain

import pytest

from lmlab.data.corpora import Files

TEXTS = ['A first text, with "quotes".', "两行\n的文本", "third\r\ntext", "x" * 300_000]


def files(**given):
    settings = {
        "path": None,
        "train": None,
        "val": None,
        "test": None,
        "split_by": "auto",
        "val_share": 0.1,
        "test_share": 0.1,
        "text_field": "text",
        "document_separator": None,
    }
    return Files(**settings | given)


def texts(corpus, split):
    return ["".join(document.pieces) for document in corpus.documents(split)]


def write_rows(path, form):
    if form == "jsonl":
        path.write_text("\n\n".join(json.dumps({"id": i, "text": t}) for i, t in enumerate(TEXTS)), encoding="utf-8")
    elif form == "csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([["id", "text"], *enumerate(TEXTS)])
    else:
        arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        parquet.write_table(arrow.table({"id": list(range(len(TEXTS))), "text": TEXTS}), path)


def pack(path, how):
    data = path.read_bytes()
    packed = path.with_name(f"{path.name}.{how}")
    if how == "zst":
        data = pytest.importorskip("zstandard").compress(data)
    else:
        data = {"gz": gzip, "xz": lzma}[how].compress(data)
    packed.write_bytes(data)
    return packed


@pytest.mark.parametrize("how", ["", "gz", "zst", "xz"])
@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet"])
def test_every_row_is_a_document_in_every_format(tmp_path, form, how):
    path = tmp_path / f"rows.{form}"
    write_rows(path, form)
    path = pack(path, how) if how else path
    corpus = files(train=str(path), val=str(pack(path, "gz")) if not how else None, split_by="share")
    documents = [("".join(d.pieces), d.name) for d in files(test=str(path)).documents("test")]
    assert [text for text, _ in documents] == TEXTS
    assert all(name.startswith(path.name + ":") for _, name in documents)
    assert corpus.fingerprint()


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet"])
def test_a_row_keeps_the_fields_that_are_named_beside_its_text(tmp_path, form):
    path = tmp_path / f"rows.{form}"
    write_rows(path, form)
    corpus = files(test=str(path), meta_fields=["id"])
    kind = str if form == "csv" else int
    assert [document.meta for document in corpus.documents("test")] == [{"id": kind(i)} for i in range(len(TEXTS))]
    assert [document.meta for document in files(test=str(path)).documents("test")] == [{}] * len(TEXTS)
    assert files(test=str(path), meta_fields=[]).fingerprint() == files(test=str(path)).fingerprint()
    assert corpus.fingerprint() != files(test=str(path)).fingerprint()


def test_fields_without_a_value_are_not_kept_and_what_is_no_plain_value_is_named(tmp_path):
    rows = [{"year": 1850, "by": "", "true": False}, {"year": None, "by": "Ann", "true": 0.5}]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps({"text": "x"} | row) for row in rows))
    given = {"test": str(path), "meta_fields": ["year", "by", "true"]}
    metas = [document.meta for document in files(**given).documents("test")]
    assert metas == [{"year": 1850, "true": False}, {"by": "Ann", "true": 0.5}]
    path.write_text('{"text": "x", "year": [1850], "by": "\\ud800"}')
    for name, message in {
        "year": r"a\.jsonl:1: year=\[1850\] is not text, a number, true or false",
        "by": "a\\.jsonl:1: by holds half of a surrogate pair",
        "day": r"a\.jsonl:1 has no 'day', it has 'text', 'year', 'by'; choose with corpus\.meta_fields=",
        "name": r"corpus\.meta_fields=name means something else already",
        "text": r"corpus\.meta_fields=text means something else already",
    }.items():
        with pytest.raises(ValueError, match=message):
            texts(files(test=str(path), meta_fields=name), "test")
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(ValueError, match=r"corpus\.meta_fields=year: \.txt and \.md files have no fields"):
        files(test=str(tmp_path / "a.txt"), meta_fields="year")


@pytest.mark.parametrize("how", ["", "gz", "zst", "xz"])
def test_a_text_file_is_one_document_however_packed(tmp_path, how):
    path = tmp_path / "a.txt"
    content = "".join(f"line {i} 词\r\n" for i in range(60_000))
    path.write_bytes(content.encode())
    corpus = files(train=str(pack(path, how) if how else path), val=str(pack(path, "xz" if how != "xz" else "gz")))
    assert texts(corpus, "train") == [content]
    assert corpus.splits == ("train", "val")


def test_splits_by_share_cut_at_line_ends_and_rebuild_the_text(tmp_path):
    content = "".join(f"{i} is a number and this is its line\n" for i in range(2000))
    (tmp_path / "a.txt").write_text(content)
    corpus = files(path=str(tmp_path / "a.txt"))
    parts = ["".join(texts(corpus, split)) for split in ("train", "val", "test")]
    assert "".join(parts) == content
    assert all(part.endswith("\n") for part in parts)
    assert [round(len(part) / len(content), 2) for part in parts] == [0.8, 0.1, 0.1]


def test_share_goes_over_the_whole_corpus_in_order_of_name(tmp_path):
    for name in "abcdefghij":
        (tmp_path / f"{name}.txt").write_text(f"{name}\n" * 500)
    corpus = files(train=str(tmp_path))
    assert [d.name for d in corpus.documents("val")] == ["i.txt"]
    assert texts(corpus, "test") == ["j\n" * 500]


def test_text_without_line_ends_is_cut_at_a_word(tmp_path):
    (tmp_path / "a.txt").write_text("word " * 1000)
    corpus = files(train=str(tmp_path / "a.txt"))
    assert texts(corpus, "train")[0].endswith("word")
    assert texts(corpus, "val")[0].startswith(" word")


@pytest.mark.parametrize("split_by", ["auto", "document"])
def test_documents_stay_whole_and_each_is_in_one_split(tmp_path, split_by):
    rows = [f"row {i}\n" * (i % 7 + 1) for i in range(200)]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps({"text": row}) for row in rows))
    corpus = files(train=str(tmp_path / "rows.jsonl"), split_by=split_by)
    parts = [texts(corpus, split) for split in corpus.splits]
    assert sorted(chain(*parts)) == sorted(rows)
    assert 19 <= len(parts[1]) <= 21
    assert 19 <= len(parts[2]) <= 21


def test_blank_lines_may_separate_documents(tmp_path):
    poems = [f"题{i}\n诗{i}。\n\n" for i in range(120)]
    (tmp_path / "poems.txt").write_text("".join(poems), encoding="utf-8")
    corpus = files(train=str(tmp_path / "poems.txt"), document_separator="\n\n")
    parts = [texts(corpus, split) for split in corpus.splits]
    assert sorted(chain(*parts)) == sorted(poems)
    assert next(corpus.documents("train")).name == "poems.txt:2"


def test_a_share_of_nothing_is_no_split(tmp_path):
    (tmp_path / "a.txt").write_text("one line\n" * 100)
    assert files(train=str(tmp_path / "a.txt"), test_share=0.0).splits == ("train", "val")
    assert files(train=str(tmp_path / "a.txt"), val_share=0.0, test_share=0.0).splits == ("train",)
    with pytest.raises(ValueError, match=r"val_share=0\.6 and test_share=0\.5"):
        files(train=str(tmp_path / "a.txt"), val_share=0.6, test_share=0.5)


@pytest.mark.parametrize("split_by", ["document", "share"])
def test_with_train_and_test_given_val_is_split_off_train(tmp_path, split_by):
    rows = [f"row {i}\n" for i in range(200)]
    (tmp_path / "train.jsonl").write_text("\n".join(json.dumps({"text": row}) for row in rows))
    (tmp_path / "test.txt").write_text("held out\n")
    given = {"train": str(tmp_path / "train.jsonl"), "test": str(tmp_path / "test.txt"), "split_by": split_by}
    corpus = files(**given, test_share=0.95)  # which is of train alone
    assert corpus.splits == ("train", "val", "test")
    train, val, test = (texts(corpus, split) for split in corpus.splits)
    assert sorted(train + val) == sorted(rows)
    assert 19 <= len(val) <= 21
    assert test == ["held out\n"]
    without = files(**given, val_share=0.0)
    assert without.splits == ("train", "test")
    assert texts(without, "train") == rows
    assert corpus.fingerprint() != without.fingerprint()


def test_a_fingerprint_follows_content_and_split_but_not_the_place(tmp_path):
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.txt").write_text("some text\n" * 50)
    here, there = str(tmp_path / "here"), str(tmp_path / "there")
    first = files(train=here).fingerprint()
    assert files(train=there).fingerprint() == first
    assert files(path=here).fingerprint() == first
    assert files(train=here + "/*.txt").fingerprint() == first
    assert files(train=here, val_share=0.2).fingerprint() != first
    assert files(train=here, document_separator="\n\n").fingerprint() != first
    (tmp_path / "here" / "a.txt").write_text("other text\n" * 50)
    assert files(train=here).fingerprint() != first


def test_a_folder_gives_known_files_below_it_and_a_list_gives_all(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "b.md").write_text("b")
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / ".hidden.txt").write_text("hidden")
    (tmp_path / "c.py").write_text("c")
    assert texts(files(test=str(tmp_path)), "test") == ["a", "b"]
    both = files(test=[str(tmp_path / "deep" / "b.md"), str(tmp_path / "*.txt")])
    assert texts(both, "test") == ["b", "a"]


def test_a_folder_gives_what_lies_behind_links_once_and_a_loop_ends(tmp_path):
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    for folder in (here / "z", elsewhere / "deep", elsewhere / ".hidden"):
        folder.mkdir(parents=True)
        (folder / "a.txt").write_text(folder.name)
    alone = files(test=str(here)).fingerprint()
    (here / "again").symlink_to(here / "z")
    (here / "loop").symlink_to(here)
    assert files(test=str(here)).fingerprint() == alone
    (here / "m").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(here)
    corpus = files(test=str(here))
    told = [(document.name, "".join(document.pieces)) for document in corpus.documents("test")]
    assert told == [("m/deep/a.txt", "deep"), ("z/a.txt", "z")]


def test_a_folder_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    (tmp_path / "closed").mkdir()
    (tmp_path / "a.txt").write_text("a")
    scan = os.scandir

    def refusing(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(PermissionError, match=r"Permission denied: '.*closed'"):
        files(test=str(tmp_path))


def test_a_large_file_is_read_in_constant_memory(tmp_path):
    path = tmp_path / "a.txt"
    with path.open("w") as file:
        for i in range(500):
            file.write(f"{i} " * 10_000 + "\n")
    corpus = files(train=str(path), document_separator="\n\n\n")
    tracemalloc.start()
    total = sum(len(piece) for d in corpus.documents("train") for piece in d.pieces)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total > 15_000_000
    assert peak < 8_000_000


BAD = {
    "missing": ({"train": "gone.txt"}, FileNotFoundError, r"corpus\.train=.*gone\.txt does not exist"),
    "empty": ({"train": "empty.txt"}, ValueError, r"corpus\.train=.*empty\.txt is empty"),
    "no match": ({"val": "*.jsonl"}, FileNotFoundError, r"corpus\.val=.*jsonl matches no file"),
    "unknown": ({"train": "a.doc"}, ValueError, r"a\.doc has an unknown extension; rename it to one of \.txt"),
    "no text in folder": ({"train": "folder"}, ValueError, r"corpus\.train=.*folder is a folder without text files"),
    "twice": ({"train": "a.txt", "test": "*.txt"}, ValueError, r"a\.txt is in corpus\.train and in corpus\.test"),
    "both": ({"train": "a.txt", "path": "a.txt"}, ValueError, "mean the same"),
    "none": ({}, ValueError, r"needs text: corpus\.train="),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_found_is_named(tmp_path, case):
    for name, content in {"empty.txt": "", "a.doc": "x", "a.txt": "x", "folder/a.py": "x"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    given, kind, message = BAD[case]
    with pytest.raises(kind, match=message) as caught:
        files(**{split: str(tmp_path / what) for split, what in given.items()})
    assert "\n" not in str(caught.value)


UNREADABLE = {
    "a.txt": (b"caf\xe9", "not UTF-8: byte 0xe9 at offset 3"),
    "b.txt": (b"\x7fELF\0\0", "NUL byte at offset 4"),
    "a.jsonl": (b'{"text": "x"}\n{"text": \n', r"a\.jsonl:2 is not JSON"),
    "b.jsonl": (b'{"body": "x"}\n', r"b\.jsonl:1 has no 'text', it has 'body'; choose with corpus\.text_field="),
    "c.jsonl": (b'{"text": null}\n', r"c\.jsonl:1: text=None is not text"),
    "d.jsonl": (b'{"text": "\\ud800"}\n', "half of a surrogate pair"),
    "e.jsonl": (b'["text"]\n', r"e\.jsonl:1 is not an object"),
    "f.jsonl": (b'{"text": "x"}\n' + b"[" * 100_000, r"f\.jsonl:2 is not JSON"),
    "g.jsonl": (b'{"text": "x", "n": ' + b"9" * 5_000 + b"}", r"g\.jsonl:1 is not JSON"),
    "a.csv": (b"id,body\n1,x\n", r"a\.csv has no 'text', it has 'id', 'body'"),
    "b.csv": (b"id,text\n1,x,y\n", r"b\.csv:2 has 3 fields, its header 2"),
    "c.csv": (b'id,text\n1,"x\n', r"c\.csv:2 is not CSV"),
    "a.parquet": (b"no parquet at all", r"a\.parquet is no readable parquet file"),
    "a.txt.gz": (b"not packed", r"a\.txt\.gz is damaged or cut off"),
    "b.txt.gz": (gzip.compress(b"some text" * 100)[:-12], r"b\.txt\.gz is damaged or cut off"),
    "a.txt.xz": (lzma.compress(b"some text" * 100)[:-12], r"a\.txt\.xz is damaged or cut off"),
    "a.txt.zst": (b"not packed", r"a\.txt\.zst is damaged or cut off"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_cannot_be_read_is_named_with_its_place(tmp_path, name):
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    if name.endswith("zst"):
        pytest.importorskip("zstandard")
    content, message = UNREADABLE[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        texts(files(test=str(tmp_path / name)), "test")
    assert "\n" not in str(caught.value)


def test_a_zst_file_that_is_cut_off_is_named(tmp_path):
    data = pytest.importorskip("zstandard").compress(bytes(range(1, 127)) * 5000)
    (tmp_path / "a.txt.zst").write_bytes(data[:-20])
    with pytest.raises(ValueError, match=r"a\.txt\.zst is damaged or cut off"):
        texts(files(test=str(tmp_path / "a.txt.zst")), "test")


def test_a_zst_file_of_a_long_window_is_read(tmp_path):
    zstandard = pytest.importorskip("zstandard")
    # Unlike compress, a stream of unknown length keeps the window that it was asked for: 2^28, as --long=28.
    settings = zstandard.ZstdCompressionParameters(window_log=28, chain_log=10, hash_log=10, strategy=1)
    stream = zstandard.ZstdCompressor(compression_params=settings).compressobj()
    data = stream.compress(b"some text\n" * 100) + stream.flush()
    assert zstandard.get_frame_parameters(data).window_size == 2**28
    (tmp_path / "a.txt.zst").write_bytes(data)
    assert texts(files(test=str(tmp_path / "a.txt.zst")), "test") == ["some text\n" * 100]


def test_too_little_to_split_is_said(tmp_path):
    (tmp_path / "a.txt").write_text("ab")
    with pytest.raises(ValueError, match=r"corpus too short to split: a\.txt has 2 characters"):
        texts(files(train=str(tmp_path / "a.txt")), "val")
    with pytest.raises(ValueError, match=r"split val has no document.*corpus\.split_by=share"):
        texts(files(train=str(tmp_path / "a.txt"), split_by="document"), "val")
    (tmp_path / "b.jsonl").write_text('{"text": ""}\n')
    with pytest.raises(ValueError, match="split test has no text"):
        texts(files(test=str(tmp_path / "b.jsonl")), "test")
    with pytest.raises(ValueError, match="split='val' is not in corpus files, which has test"):
        texts(files(test=str(tmp_path / "b.jsonl")), "val")


def test_a_name_that_is_no_utf8_can_be_stored(tmp_path):
    """中文.txt as GBK writes it."""
    (tmp_path / os.fsdecode(b"\xd6\xd0\xce\xc4.txt")).write_text("a b\n" * 200)
    (tmp_path / "other.txt").write_text("c d\n" * 200)
    corpus = Files(None, str(tmp_path), None, None, "auto", 0.05, 0.05, "text", None)
    assert {document.name for document in corpus.documents("train")} == {"????.txt", "other.txt"}


def test_a_tilde_that_is_nobodys_home_is_a_letter(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "~backup.txt").write_text("a b\n" * 200)
    assert Files(None, "~backup.txt", None, None, "auto", 0.05, 0.05, "text", None).file_bytes() == 800
    with pytest.raises(FileNotFoundError, match=r"~nosuchuser/x\.txt does not exist"):
        Files(None, "~nosuchuser/x.txt", None, None, "auto", 0.05, 0.05, "text", None)


def test_a_file_that_a_split_is_given_twice_is_read_once_and_that_is_told_once(tmp_path, caplog):
    """Read twice, its copy might be held out from itself."""
    folder = tmp_path / "d"
    folder.mkdir()
    for name in ("a", "b", "c"):
        (folder / f"{name}.txt").write_text(f"text {name}\n")
    (tmp_path / "link.txt").symlink_to(folder / "b.txt")
    given = [str(folder), str(folder / "*.txt"), str(tmp_path / "link.txt")]
    caplog.set_level("INFO", "lmlab")
    corpus, alone = (files(train=one, val_share=0.0, test_share=0.0) for one in (given, str(folder)))
    assert texts(corpus, "train") == ["text a\n", "text b\n", "text c\n"]
    assert corpus.provenance().startswith("3 files")
    assert corpus.fingerprint() == alone.fingerprint()
    files(train=given)
    assert caplog.messages == [f"corpus.train: passed over 4 files that were given before: {folder / 'a.txt'}"]
