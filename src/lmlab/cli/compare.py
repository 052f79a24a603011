"""lmlab compare A B: is the difference between two runs, or sets of runs, real?"""

import logging
from pathlib import Path
from typing import Any

from lmlab.cli.command import VALUED, load_run, one_of, options, show_json
from lmlab.cli.tables import show_comparison

log = logging.getLogger("lmlab")

# Runs that a line names.
NAMED = 8


def main(arguments: list[str]) -> int:
    paths = [a for before, a in zip(["", *arguments], arguments, strict=False) if _is_path(a) and before not in VALUED]
    config = options("compare", [a for a in arguments if a not in paths])
    if config is None:
        return 0
    one_of("format", config["format"], ("table", "json"))
    one_of("pairs", config["pairs"], ("first", "all"))
    from lmlab import measurement
    from lmlab.evaluation.comparison import BLOCKS

    one_of("blocks", config["blocks"], BLOCKS)
    if not 0.5 <= config["confidence"] < 1:
        raise ValueError(f"confidence={config['confidence']} must be from 0.5 on and below 1")
    named = []
    for path in paths:
        found = members(Path(path), config["checkpoint"])
        named += [(path, load_run(config | {"run_dir": str(place)})) for place in found]
    groups = measurement.sides(named)
    if len(groups) < 2:
        raise ValueError(f"lmlab compare A B takes two runs or more, or directories of runs, not {len(groups)}")
    place = measurement.Place(config["split"], config.get("corpus"), config["batch_size"])
    how = {key: config[key] for key in ("pairs", "blocks", "block_bytes", "confidence", "resamples", "seed")}
    report = measurement.compared(groups, place, config.get("evaluation"), config["own_protocols"], **how)
    show_json(report) if config["format"] == "json" else show_comparison(report)
    return 0


def members(path: Path, checkpoint: str) -> list[Path]:
    """The runs that an argument stands for: a sweep's winner, a run itself, or all finished ones below it.

    Raises FileNotFoundError where there are none.
    """
    from lmlab import runs

    if (path / "sweep.yaml").is_file():
        from lmlab.sweeps.ending import winner

        return winner(path)
    found = list(runs.find(path))
    if [run.path for run in found] == [path]:
        return [path]
    if not found:
        raise FileNotFoundError(f"{path} has no runs; lmlab runs root=outputs lists yours")
    whole = [run.path for run in found if _finished(run) and (run.checkpoints / f"{checkpoint}.ckpt").is_file()]
    if not whole:
        raise FileNotFoundError(f"{path} has no finished run with its {checkpoint}.ckpt; lmlab runs root={path}")
    if left := [run.path.name for run in found if run.path not in whole]:
        more = f" and {len(left) - NAMED} more" if len(left) > NAMED else ""
        told = ", ".join(left[:NAMED]) + more
        log.info("%s: passed over, not finished, damaged or without %s.ckpt: %s", path, checkpoint, told)
    return whole


def _finished(run: Any) -> bool:
    """Not a run whose results cannot be read: it may have been interrupted."""
    try:
        return run.finished()
    except (ValueError, OSError, KeyError, TypeError):
        return False


def _is_path(argument: str) -> bool:
    """A run's directory may have `=` in its name."""
    return not argument.startswith("-") and ("=" not in argument or Path(argument).is_dir())
