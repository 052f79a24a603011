"""What preparing says while it goes on."""

from tests.data.test_store import word
from tests.data.texts import POEMS, Texts

from lmlab.data.store import prepare


def test_progress_is_plain_lines_where_there_is_no_terminal(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("lmlab.data.progress.EVERY_S", 0.0)
    prepare(Texts(train=POEMS), word, {}, tmp_path, progress=True)
    error = capsys.readouterr().err
    assert error.startswith("preparing texts: training the tokenizer, 0 MB, 0 s\n")
    assert "preparing texts: encoding train, 0 MB, 0 s\n" in error
    assert "\r" not in error
    assert "\x1b" not in error
