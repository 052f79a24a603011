import json
import os

import pytest

from lmlab import cli


def test_audit_shows_a_table_and_a_failure_has_status_3(trained, capsys):
    assert cli.main(["audit", f"run_dir={trained['lstm']}"]) == 3
    shown = capsys.readouterr().out
    assert "causality" in shown
    assert "not applicable" in shown
    assert "audit: overlap FAILED" in shown
    # Passages, as they stand in the text.
    assert "the cat sat on the mat" in shown


def test_audit_as_json(trained, capsys):
    assert cli.main(["audit", f"run_dir={trained['ngram']}", "quick=true", "format=json"]) == 3
    told = json.loads(capsys.readouterr().out)
    assert told["checks"]["byte ledger"]["passed"] is True
    assert told["passed"] is False


def test_an_honest_run_has_status_0(small, tmp_path, capsys):
    import numpy as np

    from lmlab.config import compose
    from lmlab.experiment import train

    text = tmp_path / "text.txt"
    words = np.random.default_rng(0).integers(0, 900, 4000)
    text.write_text("".join(f"word{w}{'.' if w % 9 == 0 else ''}\n" for w in words), encoding="utf-8")
    overrides = [word for word in small["lstm"] if not word.startswith("corpus.train")]
    train(compose([f"run_dir={tmp_path / 'run'}", *overrides, f"corpus.train={text}"]))
    assert cli.main(["audit", f"run_dir={tmp_path / 'run'}"]) == 0
    assert "FAIL" not in capsys.readouterr().out


@pytest.mark.parametrize("seen_by", ["audit", "train"])
def test_a_flipped_bit_in_a_large_store_is_seen_and_made_again(seen_by, small, tmp_path, monkeypatch, capsys, caplog):
    from lmlab.config import compose
    from lmlab.experiment import train

    overrides = [word for word in small["lstm"] if not word.startswith("cache_dir")] + [f"cache_dir={tmp_path}"]
    train(compose([f"run_dir={tmp_path / 'run'}", *overrides]))
    # As if the file were too large to be read at each opening, and this another process.
    monkeypatch.setattr("lmlab.data.store.CHECK_UP_TO", 0)
    monkeypatch.setattr("lmlab.data.store._whole", set())
    (file,) = tmp_path.glob("stores/*/train.ids")
    whole, told = file.read_bytes(), file.stat()
    file.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    os.utime(file, ns=(told.st_atime_ns, told.st_mtime_ns))
    if seen_by == "audit":
        assert cli.main(["audit", f"run_dir={tmp_path / 'run'}", f"cache_dir={tmp_path}"]) == 3
        assert "byte ledger" in capsys.readouterr().out
    else:
        train(compose([f"run_dir={tmp_path / 'other'}", *overrides]))
    assert f"{file} was changed: its checksum differs" in caplog.text
    assert [found.read_bytes() for found in tmp_path.glob("stores/*/train.ids")] == [whole]


def test_bad_values_are_refused(trained, capsys):
    assert cli.main(["audit"]) == 2
    assert cli.main(["audit", f"run_dir={trained['lstm']}", "passages=-1"]) == 2
    assert cli.main(["audit", f"run_dir={trained['lstm']}", "quick=maybe"]) == 2
    assert "quick=maybe must be true or false" in capsys.readouterr().err
