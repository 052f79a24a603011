"""Ours beside the peers: `python -m tests.benchmarks [ROW ...]` measures, `python -m tests.benchmarks table` writes
the README's table from what was measured."""

import argparse
import dataclasses
import json
import tempfile
from pathlib import Path

from . import (
    cross_entropy,
    evaluating,
    generating,
    gpu,
    many_runs,
    overhead,
    parity,
    preparing,
    starting,
    table,
    throughput,
    time_to_loss,
)
from .harness import Row, Settings, join, lines, measure, write
from .machine import machine

# In the table's order.
ROWS: dict[str, Row] = {
    row.name: row
    for module in (
        time_to_loss,
        throughput,
        overhead,
        preparing,
        generating,
        evaluating,
        starting,
        many_runs,
        parity,
        gpu,
        cross_entropy,
    )
    for row in module.ROWS
}


def device(gpu: bool) -> str:
    import torch

    return "cuda" if gpu and torch.cuda.is_available() else "cpu"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"{', '.join(ROWS)}; all by default")
    parser.add_argument("--shakespeare", type=Path, metavar="PATH", help="tiny Shakespeare's input.txt or its folder")
    parser.add_argument(
        "--wikitext2", type=Path, metavar="PATH", help="the folder with WikiText-2's train, valid, test"
    )
    parser.add_argument("--repetitions", type=int, help="in place of each row's own number")
    parser.add_argument("--steps", type=int, help="of nanogpt_char_cpu and examples_650_tied, in place of their own")
    parser.add_argument(
        "--only", action="append", default=[], metavar="CASE", help="of the rows' cases; may be repeated"
    )
    parser.add_argument("--more", action="store_true", help="add to what the rows' files hold already")
    parser.add_argument("--gpu", action="store_true", help="the rows for one NVIDIA GPU")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it run? Never for the table")
    parser.add_argument("--out", type=Path, default=Path("outputs/bench"), metavar="FOLDER")
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()) / "lmlab-bench", metavar="FOLDER",
                        help="texts and runs; the texts are kept")  # fmt: skip
    options = parser.parse_args()
    if options.rows == ["table"]:
        print(f"recorded: {', '.join(table.record(options.out)) or 'nothing new'}")
        table.write(list(ROWS))
        return
    if unknown := sorted(set(options.rows) - set(ROWS)):
        parser.error(f"no row called {', '.join(unknown)}; there are {', '.join(ROWS)}")
    shared = {f.name for f in dataclasses.fields(Settings)} & set(vars(options))
    settings = Settings(
        **{k: getattr(options, k) for k in shared} | {"only": tuple(options.only), "device": device(options.gpu)}
    )
    measure_rows(settings, options)


def measure_rows(settings: Settings, options: argparse.Namespace) -> None:
    for name in options.rows or [name for name, row in ROWS.items() if row.gpu == options.gpu]:
        path = options.out / f"{name}.json"
        before = json.loads(path.read_text(encoding="utf-8")) if options.more and path.exists() else None
        already = max((m["n"] for case in before["cases"] for m in case["measures"]), default=0) if before else 0

        def keep(result: dict, before: dict | None = before) -> None:
            write(join(before, result) if before else result, options.out)

        try:
            if before:
                # Refused before anything is measured.
                join(before, {"row": name, "cases": [], "machine": machine() | {"device": settings.device}})
            result = measure(ROWS[name], dataclasses.replace(settings, already=already), options.repetitions, keep)
        except ValueError as error:
            print(f"{error}\n")
            continue
        except AssertionError as error:
            # The rows that follow are not lost with this one.
            print(f"{name} refused: ours and the peer did not do the same work: {error}\n", flush=True)
            continue
        print("\n".join(lines(join(before, result) if before else result)))
        print(f"written to {path}\n", flush=True)


if __name__ == "__main__":
    main()
