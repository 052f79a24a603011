"""lmlab diagnose: a verdict on a run's training with its figures, and at most three overrides to try."""

from lmlab.cli.command import load_run, one_of, options, show_json
from lmlab.errors import DONE


def main(arguments: list[str]) -> int:
    config = options("diagnose", arguments)
    if config is None:
        return DONE
    one_of("format", config["format"], ("table", "json"))
    run = load_run({**config, "checkpoint": "best"})
    found = run.diagnose(config["fractions"] or ())
    told = found.as_dict()
    if config["lr"]:
        from lmlab.experiment import range_test

        told["range_test"] = range_test(run.config, config["steps"], config["allow_targets"])
    if config["format"] == "json":
        show_json(told)
        return DONE
    from lmlab.cli.tables import show_diagnosis

    show_diagnosis(found, told.get("range_test"))
    return DONE
