"""What varies between runs: which keys say something of their own, and of what kind each is."""

import re
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from lmlab.config import parse_count
from lmlab.runs.replicates import varied

if TYPE_CHECKING:
    import pandas as pd

# Numbers that reach over so much are shown, and weighed, by their logarithm.
LOG_FROM = 15.0


@dataclass
class Parameter:
    """A key of the config; values: of each run, by its place in the table; a word, a number, or None."""

    name: str
    values: list[Any]
    number: bool
    log: bool
    also: list[str]

    def told(self) -> dict[str, Any]:
        return {"name": self.name, "number": self.number, "log": self.log, "also": self.also}


def parameters(frame: "pd.DataFrame") -> list[Parameter]:
    """Of the keys in which the runs differ; those that only follow from another are named by it, as `also`."""
    columns = {key: [None if missing(v) else v for v in frame[key].tolist()] for key in varied(frame)}
    # Of a part of a table, some tell its runs from those of others alone.
    columns = {key: values for key, values in columns.items() if len(set(map(repr, values))) > 1}
    # Words first: a choice of class brings keys of its own along.
    order = sorted(columns, key=lambda key: kind(key, columns[key])[0])
    n_different = frame["treatment"].nunique()
    found: list[Parameter] = []
    for key in order:
        number, values = kind(key, columns[key])
        leader = next((p for p in found if follows(p, values, n_different)), None)
        if leader is not None:
            leader.also.append(key)
            continue
        numbers = [v for v in values if v is not None] if number else []
        found.append(Parameter(key, values, number, logarithmic(numbers), []))
    return sorted(found, key=lambda p: list(columns).index(p.name))


def logarithmic(numbers: list[float]) -> bool:
    """Whether they reach far and crowd at the low end: what is drawn evenly over a range does not."""
    if not numbers or min(numbers) <= 0 or max(numbers) / min(numbers) < LOG_FROM:
        return False
    return median(set(numbers)) < (min(numbers) + max(numbers)) / 4


def missing(value: Any) -> bool:
    return value is None or value != value


def kind(key: str, values: list[Any]) -> tuple[bool, list[Any]]:
    """Whether a key's values are numbers, and the values as such: 2M is one, a list is a word."""
    known = [v for v in values if v is not None]
    plain = [v for v in known if isinstance(v, int | float) and not isinstance(v, bool)]
    if known and len(plain) == len(known):
        return True, values
    counts = [v for v in known if re.fullmatch(r"[0-9.]+[kKmMbB]", str(v))]
    if counts and len(plain) + len(counts) == len(known):
        return True, [None if v is None else parse_count(v, key) for v in values]
    return False, [None if v is None else str(v).lower() if isinstance(v, bool) else str(v) for v in values]


def follows(leader: Parameter, values: list[Any], n_different: int) -> bool:
    """Whether the leader's value says this one, by more than the chance that hardly two share the leader's."""
    said: dict[Any, Any] = {}
    for a, b in zip(leader.values, values, strict=True):
        if said.setdefault(a, b) != b:
            return False
    return not leader.number or len(said) <= n_different / 2
