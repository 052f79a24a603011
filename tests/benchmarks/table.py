"""The README's table, made from the results in `recorded/`: nobody types a number of it."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .harness import differing, join, shown, verdict
from .machine import ROOT, described, kind

# outputs/ is not kept in the repository; what the README shows is.
RECORDED = Path(__file__).parent / "recorded"
BEGIN, END = "<!-- benchmarks: written by `python -m tests.benchmarks table` -->", "<!-- end of benchmarks -->"
# load: of the machine in the minute before the row began, its other work.
HEAD = "| row | ours | peer | ours is better (spread, n) | target | met | load |\n|---|---|---|---|---|---|---|"
# Longer lists of facts are not kept: the 2,000 losses of a parity row.
LONGEST = 50


def record(folder: Path) -> list[str]:
    """Take the full results from where they were measured, a folder a kind of machine; returns the rows' names.

    Cases that a result lacks stay as they were recorded. Raises ValueError where those are of other code.
    """
    taken = []
    for path in sorted(folder.glob("*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        if result["scale"] != "full":
            continue
        for case in result["cases"]:
            for side, facts in case["facts"].items():
                short = {k: v for k, v in facts.items() if not (isinstance(v, list) and len(v) > LONGEST)}
                case["facts"][side] = short
        kept = RECORDED / kind(result["machine"]) / path.name
        if kept.exists():
            result = _completed(result, json.loads(kept.read_text("utf-8")))
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        taken.append(result["row"])
    return taken


def _completed(result: dict[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    """The result, and of the one recorded before those cases that it lacks."""
    have = _cases(result)
    lacking = [case for case in before["cases"] if case["case"] not in have]
    if lacking and (why := differing(before, result)):
        raise ValueError(
            f"{why}, and without {'; '.join(case['case'] for case in lacking)}: measure the whole row, or delete what "
            "is recorded of it"
        )
    return join({**before, "cases": lacking}, result) if lacking else result


def _cases(result: Mapping[str, Any]) -> list[str]:
    return [case["case"] for case in result["cases"]]


def render(names: list[str]) -> str:
    """Markdown of the recorded rows in the order of `names`: a table a kind of machine, and what it did not measure."""
    machines = [
        {name: json.loads(path.read_text("utf-8")) for name in names if (path := folder / f"{name}.json").exists()}
        for folder in sorted(path for path in RECORDED.iterdir() if path.is_dir())
    ]
    # Cases that any machine measured, or was told to leave out.
    known: dict[str, list[str]] = {}
    for name, result in (pair for results in machines for pair in results.items()):
        known.setdefault(name, []).extend([*_cases(result), *result.get("left_out", [])])
    parts = []
    for results in machines:
        parts.append(_table(results))
        missing = [f"`{name}`" for name in names if name not in results]
        for name, result in results.items():
            if lacking := [case for case in dict.fromkeys(known[name]) if case not in _cases(result)]:
                missing.append(f"`{name}` ({'; '.join(lacking)})")
        if missing:
            parts.append(f"Not measured on this machine: {', '.join(missing)}.")
    return "\n\n".join(parts)


def _table(results: Mapping[str, dict[str, Any]]) -> str:
    """Of one kind of machine."""
    commits: dict[str, str] = {}
    body: list[str] = []
    for name, result in results.items():
        sign = commits.setdefault(result["machine"]["commit"], chr(ord("a") + len(commits)))
        body += _rows(name, result, sign)
    which = ", ".join(f"{sign} {commit}" for commit, sign in commits.items())
    where = described(next(iter(results.values()))["machine"])
    return "\n".join([f"**{where}** (commits: {which})", "", HEAD, *body])


def _rows(name: str, result: Mapping[str, Any], sign: str) -> Iterator[str]:
    """A case that was measured otherwise than it would be today has a `note` of it in its record."""
    for case in result["cases"]:
        told = f"{case['case']} ({case['note']})" if "note" in case else case["case"]
        for m in case["measures"]:
            ratio = ""
            if m["peer"]:
                r = m["ratio"]
                ratio = f"{r['median']:.2f} times ({r['min']:.2f}-{r['max']:.2f}, {m['n']})"
            else:
                ratio = f"({shown(min(m['ours']), '')}-{shown(max(m['ours']), '')}, {m['n']})"
            ours = shown(m["median"]["ours"], m["unit"])
            peer = f"{shown(m['median']['peer'], m['unit'])}, {case['peer_is']}" if m["peer"] else ""
            yield (
                f"| `{name}` ({sign}) {told}: {m['name']} | {ours} | {peer} | {ratio} | {m['target']} | "
                f"{verdict(m)} | {result['machine']['load'][0]:.1f} |"
            )


def write(names: list[str], readme: Path = ROOT / "README.md") -> None:
    """Raises ValueError where the README has no place for it."""
    text = readme.read_text(encoding="utf-8")
    readme.write_text(replaced(text, render(names)), encoding="utf-8")


def replaced(text: str, table: str, marks: tuple[str, str] = (BEGIN, END)) -> str:
    """The text with the table between the two marks."""
    begin, end = marks
    pattern = re.compile(rf"({re.escape(begin)}\n).*?({re.escape(end)})", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"the README has no lines {begin} and {end}")
    return pattern.sub(lambda found: f"{found[1]}{table}\n{found[2]}", text)
