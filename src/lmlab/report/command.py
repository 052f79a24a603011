"""The command that repeats a run: options and overrides that compose to what was asked, and proof that they do."""

import logging
import re
import shlex
from collections.abc import Mapping
from typing import Any

import yaml

from lmlab.config import asked, compose, conf_dir, flatten, lengthened, with_budget
from lmlab.run_directory import RunDirectory

log = logging.getLogger("lmlab")

# Groups whose option is chosen by name; what an option does not say follows as overrides.
GROUPS = (
    *("corpus", "tokenizer", "batching", "model", "model/head", "optimizer", "schedule", "training", "evaluation"),
    *("trainer", "callbacks/early_stopping", "callbacks/averaging"),
)
# Of what is no part of a run's identity, what it cannot be repeated without: where the text is.
PLACES = ("corpus.path", "corpus.train", "corpus.val", "corpus.test", "tokenizer.source")
# Keys whose value the command line takes as it stands, unquoted.
RAW = (*PLACES, "corpus.name", "corpus.revision", "corpus.text_field", "corpus.document_separator")

# Words that need no quotes, unless YAML takes them for something else.
PLAIN = re.compile(r"[A-Za-z_][\w./-]*")

Pairs = list[tuple[str, Any]]


def repeat(directory: RunDirectory) -> dict[str, Any]:
    """{'line': the command, 'exact': whether it was checked to ask for the same run}."""
    try:
        config, wanted = directory.config(), directory.asked()
        code = wanted.pop("code", None)
        pairs = overrides(config, wanted)
        now = made(pairs)
        # Trained by another version of the code, the same config need not come out the same.
        same_code = now.pop("code") == code
        if flatten(now) == flatten(wanted):
            words = (f"{key}={_typed(key, value)}" for key, value in pairs)
            # A lengthened run had another schedule at first.
            exact = same_code and not lengthened(directory.results())
            return {"line": " ".join(["lmlab train", *map(shlex.quote, words)]), "exact": exact}
    except Exception as error:
        # Options of the user's own, or of another version: the report is worth having without.
        log.debug("no command for %s: %s", directory.path, error)
    return {"line": typed(directory), "exact": False}


def made(pairs: Pairs) -> dict[str, Any]:
    """What these overrides ask for."""
    return asked(with_budget(compose([f"{key}={_literal(value)}" for key, value in pairs])))


def typed(directory: RunDirectory) -> str:
    """What was typed then."""
    try:
        words = directory.read_json("environment.json")["command"][1:]
        return " ".join(["lmlab", *map(shlex.quote, words)])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def overrides(config: Mapping[str, Any], wanted: Mapping[str, Any]) -> Pairs:
    """(key or group, value): options first, then what they do not say. config: config.yaml; wanted: asked.yaml."""
    default = asked(compose())
    pairs: Pairs = []
    for group in GROUPS:
        node = _node(wanted, group)
        if isinstance(node, Mapping) and "_target_" in node and (name := _option(group, node, _node(default, group))):
            pairs.append((group, name))
    want = flatten(wanted)
    pairs += [(k, v) for k, v in flatten(config).items() if k in PLACES and v is not None and k not in want]
    have = flatten(made(pairs))
    pairs += [(key if key in have else f"+{key}", value) for key, value in want.items() if have.get(key, ...) != value]
    return pairs


def _node(tree: Any, group: str) -> Any:
    for part in group.split("/"):
        tree = tree.get(part) if isinstance(tree, Mapping) else None
    return tree


def _option(group: str, node: Mapping[str, Any], before: Any) -> str | None:
    """The option that has most of the node; None where that is what there is by default."""
    best, name = (-1 if not isinstance(before, Mapping) else _alike(node, before)), None
    for path in sorted((conf_dir() / group).glob("*.yaml")):
        stated = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        if stated.get("_target_") == node["_target_"] and (alike := _alike(node, stated)) > best:
            best, name = alike, path.stem
    return name


def _alike(a: Mapping[str, Any], b: Mapping[str, Any]) -> int:
    if a.get("_target_") != b.get("_target_"):
        return -1
    flat = flatten(b)
    return sum(1 for key, value in flatten(a).items() if key in flat and flat[key] == value)


def _typed(key: str, value: Any) -> str:
    """As the command line takes it."""
    if key not in RAW:
        return _literal(value)
    if isinstance(value, list):
        return f"[{','.join(map(str, value))}]"
    return str(value).replace("\n", "\\n").replace("\t", "\\t")


def _literal(value: Any) -> str:
    """In Hydra's grammar."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list):
        return f"[{','.join(map(_literal, value))}]"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{k}:{_literal(v)}" for k, v in value.items()) + "}"
    if PLAIN.fullmatch(value) and yaml.safe_load(value) == value:
        return value
    # Backslashes count only before a quote, before `${` and at the end.
    value = re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
    return '"' + re.sub(r"(\\+)\Z", r"\1\1", re.sub(r'(\\*)"', r'\1\1\\"', value)) + '"'
