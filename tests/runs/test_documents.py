"""Perplexity by document: each by itself, from its start, with what its source says of it."""

import json

import pandas as pd
import pytest

import lmlab
from lmlab.data.corpora.document import Document
from lmlab.runs.documents import beginning


@pytest.fixture
def run(trained, small, tmp_path):
    """An LSTM over three short documents of its own."""
    texts = ["the cat sat.\n", "the dog ate the cat's food.\n", "it's good.\n"]
    files = {}
    for split, text in zip(("train", "val", "test"), texts, strict=True):
        files[split] = tmp_path / f"{split}.jsonl"
        files[split].write_text(json.dumps({"text": text * (20 if split == "train" else 1)}) + "\n", encoding="utf-8")
    places = [f"corpus.{split}={path}" for split, path in files.items()]
    config = lmlab.compose([*small["lstm"], *places])
    config.run_dir = str(tmp_path / "run")
    lmlab.train(config)
    return lmlab.load(tmp_path / "run")


def test_each_document_is_scored_by_itself(run):
    found = lmlab.runs.by_document(run)
    assert found["split"].tolist() == ["train", "val", "test"]
    alone = run.score("the dog ate the cat's food.\n", top=0, eos=False).likelihood
    assert found["ppl"][1] == pytest.approx(alone.ppl, rel=1e-5)
    assert found["bytes"][1] == alone.bytes
    pd.testing.assert_frame_equal(found, lmlab.runs.by_document(run, batch_size=1), rtol=1e-5)


def test_only_the_beginning_is_scored_where_that_is_asked_for(run):
    assert lmlab.runs.by_document(run, characters=8)["bytes"].tolist() == [8, 8, 8]
    with pytest.raises(ValueError, match="characters=0 must be at least 1"):
        lmlab.runs.by_document(run, characters=0)


def test_no_more_of_a_document_is_read_than_its_beginning():
    read = []
    pieces = (read.append(piece) or piece for piece in ("明月", "几时", "有"))
    assert beginning(Document("poem", pieces), 3) == "明月几"
    assert read == ["明月", "几时"]
    assert beginning(Document("poem", ["明月", "几时"]), 100) == beginning(Document("poem", ["明月", "几时"]), None)


def test_years_are_taken_together():
    table = pd.DataFrame({"year": [1790, 1799, 1800], "ppl": [10.0, 14.0, 7.0]})
    found = lmlab.runs.by_span(table)
    assert found[["first", "last", "n", "mean"]].values.tolist() == [[1790, 1799, 2, 12.0], [1800, 1809, 1, 7.0]]
    # t(0.95, 1) = 12.706; the standard error of 10 and 14 is 2.
    assert found["high"][0] == pytest.approx(12 + 2 * 12.7062, abs=1e-3)
    assert pd.isna(found["high"][1])
