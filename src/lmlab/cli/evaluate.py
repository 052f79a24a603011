"""lmlab evaluate: the numbers of results.json again from disk, or of any text; adapted, mixed, and broken down."""

import logging
from typing import Any

from lmlab.cli.command import load_run, one_of, options, show_json
from lmlab.cli.tables import FLOORS, console, show_breakdown, show_likelihoods
from lmlab.config import compose, flatten, plain

log = logging.getLogger("lmlab")

# Each does nothing while the other is null.
NEEDS = {
    "mix_weight": "mix",
    "cache.theta": "cache.size",
    "cache.weight": "cache.size",
    "dynamic.decay": "dynamic.lr",
    "dynamic.segment": "dynamic.lr",
    "dynamic.epsilon": "dynamic.lr",
    "dynamic.train_tokens": "dynamic.lr",
    "mc_dropout.seed": "mc_dropout.samples",
}


def main(arguments: list[str]) -> int:
    config = options("evaluate", arguments)
    if config is None:
        return 0
    one_of("format", config["format"], ("table", "json"))
    check_idle(config)
    from lmlab import measurement
    from lmlab.evaluation.breakdown import breakdown

    run = load_run(config)
    asked, mixed = config.get("evaluation"), config["mix"] is not None
    protocol = run.protocol if asked is None else run.resolve(asked, others=mixed)
    place = measurement.Place(config["split"], config.get("corpus"), config["batch_size"])
    found = measurement.measure(run, place, protocol, config, partner(config, protocol))
    if config["scores"]:
        measurement.keep(run, place, found.scores)
    tables = {by: breakdown(found.scores, by) for by in _names(config["by"])}
    floors = measurement.floors_of(run, place, protocol) if config["floors"] else {}
    sums = found.likelihood.as_dict() | {"unknown": found.scores.about["unknown"]}
    parts = {name: part.as_dict() for name, part in found.parts.items()}
    if config["floors"] and place.corpus is not None:
        log.info("floors are of the run's own text: none are shown with corpus=...")
    if config["format"] == "json":
        more = {"parts": parts, "floors": floors, "by": tables}
        told = {"protocol": found.protocol.as_dict(), config["split"]: sums}
        show_json(told | {key: value for key, value in more.items() if value})
        return 0
    label = " + ".join([config["split"], *found.protocol.options])
    rows = parts | {label: sums} | {FLOORS[name]: floor for name, floor in floors.items()}
    show_likelihoods(rows)
    told = found.protocol.describe({config["split"]: sums["unknown"]})
    console().print(f"measured {told}", highlight=False, soft_wrap=True)
    for by, table in tables.items():
        show_breakdown(by, table)
    return 0


def check_idle(config: dict[str, Any]) -> None:
    """Raises ValueError for a setting that does nothing, because what it belongs to is off."""
    asked, default = flatten(config), flatten(plain(compose((), "evaluate")))
    for key, needed in NEEDS.items():
        if asked[needed] is None and asked[key] != default[key]:
            raise ValueError(f"{key}={asked[key]} does nothing without {needed}=...")


def partner(config: dict[str, Any], protocol: Any) -> Any:
    """The run to mix with, and its protocol: the same tokens and charges, from the context that suits it."""
    if config["mix"] is None:
        return None
    if config["mix"] == "":
        raise ValueError("mix= is empty: name another run's directory, or leave it out")
    from lmlab.evaluation.protocol import check_lanes

    other = load_run(config | {"run_dir": config["mix"]})
    theirs, evaluation = other.protocol, config.get("evaluation")
    if evaluation is not None:
        theirs = other.resolve(evaluation, others=True)
        check_lanes(evaluation, [protocol, theirs])
    return other, theirs.now(limit_tokens=protocol.limit_tokens, unknown=protocol.unknown)


def _names(by: str | list[str] | None) -> list[str]:
    return [] if by is None else [name.strip() for name in (by.split(",") if isinstance(by, str) else by)]
