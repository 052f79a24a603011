"""Tables for the terminal: results beside their floors, a plan, a list of runs."""

import math
import shlex
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lmlab import terminal
from lmlab.terminal import printable

SHOWN = (("nll", ".4f"), ("ppl", ",.2f"), ("bpb", ".4f"))
FLOORS = {"unigram": "unigram", "kneser_ney_5": "Kneser-Ney 5-gram"}


def console(width: int | None = None) -> Console:
    """Standard output; wide where it is no terminal, so that no number is cut. No text is markup: much is people's."""
    plain = terminal.console(width=width)
    return plain if width or plain.is_terminal else console(160)


def show_results(results: Mapping[str, Any], alone: bool, own_classes: Sequence[str] = ()) -> None:
    """A run's numbers beside the floors on the same tokens; of one that was alone also samples and what to do next.

    own_classes: those outside the allow-list, which the next commands must name.
    """
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
        out.print(
            f"\n{split} bpb is {abs(margin):.4f} {'below' if margin > 0 else 'above'} the better floor", highlight=False
        )
    speed = f", {training['tokens_per_s']:,.0f} tokens/s" if training.get("tokens_per_s") else ""
    out.print(
        f"{model['parameters']:,} parameters, {training['steps']:,} steps, {training['tokens']:,} tokens in "
        f"{training['seconds']:,.1f} s{speed}; stopped: {training['stopped_because']}",
        highlight=False,
    )
    unknown = {split: sums.get("unknown") or 0 for split, sums in splits.items()}
    out.print(f"measured {Protocol(**results['protocol']).describe(unknown)}", highlight=False, soft_wrap=True)
    if alone:
        for sample in results.get("samples", ()):
            out.print(Text.assemble(("\nsample  ", "dim"), printable(sample.strip())), soft_wrap=True)
    out.print(f"\nrun: {results['run_dir']}", highlight=False, soft_wrap=True)
    if alone:
        _show_next(out, results["run_dir"], list(splits)[-1], own_classes)


def _show_next(out: Console, run_dir: str, split: str, own_classes: Sequence[str]) -> None:
    """Commands to try, ready to be copied."""
    where = shlex.quote(f"run_dir={run_dir}")
    if own_classes:
        where += " " + shlex.quote(f"allow_targets=[{','.join(own_classes)}]")
    commands = (
        f"lmlab generate {where} prompt='...'",
        f"lmlab score {where} text='...'",
        f"lmlab evaluate {where} split={split}",
        f"lmlab board {shlex.quote(f'root={run_dir}')}",
    )
    out.print("\nnext:", highlight=False)
    for command in commands:
        out.print(f"  {command}", highlight=False, soft_wrap=True)


def _last_bpb(numbers: Mapping[str, Any]) -> float:
    return list(numbers.values())[-1]["bpb"]


def show_plan(planned: Mapping[str, Any]) -> None:
    from lmlab.evaluation.protocol import Protocol

    out = console()
    for key, value in planned.items():
        if key == "protocol":
            value = Protocol(**value).describe()
        shown = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else value
        out.print(f"{key:20} {shown}", highlight=False, soft_wrap=True)


def show_likelihoods(rows: Mapping[str, Mapping[str, float]]) -> None:
    """One row a text: sums, then what is derived from them."""
    table = Table(box=None, pad_edge=False)
    for name in ("", "tokens", "bytes", "words", "nll", "ppl", "bpb", "bpc", "word ppl"):
        table.add_column(name, justify="left" if not name else "right")
    for label, n in rows.items():
        counts = (f"{n[k]:,}" for k in ("tokens", "bytes", "words"))
        derived = (_likelihood(n[k], 4) for k in ("nll", "ppl", "bpb", "bpc", "word_ppl"))
        table.add_row(label, *counts, *derived)
    console().print(table)


def _likelihood(value: float, places: int, sign: str = "") -> str:
    """Few words and many bytes, as in Chinese, make word perplexities without end; two of them have no difference."""
    if math.isnan(value):
        return "-"
    return f"{value:{sign},.{places}f}" if abs(value) < 1e7 else f"{value:{sign}.3e}"


STATES = {True: "pass", False: "FAIL", None: "not applicable"}


def show_checks(checks: Sequence[Any]) -> None:
    """One row a check; below the table what the failing and the overlap have to show."""
    table, out = Table(box=None, pad_edge=False), console()
    for name in ("check", "", "measured"):
        table.add_column(name, overflow="fold")
    for check in checks:
        table.add_row(check.name, STATES[check.passed], check.figure)
    out.print(table)
    for check in checks:
        for line in check.details:
            out.print(f"  {check.name}: {line}", highlight=False, soft_wrap=True)


