"""lmlab train: the one verb that runs under Hydra itself, so that -m works."""

import sys

from lmlab.cli import quote
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

    interrupted = False

    def job(config):
        nonlocal interrupted
        from lmlab.cli.tables import show_plan, show_results
        from lmlab.experiment import train

        if HydraConfig.get().mode == RunMode.MULTIRUN and config.run_dir:
            raise ValueError(f"run_dir={config.run_dir} cannot hold the runs of a multirun; leave it out, or set runs_root=...")
        show_log()
        results = train(config)
        if config.dry_run:
            show_plan(results)
            return None
        show_results(results)
        interrupted |= results["training"]["stopped_because"] == "interrupted"
        return results["splits"].get("val", {}).get("bpb")

    before, sys.argv = sys.argv, ["lmlab train", *map(quote, arguments)]
    try:
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="train")(job)()
    finally:
        sys.argv = before
    return INTERRUPTED if interrupted else DONE
