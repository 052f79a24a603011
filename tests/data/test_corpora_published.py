"""Data sets with published numbers: your copy as it is, what is fetched verified, and one clear line offline."""

import hashlib
import urllib.request
from http.client import IncompleteRead
from io import BytesIO
from urllib.error import URLError
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile

import pytest

from lmlab.data.cache import cache_root
from lmlab.data.corpora import Enwik8, PennTreebank, TinyShakespeare, WikiText2, published

LINES = " \n = Title = \n \n some <unk> words \n"


def text(corpus, split):
    return "".join(piece for document in corpus.documents(split) for piece in document.pieces)


@pytest.fixture
def offline(monkeypatch, tmp_path):
    def refuse(url, timeout):
        raise URLError("no route to host")

    monkeypatch.setenv("LMLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(urllib.request, "urlopen", refuse)


@pytest.mark.parametrize("names", ["{}.txt", "wiki.{}.tokens"])
def test_files_are_taken_exactly_as_they_are(tmp_path, names):
    for part in ("train", "valid", "test"):
        (tmp_path / names.format(part)).write_text(part + LINES)
    corpus = WikiText2(str(tmp_path))
    assert corpus.splits == ("train", "val", "test")
    assert [text(corpus, split) for split in corpus.splits] == [part + LINES for part in ("train", "valid", "test")]
    assert "NOT the published text" in corpus.provenance()


def test_tiny_shakespeare_is_split_as_nanogpt_does(tmp_path):
    (tmp_path / "input.txt").write_text("0123456789abcdefghi")
    for path in (tmp_path, tmp_path / "input.txt"):
        corpus = TinyShakespeare(str(path))
        assert corpus.splits == ("train", "val")
        # int(0.9 * 19) = 17
        assert [text(corpus, split) for split in corpus.splits] == ["0123456789abcdefg", "hi"]


def test_a_fingerprint_follows_the_content(tmp_path):
    (tmp_path / "input.txt").write_text("some text")
    first = TinyShakespeare(str(tmp_path)).fingerprint()
    assert TinyShakespeare(str(tmp_path / "input.txt")).fingerprint() == first
    (tmp_path / "input.txt").write_text("more text")
    assert TinyShakespeare(str(tmp_path)).fingerprint() != first


@pytest.mark.parametrize("kind", [TinyShakespeare, WikiText2, PennTreebank, Enwik8])
def test_offline_one_line_says_which_file_to_put_where(offline, kind):
    with pytest.raises(FileNotFoundError) as caught:
        kind(None).fingerprint()
    message = str(caught.value)
    files = ", ".join(names[0] for names, _ in kind.files.values())
    assert message.startswith(f"corpus={kind.name} could not be fetched (no route to host); put {files} from https://")
    assert f"into {cache_root() / 'corpora' / kind.name}" in message
    assert "corpus.path=" in message
    assert "\n" not in message


def test_a_download_that_breaks_off_is_told_in_the_same_line(served, monkeypatch):
    class Broken(BytesIO):
        def read(self, *_):
            raise IncompleteRead(b"To be", 945)

    monkeypatch.setattr(urllib.request, "urlopen", lambda url, timeout: Broken())
    with pytest.raises(FileNotFoundError, match=r"could not be fetched \(IncompleteRead\(5 bytes read, 945 more"):
        TinyShakespeare(None).fingerprint()


def test_a_folder_without_the_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"corpus\.path=.* has no ptb\.train\.txt or train\.txt; put"):
        PennTreebank(str(tmp_path)).fingerprint()
    with pytest.raises(FileNotFoundError, match=r"corpus\.path=.*gone is no folder"):
        WikiText2(str(tmp_path / "gone")).fingerprint()
    with pytest.raises(FileNotFoundError, match=r"has no enwik8; put enwik8 there \(from https://.*/enwik8\.zip\)"):
        Enwik8(str(tmp_path)).fingerprint()


