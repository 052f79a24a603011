import json
import shutil

import pytest

from lmlab import cli


@pytest.fixture(scope="module")
def curved(small, tmp_path_factory):
    """A tiny run with validations enough for a forecast, and the same on half of its text."""
    from lmlab.config import compose
    from lmlab.experiment import train

    root = tmp_path_factory.mktemp("curved")
    for name, more in (("whole", []), ("half", ["train_share=0.5"])):
        steps = ["trainer.max_steps=30", "trainer.val_check_interval=3", "training.log_every=2", *more]
        train(compose([f"run_dir={root / name}", *small["transformer"], *steps]))
    return root


def test_a_training_ends_with_its_card_and_the_verb_says_the_same(curved, capsys):
    kept = json.loads((curved / "whole/results.json").read_text())["diagnosis"]
    log = (curved / "whole/train.log").read_text(encoding="utf-8")
    assert f"diagnosis: {kept['verdict']}: " in log
    assert cli.main(["diagnose", f"run_dir={curved / 'whole'}", "format=json"]) == 0
    told = json.loads(capsys.readouterr().out)
    # The run had no floors; the verb counts them.
    assert "unigram" in "\n".join(told["figures"])
    assert len(told["remedies"]) <= 3


def test_diagnose_shows_verdict_figures_and_what_to_try(curved, capsys):
    assert cli.main(["diagnose", f"run_dir={curved / 'whole'}", "lr=true", "steps=10"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("verdict  ")
    assert "tokens a parameter" in shown
    assert "learning rate 0.001" in shown
    assert "next, best first" in shown


def test_fractions_say_what_more_text_would_bring(curved, capsys):
    assert cli.main(["diagnose", f"run_dir={curved / 'whole'}", f"fractions=[{curved / 'half'}]"]) == 0
    assert "on parts of the text: " in capsys.readouterr().out
    assert cli.main(["diagnose", f"run_dir={curved / 'whole'}", f"fractions=[{curved / 'whole'}]"]) == 2


def test_runs_that_differ_in_more_than_their_share_of_the_text_are_no_fractions(curved, trained, tmp_path, capsys):
    from lmlab.run_directory import RunDirectory

    def refused(*paths):
        assert cli.main(["diagnose", f"run_dir={curved / 'whole'}", f"fractions=[{','.join(map(str, paths))}]"]) == 2
        return capsys.readouterr().err

    told = refused(curved / "half", trained["lstm"])
    assert f"fractions: {trained['lstm']} differs from {curved / 'whole'} in " in told
    assert "batching._target_" in told
    assert "train_share, " not in told
    # What was asked may be the same of another text, of another tokenizer made from it, or before a protocol changed.
    shutil.copytree(curved / "half", tmp_path / "half")
    directory = RunDirectory(tmp_path / "half")
    config = directory.config()
    for key, name in (("fingerprint", "the text"), ("tokenizer", "the tokenizer")):
        directory.write_yaml("config.yaml", config | {"decided": config["decided"] | {key: "another"}})
        assert f" in {name};" in refused(tmp_path / "half")
    protocol = config["decided"]["protocol"] | {"version": 0}
    directory.write_yaml("config.yaml", config | {"decided": config["decided"] | {"protocol": protocol}})
    assert " in version: 1 against 0;" in refused(tmp_path / "half")
    directory.write_yaml("config.yaml", config)
    results = directory.results()
    directory.write_json("results.json", results | {"training": results["training"] | {"horizons": [[10, 10]]}})
    assert " in lengthened;" in refused(tmp_path / "half")
    directory.write_json("results.json", results)
    # Another seed is no other recipe.
    directory.write_yaml("asked.yaml", directory.asked() | {"seed": 7})
    assert cli.main(["diagnose", f"run_dir={curved / 'whole'}", f"fractions=[{tmp_path / 'half'}]"]) == 0


@pytest.mark.parametrize("stopped", ["interrupted", "pruned"])
@pytest.mark.parametrize("which", ["whole", "half"])
def test_a_run_that_has_not_come_to_its_end_is_no_fraction(curved, tmp_path, capsys, stopped, which):
    from lmlab.run_directory import RunDirectory

    shutil.copytree(curved, tmp_path / "runs")
    directory = RunDirectory(tmp_path / "runs" / which)
    results = directory.results()
    # Who was pruned was not measured; who was interrupted was, and has learnt for a shorter time.
    splits = {} if stopped == "pruned" else results["splits"]
    training = results["training"] | {"stopped_because": stopped}
    directory.write_json("results.json", results | {"splits": splits, "training": training})
    asked = [f"run_dir={tmp_path / 'runs/whole'}", f"fractions=[{tmp_path / 'runs/half'}]"]
    assert cli.main(["diagnose", *asked]) == 2
    assert f"fractions: {directory.path} has not come to its end" in capsys.readouterr().err


def test_half_of_the_text_is_its_end_and_another_run(curved):
    from lmlab import load
    from lmlab.config import asked, compose, identity

    whole, half = load(curved / "whole"), load(curved / "half")
    assert half.config["decided"]["steps_per_epoch"] == pytest.approx(
        whole.config["decided"]["steps_per_epoch"] / 2, abs=1
    )
    same = [identity(asked(compose(["train_share=1", *more]))) for more in ([], ["seed=0"])]
    assert same[0] == same[1] == identity(asked(compose([])))
    assert "train_share" not in asked(compose([]))
    assert identity(asked(compose(["train_share=0.5"]))) != same[0]


def test_what_has_no_curve_is_refused_in_one_line(trained, capsys):
    assert cli.main(["diagnose", f"run_dir={trained['ngram']}"]) == 2
    assert "counts" in capsys.readouterr().err
    assert cli.main(["diagnose"]) == 2
    assert cli.main(["diagnose", f"run_dir={trained['lstm']}", "steps=3", "lr=true"]) == 2
    assert cli.main(["train", "train_share=0", "dry_run=true"]) == 2
    assert "train_share=0" in capsys.readouterr().err
