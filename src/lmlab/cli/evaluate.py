"""lmlab evaluate: the numbers of results.json again from disk, or of any text."""

import json

from lmlab.cli.command import load_run, options
from lmlab.cli.tables import console, show_likelihoods


def main(arguments: list[str]) -> int:
    config = options("evaluate", arguments)
    if config is None:
        return 0
    run = load_run(config)
    protocol = run.protocol
    if config["evaluation"]:
        from hydra.utils import instantiate

        protocol = instantiate(config["evaluation"])(model=run.model)
    sums = run.evaluate(config["split"], config["corpus"], protocol, config["batch_size"]).as_dict()
    if config["format"] == "json":
        print(json.dumps({"protocol": protocol.as_dict(), config["split"]: sums}, indent=2))
        return 0
    show_likelihoods({config["split"]: sums})
    console().print(f"measured {protocol.describe()}", highlight=False)
    return 0