def show_diagnosis(found: Any, tested: Mapping[str, Any] | None) -> None:
    """The findings, the figures behind them, what to try; tested: a range test's, where there was one."""
    out = console()
    for n, finding in enumerate(found.findings):
        out.print(f"{'verdict' if n == 0 else 'also':8} {finding.kind}: {finding.told}", highlight=False)
    out.print()
    for line in [*found.figures, *found.distances]:
        out.print(line, highlight=False)
    if tested is not None:
        told = f"learning rate {tested['used']:g}: {tested['verdict']} (the loss breaks at {tested['breaks_at']:g}"
        out.print(f"{told}, a tenth of that is usual)", highlight=False)
    if found.remedies:
        table = Table(box=None, pad_edge=False)
        for name in ("next, best first", "nats a token less", "known by"):
            table.add_column(name, overflow="fold")
        for remedy in found.remedies:
            table.add_row(remedy.overrides, remedy.gain, remedy.basis)
        out.print()
        out.print(table)


# Of a table of runs: left out first where the terminal is narrow, being derived, or told by others.
SIZES = ("val_text", "val_bytes", "tokens", "seconds", "tokens_per_s", "megabytes")
LAST = (*SIZES, "val/nll", "val/ppl", "test/nll", "test/ppl")


def show_frame(frame: Any, all_columns: bool) -> None:
    """A DataFrame, columns without any value left out; unless all_columns, only as many as fit a terminal's line."""
    columns = [c for c in frame.columns if frame[c].notna().any()]
    cells = {c: [printable(_cell(value)) for value in frame[c]] for c in columns}
    width = {c: 2 + max(len(c), *map(len, cells[c])) for c in columns}
    plain = console()
    fitting, room = set(columns), plain.width
    if not all_columns:
        order = sorted(columns, key=lambda c: (c in LAST, columns.index(c)))
        while len(order) > 1 and sum(width[c] for c in order) > room:
            order.pop()
        fitting = set(order)
    table = Table(box=None, pad_edge=False)
    for column in columns:
        if column in fitting:
            numeric = frame[column].dtype.kind in "if"
            table.add_column(column, justify="right" if numeric else "left", overflow="fold", no_wrap=all_columns)
    for values in zip(*(cells[c] for c in columns if c in fitting), strict=True):
        table.add_row(*values)
    out = console(max(room, sum(width.values()))) if all_columns else plain
    out.print(table)
    if hidden := [c for c in columns if c not in fitting]:
        print(f"{len(hidden)} more columns (format=csv, or columns=[run,...]): {printable(', '.join(hidden))}")


def _cell(value: Any) -> str:
    if value is None or value != value:
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if value.is_integer() and abs(value) >= 1000 else f"{value:,.4f}".rstrip("0").rstrip(".")
    return (
        f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10000 else str(value)
    )


def show_report(report: Mapping[str, Any]) -> None:
    """What preparing a corpus gave, split by split."""
    out = console()
    out.print(
        f"{report['corpus']}, tokenizer {report['tokenizer']}, vocabulary {report['vocab_size']:,}", highlight=False
    )
    table = Table(box=None, pad_edge=False)
    for name in ("split", "documents", "tokens", "bytes", "chars", "words", "bytes/token", "<unk>"):
        table.add_column(name, justify="left" if name == "split" else "right")
    for split, n in report["splits"].items():
        counts = (f"{n[k]:,}" for k in ("documents", "tokens", "bytes", "chars", "words"))
        table.add_row(
            split, *counts, f"{n['bytes_per_token']:.3f}", f"{n['unk_share']:.3%}" if "unk_share" in n else "none"
        )
    out.print(table)
    seconds = sum(report["seconds"].values())
    out.print(f"made in {seconds:.1f} s: {report['path']}", highlight=False, soft_wrap=True)


def show_stores(entries: Any) -> None:
    """Stores of the cache, with size and last use."""
    table = Table(box=None, pad_edge=False)
    for name in ("corpus", "tokenizer", "MB", "last used", "path"):
        table.add_column(name, justify="right" if name == "MB" else "left", overflow="fold")
    for entry in entries:
        used = datetime.fromtimestamp(entry.used).strftime("%Y-%m-%d %H:%M")
        table.add_row(entry.corpus or "damaged", entry.tokenizer, f"{entry.bytes / 1e6:,.1f}", used, str(entry.path))
    console().print(table)


def show_bench(found: Mapping[str, Any]) -> None:
    """Settings, fastest first, and how to train with the best of them."""
    out, table = console(), Table(box=None, pad_edge=False)
    names = ("precision", "threads", "micro batch", "compile", "batch", "ms/step", "tokens/s", "MFU", "start s", "loss")
    for name in names:
        table.add_column(name, justify="left" if name == "precision" else "right")
    for row in sorted(found["settings"], key=lambda row: -row["tokens_per_s"]):
        words = (
            row["precision"],
            row["threads"],
            row["micro_batch_size"] or "whole",
            "yes" if row["compile"] else "no",
        )
        numbers = (f"{row['ms_per_step']:,.1f}", f"{row['tokens_per_s']:,.0f}", _percent(row["mfu"]))
        numbers += (f"{row['starting_s']:.1f}", f"{row['loss']:.3f}")
        table.add_row(*map(str, words), str(row["batch_size"]), *((row["fault"],) if row["fault"] else numbers))
    out.print(table)
    peaks = ", ".join(f"{name} {rate / 1e9:,.0f}" for name, rate in found["machine"]["products"].items())
    out.print(f"\npeak of matrix products here, GFLOP/s: {peaks}", highlight=False)
    out.print(f"{found['gain']:.2f} times as fast as without: {found['overrides']}", highlight=False, soft_wrap=True)
    sizes = found["batch_size"]
    if sizes["fastest"] != sizes["recipe"]:
        out.print(
            f"batching.batch_size={sizes['fastest']} has more tokens a second than {sizes['recipe']}, but trains "
            "something else: adopt it with a learning rate of its own",
            highlight=False,
        )
    out.print(f"\nwritten: {found['file']}", highlight=False, soft_wrap=True)
    out.print(f"  {found['command'] or found['overrides']}", highlight=False, soft_wrap=True)


