"""lmlab train: the one verb that can run under Hydra itself, so that -m works."""

import sys

from lmlab.cli import tell
from lmlab.cli.command import CommandLine, look_for_garbage, parse, show_help, show_log
from lmlab.config import BUILT_FROM, compose, conf_dir, mark_typed, unlisted
from lmlab.errors import DONE, INTERRUPTED


def main(arguments: list[str]) -> int:
    line = parse("train", arguments)
    if {"-m", "--multirun"} & line.flags.keys() and any(o.startswith("run_dir=") for o in line.overrides):
        raise ValueError("run_dir=... cannot hold the runs of a multirun; leave it out, or set runs_root=...")
    if line.help:
        show_help("train")
        return DONE
    show_log()
    if not line.flags and not any(o.lstrip("+~").startswith("hydra") for o in line.overrides):
        # One run and nothing of Hydra's own asked for: Hydra's main would compose everything a second time.
        results = run(compose(line.overrides), None)
        return INTERRUPTED if stopped(results) else DONE
    return under_hydra(line)


def under_hydra(line: CommandLine) -> int:
    """By Hydra's own main, which -m, its flags and its own keys need; the exit status of the worst job."""
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    failures: list[tuple[Exception, str]] = []
    interrupted = False

    def job(config):
        nonlocal interrupted
        hydra_config = HydraConfig.get()
        if directory := hydra_config.sweeper.get("join"):
            # A launcher's job: a worker of a sweep.
            from lmlab.sweeps.worker import main as work

            return work(directory, str(hydra_config.sweeper.worker))
        multirun = hydra_config.mode == RunMode.MULTIRUN
        varied = swept(line.overrides, list(hydra_config.overrides.task)) if multirun else None
        # Kept for the dispatcher: Hydra would print a report of its own, and end a multirun at the first failure.
        try:
            results = run(mark_typed(config, list(hydra_config.overrides.task)), varied)
        except Exception as error:
            told = " ".join(f"{key}={value}" for key, value in (varied or {}).items())
            where = f"job {hydra_config.job.num} ({told}): " if multirun else ""
            failures.append((error, where))
            if where:
                tell(error, "train", where)
            return None
        interrupted |= stopped(results)
        if interrupted and multirun:
            # Who interrupts means the whole multirun.
            raise KeyboardInterrupt
        return results.get("splits", {}).get("val", {}).get("bpb")

    flags = [word for pair in line.flags.items() for word in pair if word]
    before, sys.argv = sys.argv, ["lmlab train", *flags, *line.overrides]
    try:
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="train")(job)()
    finally:
        sys.argv = before
    if interrupted:
        return INTERRUPTED
    if not failures:
        return DONE
    if not failures[0][1]:
        raise failures[0][0]
    from lmlab.cli import classify

    print(f"lmlab: {len(failures)} of the jobs failed", file=sys.stderr)
    return max(classify(error, "train")[0] for error, _ in failures)


def stopped(results: dict) -> bool:
    """Whether somebody interrupted the run."""
    return results.get("training", {}).get("stopped_because") == "interrupted"


def swept(typed: list[str], job: list[str]) -> dict[str, str]:
    """Which of the typed overrides have several values, and which value each has in this job."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parser = OverridesParser.create()
    keys = {o.key_or_group for o in parser.parse_overrides(typed) if o.is_sweep_override()}
    return {o.key_or_group: str(o.value()) for o in parser.parse_overrides(job) if o.key_or_group in keys}


def run(config, sweep: dict[str, str] | None) -> dict:
    """One run, and its table. sweep: what a multirun varies, None outside one."""
    from lmlab.cli.tables import show_plan, show_results
    from lmlab.experiment import train
    from lmlab.run_directory import RunDirectory

    look_for_garbage()
    show_log()
    results = train(config, sweep)
    if config.dry_run:
        show_plan(results)
        return results
    stored = RunDirectory(results["run_dir"]).config()
    show_results(results, alone=sweep is None, own_classes=unlisted({group: stored[group] for group in BUILT_FROM}))
    return results
