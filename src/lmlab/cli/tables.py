"""Tables for the terminal: results beside their floors, a plan, a list of runs."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

SHOWN = (("nll", ".4f"), ("ppl", ",.2f"), ("bpb", ".4f"))
FLOORS = {"unigram": "unigram", "kneser_ney_5": "Kneser-Ney 5-gram"}


def console() -> Console:
    """Standard output; wide where it is no terminal, so that no number is cut."""
    plain = Console()
    return plain if plain.is_terminal else Console(width=160)


def show_results(results: Mapping[str, Any]) -> None:
    """A run's numbers beside the floors on the same tokens, and what to do next."""
    from lmlab.evaluation.protocol import Protocol

    training, model, splits = results["training"], results["model"], results["splits"]
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for split in splits:
        for name, _ in SHOWN:
            table.add_column(f"{split} {name}", justify="right")
    rows = {"this model": splits} | {FLOORS[k]: v for k, v in results.get("floors", {}).items()}
    for label, numbers in rows.items():
        table.add_row(label, *(f"{numbers[s][n]:{f}}" for s in splits for n, f in SHOWN))
    out = console()
    out.print()
    out.print(table)
    best = min((numbers for label, numbers in rows.items() if label != "this model"), default=None, key=_last_bpb)
    if best is not None:
        split = list(splits)[-1]
        margin = best[split]["bpb"] - splits[split]["bpb"]
        out.print(f"\n{split} bpb is {abs(margin):.4f} {'below' if margin > 0 else 'above'} the better floor")
    speed = f", {training['tokens_per_s']:,.0f} tokens/s" if training.get("tokens_per_s") else ""
    out.print(
        f"{model['parameters']:,} parameters, {training['steps']:,} steps, {training['tokens']:,} tokens in "
        f"{training['seconds']:,.1f} s{speed}; stopped: {training['stopped_because']}"
    )
    out.print(f"measured {Protocol(**results['protocol']).describe()}", highlight=False)
    out.print(f"run: {results['run_dir']}", highlight=False, soft_wrap=True)


def _last_bpb(numbers: Mapping[str, Any]) -> float:
    return list(numbers.values())[-1]["bpb"]


def show_plan(planned: Mapping[str, Any]) -> None:
    out = console()
    for key, value in planned.items():
        out.print(f"{key:20} {value:,}" if isinstance(value, int) and not isinstance(value, bool) else f"{key:20} {value}")


def show_likelihoods(rows: Mapping[str, Mapping[str, float]]) -> None:
    """One row a text: sums, then what is derived from them."""
    table = Table(box=None, pad_edge=False)
    for name in ("", "tokens", "bytes", "words", "nll", "ppl", "bpb", "bpc", "word ppl"):
        table.add_column(name, justify="left" if not name else "right")
    for label, n in rows.items():
        counts = (f"{n[k]:,}" for k in ("tokens", "bytes", "words"))
        derived = (f"{n[k]:,.4f}" for k in ("nll", "ppl", "bpb", "bpc", "word_ppl"))
        table.add_row(label, *counts, *derived)
    console().print(table)


def show_frame(frame: Any) -> None:
    """A DataFrame, columns without any value left out."""
    table = Table(box=None, pad_edge=False)
    columns = [c for c in frame.columns if frame[c].notna().any()]
    for column in columns:
        numeric = frame[column].dtype.kind in "if"
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for values in frame[columns].itertuples(index=False):
        table.add_row(*map(_cell, values))
    console().print(table)


def _cell(value: Any) -> str:
    if value is None or value != value:
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if value == int(value) and abs(value) >= 1000 else f"{value:,.4f}".rstrip("0").rstrip(".")
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10000 else str(value)
