"""What lmlab reproduce shows: every recipe's number, and one of them beside what was measured."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from lmlab.cli.tables import console
from lmlab.evaluation.published import read
from lmlab.reproduction.table import at_end, past_its_best


def show_numbers(numbers: Mapping[str, Any], kept: Sequence[Mapping[str, Any]]) -> None:
    """Every recipe with the number that it must reach, what that is and costs, and what was measured of it."""
    out, table = console(), Table(box=None, pad_edge=False)
    for name in ("recipe", "number", "measured", "", "steps", "source", "cost"):
        table.add_column(name, justify="right" if name == "steps" else "left", overflow="fold")
    for name, target in numbers.items():
        if target is None:
            table.add_row(name, "none published")
            continue
        for n, (split, figure) in enumerate(target.splits.items()):
            number = f"{split} {target.metric} {target.show(figure.value)}" + (" (own)" if target.ours else "")
            about = (f"{target.steps:,}", target.source, target.cost) if n == 0 else ("", "", "")
            mine = [r["splits"][split] for r in kept if r["recipe"] == name and split in r["splits"]]
            told = "\n".join(target.show(m["measured"]) for m in mine), "\n".join(m["verdict"] for m in mine)
            table.add_row("" if n else name, number, *told, *about)
    out.print(table)
    out.print("\nlmlab reproduce NAME trains one of them and compares", highlight=False)


def show_reproduction(record: Mapping[str, Any], peer: Mapping[str, Any] | None) -> None:
    """Measured beside published, split by split; then how it was measured, what it took, and where it is not whole."""
    from lmlab.evaluation.protocol import Protocol

    target, training, out = read(record["published"]), record["training"], console()
    table = Table(box=None, pad_edge=False)
    for name in (record["recipe"], "measured", target.word, "difference", "tolerance", "verdict"):
        table.add_column(name, justify="left" if name in (record["recipe"], "verdict") else "right")
    for split, told in record["splits"].items():
        over = "" if told["difference"] is None else target.show(told["difference"], sign=True)
        numbers = (target.show(told["measured"]), target.show(told["value"]), over, f"{target.tolerance:g}")
        table.add_row(f"{split} {target.metric}", *numbers, told["verdict"])
    out.print()
    out.print(table)
    if record["not_whole"]:
        done = f"{training['steps']:,} of {training['of']:,} steps, {training['epochs']:,.4g} epochs"
        out.print(f"\nnot whole: {record['not_whole']}; {done}", highlight=False)
    if past_its_best(record):
        best = f"measured at step {training['best_step']:,}, its best; where that leads is not told"
        out.print(f"{best}: the loss on val was higher later", highlight=False)
    elif (found := record["forecast"]) is not None:
        ends = ", ".join(f"{split} {target.metric} {at_end(record, target, split)}" for split in record["splits"])
        told = f"extrapolated {found['times']:.1f} times as far, from the {found['by']}, with its 90 % interval"
        out.print(f"at the recipe's end: {ends}; {told}", highlight=False, soft_wrap=True)
    for key, (was, now) in record["changed"].items():
        out.print(f"not as the recipe has it: {key}={now} (there {was})", highlight=False)
    out.print(f"\n{target.word}: {target.source}; {target.protocol}", highlight=False, soft_wrap=True)
    for split, told in record["splits"].items():
        out.print(f"{split} measured {Protocol(**told['protocol']).describe()}", highlight=False)
    m, how = record["machine"], "counted"
    if training["stopped_because"] != "counted":
        how = f"{record['parameters']:,} parameters, precision {training['precision']}, {training['steps']:,} steps"
    where = f"{m['device']}, {m['cores']} cores, load {m['load']}"
    out.print(f"{how} in {training['seconds']:,.1f} s of training; {where}", highlight=False)
    out.print(f"it is stated to cost: {target.cost}", highlight=False)
    if peer is not None:
        _show_peer(out, peer)
    out.print(f"\nrun: {record['run_dir']}", highlight=False, soft_wrap=True)


def _show_peer(out: Console, peer: Mapping[str, Any]) -> None:
    told = f"after {peer['steps']:,} steps, ours beside the {peer['peer']} (recorded row {peer['row']}): "
    told += f"{peer['ms']['ours']:,.0f} ms a step, {peer['ms']['peer']:,.0f}"
    if (loss := peer["loss"]) is not None:
        told += f"; mean loss of the last {peer['segment']}: {loss['ours']:.4f}, {loss['reference']:.4f}"
    out.print(told, highlight=False)
