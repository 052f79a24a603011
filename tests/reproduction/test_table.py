"""The README's table is what was recorded; what it shows of a whole run, of a part, and of none."""

import json
import re
from pathlib import Path

import pytest
from tests.benchmarks.table import replaced
from tests.reproduction.__main__ import MARKS, RECORDED, record, render

from lmlab.evaluation.published import read
from lmlab.reproduction import RECORD
from lmlab.reproduction.table import at_end, beside, markdown

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
TARGET = read(
    {
        "source": "a paper",
        "metric": "ppl",
        "tolerance": 1.0,
        "splits": {"val": {"value": 90.0, "tokens": 10}, "test": {"value": 86.0, "tokens": 12}},
        "protocol": "as here",
        "steps": 1000,
        "cost": "a day",
    }
)
KEPT = {
    "recipe": "one",
    "not_whole": None,
    "splits": {"val": {"measured": 90.5, "difference": 0.5, "verdict": "within tolerance", "nll": 4.50535}},
    "training": {"steps": 1000, "of": 1000, "seconds": 61.4},
    "forecast": None,
    "machine": {"device": "cpu X", "cores": 2, "load": 3.1, "torch": "2.13", "commit": "abcdef0123"},
    "run_dir": "somewhere/of/mine",
}
PART = KEPT | {
    "not_whole": "trainer.max_steps=100 (the recipe: 1000)",
    "splits": {"val": {"measured": 100.0, "difference": 10.0, "verdict": "not whole", "nll": 4.60517}},
    "training": {"steps": 100, "of": 1000, "seconds": 6.0},
    "forecast": {"gain": 0.2, "low": 0.1, "high": 0.4, "times": 10.0, "by": "validations"},
}


def test_the_readmes_table_is_what_was_recorded():
    assert replaced(README, render(), MARKS) == README, "run: python -m tests.reproduction"


def test_records_name_no_place_and_no_person():
    for path in RECORDED.glob("*.json"):
        text = path.read_text(encoding="utf-8")
        assert "run_dir" not in text
        assert not re.search(r"/(home|tmp|root|work)/", text), path.name


def test_a_row_is_a_recorded_run_or_says_that_there_is_none():
    rows = markdown([KEPT], {"one": TARGET, "two": TARGET, "none": None}).splitlines()
    expected = "| `one` | val ppl 90.00 | 90.50 | +0.50 | within tolerance | 1,000 | 61 s, load 3.1 | a |"
    assert rows[2] == expected
    assert rows[3] == "| `one` | test ppl 86.00 | not run | | | 1,000 | | |"
    assert len([row for row in rows if row.startswith("| `two`")]) == 2
    assert not [row for row in rows if "none" in row]
    assert rows[-1] == "Machine a: cpu X, 2 cores, torch 2.13, commit abcdef0."


def test_a_part_shows_where_it_leads():
    # 100 exp(-0.2) = 81.87, exp(-0.1): 90.48, exp(-0.4): 67.03
    assert at_end(PART, TARGET, "val") == "81.87 (67.03 to 90.48)"
    row = markdown([PART], {"one": TARGET}).splitlines()[2]
    assert "| +10.00 | not whole; at the end 81.87 (67.03 to 90.48) | 100 of 1,000 |" in row


def test_a_part_that_was_better_before_says_when():
    part = PART | {"training": PART["training"] | {"best_step": 60}, "forecast": None}
    assert "| +10.00 | not whole | 100 of 1,000, measured at 60 |" in markdown([part], {"one": TARGET})
    same = PART | {"training": PART["training"] | {"best_step": 100}}
    assert markdown([same], {"one": TARGET}) == markdown([PART], {"one": TARGET})


def test_bits_a_byte_shrink_in_proportion_to_nats():
    target = read(TARGET.as_dict() | {"metric": "bpb"})
    part = PART | {"splits": {"val": {"measured": 2.0, "nll": 4.0}}}
    assert at_end(part, target, "val") == "1.9000 (1.8000 to 1.9500)"


def test_records_are_taken_without_their_place(tmp_path, monkeypatch):
    import tests.reproduction.__main__ as here

    (tmp_path / "recorded").mkdir()
    monkeypatch.setattr(here, "RECORDED", tmp_path / "recorded")
    (tmp_path / "out/one").mkdir(parents=True)
    (tmp_path / "out/one" / RECORD).write_text(json.dumps(KEPT))
    assert record(tmp_path / "out") == ["one"]
    assert "run_dir" not in json.loads((tmp_path / "recorded/one.json").read_text())


def test_the_recorded_row_with_a_reference_loop_can_stand_beside():
    path, *_ = sorted((Path(__file__).parents[1] / "benchmarks/recorded").rglob("examples_650_tied.json"))
    found = beside(path)
    assert found["row"] == "examples_650_tied"
    assert found["steps"] > 0
    assert found["ms"]["ours"] > 0


@pytest.mark.parametrize("text", ["{}", "no json", '{"cases": []}', '{"row": "a", "cases": [{}]}'])
def test_another_file_cannot(text, tmp_path):
    (tmp_path / "row.json").write_text(text)
    with pytest.raises(ValueError, match="no record of a benchmark"):
        beside(tmp_path / "row.json")
