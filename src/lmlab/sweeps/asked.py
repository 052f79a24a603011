"""What a sweep was asked: space, strategy, objectives, replicates; its identity, and sweep.yaml that keeps it."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from lmlab.config import as_fast, differences
from lmlab.data.cache import whole_file
from lmlab.run_directory.plain_yaml import read_yaml
from lmlab.seal import seal, unseal
from lmlab.sweeps import objective
from lmlab.sweeps.space import Parameter, grid, overrides, parse

STRATEGIES = ("grid", "list", "random", "tpe", "gp", "cmaes")
RULES = ("none", "asha", "hyperband", "median")
KEEP = ("best", "all", "none")
# May differ when a sweep is continued: how, not what.
_NOT_IDENTITY = ("trials", "pruning", "retries", "out_of_memory", "keep", "test", "floors", "config_dir", "name")


@dataclass(frozen=True)
class Asked:
    """The sweep as it is run; what each key means is said in conf/sweep.yaml.

    overrides: of every trial. seeds: of the replicates. base: the first point's config, as a run's asked.yaml has it.
    fingerprint: of its text.
    """

    name: str
    strategy: str
    strategy_seed: int
    trials: int | None
    space: dict[str, str]
    when: dict[str, Any]
    points: list[list[str]]
    overrides: list[str]
    objective: list[dict[str, str]]
    replicates: int
    seeds: list[int]
    pruning: dict[str, Any]
    retries: int
    out_of_memory: str
    keep: str
    test: bool
    config_dir: str | None
    base: dict[str, Any]
    fingerprint: str
    # Of sweeps from before it was kept.
    floors: bool = True

    @cached_property
    def fixed(self) -> dict[str, str]:
        """Key: text of what every trial has."""
        pairs = (o.partition("=") for o in self.overrides)
        return {key.lstrip("+~"): value for key, _, value in pairs}

    @cached_property
    def parameters(self) -> list[Parameter]:
        return parse(self.space, self.when, self.fixed)

    @cached_property
    def listed(self) -> list[dict[str, Any]]:
        """All points of a grid. Raises ValueError where there is no such list."""
        return list(grid(self.parameters))

    @cached_property
    def n_points(self) -> int:
        """How many points there will be."""
        if self.strategy not in ("grid", "list"):
            return int(self.trials)  # type: ignore[arg-type]
        most = len(self.points) if self.strategy == "list" else len(self.listed)
        return most if self.trials is None else min(most, self.trials)

    def overrides_of(self, point: Mapping[str, Any]) -> list[str]:
        return overrides(self.parameters, point)

    def overrides_in(self, row: Any) -> list[str]:
        """Of a trial in the ledger. Raises ValueError where this sweep has no such trial.

        A ledger may be a stranger's, and an override can name anything to be called.
        """
        words, size = json.loads(row["overrides"]), row["micro_batch_size"]
        if self.strategy == "list":
            known = row["point"] in range(len(self.points)) and words == self.points[row["point"]]
        else:
            known = isinstance(words, list) and all(any(one.admits(word) for one in self.parameters) for word in words)
        if not known or row["seed"] not in self.seeds or not (size is None or isinstance(size, int)):
            raise ValueError(
                f"ledger.sqlite has a trial that this sweep never asked for: {row['overrides']}, seed {row['seed']}; "
                "if it is not yours, take another sweep_dir"
            )
        return words

    def identity(self) -> dict[str, Any]:
        """What makes it this sweep: `base` has what its first point has, `elsewhere` what only others may have."""
        told = {k: v for k, v in asdict(self).items() if k not in (*_NOT_IDENTITY, "overrides")}
        others = {*self.when, *(o.partition("=")[0].lstrip("+~") for point in self.points for o in point)}
        elsewhere = {key: self.fixed[key] for key in sorted(others & self.fixed.keys())}
        return told | {"base": as_fast(self.base)} | ({"elsewhere": elsewhere} if elsewhere else {})

    def digest(self) -> str:
        text = json.dumps(self.identity(), sort_keys=True, ensure_ascii=False, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def check(self, directory: Path) -> None:
        """Raises ValueError where the directory is another sweep's."""
        if (directory / "sweep.yaml").exists():
            before = load(directory)
            if before.identity() != self.identity():
                raise ValueError(
                    f"sweep_dir={directory} is another sweep ({_told(before, self)}); name another sweep_dir"
                )
            if self.n_points < before.n_points:
                raise ValueError(
                    f"trials={self.trials} is below the {before.n_points} of {directory}; a sweep can only grow"
                )

    def save(self, directory: Path) -> None:
        """Write sweep.yaml, whole or not at all."""
        with whole_file(directory / "sweep.yaml") as beside:
            beside.write_text(seal(yaml.safe_dump(asdict(self), sort_keys=False, allow_unicode=True)), encoding="utf-8")


