"""A run is a directory: what lies in it, who may write to it, and whether the same command continues it."""

import csv
import fcntl
import io
import json
import logging
import os
from collections.abc import Mapping
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any

import xxhash
import yaml

from lmlab.config import BUDGETS, differences, flatten, identity, parse_count
from lmlab.run_directory import plain_json
from lmlab.run_directory.plain_yaml import read_yaml, write_yaml
from lmlab.run_directory.train_log import failure
from lmlab.seal import Broken, seal, unseal, unseal_lines

log = logging.getLogger("lmlab")

# Raised when the layout of a run's directory changes.
FORMAT = 1

# Bytes of YAML that are read, a thousand times what a run writes; more is no config, and takes minutes to parse.
MOST_YAML = 4 << 20
# Why a run stopped that may go on: results.json then says how far it came.
UNFINISHED = ("interrupted", "pruned")

# Of the runs below a directory that is none, how many are named, and in how many directories they are looked for.
NAMED, LOOKED_AT = 3, 1000


def _below(path: Path) -> tuple[list[Path], bool]:
    """Some runs below a directory, in order of their paths, and whether there are more."""
    found = []
    for folder, names, files in islice(os.walk(path), LOOKED_AT):
        names.sort()
        if "config.yaml" in files and "asked.yaml" in files:
            names.clear()
            found.append(Path(folder))
        if len(found) > NAMED:
            break
    return found[:NAMED], len(found) > NAMED


