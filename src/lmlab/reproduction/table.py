"""The README's table of published against measured numbers, and what stands beside a reproduction."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lmlab.evaluation.published import Published

HEAD = "| recipe | number | measured | difference | | steps | training | machine |\n|---|---|---|---|---|---|---|---|"


def markdown(kept: Sequence[Mapping[str, Any]], numbers: Mapping[str, Published | None]) -> str:
    """The README's table: every recipe that has a number, with what was recorded of it."""
    lines, machines = [HEAD], {}
    for name, target in numbers.items():
        if target is None:
            continue
        mine = [record for record in kept if record["recipe"] == name]
        for split in target.splits:
            told = [r for r in mine if split in r["splits"]]
            lines += [_row(r, target, split, machines) for r in told] or [
                f"| `{name}` | {_number(target, split)} | not run | | | {target.steps:,} | | |"
            ]
    lines += ["", *(f"Machine {sign}: {where}." for where, sign in machines.items())]
    return "\n".join(lines).rstrip()


def _number(target: Published, split: str) -> str:
    return f"{split} {target.metric} {target.show(target.splits[split].value)}" + (" (own)" if target.ours else "")


def _row(record: Mapping[str, Any], target: Published, split: str, machines: dict[str, str]) -> str:
    m, training, figure = record["machine"], record["training"], record["splits"][split]
    where = f"{m['device']}, {m['cores']} cores, torch {m['torch']}, commit {(m['commit'] or 'unknown')[:7]}"
    sign = machines.setdefault(where, chr(ord("a") + len(machines)))
    verdict = figure["verdict"]
    if end := at_end(record, target, split):
        verdict += f"; at the end {end}"
    steps = f"{training['steps']:,}" + (f" of {training['of']:,}" if record["not_whole"] else "")
    if past_its_best(record):
        steps += f", measured at {training['best_step']:,}"
    over = "" if figure["difference"] is None else target.show(figure["difference"], sign=True)
    return (
        f"| `{record['recipe']}` | {_number(target, split)} | {target.show(figure['measured'])} | {over} | {verdict} | "
        f"{steps} | {training['seconds']:,.0f} s, load {m['load']} | {sign} |"
    )


def at_end(record: Mapping[str, Any], target: Published, split: str) -> str | None:
    """The measured number where the curve leads by the recipe's end, with its interval, in words."""
    found = record["forecast"]
    if found is None:
        return None
    sums = record["splits"][split]

    def then(gain: float) -> str:
        nll = max(0.0, sums["nll"] - gain)
        return target.show(math.exp(nll) if target.metric == "ppl" else sums["measured"] * nll / sums["nll"])

    return f"{then(found['gain'])} ({then(found['high'])} to {then(found['low'])})"


def past_its_best(record: Mapping[str, Any]) -> bool:
    """Whether it is a part that went on after its best, at which it was measured: its curve leads on from elsewhere."""
    best = record["training"].get("best_step")
    return bool(record["not_whole"]) and best not in (None, record["training"]["steps"])


def beside(path: str | os.PathLike) -> dict[str, Any]:
    """What a benchmark's record says of a reference loop that took the same steps from the same weights.

    loss: {ours, reference}, means over the last `segment` of the `steps` training losses; None where none were kept.
    ms: {ours, peer}, of a step. Raises ValueError where the file is no such record.
    """
    try:
        row = json.loads(Path(path).read_text(encoding="utf-8"))
        (case,) = row["cases"]
        facts = case["facts"]["ours"]
        return {
            "row": row["row"],
            "peer": case["peer_is"],
            "steps": facts["steps"],
            "segment": facts["segment"],
            "loss": facts.get("last_losses"),
            "ms": case["measures"][0]["median"],
        }
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise ValueError(f"beside={path} is no record of a benchmark with a reference loop") from error
