"""Tables for the terminal show people's text as it is."""

import logging

import pandas as pd
import pytest

from lmlab.cli.command import StandardError
from lmlab.cli.tables import show_frame, show_plan
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


def test_brackets_are_no_markup(capsys):
    show_frame(pd.DataFrame({"reason": TEXTS}), all_columns=False)
    assert [line.strip() for line in capsys.readouterr().out.splitlines()] == ["reason", *TEXTS]
    show_frame(pd.DataFrame({TEXTS[0]: TEXTS}), all_columns=True)
    assert capsys.readouterr().out.split("\n")[0].strip() == TEXTS[0]
    for text in TEXTS:
        show_plan({"run_dir": text})
        assert text in capsys.readouterr().out
