"""Tables for the terminal show people's text as it is."""

import logging
import math
import re

import numpy as np
import pandas as pd
import pytest

from lmlab.cli.command import StandardError
from lmlab.cli.tables import show_comparison, show_frame, show_plan
from lmlab.evaluation.comparison import Side, compare
from lmlab.evaluation.protocol import Protocol
from lmlab.evaluation.scores import Scores
from lmlab.terminal import for_stdout

# To rich a closing tag that nothing opened, a style that there is none of, and a picture.
TEXTS = ["[/data/a.txt,/data/b.txt]", "pip install 'lmlab[files]'", "[bold]:cat:"]


HOSTILE = "a\x1b]0;title\x07\x1b[2Jb\rc\x9b1m\td"
SEEN = r"a\x1b]0;title\x07\x1b[2Jb\rc\x9b1m"


def test_nothing_from_a_run_steers_the_terminal(capsys):
    show_frame(pd.DataFrame({"reason": [HOSTILE], HOSTILE: [1]}), all_columns=True)
    shown = capsys.readouterr().out
    assert shown.count(SEEN) == 2
    show_plan({"run_dir": HOSTILE})
    shown += capsys.readouterr().out
    assert shown.count(SEEN) == 3
    assert all(c.isprintable() for c in shown if c != "\n")
    StandardError().handle(logging.makeLogRecord({"msg": f"{HOSTILE}\n{HOSTILE}"}))
    assert capsys.readouterr().err == f"{SEEN}\td\n{SEEN}\td\n"


@pytest.mark.parametrize("terminal", [True, False])
def test_only_a_terminal_is_spared_what_a_text_holds(terminal, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: terminal, raising=False)
    assert for_stdout("a\x1bb\n\u200c\ud800明") == (
        "a\\x1bb\n\u200c\\ud800明" if terminal else "a\x1bb\n\u200c\ud800明"
    )


def test_a_number_without_end_is_shown_as_it_is(capsys):
    """A perplexity past what a float holds."""
    show_frame(pd.DataFrame({"val/ppl": [math.inf, 2500.0, 1.25]}), all_columns=True)
    assert capsys.readouterr().out.split() == ["val/ppl", "inf", "2,500", "1.25"]


def test_brackets_are_no_markup(capsys):
    show_frame(pd.DataFrame({"reason": TEXTS}), all_columns=False)
    assert [line.strip() for line in capsys.readouterr().out.splitlines()] == ["reason", *TEXTS]
    show_frame(pd.DataFrame({TEXTS[0]: TEXTS}), all_columns=True)
    assert capsys.readouterr().out.split("\n")[0].strip() == TEXTS[0]
    for text in TEXTS:
        show_plan({"run_dir": text})
        assert text in capsys.readouterr().out


def test_word_perplexities_without_end_are_shown_short_and_their_difference_as_none(capsys):
    """A Chinese line is one word: its perplexity is past what a float holds, or has a hundred digits."""
    protocol = Protocol(1, "carried", 16, None, None, "32", None).as_dict()

    def side(name: str, nats: float) -> Side:
        """40 lines of ten characters, two words in all."""
        n = 400
        columns = {"ids": np.zeros(n, np.uint16), "nats": np.full(n, nats), "charges": np.zeros(n), "counts": None}
        columns |= {"positions": np.zeros(n), "documents": np.repeat(np.arange(40), 10), "n_bytes": np.full(n, 3)}
        columns |= {"n_chars": np.ones(n, int), "n_words": np.arange(n) % 200 == 0}
        return Side(name, name, [Scores(**columns, about={"protocol": protocol, "tokenizer": name})])

    how = {"pairs": "all", "blocks": "auto", "block_bytes": None, "confidence": 0.95, "resamples": 100, "seed": 0}
    report = compare([side("a", 3.0), side("b", 5.0), side("c", 6.0)], **how)
    show_comparison({"split": "val", "protocols": [], **report})
    shown = capsys.readouterr().out
    assert "3.773e+260" in shown
    assert "nan" not in shown
    assert not re.search(r"\d,\d{3},\d{3},\d{3}", shown)
