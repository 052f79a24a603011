"""Tables of where the nats go, by hand."""

import math

import numpy as np
import pytest

from lmlab.evaluation.breakdown import breakdown
from lmlab.evaluation.scores import Scores

DOCS = [{"name": "a", "year": 1999}, {"name": "b", "year": 2001}, {"name": "c", "year": 1999}]


@pytest.fixture
def scores():
    """Six tokens of 1, 2, ... 6 nats in three documents."""
    ones = np.ones(6, np.uint8)
    return Scores(
        ids=np.arange(6),
        nats=np.arange(1, 7, dtype=np.float32),
        charges=np.array([0, 0, 0, 0, 0, 3], np.float32),
        positions=np.array([0, 1, 2, 3, 4, 8]),
        counts=np.array([0, 9, 10, 99, 100, 1]),
        documents=np.array([0, 0, 1, 1, 1, 2]),
        n_bytes=2 * ones,
        n_chars=ones,
        n_words=ones,
        about={"documents": DOCS},
    )


def told(rows, key):
    return {row["group"]: row[key] for row in rows}


def test_positions_are_powers_of_two(scores):
    assert told(breakdown(scores, "position"), "tokens") == {
        "0 tokens before": 1,
        "1": 1,
        "2 to 3": 2,
        "4 to 7": 1,
        "8 to 15": 1,
    }


def test_frequencies_are_decades(scores):
    rows = breakdown(scores, "frequency")
    assert told(rows, "tokens") == {"0 times in train": 1, "1 to 9": 2, "10 to 99": 2, "100 to 999": 1}
    # 2 and 6 + 3 nats.
    assert told(rows, "nll")["1 to 9"] == 5.5


def test_documents_and_what_they_say_of_themselves(scores):
    rows = breakdown(scores, "document")
    assert told(rows, "nll") == {"1. a": 1.5, "2. b": 4.0, "3. c": 9.0}
    rows = breakdown(scores, "year")
    assert told(rows, "tokens") == {"1999": 3, "2001": 3}
    assert told(rows, "share_of_nats") == {"1999": 0.5, "2001": 0.5}
    assert told(rows, "bpb")["2001"] == pytest.approx(12 / 6 / math.log(2))
    assert told(rows, "ppl")["1999"] == pytest.approx(math.exp(4))


def test_what_no_document_says_is_refused_with_what_they_say(scores):
    with pytest.raises(ValueError, match="by=yaer must be of position, frequency, document, year; did you mean year"):
        breakdown(scores, "yaer")
