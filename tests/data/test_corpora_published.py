"""Data sets with published numbers: your copy as it is, what is fetched verified, and one clear line offline."""

import hashlib
import urllib.request
from io import BytesIO
from urllib.error import URLError

import pytest

from lmlab.data.cache import cache_root
from lmlab.data.corpora import PennTreebank, TinyShakespeare, WikiText2

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


@pytest.mark.parametrize("kind", [TinyShakespeare, WikiText2, PennTreebank])
def test_offline_one_line_says_which_file_to_put_where(offline, kind):
    with pytest.raises(FileNotFoundError) as caught:
        kind(None).fingerprint()
    message = str(caught.value)
    files = ", ".join(names[0] for names, _ in kind.files.values())
    assert message.startswith(f"corpus={kind.name} could not be fetched (no route to host); put {files} from https://")
    assert f"into {cache_root() / 'corpora' / kind.name}" in message
    assert "corpus.path=" in message
    assert "\n" not in message


def test_a_folder_without_the_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"corpus\.path=.* has no ptb\.train\.txt or train\.txt; put"):
        PennTreebank(str(tmp_path)).fingerprint()
    with pytest.raises(FileNotFoundError, match=r"corpus\.path=.*gone is no folder"):
        WikiText2(str(tmp_path / "gone")).fingerprint()


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
