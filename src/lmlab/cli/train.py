"""lmlab train: the one verb that runs under Hydra itself, so that -m works."""

import sys

from lmlab.cli import quote, report
from lmlab.cli.command import show_help, show_log
from lmlab.config import conf_dir
from lmlab.errors import DONE, INTERRUPTED


def main(arguments: list[str]) -> int:
    if "--help" in arguments or "-h" in arguments:
        show_help("train")
        return DONE
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    failures: list[Exception] = []
    interrupted = False

    def job(config):
        nonlocal interrupted
        # Kept for the dispatcher: Hydra would print a report of its own, and end a multirun at the first failure.
        try:
            results = run(config, HydraConfig.get().mode == RunMode.MULTIRUN)
        except Exception as error:
            failures.append(error)
            return None
        interrupted |= results.get("training", {}).get("stopped_because") == "interrupted"
        return results.get("splits", {}).get("val", {}).get("bpb")

    before, sys.argv = sys.argv, ["lmlab train", *map(quote, arguments)]
    try:
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="train")(job)()
    finally:
        sys.argv = before
    if failures:
        for error in failures[:-1]:
            report(error)
        raise failures[-1]
    return INTERRUPTED if interrupted else DONE


def run(config, multirun: bool) -> dict:
    """One run, and its table."""
    from lmlab.cli.tables import show_plan, show_results
    from lmlab.experiment import train

    if multirun and config.run_dir:
        raise ValueError(f"run_dir={config.run_dir} cannot hold the runs of a multirun; leave it out, or set runs_root=...")
    show_log()
    results = train(config)
    show_plan(results) if config.dry_run else show_results(results)
    return results
