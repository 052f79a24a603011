"""Perplexity by document: each by itself, from its start, with what its source says of it."""

import json

import pandas as pd
import pytest

import lmlab
from lmlab.data.corpora.document import Document
from lmlab.runs.documents import beginning
from lmlab.runs.run import Run


@pytest.fixture
def train(small, tmp_path):
    """An LSTM over three short documents of its own."""

    def made(*more: str) -> Run:
        texts = ["the cat sat.\n", "the dog ate the cat's food.\n", "it's good.\n"]
        places = []
        for split, text in zip(("train", "val", "test"), texts, strict=True):
            path = tmp_path / f"{split}.jsonl"
            path.write_text(json.dumps({"text": text * (20 if split == "train" else 1)}) + "\n", encoding="utf-8")
            places.append(f"corpus.{split}={path}")
        config = lmlab.compose([*small["lstm"], *places, *more])
        config.run_dir = str(tmp_path / "run")
        lmlab.train(config)
        return lmlab.load(tmp_path / "run")

    return made


@pytest.fixture
def run(train):
    return train()


def test_each_document_is_scored_by_itself(run):
    found = lmlab.runs.by_document(run)
    assert found["split"].tolist() == ["train", "val", "test"]
    alone = run.score("the dog ate the cat's food.\n", top=0, eos=False).likelihood
    assert found["ppl"][1] == pytest.approx(alone.ppl, rel=1e-5)
    assert found["bytes"][1] == alone.bytes
    pd.testing.assert_frame_equal(found, lmlab.runs.by_document(run, batch_size=1), rtol=1e-5)


def test_the_letters_of_unknown_words_are_charged_where_the_run_charges_them(train):
    """As its own numbers do: what is charged of val, whose one document it is, whatever the context."""
    run = train("tokenizer=word", "evaluation.unknown=spelled")
    charges = run.part("val", None, run.protocol).charges
    assert charges.sum() > 10
    alone = run.score("the dog ate the cat's food.\n", top=0, eos=False).likelihood
    val = lmlab.runs.by_document(run).iloc[1]
    assert val["nll"] * val["tokens"] == pytest.approx(alone.nats + charges.sum(), rel=1e-5)
    # Of "the dog ate" the first two unknown words are charged.
    short = lmlab.runs.by_document(run, characters=11).iloc[1]
    alone = run.score("the dog ate", top=0, eos=False).likelihood
    assert short["nll"] * short["tokens"] == pytest.approx(alone.nats + charges[charges > 0][:2].sum(), rel=1e-5)


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
