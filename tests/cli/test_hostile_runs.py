"""Runs that are damaged, or made by somebody who means harm: one line, and nothing of theirs is executed."""

import json
import os
import resource
import shutil
import time

import pytest
import yaml
from tests.cli.test_verbs import call, refused

from lmlab.cli import main
from lmlab.run_directory import RunDirectory


@pytest.fixture
def copied(trained, tmp_path):
    shutil.copytree(trained["transformer"], tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize("name", ["checkpoints/best.ckpt", "config.yaml"])
def test_a_truncated_file_is_named(name: str, copied, capsys):
    path = copied / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert str(path) in refused(capsys, "generate", f"run_dir={copied}", "max_new_tokens=2")


def test_a_missing_checkpoint_is_named(copied, capsys):
    (copied / "checkpoints" / "best.ckpt").unlink()
    assert "best.ckpt" in refused(capsys, "generate", f"run_dir={copied}")


def test_damaged_results_do_not_hide_the_other_runs(copied, trained, capsys):
    shutil.copytree(trained["ngram"], copied.parent / "whole")
    (copied / "results.json").write_text('{"splits": ')
    told = json.loads(call(capsys, "runs", f"root={copied.parent}", "format=json"))
    assert {run["run"]: run["state"].split(":")[0] for run in told} == {"run": "damaged", "whole": "counted"}


@pytest.mark.parametrize("family", ["lstm", "ngram"])
def test_damaged_results_are_made_again_by_the_command_that_they_name(family, trained, small, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(trained[family], run)
    whole = json.loads((run / "results.json").read_text())
    best = (run / "checkpoints/best.ckpt").read_bytes()
    (run / "results.json").write_text('{"splits": ')
    told = "damaged .*; lmlab train run_dir=.*run, with all that was asked of this run, measures anew"
    with pytest.raises(ValueError, match=told):
        RunDirectory(run).results()
    call(capsys, "train", *small[family], f"run_dir={run}")
    again = json.loads((run / "results.json").read_text())
    for key in ("splits", "protocol", "model"):
        assert again[key] == whole[key]
    assert again["training"]["stopped_because"] == whole["training"]["stopped_because"]
    assert again["training"]["steps"] == whole["training"]["steps"]
    if family == "lstm":
        call(capsys, "diagnose", f"run_dir={run}")
        assert (run / "checkpoints/best.ckpt").read_bytes() == best
    # Without what it would go on from it would begin anew, and replace the best.
    (run / "results.json").write_text('{"splits": ')
    (run / "checkpoints/last.ckpt").unlink()
    assert "put it back from a copy" in refused(capsys, "train", *small[family], f"run_dir={run}")
    assert (run / "checkpoints/best.ckpt").is_file()


def test_compare_passes_over_a_run_of_a_directory_whose_results_are_damaged(trained, tmp_path, capsys):
    for family in ("lstm", "ngram"):
        shutil.copytree(trained[family], tmp_path / "runs" / family)
    (tmp_path / "runs/lstm/results.json").write_text('{"splits": ')
    sides = [tmp_path / "runs", trained["lstm"]]
    assert main(["compare", *map(str, sides), "block_bytes=10", "format=json"]) == 0
    shown = capsys.readouterr()
    assert [side["runs"] for side in json.loads(shown.out)["sides"]] == [1, 1]
    assert "passed over, not finished, damaged or without best.ckpt: lstm" in shown.err


def test_a_tokenizer_of_another_run_is_refused(copied, trained, capsys):
    shutil.copy(trained["lstm"] / "tokenizer.json", copied / "tokenizer.json")
    assert "put the run's own tokenizer.json back" in refused(capsys, "score", f"run_dir={copied}", "text=a")


def test_a_damaged_store_is_made_again(trained, tmp_path, small, capsys):
    where = [f"cache_dir={tmp_path / 'cache'}", f"run_dir={tmp_path / 'run'}"]
    call(capsys, "train", *small["ngram"], *where)
    before = call(capsys, "evaluate", *where, "format=json")
    for ids in (tmp_path / "cache").rglob("*.ids"):
        ids.write_bytes(b"xx")
    assert call(capsys, "evaluate", *where, "format=json") == before


def edit_config(run, change) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    change(config)
    (run / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))


def evil(path) -> dict:
    return {"_target_": "os.system", "command": f"touch {path}"}


HOSTILE = {
    "model": lambda config, bad: config.update(model=bad),
    "model._partial_": lambda config, bad: config.update(model=bad | {"_partial_": True}),
    "model.head": lambda config, bad: config["model"].update(head=bad),
    "model.extra": lambda config, bad: config["model"].update(dropout=[bad]),
    "corpus": lambda config, bad: config.update(corpus=bad),
    "tokenizer": lambda config, bad: config.update(tokenizer=bad),
    "evaluation": lambda config, bad: config.update(evaluation=bad),
    "training": lambda config, bad: config.update(training=bad),
    "resolver": lambda config, bad: config["model"].update(
        head=f"${{oc.create:'{{_target_: {bad['_target_']}, command: {bad['command']}}}'}}"
    ),
    "interpolated target": lambda config, bad: config["model"].update(
        head={"_target_": "${.name}", "name": bad["_target_"], "command": bad["command"]}
    ),
    "another module": lambda config, bad: config["model"].update(head={"_target_": "lmlab.cli.main"}),
}


@pytest.mark.parametrize("place", HOSTILE)
def test_a_strangers_config_executes_nothing(place: str, copied, small, tmp_path, capsys):
    mark = tmp_path / "executed"
    edit_config(copied, lambda config: HOSTILE[place](config, evil(mark)))
    verbs = [("generate", "max_new_tokens=2"), ("evaluate", "split=val"), ("score", "text=a")]
    for verb, more in verbs:
        status = main([verb, f"run_dir={copied}", more])
        assert status in (0, 2), (verb, capsys.readouterr().err)
    own = [o for o in small["transformer"] if not o.startswith(("model", "tokenizer"))]
    main(["train", f"run_dir={tmp_path / 'new'}", f"init_from={copied}", *own, "trainer.max_steps=1"])
    assert not mark.exists()


def test_a_pickled_checkpoint_executes_nothing(copied, tmp_path, capsys):
    import os
    import pickle

    import torch

    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'executed'}",)

    best = copied / "checkpoints" / "best.ckpt"
    for save in (torch.save, lambda tree, path: path.write_bytes(pickle.dumps(tree))):
        save({"state_dict": Evil(), "lmlab_format": 1}, best)
        assert "best.ckpt" in refused(capsys, "generate", f"run_dir={copied}")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    "text",
    [
        "a: !!python/object/apply:os.system ['touch {mark}']\n",
        "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: [*b,*b,*b,*b,*b,*b,*b,*b,*b]\n",
        "format: 1\nmodel: &m\n  again: *m\n",
        "[" * 5000,
        "[" * 1_000_000,
        "{a: " * 100_000,
        "- " * 100_000 + "x",
        "a: &a " + "x" * 100_000 + "\nb: [" + "*a," * 100_000 + "]\n",
        "<<: &m {a: 1}\nb: {<<: [*m, *m, *m]}\n",
        "a: " + "x" * 20_000_000,
        "a: " + "9" * 100_000,
        "a: !!bool maybe\n",
        "a: !!timestamp yesterday\n",
        "a: 2026-99-99\n",
        "? [a]\n: b\n",
        "a: !!binary '!'\n",
        "a: 1\n" * 100_000,
        "a: \x01\n",
        "- a list\n",
        "format: 1\n",
        "format: 99\n",
    ],
    ids=[
        *("tag", "bomb", "loop", "deep", "a million deep", "deep mappings", "deep blocks", "long alias", "merges"),
        *("giant scalar", "giant number", "no bool", "no time", "no date", "odd key", "no binary", "many keys"),
        *("control character", "list", "empty", "format"),
    ],
)
def test_a_strangers_yaml_is_refused(text: str, copied, tmp_path, capsys):
    (copied / "config.yaml").write_text(text.format(mark=tmp_path / "executed") if "{mark}" in text else text)
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    assert str(copied) in refused(capsys, "generate", f"run_dir={copied}")
    assert not (tmp_path / "executed").exists()
    assert time.perf_counter() - began < 60, "seconds"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000, "kilobytes"


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "9" * 100_000], ids=["lists", "objects", "number"])
def test_a_strangers_json_is_refused_or_made_again(text: str, copied, capsys):
    for name in ("results.json", "tokenizer.json"):
        (copied / name).write_text(text)
    assert "results.json is damaged" in refused(capsys, "diagnose", f"run_dir={copied}")
    assert main(["score", f"run_dir={copied}", "text=a"]) == 0
    assert "tokenizer.json was damaged or missing; it is made again" in capsys.readouterr().err


