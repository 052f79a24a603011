"""lmlab evaluate: the numbers of results.json again from disk, or of any text."""

from lmlab.cli.command import load_run, one_of, options, show_json
from lmlab.cli.tables import console, show_likelihoods


def main(arguments: list[str]) -> int:
    config = options("evaluate", arguments)
    if config is None:
        return 0
    one_of("format", config["format"], ("table", "json"))
    run = load_run(config)
    protocol = run.protocol if config.get("evaluation") is None else run.resolve(config["evaluation"])
    likelihood = run.evaluate(config["split"], config.get("corpus"), protocol, config["batch_size"])
    sums = likelihood.as_dict()
    if config["format"] == "json":
        show_json({"protocol": protocol.as_dict(), config["split"]: sums})
        return 0
    show_likelihoods({config["split"]: sums})
    console().print(f"measured {protocol.describe()}", highlight=False)
    return 0