class RunDirectory:
    """Paths and records of one run. Reading touches nothing; `claim` makes it ours to write."""

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self._lock: Any = None

    checkpoints = property(lambda self: self.path / "checkpoints")
    last = property(lambda self: self.checkpoints / "last.ckpt")
    best = property(lambda self: self.checkpoints / "best.ckpt")
    tokenizer = property(lambda self: self.path / "tokenizer.json")
    curves = property(lambda self: self.path / "curves.csv")

    def exists(self) -> bool:
        return (self.path / "asked.yaml").is_file()

    def decided(self) -> bool:
        """Whether it was not killed before config.yaml was written."""
        return (self.path / "config.yaml").is_file()

    def asked(self) -> dict[str, Any]:
        """asked.yaml; with init_from, model and tokenizer are its source's, also where an older version wrote them
        into config.yaml alone."""
        tree = self.written()
        if not tree.get("init_from") or not self.decided():
            return tree
        config = self.config()
        tokenizer = {key: value for key, value in config["tokenizer"].items() if key != "source"}
        return tree | {"model": config["model"], "tokenizer": tokenizer}

    def written(self) -> dict[str, Any]:
        """asked.yaml as it was written."""
        return self._read_yaml("asked.yaml")

    def config(self) -> dict[str, Any]:
        """What was asked, and under `decided` what was decided. Raises ValueError on another format."""
        config = self._read_yaml("config.yaml")
        if config.get("format") != FORMAT:
            raise ValueError(f"{self.path} has run format {config.get('format')}, this version reads {FORMAT}")
        return config

    def results(self) -> dict[str, Any] | None:
        path = self.path / "results.json"
        if not path.is_file():
            return None
        try:
            return plain_json.results(self.read_json(path.name))
        except (ValueError, RecursionError) as error:
            remedy = f"lmlab train run_dir={self.path}, with all that was asked of this run, measures anew"
            if not self.last.exists():
                remedy = f"put it back from a copy: to be measured anew the run lacks {self.last.name}"
            raise ValueError(f"{path} is damaged ({error}); {remedy}") from error

    def finished(self) -> bool:
        """Whether it has come to its end, neither interrupted nor pruned."""
        results = self.results()
        return results is not None and results["training"]["stopped_because"] not in UNFINISHED

    def points(self) -> list[dict[str, str]]:
        """The lines of curves.csv by column; without one that was still being written."""
        if not self.curves.is_file():
            return []
        try:
            found = list(csv.DictReader(io.StringIO(unseal_lines(self.curves.read_text(encoding="utf-8")))))
            if any("step" not in point or None in point or None in point.values() for point in found):
                raise ValueError("its lines are not of one length")
            return found
        except (ValueError, csv.Error) as error:
            raise ValueError(
                f"{self.curves} is damaged ({error}); without it the run is whole, but has no curve"
            ) from error

    def failure(self) -> str | None:
        """The error with which train.log ends; None where it ends otherwise."""
        return failure(self.path / "train.log")

    def _read_yaml(self, name: str) -> dict[str, Any]:
        path = self.path / name
        if not path.is_file():
            raise FileNotFoundError(f"{self.path} is no run: {self._instead(name)}")
        if path.stat().st_size > MOST_YAML:
            raise ValueError(f"{path} has {path.stat().st_size:,} bytes: it is no run's {name}")
        try:
            tree = read_yaml(unseal(path.read_text(encoding="utf-8")))
        except Broken as error:
            raise ValueError(
                f"{path} is damaged: {error}; put it back, or, if you changed it on purpose, delete its first line"
            ) from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is damaged: {str(error).splitlines()[0]}") from error
        if not isinstance(tree, dict):
            raise ValueError(f"{path} is damaged: it holds no mapping")
        return tree

    def _instead(self, name: str) -> str:
        """What there is where a run was looked for, and what to name: runs below, or the one around it."""
        around = next((p for p in list(self.path.parents)[:2] if (p / "config.yaml").is_file()), None)
        if around is not None and self.path.exists():
            return f"it lies in one; write run_dir={around}"
        if self.path.is_file():
            return "it is a file; name a run's directory"
        found, more = _below(self.path)
        if found:
            what = "it is a sweep, and its trials are" if (self.path / "sweep.yaml").is_file() else "below it lie"
            return f"{what} {', '.join(map(str, found))}{' and more' if more else ''}; write run_dir={found[0]}"
        if (self.path / "sweep.yaml").is_file():
            return f"it is a sweep, none of whose trials has begun; see lmlab sweep status={self.path}"
        return f"it has no {name}; make one with: lmlab train run_dir={self.path}"

    def write_yaml(self, name: str, tree: Mapping[str, Any]) -> None:
        self.write_text(name, seal(write_yaml(dict(tree))))

    def write_json(self, name: str, tree: Mapping[str, Any]) -> None:
        """Whole or not at all. What is infinite or NaN, which JSON lacks, is null."""
        # A path of bytes that are no UTF-8 has no text: there are question marks in it then.
        text = json.dumps(plain_json.finite(tree), indent=2, ensure_ascii=False, allow_nan=False)
        text = text.encode("utf-8", "replace").decode()
        self.write_text(name, seal(text + "\n"))

    def read_json(self, name: str) -> dict[str, Any]:
        """What `write_json` wrote. Raises ValueError where it is not that any more."""
        return json.loads(unseal((self.path / name).read_text(encoding="utf-8")))

    def write_text(self, name: str, text: str) -> None:
        """Whole or not at all."""
        beside = self.path / (name + ".tmp")
        # One that lies there may be a link: it is not written through.
        beside.unlink(missing_ok=True)
        try:
            with beside.open("x", encoding="utf-8") as file:
                file.write(text)
            os.replace(beside, self.path / name)
        finally:
            beside.unlink(missing_ok=True)

    def check(self, asked: Mapping[str, Any]) -> str:
        """'new', 'continue', 'finished' or 'extend'; ValueError where this run is of something else.

        Only budgets may differ, and only upward. A finished run whose results are damaged goes on from its last
        checkpoint, where only those are left to do.
        """
        if not self.exists():
            if self.path.exists() and any(p.name != "lock" and p.suffix != ".tmp" for p in self.path.iterdir()):
                raise ValueError(f"run_dir={self.path} is not empty and is no run; name another directory")
            return "new"
        before = self.asked()
        if identity(before) != identity(asked):
            changed = {k: v for k, v in differences(before, asked).items() if k not in BUDGETS}
            told = ", ".join(f"{k}: {was!r} there, {now!r} now" for k, (was, now) in changed.items())
            raise ValueError(f"run_dir={self.path} is another run ({told}); name another run_dir, or ask the same")
        old, new = flatten(before), flatten(asked)
        changed_budget = False
        for key in BUDGETS:
            was, now = budget(old.get(key)), budget(new.get(key))
            # One that was not asked for before is compared in steps, when they are known.
            if now < was < float("inf"):
                raise ValueError(
                    f"{key}={new.get(key)} is below the {old.get(key)} of {self.path}; a budget can only grow"
                )
            changed_budget |= now != was
        try:
            finished = self.finished()
        except ValueError as error:
            # From step 0 it would replace a best checkpoint that is whole.
            if not self.last.exists():
                raise
            log.warning("%s", error)
            return "continue"
        if finished:
            return "extend" if changed_budget else "finished"
        return "continue"

    def claim(self) -> None:
        """Make the directory and hold its lock until this process ends.

        Raises ValueError where another process has it, or what is written on is a link: to any file of the user's, in a
        stranger's run.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        for name in ("lock", "train.log", self.curves.name, "checkpoints", "profile"):
            if (self.path / name).is_symlink():
                raise ValueError(f"{self.path / name} is a link, which no run makes: remove it")
        self._lock = (self.path / "lock").open("a")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self.release()
            raise ValueError(
                f"run_dir={self.path} is being trained by another process; wait for it or name another"
            ) from error
        except OSError as error:
            # Some network file systems have none.
            log.debug("no lock on %s: %s", self.path, error)

    def held(self) -> bool:
        """Whether a process is training it."""
        path = self.path / "lock"
        try:
            if path.is_file():
                with path.open("rb") as file:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError as error:
            log.debug("no lock on %s: %s", self.path, error)
        return False

    def release(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def check_tokenizer(path: Path, decided: Mapping[str, Any]) -> None:
    """Raises ValueError where the file is not a run's own tokenizer. decided: of the run's config.yaml."""
    known = decided.get("tokenizer")
    if known is not None and xxhash.xxh3_64_hexdigest(path.read_bytes()) != known:
        raise ValueError(
            f"{path} is not what this run was trained with (its checksum differs): put the run's own "
            "tokenizer.json back; the token store has a copy"
        )


def budget(value: Any) -> float:
    """A budget as a number that can be compared; none at all is without end."""
    if value is None or value == -1:
        return float("inf")
    if isinstance(value, str) and ":" in value:
        seconds = 0.0
        for part, unit in zip(reversed(value.split(":")), (1, 60, 3600, 86400), strict=False):
            seconds += float(part) * unit
        return seconds
    # Half an epoch is a budget, too, and no count.
    return float(value if isinstance(value, int | float) else parse_count(value, "budget"))  # type: ignore[arg-type]


def fresh(root: str | os.PathLike, name: str) -> Path:
    """A directory of that name and of this second under `root`, made so that no two processes get the same."""
    root = Path(root)
    root.mkdir(parents=True, exist_ok=True)
    stem = f"{datetime.now():%Y-%m-%d_%H-%M-%S}_{name}"
    for n in range(1, 10_000):
        path = root / (stem if n == 1 else f"{stem}_{n}")
        try:
            path.mkdir()
        except FileExistsError:
            continue
        return path
    raise FileExistsError(f"no free name for {stem} under {root}")
