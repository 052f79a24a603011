"""What lies in the cache: listed with size and last use, and freed by the stated rule."""

import os
import time

import pytest

from lmlab.data.cache import cache_root, locked
from lmlab.data.corpora import Files
from lmlab.data.inventory import prune, stores
from lmlab.data.store import prepare
from lmlab.tokenizers.byte import train

DAY_S = 86400


@pytest.fixture
def cache(tmp_path):
    """Stores a, b, c of growing size, last used 3, 2 and 1 days ago."""
    for i, name in enumerate("abc"):
        path = tmp_path / f"{name}.txt"
        path.write_text(f"{name}\n" * 1000 * (i + 1))
        corpus = Files(None, None, None, str(path), "auto", 0.0, 0.0, "text", None)
        store = prepare(corpus, train, {"kind": "byte", "name": name}, tmp_path, progress=False)
        used = time.time() - (3 - i) * DAY_S
        os.utime(store.path / ".used", (used, used))
    return tmp_path


def days(entry):
    return round((time.time() - entry.used) / DAY_S)


def test_stores_are_listed_with_their_size_the_last_used_first(cache):
    found = stores(cache)
    assert [days(entry) for entry in found] == [1, 2, 3]
    assert [entry.bytes > 5 * 2000 * n for entry, n in zip(found, (3, 2, 1), strict=True)] == [True] * 3
    assert {(entry.corpus, entry.tokenizer) for entry in found} == {("files", "byte")}
    assert stores(cache / "nowhere") == []


def test_those_unused_for_long_go(cache):
    gone = prune(cache, unused_days=1.5)
    assert [days(entry) for entry in gone] == [2, 3]
    assert [days(entry) for entry in stores(cache)] == [1]


def test_damaged_stores_go_in_any_case(cache):
    os.truncate(stores(cache)[0].path / "test.ids", 1)
    assert stores(cache)[0].corpus == ""
    assert [days(entry) for entry in prune(cache, unused_days=30)] == [1]


def test_what_is_not_a_store_is_neither_listed_nor_removed(cache):
    folder = cache / "stores"
    (folder / "notes.txt").write_text("mine")
    (folder / "files-0123456789abcdef").write_text("a file that is called as a store is")
    for name in ("thesis", "backup-2024", "files-0123456789abcdef.bak", ".thesis-draft"):
        (folder / name).mkdir()
        (folder / name / "chapter.txt").write_text("mine")
    (folder / ".thesis.lock").touch()
    assert len(stores(cache)) == 3
    gone = prune(cache, unused_days=0)
    assert len(gone) == 3
    assert stores(cache) == []
    assert sorted(path.name for path in folder.rglob("*.txt")) == ["chapter.txt"] * 4 + ["notes.txt"]
    assert (folder / "files-0123456789abcdef").is_file()


def test_leavings_go_unless_somebody_is_at_work_on_them(cache):
    name = stores(cache)[0].path.name
    left = cache / "stores" / f".{name}-killed"
    left.mkdir()
    with locked(cache / "stores" / f".{name}.lock", None) as alone:
        assert alone
        prune(cache, unused_days=30)
        assert left.exists()
    prune(cache, unused_days=30)
    assert not left.exists()
    assert len(stores(cache)) == 3


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("LMLAB_CACHE", str(tmp_path))
    assert cache_root() == tmp_path
    monkeypatch.setenv("LMLAB_CACHE", "")
    assert cache_root().name == "lmlab"
