"""Runs under several protocols: their numbers stand apart, and nothing of one is better than something of another."""

import json
import shutil

import pandas as pd
import pytest

from lmlab.config import compose
from lmlab.experiment import train
from lmlab.runs import against_best, equal, scaling_law, table
from lmlab.runs.protocols import UNNAMED, apart, check, incomparable, is_measured, name, of_results, text_of_results

FRAME = pd.DataFrame(
    {
        "run": list("abcd"),
        "treatment": list("aabb"),
        "model": ["LSTMLM", "LSTMLM", "TransformerLM", "TransformerLM"],
        "protocol": ["carried-16", None, "sliding-32/16", "sliding-32/16"],
        "seed": [0, 1, 0, 1],
        "parameters": [1000] * 4,
        "tokens": [100] * 4,
        "seconds": [1.0, 2.0, 3.0, 4.0],
        "val/bpb": [2.0, 2.1, 1.5, 1.6],
    }
)


def test_a_protocol_s_runs_stand_together_and_runs_without_numbers_with_the_first():
    found = apart(FRAME)
    assert {one: rows["run"].tolist() for one, rows in found.items()} == {
        "carried-16": ["a", "b"],
        "sliding-32/16": ["c", "d"],
    }
    assert list(apart(FRAME.assign(protocol=None))) == [""]
    assert list(apart(FRAME.drop(columns="protocol"))) == [""]


def test_texts_stand_apart_where_there_are_several():
    """Bits per byte of English and of Chinese are no two of one kind."""
    one = FRAME.assign(protocol="carried-16", val_bytes=[900.0, None, 900.0, 900.0])
    assert {name: rows["run"].tolist() for name, rows in apart(one).items()} == {"carried-16": ["a", "b", "c", "d"]}
    check(one, "val/bpb")
    two = one.assign(val_bytes=[900.0, None, 1200.0, 900.0])
    names = ["carried-16 over 900 bytes of val", "carried-16 over 1,200 bytes of val"]
    assert {name: rows["run"].tolist() for name, rows in apart(two).items()} == dict(
        zip(names, (["a", "b", "d"], ["c"]), strict=True)
    )
    with pytest.raises(ValueError, match="val/bpb: 2 texts, whose numbers are not comparable"):
        check(two, "val/bpb")
    unmeasured = two.assign(protocol=[*two["protocol"][:3], "sliding-8/4"], val_bytes=[900.0, None, 1200.0, None])
    assert list(apart(unmeasured)) == [*names, "sliding-8/4"]
    assert incomparable(names) == f"2 texts, whose numbers are not comparable: {', '.join(names)}"
    assert "N puts all of each text under one" in incomparable(apart(unmeasured))


def test_texts_of_as_many_bytes_stand_apart_by_what_they_hold():
    """a and b are of one text, c and d of another; which one e of before is of, only its bytes can say."""
    four = FRAME.assign(protocol="carried-16", val_text=["1" * 16, "1" * 16, "2" * 16, "2" * 16])
    five = pd.concat([four, FRAME[:1].assign(run="e", protocol="carried-16")], ignore_index=True)
    same = five.assign(val_bytes=[900.0, None, 900.0, 900.0, 900.0])
    first, second = (f"carried-16 over 900 bytes of val ({digit * 8})" for digit in "12")
    assert {name: rows["run"].tolist() for name, rows in apart(same).items()} == {
        first: list("abe"),
        second: list("cd"),
    }
    told = incomparable([first, second])
    assert told == f"2 texts, whose numbers are not comparable: {first}, {second}"
    other = same.assign(val_bytes=[900.0, None, 1200.0, 1200.0, 900.0])
    assert list(apart(other)) == ["carried-16 over 900 bytes of val", "carried-16 over 1,200 bytes of val"]
    # Where the first tokens alone were scored, nobody counted the bytes.
    limited = apart(five.assign(val_bytes=None))
    assert list(limited) == [f"carried-16 over val ({digit * 8})" for digit in "12"]
    assert incomparable(limited).startswith("2 texts")
    with pytest.raises(ValueError, match="2 texts, whose numbers are not comparable"):
        against_best(five.assign(val_bytes=None))
    check(five.assign(val_text=["1" * 16] * 4 + [None], val_bytes=900.0), "val/bpb")


def test_a_run_that_has_not_come_to_its_end_stands_with_those_of_before_on_what_may_be_their_text():
    frame = FRAME[:2].assign(protocol="carried-16", val_bytes=[5000.0, None], val_text=[None, "a" * 16])
    assert list(apart(frame)) == ["carried-16"]
    # Two such texts cannot both be the older one.
    frame = FRAME[:3].assign(protocol="carried-16", val_bytes=[5000.0, None, None], val_text=[None, "a" * 16, "b" * 16])
    assert len(apart(frame)) == 3


