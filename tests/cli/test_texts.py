"""lmlab score and lmlab generate: what is read, what is written, and what is no text."""

import json
import os
import shutil
import sys
import threading

import pytest
from tests.cli.test_verbs import FAMILIES, call, refused

from lmlab import scoring
from lmlab.cli import main
from lmlab.cli.command import read_lines
from lmlab.errors import check_text
from lmlab.runs import load


def test_score_as_json_sums_its_tokens(trained, capsys):
    text = 'It\'s, "quoted" [a,b]=${x} \\ 第一\n!'
    told = json.loads(call(capsys, "score", f"run_dir={trained['lstm']}", f"text={text}", "format=json"))
    assert told["text"] == text
    assert told["bytes"] == len(text.encode())
    assert told["log_prob"] == pytest.approx(sum(token["log_prob"] for token in told["tokens"]))


def test_score_shows_a_table_and_reads_files(trained, tmp_path, capsys):
    assert "ln P(W) = " in call(capsys, "score", f"run_dir={trained['ngram']}", "text=the cat")
    (tmp_path / "a b.txt").write_text("the cat\n\nthe dog\n")
    told = json.loads(
        call(capsys, "score", f"run_dir={trained['ngram']}", f"file={tmp_path / 'a b.txt'}", "format=json")
    )
    assert [score["text"] for score in told] == ["the cat", "the dog"]


@pytest.mark.parametrize("family", ["lstm", "transformer", "ngram"])
def test_the_texts_of_a_file_are_scored_side_by_side_and_shown_as_they_come(
    trained, tmp_path, capsys, monkeypatch, family
):
    texts, run = [f"the cat {'sat ' * (i % 7)}{i}" for i in range(20)], load(trained[family])
    (tmp_path / "texts").write_text("\n".join(texts))
    seen, score_rows = [], scoring._score_rows

    def scored(model, tokenizer, rows, *more):
        seen.append((len(rows), capsys.readouterr().out.count("ln P(W) = ")))
        return score_rows(model, tokenizer, rows, *more)

    monkeypatch.setattr(scoring, "_score_rows", scored)
    given = ("score", f"run_dir={trained[family]}", f"file={tmp_path / 'texts'}")
    assert main([*given]) == 0
    assert seen == [(16, 0), (4, 16)]
    monkeypatch.undo()
    capsys.readouterr()
    told = json.loads(call(capsys, *given, "format=json"))
    assert [score["text"] for score in told] == texts
    assert [score["log_prob"] for score in told] == pytest.approx([run.score(t).log_prob for t in texts], rel=1e-5)


def test_texts_are_read_from_a_pipe(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=["the cat\nthe dog\n"])
    writer.start()
    assert read_lines(pipe) == ["the cat", "the dog"]
    writer.join()


def test_what_is_no_run_names_the_runs_there_are(trained, tmp_path, capsys):
    root = trained["lstm"].parent
    names = ", ".join(str(root / name) for name in ("lstm", "ngram", "transformer"))
    assert f"below it lie {names}; write run_dir={root}/lstm\n" in refused(capsys, "evaluate", f"run_dir={root}")
    for inside in ("config.yaml", "checkpoints", "checkpoints/best.ckpt"):
        told = refused(capsys, "evaluate", f"run_dir={root}/lstm/{inside}")
        assert f"{inside} is no run: it lies in one; write run_dir={root}/lstm\n" in told
    for name in "abcd":
        shutil.copytree(trained["ngram"], tmp_path / name)
    assert "and more; write" in refused(capsys, "evaluate", f"run_dir={tmp_path}")
    (tmp_path / "sweep.yaml").touch()
    assert "is no run: it is a sweep, and its trials are " in refused(capsys, "evaluate", f"run_dir={tmp_path}")


