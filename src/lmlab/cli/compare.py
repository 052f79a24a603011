"""lmlab compare A B: is the difference between two runs, or sets of runs, real?"""

from pathlib import Path

from lmlab.cli.command import VALUED, load_run, one_of, options, show_json
from lmlab.cli.tables import show_comparison


def main(arguments: list[str]) -> int:
    paths = [a for before, a in zip(["", *arguments], arguments, strict=False) if _is_path(a) and before not in VALUED]
    config = options("compare", [a for a in arguments if a not in paths])
    if config is None:
        return 0
    one_of("format", config["format"], ("table", "json"))
    one_of("pairs", config["pairs"], ("first", "all"))
    from lmlab import measurement, runs
    from lmlab.evaluation.comparison import BLOCKS

    one_of("blocks", config["blocks"], BLOCKS)
    if not 0.5 <= config["confidence"] < 1:
        raise ValueError(f"confidence={config['confidence']} must be from 0.5 on and below 1")
    named = []
    for path in paths:
        found = [directory.path for directory in runs.find(path)]
        if not found:
            raise FileNotFoundError(f"{path} has no runs; lmlab runs root=outputs lists yours")
        named += [(path, load_run(config | {"run_dir": str(place)})) for place in found]
    groups = measurement.sides(named)
    if len(groups) < 2:
        raise ValueError(f"lmlab compare A B takes two runs or more, or directories of runs, not {len(groups)}")
    place = measurement.Place(config["split"], config.get("corpus"), config["batch_size"])
    how = {key: config[key] for key in ("pairs", "blocks", "block_bytes", "confidence", "resamples", "seed")}
    report = measurement.compared(groups, place, config.get("evaluation"), config["own_protocols"], **how)
    show_json(report) if config["format"] == "json" else show_comparison(report)
    return 0


def _is_path(argument: str) -> bool:
    """A run's directory may have `=` in its name."""
    return not argument.startswith("-") and ("=" not in argument or Path(argument).is_dir())
