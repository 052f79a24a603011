"""One trial: its config, the name of its directory, the run itself, and what went wrong with it."""

import functools
import gc
import hashlib
import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from lmlab.config import as_fast, directory_name, literal, plain, short_setting, with_budget
from lmlab.config import asked as asked_config
from lmlab.experiment import build_text, check_config, protocol_without_text, tokenizer_recipe, train
from lmlab.run_directory import RunDirectory
from lmlab.runs import numbers
from lmlab.runs.protocols import of_results
from lmlab.sweeps.composer import Composer

log = logging.getLogger("lmlab")

# Letters of a directory's readable part: file systems take 255 in all, terminals fewer.
READABLE = 90


def config_of(overrides: Sequence[str], seed: int, composer: Composer) -> DictConfig:
    """The composed config of a trial. Raises Hydra's errors, and ValueError where a key or value is wrong."""
    config = composer([*overrides, f"seed={seed}"])
    check_config(config)
    return config


def protocol_name(make: Callable[[Sequence[str]], DictConfig], point: Sequence[str]) -> str | None:
    """Of the evaluation at a point, told without its text; None where that cannot be, or the point cannot run.

    make: a point's config.
    """
    try:
        return protocol_without_text(make(point)).name
    except Exception as error:
        # Its trial says why.
        log.debug("no protocol of %s: %s", point, error)
        return None


@functools.lru_cache(maxsize=64)
def _fingerprint(node: str) -> str:
    return build_text(json.loads(node))[0].fingerprint()


def fingerprint(config: DictConfig) -> str:
    """Of the text. Once a process for each corpus: a sweep's text stays as it is."""
    nodes = {key: plain(config[key]) for key in ("corpus", "tokenizer")}
    return _fingerprint(json.dumps(nodes, sort_keys=True))


def name_of(config: DictConfig, varied: Sequence[str]) -> str:
    """What it varies, for people, and twelve digits of everything asked, the text and the code: what the run is."""
    words = [short_setting(key, value) for key, _, value in (override.partition("=") for override in varied)]
    readable = directory_name([*words, f"seed{config.seed}"])
    while len(readable.encode()) > READABLE:
        readable = readable[:-1]
    what = {"asked": as_fast(asked_config(with_budget(config))), "text": fingerprint(config)}
    if "source" in config.tokenizer:
        # What is asked of a tokenizer of somebody else's does not say which it is.
        what["tokenizer"] = tokenizer_recipe(config)
    text = json.dumps(what, sort_keys=True, ensure_ascii=False, default=str)
    return f"{readable}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def run(
    config: DictConfig, path: Path, record: Mapping[str, Any], watchers: Sequence[Callable[..., Any]] = ()
) -> dict[str, Any]:
    """Train it, on from its last checkpoint where there is one; results.json's content.

    record: what trial.yaml says of it. watchers: callbacks that see every validation.
    """
    config.run_dir = literal(str(path))
    try:
        return train(config, watchers=watchers)
    finally:
        if path.is_dir():
            RunDirectory(path).write_yaml("trial.yaml", record)
        # What a failed trial held, its successor needs.
        gc.collect()


def values(results: Mapping[str, Any], directory: RunDirectory) -> dict[str, Any]:
    """A finished run's numbers, by the names that an objective has: its results', else the last that it logged; and
    the `protocol` that they are comparable under.

    measuring_seconds: what its validations and its evaluation took. None of test, which the winner's results gain after
    the ledger was told: one that is made again from the runs has to equal it.
    """
    told: dict[str, float] = {}
    for point in directory.points():
        told |= {name: float(text) for name, text in point.items() if text}
    # val_bytes only names the text.
    told |= {name: v for name, v in numbers(results).items() if isinstance(v, int | float) and name != "val_bytes"}
    performance = results["training"].get("performance") or {}
    told["measuring_seconds"] = performance.get("validation_seconds", 0.0) + results.get("evaluation_seconds", 0.0)
    told = {n: v for n, v in told.items() if math.isfinite(v) and not n.startswith("test/")}
    return told | {"protocol": of_results(results)}