def test_two_texts_of_which_the_first_tokens_are_scored_stand_apart(small, tmp_path):
    for run, line in (("a", "the cat sat on the mat.\n"), ("b", "a dog, a bone; a bone, a dog!\n")):
        (tmp_path / f"{run}.txt").write_text(line * 200)
        where = [f"corpus.train={tmp_path}/{run}.txt", f"run_dir={tmp_path}/runs/{run}"]
        train(compose([*small["lstm"], *where, "evaluation.limit_tokens=50"]))
    found = apart(table(tmp_path / "runs"))
    assert [rows["run"].tolist() for rows in found.values()] == [["a"], ["b"]]
    assert incomparable(found).startswith("2 texts")


def test_a_limit_leaves_the_bytes_untold():
    """Two tokenizers' first tokens are no one text, and still meet in one table."""
    splits = {"val": {"bytes": 900}}
    assert text_of_results({"protocol": {"limit_tokens": None}, "splits": splits}) == 900
    assert text_of_results({"protocol": {"limit_tokens": 100}, "splits": splits}) is None
    assert text_of_results({"splits": {}}) is None


def test_unk_that_cost_a_token_are_part_of_the_protocol_s_name():
    """Two vocabularies leave out different words, so that neither numbers compare with the other's."""
    told = {"name": "carried-16", "unknown": "token"}
    assert [name(told, n) for n in (0, 7, 8)] == ["carried-16", "carried-16 with 7 <unk>", "carried-16 with 8 <unk>"]
    assert name({"name": "carried-16-spelled", "unknown": "spelled"}, 7) == "carried-16-spelled"
    assert name(None, 0) == UNNAMED


def test_a_run_whose_test_was_scored_has_the_protocol_of_the_others():
    splits = {"val": {"unknown": 7}, "test": {"unknown": 9}}
    results = {"protocol": {"name": "carried-16", "unknown": "token"}, "splits": splits}
    assert of_results(results) == of_results(results | {"splits": {"val": {"unknown": 7}}}) == "carried-16 with 7 <unk>"


@pytest.mark.parametrize(
    ("names", "ways"),
    [
        (["carried-16", "sliding-32/16"], "evaluation=sliding evaluation.max_context=N puts all under one"),
        (["carried-16", "carried-16 with 7 <unk>"], "; evaluation.unknown=spelled puts all under one"),
        (["carried-16 with 8 <unk>", "carried-16 with 7 <unk>"], "; evaluation.unknown=spelled puts all under one"),
        (["carried-16", "sliding-32/16 with 7 <unk>"], "max_context=N evaluation.unknown=spelled puts all under one"),
    ],
)
def test_one_line_says_which_they_are_and_what_makes_them_one(names: list[str], ways: str):
    told = incomparable(names)
    assert told.startswith(f"2 protocols, whose numbers are not comparable: {', '.join(names)}; ")
    assert ways in told
    assert "\n" not in told


def test_only_an_evaluation_s_numbers_are_under_its_protocol():
    assert [is_measured(column) for column in ("val/bpb", "test/ppl", "train/eval_loss", "seconds")] == [True] * 3 + [
        False
    ]
    check(FRAME, "seconds")
    check(FRAME[2:], "val/bpb")
    with pytest.raises(ValueError, match="val/bpb: 2 protocols, whose numbers are not comparable: carried-16, sliding"):
        check(FRAME, "val/bpb")


@pytest.mark.parametrize("verdict", [against_best, equal, scaling_law])
def test_no_verdict_is_given_across_protocols(verdict):
    with pytest.raises(ValueError, match="2 protocols, whose numbers are not comparable"):
        verdict(FRAME)


def test_a_run_that_has_not_ended_has_the_protocol_that_it_is_measured_under(trained, tmp_path):
    for family in ("lstm", "transformer"):
        shutil.copytree(trained[family], tmp_path / family)
        (tmp_path / family / "results.json").unlink()
    assert table(tmp_path)["protocol"].tolist() == ["carried-16", "sliding-16/8"]
    shutil.copytree(trained["lstm"], tmp_path / "pruned")
    results = json.loads((trained["lstm"] / "results.json").read_text())
    (tmp_path / "pruned/results.json").write_text(json.dumps(results | {"splits": {}}))
    (tmp_path / "lstm/config.yaml").unlink()
    assert table(tmp_path)["protocol"].fillna("").tolist() == ["", "carried-16", "sliding-16/8"]
