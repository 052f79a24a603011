"""A disk without space at every write: one line, exit status 3, no damaged file, and with space again it goes on."""

import json
import shutil
import subprocess
from functools import partial
from pathlib import Path

import pytest
from tests.faults.conftest import PLACES, TRAIN, sweep
from tests.faults.test_killed import assert_whole, finish, leavings, state
from tests.faults.workshop import EVERY
from tests.sweeps.test_killed import table

from lmlab.errors import TRAINING_FAILED


def assert_told(ended) -> None:
    """In one line that begins as all of lmlab's do, and is the last one."""
    assert ended.status == TRAINING_FAILED, (ended.status, ended.err)
    *_, last = ended.err.strip().splitlines()
    assert last.startswith("lmlab: "), ended.err
    assert "the disk is full" in last, last
    assert "Traceback" not in ended.err, ended.err


@pytest.mark.slow
def test_training_on_a_disk_that_is_full_from_any_write_on(workshop, whole):
    words = ["train", *TRAIN, "run_dir=full"]
    run, seen = workshop.root / "full", set()
    for ended in workshop.at_each("full", *words, clean=lambda: shutil.rmtree(run, ignore_errors=True)):
        assert_told(ended)
        assert_whole(run)
        assert leavings(run) == []
        if (now := state(run)) not in seen:
            seen.add(now)
            finish(workshop, words, run, whole)


@pytest.mark.slow
def test_preparing_on_a_disk_that_is_full_from_any_write_on(workshop):
    words = ["prepare", *PLACES, "format=json"]
    told = json.loads(workshop.run(*words, "cache_dir=prepared").out)
    words, cache = [*words, "cache_dir=full_cache"], workshop.root / "full_cache"
    for ended in workshop.at_each("full", *words, clean=lambda: shutil.rmtree(cache, ignore_errors=True)):
        assert_told(ended)
        assert [p.name for p in cache.rglob("*") if p.is_file() and not p.name.endswith(".lock")] == []
    again = json.loads(workshop.run(*words).out)
    assert again["splits"] == told["splits"]


@pytest.mark.slow
def test_evaluating_on_a_disk_that_is_full_from_any_write_on(workshop, whole):
    pytest.importorskip("pyarrow")
    shutil.copytree(whole, workshop.root / "measured")
    words = ["evaluate", "run_dir=measured", "scores=true", "format=json", "floors=true"]
    expected = workshop.run(*words).out

    def clean() -> None:
        (workshop.root / "measured/scores.parquet").unlink(missing_ok=True)
        for floors in (workshop.root / "c").rglob("floors-*.json"):
            floors.unlink()

    for ended in workshop.at_each("full", *words, clean=clean):
        assert_told(ended)
        assert leavings(workshop.root / "measured") + leavings(workshop.root / "c") == []
        assert workshop.run(*words).out == expected


@pytest.mark.slow
def test_sweeping_on_a_disk_that_is_full_goes_on_with_space(workshop, whole_sweep):
    """Of its hundreds of writes, at fewer."""
    words, place = sweep("full_sweep"), workshop.root / "full_sweep"
    clean = partial(shutil.rmtree, place, ignore_errors=True)
    for ended in workshop.at_each("full", *words, clean=clean, every=10 * EVERY if EVERY > 1 else 5):
        assert_told(ended)
        again = workshop.run(*words)
        assert again.status == 0, again.err
        assert table(place) == table(whole_sweep)


@pytest.fixture
def small_disk(workshop):
    """small_disk(bytes): a file system in memory with so much space, empty, at root/small; 0 bytes: put it away."""
    place = workshop.root / "small"
    place.mkdir(exist_ok=True)

    def mount(size: int, *how: str) -> None:
        command = ["mount", "-t", "tmpfs", "-o", ",".join([*how, f"size={size}"]), "tmpfs", str(place)]
        subprocess.run(command, check=True, capture_output=True)

    try:
        mount(1 << 20)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("a file system of its own needs the right to mount one")
    yield mount
    while subprocess.run(["umount", str(place)], capture_output=True).returncode == 0:
        pass


def used(folder: Path) -> int:
    """In pages, as a file system in memory counts."""
    return sum(-(-p.stat().st_size // 4096) * 4096 for p in folder.rglob("*") if p.is_file())


@pytest.mark.slow
@pytest.mark.parametrize("what", ["train", "sweep"])
def test_a_disk_of_too_few_bytes_is_told_and_given_more_the_same_command_goes_on(
    workshop, whole, whole_sweep, small_disk, what
):
    """What C code writes, too: SQLite's ledgers and Arrow's tables."""
    place, full = workshop.root / "small", 0
    theirs = whole if what == "train" else whole_sweep
    words = ["train", *TRAIN, "run_dir=small/run"] if what == "train" else sweep("small/run")
    most = used(theirs)
    sizes = range(2, 12, min(EVERY, 3))
    for twelfth in sizes:
        subprocess.run(["umount", str(place)], check=True)
        small_disk(most * twelfth // 12)
        ended = workshop.run(*words)
        if ended.status:
            assert_told(ended)
            full += 1
        small_disk(64 << 20, "remount")
        again = workshop.run(*words)
        assert again.status == 0, again.err
        if what == "sweep":
            assert table(place / "run") == table(theirs)
        else:
            finish(workshop, words, place / "run", theirs)
    assert full > len(sizes) // 2
