"""SIGKILL at every change of the disk, within every write, and at random moments: nothing is lost past the last
checkpoint, the same command goes on, and the end is that of a run that was never killed, bit for bit."""

import json
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.faults.conftest import PLACES, TRAIN, sweep
from tests.sweeps.test_killed import table
from tests.training.test_resume import assert_same_run

from lmlab.run_directory import RunDirectory
from lmlab.training.checkpoints import read

KILLED = -signal.SIGKILL
# Of the random moments.
N = 20


def leavings(folder: Path) -> list[str]:
    """What was being written, and is no one's any more."""
    hidden = [p for p in folder.rglob("*") if p.name.startswith(".") and "-" in p.name and p.suffix != ".lock"]
    return [p.name for p in (*folder.rglob("*.tmp"), *hidden)]


def steps(run: Path) -> int:
    last = run / "checkpoints/last.ckpt"
    return read(last)["lmlab"]["step"] if last.exists() else 0


def assert_whole(run: Path) -> None:
    """Whatever is there can be read: no file is half written."""
    directory = RunDirectory(run)
    for path in (directory.best, directory.last):
        if path.exists():
            read(path)
    if directory.exists():
        directory.asked()
        directory.results()
        directory.points()
    if (run / "config.yaml").exists():
        directory.config()


def finish(workshop, words: list[str], run: Path, whole: Path) -> None:
    before, finished = steps(run), RunDirectory(run).results() is not None
    again = workshop.run(*words)
    assert again.status == 0, again.err
    if before and not finished:
        assert f"continuing after step {before} of" in again.err, "no step was lost"
    assert_same_run(run, whole)
    assert leavings(run) == []


def state(run: Path) -> tuple:
    """What a continuation finds: which files, half-written ones too, and how far they have come."""
    names = sorted({p.name.split(".tfevents")[0] for p in run.rglob("*") if p.is_file()})
    best = run / "checkpoints/best.ckpt"
    return *names, steps(run), read(best)["step"] if best.exists() else 0, len(RunDirectory(run).points())


@pytest.mark.slow
def test_training_killed_at_any_change_of_the_disk_ends_as_if_it_never_was(workshop, whole):
    words = ["train", *TRAIN, "run_dir=killed"]
    run, seen = workshop.root / "killed", set()
    for dead in workshop.at_each("kill", *words, clean=lambda: shutil.rmtree(run, ignore_errors=True)):
        assert dead.status == KILLED, dead.err
        assert_whole(run)
        if (now := state(run)) not in seen:
            # Each state of the directory is continued once: most changes are parts of one write.
            seen.add(now)
            finish(workshop, words, run, whole)
    shutil.rmtree(run)
    changes = workshop.run(*words, fault="kill", at=0).changes
    assert {change.split()[0] for change in changes} >= {"create", "write", "replace", "mkdir"}
    written = ("checkpoints/last.ckpt.tmp", "checkpoints/best.ckpt.tmp", "curves.csv", "results.json.tmp", "train.log")
    assert {change.split()[1] for change in changes} >= {f"killed/{name}" for name in written}


@pytest.mark.slow
def test_training_killed_again_and_again_ends_as_if_it_never_was(workshop, whole):
    """At random moments of one run, from its first to its last."""
    words, run, killed = ["train", *TRAIN, "run_dir=random"], workshop.root / "random", 0
    for after in random_moments(workshop, *words, clean=lambda: shutil.rmtree(run, ignore_errors=True)):
        dead = workshop.run(*words, after=after)
        killed += dead.status == KILLED
        if dead.status != KILLED:
            assert_same_run(run, whole)
            shutil.rmtree(run)
        elif run.exists():
            assert_whole(run)
    assert workshop.run(*words).status == 0
    assert_same_run(run, whole)
    assert killed >= N // 2


def random_moments(workshop, *words: str, clean: Callable[[], None]) -> Iterator[float]:
    """Seconds, from a command's beginning to its end as it is measured; `clean` is before that, and after it."""
    clean()
    began = time.perf_counter()
    workshop.run(*words)
    seconds = time.perf_counter() - began
    clean()
    chosen = random.Random(0)
    for _ in range(N):
        yield chosen.uniform(0, seconds)


def kill_everywhere(workshop, *words: str, clean: Callable[[], None], check: Callable[[], None]) -> None:
    """At any change of the disk and at random moments, `check` after each."""
    for dead in workshop.at_each("kill", *words, clean=clean):
        assert dead.status == KILLED, dead.err
        check()
    for after in random_moments(workshop, *words, clean=clean):
        workshop.run(*words, after=after)
        check()
        clean()


@pytest.mark.slow
def test_preparing_killed_at_any_change_and_at_random_moments_starts_again(workshop):
    words, cache = ["prepare", *PLACES, "format=json", "cache_dir=killed_cache"], workshop.root / "killed_cache"
    whole = workshop.root / json.loads(workshop.run(*words[:-1], "cache_dir=prepared").out)["path"]

    def clean() -> None:
        shutil.rmtree(cache, ignore_errors=True)

    def assert_prepared() -> None:
        again = workshop.run(*words)
        assert again.status == 0, again.err
        (store,) = (p for p in (cache / "stores").iterdir() if not p.name.endswith(".lock"))
        assert store.name == whole.name
        names = {p.name for p in whole.iterdir()} - {"manifest.json", ".used"}
        assert names == {p.name for p in store.iterdir()} - {"manifest.json", ".used"}
        for name in names:
            assert (store / name).read_bytes() == (whole / name).read_bytes(), name

    kill_everywhere(workshop, *words, clean=clean, check=assert_prepared)


@pytest.mark.slow
def test_evaluating_killed_at_any_change_and_at_random_moments_leaves_the_run_as_it_was(workshop, whole):
    pytest.importorskip("pyarrow")
    shutil.copytree(whole, workshop.root / "evaluated")
    words = ["evaluate", "run_dir=evaluated", "scores=true", "by=position", "format=json", "floors=true"]
    expected = workshop.run(*words)
    assert expected.status == 0, expected.err
    scores = workshop.root / "evaluated/scores.parquet"
    kept = scores.read_bytes()

    def clean() -> None:
        scores.unlink(missing_ok=True)
        for floors in (workshop.root / "c").rglob("floors-*.json"):
            floors.unlink()

    def assert_evaluated() -> None:
        assert workshop.run(*words).out == expected.out
        assert scores.read_bytes() == kept

    kill_everywhere(workshop, *words, clean=clean, check=assert_evaluated)
    assert_same_run(workshop.root / "evaluated", whole)


@pytest.mark.slow
def test_sweeping_killed_at_twenty_random_changes_ends_with_the_same_table(workshop, whole_sweep):
    """One sweep, killed twenty times: each time after so many changes of the disk since it was continued."""
    words, chosen, killed = sweep("killed_sweep"), random.Random(0), 0
    for _ in range(N):
        dead = workshop.run(*words, fault="kill", at=chosen.randint(1, 60))
        killed += dead.status == KILLED
        assert dead.status in (0, KILLED), dead.err
    again = workshop.run(*words)
    assert again.status == 0, again.err
    assert table(workshop.root / "killed_sweep") == table(whole_sweep)
    for run in (whole_sweep / "trials").iterdir():
        ours = workshop.root / "killed_sweep/trials" / run.name
        assert_same_run(ours, run)
        assert leavings(ours) == []
    assert killed >= N // 2