def test_a_byte_order_mark_is_no_text(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_bytes(b"\xef\xbb\xbfthe first\nthe \xef\xbb\xbfsecond\n")
    assert read_lines(path) == ["the first", "the \ufeffsecond"]
    # The place of a fault is still that in the file.
    path.write_bytes(b"\xef\xbb\xbfab\xff\n")
    with pytest.raises(ValueError, match=r"is not UTF-8 \(byte 5\)"):
        read_lines(path)
    path.write_bytes(b"\xef\xbb\xbf\n")
    with pytest.raises(ValueError, match="holds no text"):
        read_lines(path)


def test_the_score_of_no_text_is_valid_json(trained, capsys):
    told = json.loads(call(capsys, "score", f"run_dir={trained['lstm']}", "text=", "format=json"))
    assert told["log_prob"] == 0
    assert told["nll"] is None


# generate


@pytest.mark.parametrize("family", FAMILIES)
def test_generate_streams_after_the_prompt(family: str, trained, capsys):
    arguments = ["generate", f"run_dir={trained[family]}", "prompt=the", "max_new_tokens=5"]
    told = call(capsys, *arguments)
    assert told.startswith("the")
    assert told == call(capsys, *arguments)


def test_beams_need_no_more_than_their_number(trained, capsys):
    told = call(capsys, "generate", f"run_dir={trained['ngram']}", "prompt=the cat", "max_new_tokens=5", "num_beams=4")
    assert told.startswith("the cat sat on the mat")


def test_generate_reads_prompts_from_a_file(trained, tmp_path, capsys):
    (tmp_path / "p.txt").write_text("the\na cat\n")
    prompts = [f"prompts_file={tmp_path / 'p.txt'}", "max_new_tokens=3", "num_samples=2"]
    told = json.loads(call(capsys, "generate", f"run_dir={trained['lstm']}", *prompts, "format=json"))
    assert [(entry["prompt"], len(entry["samples"])) for entry in told] == [("the", 2), ("a cat", 2)]


def test_a_file_of_prompts_is_written_so_many_at_once(trained, tmp_path, capsys, monkeypatch):
    from lmlab.generation.sampling import Lockstep

    (tmp_path / "p.txt").write_text("the\n" * 150)
    rows, run = [], Lockstep.run
    monkeypatch.setattr(Lockstep, "run", lambda self, ids, samples: rows.append(len(ids)) or run(self, ids, samples))
    call(capsys, "generate", f"run_dir={trained['lstm']}", f"prompts_file={tmp_path / 'p.txt'}", "max_new_tokens=1")
    assert rows == [64, 64, 22]


def test_generate_stops_at_a_string(trained, capsys):
    base = ["generate", f"run_dir={trained['ngram']}", "prompt=the cat", "max_new_tokens=20", "temperature=0"]
    assert call(capsys, *base, "stop= on the") == "the cat sat\n"
    assert call(capsys, *base, r'stop=["\n"," on"]') == "the cat sat\n"
    assert call(capsys, *base, "stop=null") == call(capsys, *base)


def test_python_refuses_what_is_no_text(trained):
    run = load(trained["ngram"])
    for ask in (run.score, run.generate, lambda text: run.generate([text]), lambda text: run.generate(stop=[text])):
        with pytest.raises(ValueError, match="is not UTF-8"):
            ask("\ud800")
    for text in (None, ["a"]):
        with pytest.raises(TypeError, match="must be one string"):
            check_text("text", text)


def test_a_prompt_that_the_vocabulary_lacks_is_read_and_said(small, tmp_path, monkeypatch, capsys):
    kept = [o for o in small["ngram"] if not o.startswith("tokenizer")]
    assert main(["train", f"run_dir={tmp_path}/run", *kept, "tokenizer=char"]) == 0
    capsys.readouterr()
    assert main(["generate", f"run_dir={tmp_path}/run", "prompt=the Ω", "max_new_tokens=3"]) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith("the Ω")
    assert shown.err == "the vocabulary lacks 'Ω': read as <unk>\n"
    # Below the streamed text, not in its midst.
    monkeypatch.setattr("sys.stderr", sys.stdout)
    assert main(["generate", f"run_dir={tmp_path}/run", "prompt=the Ω", "max_new_tokens=3"]) == 0
    assert capsys.readouterr().out == shown.out + shown.err
    monkeypatch.undo()
    assert main(["score", f"run_dir={tmp_path}/run", "text=the Ω"]) == 0
    assert capsys.readouterr().err == shown.err


def test_a_damaged_run_is_told_on_a_line_of_its_own(trained, tmp_path, capsys):
    shutil.copytree(trained["lstm"], tmp_path / "run")
    best = tmp_path / "run/checkpoints/best.ckpt"
    whole = best.read_bytes()
    best.write_bytes(whole[: len(whole) // 2])
    assert main(["generate", f"run_dir={tmp_path / 'run'}", "prompt=the"]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith(f"lmlab: {best} is damaged or truncated")


def test_a_checkpoint_that_is_gone_is_told_with_what_there_is(trained, tmp_path, capsys):
    shutil.copytree(trained["lstm"], tmp_path / "run")
    call = ("generate", f"run_dir={tmp_path / 'run'}", "prompt=the", "max_new_tokens=2")
    (tmp_path / "run/checkpoints/best.ckpt").unlink()
    assert "take checkpoint=last" in refused(capsys, *call)
    assert main([*call, "checkpoint=last"]) == 0
    (tmp_path / "run/checkpoints/last.ckpt").unlink()
    assert "train the same again under another run_dir" in refused(capsys, *call)


# prepare, runs