# What is read by which verb, and never followed to something that gives no end.
READ = {
    "config.yaml": ("generate",),
    "asked.yaml": ("compare",),
    "tokenizer.json": ("generate",),
    "results.json": ("diagnose",),
    "curves.csv": ("diagnose",),
    "checkpoints/best.ckpt": ("generate",),
    "scores.parquet": ("evaluate", "by=position"),
    "train.log": ("runs",),
}


@pytest.mark.parametrize("name", READ)
@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_what_is_no_file_is_not_waited_for(name: str, kind: str, copied, trained, capsys):
    """A pipe that nobody writes into, /dev/zero, and a folder, in place of each file."""
    path = copied / name
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    verb, *more = READ[name]
    words = {"runs": [f"root={copied}"], "compare": [str(copied), str(trained["ngram"])]}.get(verb)
    status = main([verb, *(words or [f"run_dir={copied}"]), *more])
    assert status in (0, 2), capsys.readouterr().err


@pytest.mark.parametrize("name", ["train.log", "curves.csv", "lock"])
def test_training_writes_nowhere_else(name: str, copied, small, tmp_path, capsys):
    """A stranger's unfinished run, one of whose files is a link to a file of ours."""
    (copied / "results.json").unlink()
    ours = tmp_path / "ours.txt"
    ours.write_text("mine\n")
    (copied / name).unlink(missing_ok=True)
    (copied / name).symlink_to(ours)
    said = refused(capsys, "train", *small["transformer"], f"run_dir={copied}")
    assert name in said
    assert ours.read_text() == "mine\n"


