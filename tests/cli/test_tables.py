"""Tables for the terminal show people's text as it is."""

import pandas as pd

from lmlab.cli.tables import show_frame, show_plan

# To rich a closing tag that nothing opened, a style that there is none of, and a picture.
TEXTS = ["[/data/a.txt,/data/b.txt]", "pip install 'lmlab[files]'", "[bold]:cat:"]


def test_brackets_are_no_markup(capsys):
    show_frame(pd.DataFrame({"reason": TEXTS}), all_columns=False)
    assert [line.strip() for line in capsys.readouterr().out.splitlines()] == ["reason", *TEXTS]
    show_frame(pd.DataFrame({TEXTS[0]: TEXTS}), all_columns=True)
    assert capsys.readouterr().out.split("\n")[0].strip() == TEXTS[0]
    for text in TEXTS:
        show_plan({"run_dir": text})
        assert text in capsys.readouterr().out
