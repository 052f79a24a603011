"""Many runs as a table: one row a run, a column for each number and for each key in which they differ."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from lmlab.config import READ, flatten, lengthened, numbering, treatment, with_read
from lmlab.data.cache import whole_file
from lmlab.run_directory import MOST_YAML, RunDirectory
from lmlab.run_directory.plain_yaml import read_yaml
from lmlab.runs import ledger, protocols
from lmlab.runs.found import check_root, find, name_of, no_collection
from lmlab.runs.points import curves
from lmlab.seal import unseal

if TYPE_CHECKING:
    import pandas as pd

# Of validations while training: the lowest, and the last.
FOLLOWED = ("val/bpb", "val/ppl", "val/loss")
# Where a key of the top begins.
SECTION = re.compile(r"^(?=[A-Za-z_])", re.MULTILINE)

Sections = dict[str, dict[str, Any] | None]


def table(root: str | os.PathLike = "outputs") -> "pd.DataFrame":
    """One row a run: where, state, seed, sizes, numbers, and every key in which the runs differ.

    val/bpb is of the best checkpoint on all of val; val/bpb_best and val/bpb_last are of the validations in training.
    treatment: the same for runs that differ in nothing but the seed. lengthened: of runs that were, for they are apart.
    corpus.fingerprint, tokenizer.hash: digits that tell texts and foreign tokenizers apart where there are several.
    reason: why a run failed, or cannot be read.
    """
    import pandas as pd

    check_root(root)
    known: Sections = {}
    with no_collection():
        rows = [row(directory, root, known) for directory in find(root)]
        ledger.apply(rows, root)
    # Plain dicts: a thousand runs have a hundred keys each, most of them the same everywhere.
    asked = [told.pop("asked") for told in rows]
    keys = dict.fromkeys(key for told in asked for key in told)
    known = [told for told in asked if told]
    for key in keys:
        # A run that has read no text yet is of no other one.
        those = [told for told in known if key in told] if key in READ else known
        if len({repr(told.get(key)) for told in those}) > 1:
            for told, wanted in zip(rows, asked, strict=True):
                told[key] = wanted.get(key)
    return pd.DataFrame(rows)


def flat_asked(directory: RunDirectory, known: Sections) -> dict[str, Any]:
    """What was asked, by dotted key. known: sections of YAML that were read before."""
    try:
        text = text_of(directory.path / "asked.yaml")
    except (OSError, ValueError):
        return flatten(directory.asked())
    flat: dict[str, Any] = {}
    for section in filter(None, SECTION.split(text)):
        if section not in known:
            known[section] = _section(section)
        part = known[section]
        if part is None or not flat.keys().isdisjoint(part):
            # Not as we write it: read as a whole, or refused.
            return flatten(directory.asked())
        flat |= part
    # An older version wrote there what its source replaced.
    return flatten(directory.asked()) if flat.get("init_from") else flat


def text_of(path: Path) -> str:
    """Of a run's YAML. Raises ValueError where it is none: more than is read, or changed."""
    if not path.is_file() or path.stat().st_size > MOST_YAML:
        raise ValueError(f"{path} is no run's {path.name}")
    return unseal(path.read_text(encoding="utf-8"))


def _section(text: str) -> dict[str, Any] | None:
    """A key of the top and all below it, flat; None where the text is not that."""
    try:
        return flatten(read_yaml(text))
    except (ValueError, yaml.YAMLError, RecursionError, AttributeError):
        return None


def row(directory: RunDirectory, root: str | os.PathLike, known: Sections) -> dict[str, Any]:
    # Columns of every table, also where no run of it can be read.
    told: dict[str, Any] = {"run": name_of(directory, root), "state": "unfinished", "asked": {}}
    told |= dict.fromkeys(("model", "seed", "treatment"))
    try:
        flat, results = flat_asked(directory, known), directory.results()
        decided = flat_decided(directory, known)
        read = {key: decided.get(f"decided.{key}") for key in ("fingerprint", "tokenizer")}
        told |= {"model": class_name({"_target_": flat["model._target_"]}), "seed": flat["seed"]}
        flat |= lengthened(results)
        told["treatment"] = treatment(flat, read)
        if results is not None:
            told |= numbers(results)
        else:
            told |= so_far(directory)
        if results is None or not results["splits"]:
            # Its validations were under a protocol, too.
            told |= decided_protocol(decided)
        if (text := decided.get("decided.texts.val")) is not None:
            told["val_text"] = str(text)
        told["megabytes"] = round(size(directory.path) / 1e6, 1)
    except (ValueError, OSError) as error:
        return told | {"state": f"damaged: {error}"}
    except (KeyError, TypeError, AttributeError) as error:
        return told | {"state": f"damaged: {directory.path} lacks {error}"}
    return told | {"asked": differing_keys(numbering(with_read(flat, read)))}


