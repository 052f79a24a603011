import json

import pytest
import torch

from lmlab import runs
from lmlab.evaluation import audit
from lmlab.evaluation.checks import Check

NAMES = ["causality", "probabilities", "chunked = whole", "padding", "distributed", "byte ledger", "decode"]
NAMES += ["vocabulary", "overlap"]
# The tests' text is one sentence again and again: held-out text stands in train, which is what an audit is for.
REPEATED = "overlap"


@pytest.mark.parametrize("family", ["lstm", "transformer", "ngram"])
@pytest.mark.parametrize("quick", [True, False])
def test_a_run_passes_all_checks_but_that_of_its_text(trained, family, quick):
    checks = runs.load(trained[family]).audit(quick)
    assert [c.name for c in checks] == NAMES
    assert [c.name for c in checks if c.passed is False] == [REPEATED]


def test_every_training_ends_with_the_quick_part(trained):
    for directory in trained.values():
        kept = json.loads((directory / "results.json").read_text())["audit"]
        assert list(kept["checks"]) == NAMES
        assert kept["passed"] is False
        assert kept["checks"]["causality"]["passed"] is True
        assert "audit: overlap FAILED" in (directory / "train.log").read_text(encoding="utf-8")


def test_weights_that_changed_since_are_told_by_nothing_but_a_leak_is(trained):
    run = runs.load(trained["lstm"])
    honest = run.model.forward

    def leaking(tokens, state=None):
        hidden, state = honest(tokens, state)
        return hidden + 0.1 * hidden.flip(1), state

    run.model.forward = leaking
    failed = [c.name for c in run.audit(quick=True) if c.passed is False]
    assert {"causality", "chunked = whole"} <= set(failed)


def test_the_model_is_left_as_it_was(trained):
    run = runs.load(trained["lstm"])
    run.model.train()
    before = torch.get_rng_state()
    run.audit(quick=True)
    assert run.model.training
    assert torch.equal(before, torch.get_rng_state())


def test_the_verdict_is_one_line():
    good, bad, none = Check("a", True, "1"), Check("b", False, "2"), Check("c", None, "3")
    assert audit.verdict([good, none]) == "audit: 1 checks passed, 1 not applicable (a)"
    assert audit.verdict([good, bad]) == "audit: b FAILED: 2"
    assert audit.record([good, none], 0)["passed"] is True
    assert audit.record([good, bad], 0)["passed"] is False


def test_a_text_that_changed_is_refused(small, tmp_path):
    from lmlab.config import compose
    from lmlab.experiment import train

    text = tmp_path / "own.txt"
    text.write_text("some words of one's own, and some more.\n" * 200, encoding="utf-8")
    overrides = [word for word in small["ngram"] if not word.startswith("corpus.train")]
    train(compose([f"run_dir={tmp_path / 'run'}", *overrides, f"corpus.train={text}"]))
    text.write_text("other words.\n" * 400, encoding="utf-8")
    with pytest.raises(ValueError, match="has changed"):
        runs.load(tmp_path / "run").audit()
