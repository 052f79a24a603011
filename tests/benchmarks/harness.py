"""Ours and the peer in turn: samples, their medians and spread, the ratio, and the JSON that the table reads."""

import json
import math
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from .machine import machine


@dataclass(frozen=True)
class Measure:
    """One number that both sides of a case have.

    better: 'lower' or 'higher'. ratio: the target, how many times better than the peer ours must be. at_most: a bound
    on our own number. None: no target.
    """

    name: str
    unit: str
    better: str = "lower"
    ratio: float | None = None
    at_most: float | None = None
    at_least: float | None = None

    def target(self) -> str:
        if self.ratio is not None:
            return f"{self.ratio:g} times"
        if self.at_least is not None:
            return f"at least {self.at_least:g} {self.unit}"
        return "" if self.at_most is None else f"at most {self.at_most:g} {self.unit}"

    def bounds(self) -> dict[str, float | None]:
        return {"ratio": self.ratio, "at_most": self.at_most, "at_least": self.at_least}


@dataclass(frozen=True)
class Sample:
    """One run of one side. values: by measure's name. facts: what shows that both sides did the same work."""

    values: Mapping[str, float]
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """One comparison of a row. ours_is, peer_is: what runs, in words.

    peer None: ours is held against a bound alone. both: in place of ours and peer, where one process runs the two in
    turn. same: raises AssertionError where the facts of the two sides say that they did not do the same work.
    """

    name: str
    measures: tuple[Measure, ...]
    ours_is: str
    ours: Callable[[], Sample] | None = None
    peer_is: str = ""
    peer: Callable[[], Sample] | None = None
    both: Callable[[], tuple[Sample, Sample]] | None = None
    same: Callable[[Mapping, Mapping], None] = lambda ours, peer: None


@dataclass(frozen=True)
class Settings:
    """quick: tiny sizes, to prove that a row runs. only: names of cases, all of them where it is empty. steps: of a
    parity row, in place of its own. already: repetitions that were made before; seeds go on from there."""

    scratch: Path
    quick: bool = False
    shakespeare: Path | None = None
    wikitext2: Path | None = None
    device: str = "cpu"
    only: tuple[str, ...] = ()
    steps: int | None = None
    already: int = 0

    def temporary(self) -> tempfile.TemporaryDirectory:
        self.scratch.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryDirectory(dir=self.scratch)


@dataclass(frozen=True)
class Row:
    """A line or a few of the table. cases: made one after the other, with what they hold. needs: options with text."""

    name: str
    title: str
    cases: Callable[[Settings], Iterator[Case]]
    needs: tuple[str, ...] = ()
    repetitions: int = 5
    gpu: bool = False


def measure(
    row: Row,
    settings: Settings,
    repetitions: int | None = None,
    keep: Callable[[dict[str, Any]], None] = lambda result: None,
) -> dict[str, Any]:
    """Run a row; `left_out` of the result are the cases that were not asked for. keep: gets what there is after each.

    Raises ValueError where text is needed that no option names, or a GPU that is not there.
    """
    if row.gpu and settings.device == "cpu" and not settings.quick:
        raise ValueError(f"{row.name}: not measured: no GPU")
    for option in row.needs:
        if getattr(settings, option) is None:
            raise ValueError(f"{row.name} needs --{option} PATH")
    found = {
        "row": row.name,
        "title": row.title,
        "scale": "quick" if settings.quick else "full",
        "machine": machine() | {"device": settings.device},
    }
    done: list[dict[str, Any]] = []
    left_out: list[str] = []
    for case in row.cases(settings):
        if not settings.only or case.name in settings.only:
            done.append(alternate(case, repetitions or row.repetitions))
            keep(found | {"cases": done, "left_out": left_out})
        else:
            left_out.append(case.name)
    return found | {"cases": done, "left_out": left_out}


def alternate(case: Case, repetitions: int) -> dict[str, Any]:
    """Ours and the peer in turn, in changing order."""
    runs: dict[str, list[Sample]] = {"ours": [], "peer": []}
    sides = [("ours", case.ours)] + ([("peer", case.peer)] if case.peer else [])
    for i in range(repetitions):
        if case.both:
            for side, sample in zip(runs, case.both(), strict=True):
                runs[side].append(sample)
        else:
            for side, run in reversed(sides) if i % 2 else sides:
                runs[side].append(run())
        if runs["peer"]:
            case.same(runs["ours"][-1].facts, runs["peer"][-1].facts)
    return summarise(case, runs)


