"""Recipes and their published numbers, and what was recorded of them. Nothing here imports torch."""

import os
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from lmlab.config import conf_dir, plain
from lmlab.evaluation.published import Published, read
from lmlab.run_directory import RunDirectory
from lmlab.run_directory.plain_json import numbers

# In the run's directory, beside its results.json.
RECORD = "reproduction.json"


def recipes(config_dir: str | os.PathLike | None = None) -> dict[str, Published | None]:
    """Every recipe by name with its number, None where it has none; those of a person's own `config_dir`, too."""
    found = {}
    for folder in filter(None, (conf_dir(), config_dir)):
        for path in sorted((Path(folder) / "experiment").glob("*.yaml")):
            node = OmegaConf.load(path).get("published")
            found[path.stem] = read(None if node is None else plain(node))
    return found


def records(root: str | os.PathLike) -> list[dict[str, Any]]:
    """What was recorded below `root`, in order of its path."""
    return [read_record(path) for path in sorted(Path(root).rglob(RECORD))]


def read_record(path: Path) -> dict[str, Any]:
    try:
        record = RunDirectory(path.parent).read_json(path.name)
        record["recipe"], record["training"], record["machine"]
        record["splits"] = {split: numbers(told, ("measured", "nll")) for split, told in record["splits"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({error}); the command that made it makes it anew") from error
    return record