@pytest.fixture
def served(monkeypatch, tmp_path):
    """Another text stands at the address, and its checksum is the one that is expected."""
    content = {"now": b"To be, or not to be\n" * 50}
    calls = []

    def serve(url, timeout):
        calls.append(url)
        return BytesIO(content["now"])

    monkeypatch.setenv("LMLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(urllib.request, "urlopen", serve)
    checksum = hashlib.sha256(content["now"]).hexdigest()
    monkeypatch.setattr(TinyShakespeare, "files", {"text": (("input.txt",), checksum)})
    return content, calls


def test_a_file_is_fetched_once_and_verified(served):
    content, calls = served
    assert text(TinyShakespeare(None), "train") == content["now"].decode()[:900]
    assert TinyShakespeare(None).provenance() == "the published text, checksum verified"
    assert len(calls) == 1


def test_a_fetched_file_with_another_checksum_is_refused_and_not_kept(served):
    content, _ = served
    content["now"] += b"more"
    with pytest.raises(ValueError, match=r"input\.txt is not the published text"):
        TinyShakespeare(None).fingerprint()
    assert not list(cache_root().rglob("*.txt"))


def test_a_file_that_was_damaged_in_the_cache_is_refused(served):
    TinyShakespeare(None).fingerprint()
    (cache_root() / "corpora" / "tiny_shakespeare" / "input.txt").write_text("something else\n" * 20)
    with pytest.raises(ValueError, match=r"input\.txt is damaged .* delete it"):
        text(TinyShakespeare(None), "train")


# 20 bytes: an é has two, at 4 and 12, and the sign of music has four, at 14. Blocks of three fall into all of them.
SMALL = "0123é6789abé\U0001d11e89"


@pytest.fixture
def small_enwik8(monkeypatch, tmp_path):
    """enwik8 of 20 bytes, and where its zip is looked for what `held` has."""
    held, calls = {}, []

    def serve(url, timeout):
        calls.append(url)
        return BytesIO(held["zip"])

    def pack(content, name="enwik8", how=ZIP_STORED):
        packed = BytesIO()
        with ZipFile(packed, "w", how) as opened:
            opened.writestr(name, content)
        held["zip"] = packed.getvalue()

    monkeypatch.setenv("LMLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(urllib.request, "urlopen", serve)
    monkeypatch.setattr(published, "BLOCK", 3)
    monkeypatch.setattr(Enwik8, "spans", {"train": (0, 12), "val": (12, 18), "test": (18, 20)})
    monkeypatch.setattr(Enwik8, "files", {"text": (("enwik8",), hashlib.sha256(SMALL.encode()).hexdigest())})
    return held, calls, pack


def test_enwik8_is_split_at_90_and_95_of_100_million_bytes():
    assert Enwik8.splits == ("train", "val", "test")
    assert [end - start for start, end in Enwik8.spans.values()] == [90_000_000, 5_000_000, 5_000_000]
    assert [start for start, _ in Enwik8.spans.values()] == [0, 90_000_000, 95_000_000]


def test_enwik8_is_cut_by_bytes(small_enwik8, tmp_path):
    (tmp_path / "enwik8").write_text(SMALL, encoding="utf-8")
    for path in (tmp_path, tmp_path / "enwik8"):
        corpus = Enwik8(str(path))
        assert [text(corpus, split) for split in corpus.splits] == ["0123é6789ab", "é\U0001d11e", "89"]
        assert corpus.file_bytes() == 20
        assert corpus.provenance() == "the published text, checksum verified"


def test_enwik8_of_another_size_or_cut_inside_a_character_is_refused(small_enwik8, tmp_path):
    (tmp_path / "enwik8").write_text(SMALL[:-1], encoding="utf-8")
    with pytest.raises(ValueError, match=r"enwik8 has 19 bytes, enwik8 has 20; give the whole file, .* corpus=files"):
        text(Enwik8(str(tmp_path)), "train")
    (tmp_path / "enwik8").write_text("0123456789aébcdefgh", encoding="utf-8")  # the é has bytes 11 and 12
    for split in ("train", "val"):
        with pytest.raises(ValueError, match=r"splits meet at byte 12, which is inside a character"):
            text(Enwik8(str(tmp_path)), split)
    assert text(Enwik8(str(tmp_path)), "test") == "gh"
    assert "NOT the published text" in Enwik8(str(tmp_path)).provenance()


def test_enwik8_is_unpacked_once_and_verified(small_enwik8):
    _, calls, pack = small_enwik8
    pack(SMALL)
    assert text(Enwik8(None), "val") == "é\U0001d11e"
    assert text(Enwik8(None), "test") == "89"
    assert calls == ["https://mattmahoney.net/dc/enwik8.zip"]
    assert (cache_root() / "corpora/enwik8/enwik8").read_text(encoding="utf-8") == SMALL


@pytest.mark.parametrize("what", ["another text", "another name", "no zip", "another byte", "no deflated data"])
def test_an_archive_that_does_not_hold_the_text_is_refused_and_not_kept(small_enwik8, what):
    held, _, pack = small_enwik8
    pack(SMALL[::-1] if what == "another text" else SMALL, "enwik9" if what == "another name" else "enwik8")
    if what == "no zip":
        held["zip"] = b"<html>moved</html>"
    if what == "another byte":
        held["zip"] = held["zip"].replace(b"0123", b"9123")
    if what == "no deflated data":
        pack(SMALL, how=ZIP_DEFLATED)
        start = 30 + len("enwik8")  # behind the local header; what follows names a kind of block that there is not
        held["zip"] = held["zip"][:start] + b"\xff" + held["zip"][start + 1 :]
    with pytest.raises(ValueError, match=r"enwik8\.zip is not the published text"):
        Enwik8(None).fingerprint()
    assert not [path for path in cache_root().rglob("*") if path.is_file()]
