"""The README's table, made from the results in `recorded/`: nobody types a number of it."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .harness import shown, verdict
from .machine import ROOT, described

# outputs/ is not kept in the repository; what the README shows is.
RECORDED = Path(__file__).parent / "recorded"
BEGIN, END = "<!-- benchmarks: written by `python -m tests.benchmarks table` -->", "<!-- end of benchmarks -->"
HEAD = "| row | ours | peer | ours is better (spread, n) | target | met |\n|---|---|---|---|---|---|"
# Longer lists of facts are not kept: the 2,000 losses of a parity row.
LONGEST = 50


def record(folder: Path) -> list[str]:
    """Take the full results from where they were measured; returns the names of the rows."""
    taken = []
    RECORDED.mkdir(exist_ok=True)
    for path in sorted(folder.glob("*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        if result["scale"] != "full":
            continue
        for case in result["cases"]:
            for side, facts in case["facts"].items():
                short = {k: v for k, v in facts.items() if not (isinstance(v, list) and len(v) > LONGEST)}
                case["facts"][side] = short
        (RECORDED / path.name).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        taken.append(result["row"])
    return taken


def render(names: list[str]) -> str:
    """Markdown of the recorded rows, in the order of `names`; a row that was never measured says so."""
    results = {name: _read(name) for name in names}
    machines: dict[str, str] = {}
    body: list[str] = []
    for name, result in results.items():
        if result is None:
            body.append(f"| `{name}` | not measured | | | | |")
            continue
        sign = machines.setdefault(_where(result), chr(ord("a") + len(machines)))
        body += _rows(name, result, sign)
    told = [f"Machine {sign}: {where}." for where, sign in machines.items()]
    return "\n".join([HEAD, *body, "", *told])


def _read(name: str) -> dict[str, Any] | None:
    path = RECORDED / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _where(result: Mapping[str, Any]) -> str:
    return f"{described(result['machine'])}, commit {result['machine']['commit']}"


def _rows(name: str, result: Mapping[str, Any], sign: str) -> Iterator[str]:
    for case in result["cases"]:
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
                f"| `{name}` ({sign}) {case['case']}: {m['name']} | {ours} | {peer} | {ratio} | {m['target']} | "
                f"{verdict(m)} |"
            )


def write(names: list[str], readme: Path = ROOT / "README.md") -> None:
    """Raises ValueError where the README has no place for it."""
    text = readme.read_text(encoding="utf-8")
    readme.write_text(replaced(text, render(names)), encoding="utf-8")


def replaced(text: str, table: str) -> str:
    pattern = re.compile(rf"({re.escape(BEGIN)}\n).*?({re.escape(END)})", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"the README has no lines {BEGIN} and {END}")
    return pattern.sub(lambda found: f"{found[1]}{table}\n{found[2]}", text)