def summarise(case: Case, runs: Mapping[str, list[Sample]]) -> dict[str, Any]:
    """The case as it is written: raw numbers, and what `derive` makes of them."""
    measures = []
    for m in case.measures:
        raw = {side: [s.values[m.name] for s in samples if m.name in s.values] for side, samples in runs.items()}
        told = {"name": m.name, "unit": m.unit, "better": m.better, "target": m.target()}
        measures.append(derive(told | {"bounds": m.bounds()} | raw))
    facts = {side: dict(samples[0].facts) for side, samples in runs.items() if samples}
    return {"case": case.name, "ours_is": case.ours_is, "peer_is": case.peer_is, "measures": measures, "facts": facts}


def derive(told: Mapping[str, Any]) -> dict[str, Any]:
    """Medians, the ratio of each pair of runs (above 1: ours is better), and whether the target is met."""
    ours, peer = told["ours"], told["peer"]
    made: dict[str, Any] = {"median": {"ours": median(ours)}}
    ratio = None
    if peer:
        made["median"]["peer"] = median(peer)
        # Where not every run of the peer has this number, its median stands for all.
        peer = peer if len(peer) == len(ours) else [median(peer)] * len(ours)
        pairs = [(p / o if told["better"] == "lower" else o / p) for o, p in zip(ours, peer, strict=True)]
        ratio = median(pairs)
        made["ratio"] = {"median": ratio, "min": min(pairs), "max": max(pairs)}
    bounds = told["bounds"]
    met = None
    if bounds["ratio"] is not None:
        met = ratio is not None and ratio >= bounds["ratio"]
    elif bounds["at_most"] is not None:
        met = made["median"]["ours"] <= bounds["at_most"]
    elif bounds["at_least"] is not None:
        met = made["median"]["ours"] >= bounds["at_least"]
    return {**told, **made, "n": len(told["ours"]), "met": met}


def differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """In what machine or code two results differ, in words; None where they may stand together."""
    for key in ("cpu", "cores", "torch", "commit", "device"):
        if before["machine"].get(key) != now["machine"].get(key):
            return f"{now['row']} was measured with {key}={before['machine'].get(key)}, now {now['machine'].get(key)}"
    return None


def join(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """More repetitions of a row that was measured before: of the same code on the same machine, or ValueError.

    Its load is the larger of the two sessions'.
    """
    if why := differing(before, now):
        raise ValueError(f"{why}: repetitions of the two cannot be put together; measure anew without --more")
    cases = {case["case"]: case for case in before["cases"]}
    for case in now["cases"]:
        if case["case"] in cases:
            pairs = zip(cases[case["case"]]["measures"], case["measures"], strict=True)
            case = case | {"measures": [derive(b | {s: old[s] + b[s] for s in ("ours", "peer")}) for old, b in pairs]}
        cases[case["case"]] = case
    load = [max(pair) for pair in zip(before["machine"]["load"], now["machine"]["load"], strict=True)]
    return dict(before) | {"machine": before["machine"] | {"load": load}, "cases": list(cases.values())}


def write(result: Mapping[str, Any], folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{result['row']}.json"
    path.write_text(json.dumps(result, indent=1, default=float) + "\n", encoding="utf-8")
    return path


def lines(result: Mapping[str, Any]) -> Iterable[str]:
    """What a row prints."""
    yield f"{result['row']}: {result['title']}"
    for case in result["cases"]:
        for m in case["measures"]:
            spread = f" ({spread_of(m['ours'], m['unit'])})" if len(m["ours"]) > 1 else ""
            line = f"  {case['case']}, {m['name']}: ours {shown(m['median']['ours'], m['unit'])}{spread}"
            if m["peer"]:
                ratio = m["ratio"]
                line += f", peer {shown(m['median']['peer'], m['unit'])} ({spread_of(m['peer'], m['unit'])})"
                line += f", {ratio['median']:.2f} times ({ratio['min']:.2f}-{ratio['max']:.2f})"
            yield line + f", n={m['n']}" + (f"; target {m['target']}: {verdict(m)}" if m["target"] else "")


def verdict(m: Mapping[str, Any]) -> str:
    return {True: "met", False: "not met", None: ""}[m["met"]]


def spread_of(values: list[float], unit: str) -> str:
    return f"{shown(min(values), '')}-{shown(max(values), unit)}"


def shown(value: float, unit: str) -> str:
    """Three significant digits."""
    if value == 0 or not math.isfinite(value):
        text = f"{value:g}"
    else:
        digits = max(0, 2 - math.floor(math.log10(abs(value))))
        text = f"{value:,.{digits}f}"
    return f"{text} {unit}".strip()