def _told(before: Asked, now: Asked) -> str:
    """In which keys two sweeps differ, in words, as far as a line holds them."""
    found, then = [], before.identity()
    for key, value in ({"elsewhere": {}} | now.identity()).items():
        was = then.get(key, {})
        if was == value:
            continue
        if isinstance(value, Mapping) and isinstance(was, Mapping):
            prefix = "" if key == "base" else f"{key}."
            found += [f"{prefix}{k}: {a!r} there, {b!r} now" for k, (a, b) in differences(was, value).items()]
        else:
            found.append(f"{key}: {was!r} there, {value!r} now")
    more = f" and {len(found) - 4} more" if len(found) > 4 else ""
    return ", ".join(found[:4]) + more


def load(directory: str | os.PathLike) -> Asked:
    """Of a sweep's directory. Raises FileNotFoundError, or ValueError where it is damaged."""
    path = Path(directory) / "sweep.yaml"
    if not path.is_file():
        raise FileNotFoundError(f"{directory} is no sweep: it has no sweep.yaml; make one with: lmlab sweep")
    try:
        return Asked(**read_yaml(unseal(path.read_text(encoding="utf-8"))))
    except (yaml.YAMLError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {str(error).splitlines()[0]}") from error


def check(asked: Mapping[str, Any]) -> None:
    """The keys of conf/sweep.yaml that only choose between words and sizes. Raises ValueError."""
    for key, example in (("space", "optimizer.lr=1e-3,1e-2"), ("when", None), ("pruning", "pruning.rule=asha")):
        if not isinstance(asked[key], Mapping):
            hint = "" if example is None else f": write {example}"
            raise ValueError(f"{key}={asked[key]} must be a mapping{hint}")
    if not _words(asked["overrides"]):
        raise ValueError(f'overrides={asked["overrides"]} must be a list, as in overrides=["trainer.max_steps=200"]')
    if not isinstance(asked["points"], list | tuple) or not all(map(_words, asked["points"])):
        raise ValueError(
            f"points={asked['points']} must be lists of overrides, as in "
            'points=[["optimizer.lr=1e-3"],["optimizer.lr=1e-2","model.n_layers=2"]]'
        )
    for key, allowed in (("strategy", STRATEGIES), ("keep", KEEP), ("out_of_memory", ("fail", "halve"))):
        one_of(key, asked[key], allowed)
    one_of("pruning.rule", asked["pruning"]["rule"], RULES)
    for key, least in (("replicates", 1), ("retries", 0), ("strategy_seed", 0), ("trials", 1)):
        value = asked[key]
        if value is None and key == "trials":
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(f"{key}={value} must be a whole number, at least {least}")
    workers = asked["workers"]
    if workers != "auto" and (not isinstance(workers, int) or isinstance(workers, bool) or workers < 1):
        raise ValueError(f"workers={workers} must be a whole number, at least 1, or auto")
    objective.check(objective.read(asked["objective"]), asked["pruning"]["rule"], asked["strategy"])


def _words(listed: Any) -> bool:
    return isinstance(listed, list | tuple) and all(isinstance(one, str) for one in listed)


def one_of(name: str, value: Any, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ValueError(f"{name}={value} must be one of {', '.join(allowed)}")