def numbers(results: Mapping[str, Any]) -> dict[str, Any]:
    """Of a run that came to an end. Raises ValueError where a number is none."""
    training = results["training"]
    told = {"state": training["stopped_because"], "parameters": results["model"]["parameters"]}
    told |= {"protocol": protocols.of_results(results), "val_bytes": protocols.text_of_results(results)}
    told |= {k: training.get(k) for k in ("steps", "tokens", "seconds", "tokens_per_s")}
    for split, sums in results["splits"].items():
        told |= {f"{split}/{k}": sums[k] for k in ("bpb", "ppl", "nll")}
    told |= {"best_step": training.get("best_step")} | followed(training.get("history") or [])
    for key, value in told.items():
        # Edited, or a stranger's: a word among numbers would end whoever sorts or draws them.
        if not isinstance(value, str if key in ("state", "protocol") else int | float | None):
            raise ValueError(f"results.json says {key}={value!r}")
    return told


def so_far(directory: RunDirectory) -> dict[str, Any]:
    """Of a run that has not come to an end: its curve, and why it stopped where its log ends with that."""
    told: dict[str, Any] = {}
    if (reason := directory.failure()) is not None:
        told |= {"state": "failed", "reason": reason}
    points = directory.points()
    if points:
        told |= {"steps": int(points[-1]["step"]), "tokens": int(points[-1]["tokens"])}
        told["seconds"] = float(points[-1]["seconds"])
    validations = [{k: float(p[k]) for k in FOLLOWED} for p in points if p.get("val/loss")]
    return told | followed(validations)


def flat_decided(directory: RunDirectory, known: Sections) -> dict[str, Any]:
    """What was decided, by dotted key; nothing where that cannot be read. known: as in `flat_asked`."""
    try:
        text = text_of(directory.path / "config.yaml")
    except (OSError, ValueError):
        return {}
    _, key, rest = f"\n{text}".partition("\ndecided:")
    if not key:
        return {}
    section = key[1:] + SECTION.split(rest, maxsplit=1)[0]
    if section not in known:
        known[section] = _section(section)
    return known[section] or {}


def decided_protocol(decided: Mapping[str, Any]) -> dict[str, str]:
    """Of a run that was not measured at its end."""
    protocol = {key: decided.get(f"decided.protocol.{key}") for key in ("name", "unknown")}
    return {"protocol": protocols.name(protocol, decided.get("decided.val_unknown") or 0)} if protocol["name"] else {}


def followed(history: Sequence[Mapping[str, float]]) -> dict[str, float]:
    told = {}
    for name in FOLLOWED[:2] if history else ():
        told |= {f"{name}_best": min(point[name] for point in history), f"{name}_last": history[-1][name]}
    return told


def differing_keys(flat: Mapping[str, Any]) -> dict[str, Any]:
    """What may tell runs apart: leaves by dotted key, and each group's class; the model and seed have columns."""
    told = {}
    for key, value in flat.items():
        group, _, leaf = key.rpartition(".")
        if leaf == "_target_":
            told[group] = class_name({"_target_": value})
        elif not leaf.startswith("_") and key != "seed":
            told[key] = value
    told.pop("model", None)
    return told


def class_name(node: Mapping[str, Any]) -> str:
    """Of a node: its class, or the module of a function that trains."""
    *_, module, name = f"..{node['_target_']}".split(".")
    return module if name == "train" else name


def size(path: Path) -> int:
    """Bytes below a directory."""
    total = 0
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                total += size(Path(entry.path))
            elif entry.is_file(follow_symlinks=False):
                # Training renames and removes while we look.
                with suppress(FileNotFoundError):
                    total += entry.stat(follow_symlinks=False).st_size
    return total


def as_json(frame: "pd.DataFrame", ascii_only: bool = False) -> str:
    return json.dumps(json.loads(frame.to_json(orient="records")), indent=2, ensure_ascii=ascii_only)


def write_tables(
    root: str | os.PathLike,
    read: "tuple[pd.DataFrame, pd.DataFrame] | None" = None,
    out: str | os.PathLike | None = None,
) -> list[Path]:
    """trials.csv, trials.parquet and curves.parquet in `out`, by default in `root`; returns what was written.

    read: what `table` and `curves` gave, where somebody has asked already. Raises ImportError where pyarrow is missing,
    after trials.csv has been written.
    """
    trials, points = read or (table(root), curves(root))
    folder = Path(root if out is None else out)
    written = [folder / "trials.csv", folder / "trials.parquet", folder / "curves.parquet"]
    with whole_file(written[0]) as beside:
        trials.to_csv(beside, index=False)
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise ImportError("trials.parquet and curves.parquet need pyarrow: pip install 'lmlab[sweeps]'") from error
    # A column of parquet has one type: what differs in kind (a number here, null or a word there) is written as text;
    # so are lists and mappings, which differ within, and of which parquet has no empty ones.
    kinds = {c: {type(v) for v in trials[c].dropna()} for c in trials if trials[c].dtype == object}
    mixed = [c for c, found in kinds.items() if len(found) > 1 or found & {dict, list}]
    plain = trials.assign(**{c: [None if v is None else str(v) for v in trials[c]] for c in mixed})
    for path, frame in zip(written[1:], (plain, points), strict=True):
        with whole_file(path) as beside:
            frame.to_parquet(beside, index=False)
    return written