BESIDE = ["results.json", "asked.yaml", "config.yaml", "curves.csv", "metrics.csv", "checkpoints/last.ckpt"]


@pytest.mark.parametrize("name", BESIDE)
def test_what_is_written_beside_and_renamed_is_written_through_no_link(name: str, copied, small, tmp_path, capsys):
    """A stranger's unfinished run, with a link of a temporary file's name to a file of ours."""
    (copied / "results.json").unlink()
    # Its own checkpoint: the run goes on from the start.
    (copied / "checkpoints/last.ckpt").unlink()
    ours = tmp_path / "ours.txt"
    ours.write_text("mine\n")
    (copied / f"{name}.tmp").symlink_to(ours)
    call(capsys, "train", *small["transformer"], f"run_dir={copied}", "logger=csv")
    assert ours.read_text() == "mine\n"
    assert (copied / name).is_file()
    assert not (copied / name).is_symlink()


def test_a_linked_folder_of_checkpoints_is_not_written_into_and_not_emptied(copied, small, tmp_path, capsys):
    elsewhere = tmp_path / "elsewhere"
    (copied / "checkpoints").rename(elsewhere)
    (copied / "checkpoints").symlink_to(elsewhere)
    before = {path.name: path.stat().st_mtime_ns for path in elsewhere.iterdir()}
    assert "0.0 MB freed" in call(capsys, "runs", "prune", f"root={copied}", "keep=results", "yes=true")
    (copied / "results.json").unlink()
    said = refused(capsys, "train", *small["transformer"], f"run_dir={copied}")
    assert "checkpoints is a link" in said
    assert {path.name: path.stat().st_mtime_ns for path in elsewhere.iterdir()} == before


def test_a_strangers_config_does_not_say_where_the_cache_is(copied, tmp_path, capsys, caplog):
    """It would have stores made anywhere, and could bring one along: another text under this text's name."""
    from lmlab.runs import load

    theirs = tmp_path / "theirs"
    edit_config(copied, lambda config: config.update(cache_dir=str(theirs)))
    ours = f"cache_dir={tmp_path / 'ours'}"
    call(capsys, "evaluate", f"run_dir={copied}", "split=val", ours)
    assert not theirs.exists()
    (store,) = (tmp_path / "ours/stores").glob("[!.]*")
    assert load(copied, cache_dir=tmp_path / "ours").store().path == store


def test_a_store_is_looked_for_in_the_cache_alone(copied, tmp_path, capsys):
    """A store outside, as a stranger's config names it, is not opened: its numbers would be of another text."""
    from lmlab.runs import load

    store = load(copied).store().path
    elsewhere = tmp_path / "elsewhere" / store.name
    shutil.copytree(store, elsewhere)
    for name in (str(elsewhere), os.path.relpath(elsewhere, store.parent)):
        edit_config(copied, lambda config, name=name: config["decided"].update(store=name))
        assert load(copied).store().path == store
        call(capsys, "evaluate", f"run_dir={copied}", "split=val")


def test_sizes_that_no_memory_holds_are_refused_before_they_are_built(copied, capsys):
    edit_config(copied, lambda config: config["model"].update(d_ff=1 << 40))
    assert "does not fit" in refused(capsys, "generate", f"run_dir={copied}", "max_new_tokens=2")
