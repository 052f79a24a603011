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
    tested = None
    if config["lr"]:
        from lmlab.experiment import range_test

        tested = range_test(run.config | {"cache_dir": config["cache_dir"]}, config["steps"], config["allow_targets"])
        found = found.with_range_test(tested)
    if config["format"] == "json":
        show_json(found.as_dict() | ({"range_test": tested} if tested else {}))
        return DONE
    from lmlab.cli.tables import show_diagnosis

    show_diagnosis(found, tested)
    return DONE