def _percent(share: float | None, places: int = 0) -> str:
    return "" if share is None else f"{share:.{places}%}"


# Of a breakdown with more groups, those that cost most.
MOST_GROUPS = 25


def show_breakdown(by: str, rows: Any) -> None:
    """Where the nats go, group by group."""
    out, table = console(), Table(box=None, pad_edge=False)
    for name in (f"by {by}", "tokens", "of tokens", "of nats", "nll", "ppl", "bpb"):
        table.add_column(name, justify="left" if name.startswith("by ") else "right")
    shown = rows
    if len(rows) > MOST_GROUPS:
        shown = sorted(rows, key=lambda row: -row["share_of_nats"])[:MOST_GROUPS]
    for row in shown:
        cells = (f"{row['tokens']:,}", _percent(row["share_of_tokens"], 1), _percent(row["share_of_nats"], 1))
        table.add_row(row["group"], *cells, f"{row['nll']:.4f}", f"{row['ppl']:,.2f}", f"{row['bpb']:.4f}")
    out.print()
    out.print(table)
    if len(rows) > len(shown):
        out.print(f"the {len(shown)} of {len(rows)} that cost most; format=json has all", highlight=False)


def show_comparison(report: Mapping[str, Any]) -> None:
    """Each side's numbers, each difference with its interval, and the verdicts in words."""
    from lmlab.evaluation.protocol import Protocol

    out, unit = console(), "ppl" if "ppl" in report["sides"][0] else "word_ppl"
    named = unit.replace("_", " ")
    table = Table(box=None, pad_edge=False)
    for name in ("", "runs", "bpb", named, "sd of seeds, bpb"):
        table.add_column(name, justify="left" if not name else "right", overflow="fold")
    for side in report["sides"]:
        spread = "" if side["sd"] is None else f"{side['sd']:.4f}"
        table.add_row(side["name"], str(side["runs"]), f"{side['bpb']:.4f}", _likelihood(side[unit], 2), spread)
    for name, floor in report.get("floors", {}).items():
        table.add_row(FLOORS[name], "", f"{floor['bpb']:.4f}", _likelihood(floor[unit], 2), "")
    out.print(table)
    share = f"{report['confidence']:.0%} interval"
    table = Table(box=None, pad_edge=False)
    for name in ("difference", "bpb", share, named, share, "p", "p (Holm)", "detectable"):
        table.add_column(name, justify="left" if name == "difference" else "right", overflow="fold")
    for c in report["comparisons"]:
        cells = (
            f"{c['bpb']:+.4f}",
            _interval(c["bpb_interval"], 4),
            _likelihood(c[unit], 2, "+"),
            _interval(c[f"{unit}_interval"], 2),
        )
        cells += (f"{c['p']:.2g}", f"{c['p_holm']:.2g}", f"{c['detectable']:.4f}")
        table.add_row(f"{c['ours']} less {c['theirs']}", *cells)
    out.print()
    out.print(table)
    out.print()
    for c in report["comparisons"]:
        out.print(c["words"], highlight=False, soft_wrap=True)
    for note in report["notes"]:
        out.print(note, highlight=False, soft_wrap=True)
    blocks = report["blocks"]
    kind = "documents" if blocks["kind"] == "documents" else "stretches"
    most = max(c["blocks"] for c in report["comparisons"])
    n = f"{blocks['n']}" if most == blocks["n"] else f"{blocks['n']} to {most}"
    size = f"{'' if most == blocks['n'] else 'at most '}{blocks['bytes']:,.0f} bytes"
    out.print(f"\n{report['split']}, {n} {kind} of {size} resampled", highlight=False)
    for protocol in report["protocols"]:
        told = Protocol(**protocol).describe({report["split"]: report.get("unknown", 0)})
        under = [side["name"] for side in report["sides"] if side["protocol"] == protocol]
        whose = f"{', '.join(under)}: " if len(report["protocols"]) > 1 else ""
        out.print(f"{whose}measured {told}", highlight=False, soft_wrap=True)


def _interval(bounds: Any, places: int) -> str:
    return f"[{', '.join(_likelihood(bound, places, '+') for bound in bounds)}]"
