"""lmlab audit: a table of checks of a run's numbers, and exit status 3 where one fails."""

from lmlab.cli.command import load_run, one_of, options, show_json
from lmlab.errors import DONE, TRAINING_FAILED


def main(arguments: list[str]) -> int:
    config = options("audit", arguments)
    if config is None:
        return DONE
    one_of("format", config["format"], ("table", "json"))
    checks = load_run(config).audit(config["quick"], config["passages"])
    failed = any(check.passed is False for check in checks)
    if config["format"] == "json":
        show_json({"passed": not failed, "checks": {check.name: check.as_dict() for check in checks}})
    else:
        from lmlab.cli.tables import show_checks
        from lmlab.evaluation.audit import verdict

        show_checks(checks)
        print(f"\n{verdict(checks)}")
    return TRAINING_FAILED if failed else DONE
