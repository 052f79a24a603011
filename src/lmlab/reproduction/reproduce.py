"""A recipe beside its published number: trained, measured under the number's protocol, compared, kept as JSON."""

import copy
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from lmlab.config import BUDGETS, asked, differences, directory_name, plain, targets, treatment, with_budget
from lmlab.decisions import choose_device
from lmlab.evaluation.protocol import Protocol
from lmlab.evaluation.published import Figure, Published, read
from lmlab.experiment import train
from lmlab.hardware import Machine
from lmlab.reproduction import RECORD, read_record
from lmlab.reproduction.ahead import ahead
from lmlab.reproduction.table import past_its_best
from lmlab.run_directory import RunDirectory
from lmlab.runs import Run, load

# A name of a directory that is longer says what was changed by a hash.
LONGEST_NAME = 80


def departures(recipe: DictConfig, config: DictConfig) -> tuple[dict[str, list], dict[str, list]]:
    """Where a config is not the recipe's: (all but budgets, budgets), each key with [the recipe's value, this one]."""
    found = differences(asked(with_budget(recipe)), asked(with_budget(config)))
    parts: tuple[dict[str, list], dict[str, list]] = ({}, {})
    for key, values in found.items():
        parts[key in BUDGETS][key] = list(values)
    return parts


def directory(root: str | os.PathLike, name: str, recipe: DictConfig, config: DictConfig) -> Path:
    """Where a reproduction lies: the same command finds it again, and one that asks for something else does not.

    A limit in time leaves the schedule as it is, so that the whole recipe goes on from there; fewer steps do not.
    """
    changed, budgets = departures(recipe, config)
    other = {k: now for k, (_, now) in (changed | budgets).items() if k != "trainer.max_time"}
    words = [name, *(f"{key}={value}" for key, value in other.items())]
    stem = directory_name(words)
    return Path(root) / (stem if len(stem) <= LONGEST_NAME else f"{name}_{treatment(other)}")


def reproduce(name: str, recipe: DictConfig, config: DictConfig) -> dict[str, Any]:
    """Train as configured, or go on, or take what is finished; measure, compare, and write the record into the run.

    recipe: the recipe as it stands; config: with what was changed in it, and a run_dir. Raises ValueError where the
    recipe has no number.
    """
    target = number(name, recipe)
    results = train(config)
    if config.dry_run:
        return results
    # What was just trained may be loaded.
    run = load(
        config.run_dir, device=choose_device(config.trainer.accelerator), kernels=config.kernels,
        allow_targets={*config.allow_targets, *targets(plain(config))}, cache_dir=config.cache_dir,
    )  # fmt: skip
    changed, budgets = departures(recipe, config)
    training = {k: v for k, v in results["training"].items() if k not in ("history", "performance", "first_loss")}
    reason = target.why_partial(training, budgets)
    decided = run.config["decided"]
    of = decided.get("total_steps", 1) if not budgets.keys() - {"trainer.max_time"} else target.steps
    training |= {"of": of, "precision": decided.get("precision", "exact")}
    if "steps_per_epoch" in decided:
        training["epochs"] = round(training["steps"] / decided["steps_per_epoch"], 3)
    record = {
        "format": 1,
        "recipe": name,
        "published": target.as_dict(),
        "changed": changed,
        "not_whole": reason,
        "splits": compared(run, target, stated_evaluation(recipe, config), results["splits"], bool(reason)),
        "training": training,
        "parameters": results["model"]["parameters"],
        "forecast": None,
        "run_dir": str(run.path),
    }
    if reason and not past_its_best(record):
        record["forecast"] = ahead(run.directory.points(), decided, recipe, config, training["steps"], of)
    record["machine"] = machine(run, record)
    run.directory.write_json(RECORD, record)
    return record


def number(name: str, recipe: DictConfig) -> Published:
    target = read(plain(recipe)["published"])
    if target is None:
        raise ValueError(f"{name} has no number to reach; lmlab train experiment={name} trains it")
    return target


def stated_evaluation(recipe: DictConfig, config: DictConfig) -> dict[str, Any]:
    """The recipe's evaluation node, whatever was changed in it; what it says of the model is said of the config's."""
    stated = copy.deepcopy(config)
    stated.evaluation = recipe.evaluation
    return plain(stated)["evaluation"]


def compared(
    run: Run, target: Published, evaluation: Mapping[str, Any], splits: Mapping[str, Mapping], partial: bool
) -> dict[str, dict[str, Any]]:
    """Each split of the number as the run has measured it, or measured now under the number's own protocol.

    evaluation: the recipe's, in which a split's number may differ.
    """
    found = {}
    for split, figure in target.splits.items():
        # An interrupted run has not looked at test.
        if split not in splits:
            continue
        protocol, sums = under(run, evaluation, figure, split, splits[split])
        told: dict[str, Any] = {"value": figure.value, "measured": sums[target.metric], "tokens": sums["tokens"]}
        if sums["tokens"] != figure.tokens:
            told |= {"difference": None, "verdict": "other text"}
        else:
            told["difference"] = sums[target.metric] - figure.value
            told["verdict"] = "not whole" if partial else target.verdict(split, sums[target.metric])
        found[split] = told | {"nll": sums["nll"], "protocol": protocol.as_dict()}
    return found


def under(
    run: Run, evaluation: Mapping[str, Any], figure: Figure, split: str, sums: Mapping[str, Any]
) -> tuple[Any, Mapping[str, Any]]:
    wanted, own = {**evaluation, **figure.evaluation}, run.config["evaluation"]
    if "max_context" in wanted and wanted["max_context"] is own.get("max_context") is None and run.protocol.stride:
        # Where nobody says how long windows are, training has decided it.
        wanted["max_context"] = run.protocol.max_context
    protocol = run.protocol if wanted == own else run.resolve(wanted)
    if protocol.name == Protocol(**run.config["decided"]["protocol"]).name:
        return protocol, sums
    return protocol, run.evaluate(split, protocol=protocol).as_dict()


def machine(run: Run, record: Mapping[str, Any]) -> dict[str, Any]:
    """On what it was trained; of a run that has not gone on since, as was recorded then."""
    path = run.path / RECORD
    if path.exists():
        before = read_record(path)
        if all(before["training"].get(key) == record["training"][key] for key in ("steps", "seconds")):
            return before["machine"]
    about = RunDirectory(run.path).read_json("environment.json")
    device = run.config["decided"]["device"]
    return {
        "device": Machine(device, run.cache).key["device"],
        "cores": os.cpu_count(),
        "threads": about["threads"],
        # Of the last quarter of an hour: above the cores, others were at work.
        "load": round(os.getloadavg()[2], 1),
        "torch": about["packages"]["torch"],
        "commit": about["git_commit"],
        "time": about["time"],
    }
