"""Hydra's and OmegaConf's complaints about a command line, in one line that names the nearest right key."""

import re
from collections.abc import Mapping, Sequence
from typing import get_args

from lmlab.config import compose, conf_dir, flatten, plain, suggest

# Groups whose options hold keys of other places.
SPREAD = ("sweep", "experiment")


def unwrap(error: BaseException) -> BaseException:
    """What went wrong inside a class that Hydra was building; the error itself where there was no such thing."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    while error.__cause__ is not None and isinstance(error, HydraException | OmegaConfBaseException):
        error = error.__cause__
    return error


def explain(error: BaseException, verb: str) -> str | None:
    """The line to show, or None where the error is not about the command line or its config files."""
    import yaml
    from hydra.errors import HydraException, InstantiationException, OverrideParseException
    from omegaconf.errors import OmegaConfBaseException

    if isinstance(error, yaml.YAMLError):
        return f"a config file is no valid YAML: {error}"
    if not isinstance(error, HydraException | OmegaConfBaseException):
        return None
    inner = unwrap(error)
    text = " ".join(str(error).split())
    if isinstance(error, InstantiationException):
        return _constructor(text, inner)
    if match := re.search(r"(?:Could not override|Could not delete from config.*?) '([^']+)'", text):
        return _unknown(match[1], verb)
    if match := re.search(r"Could not append to config\. An item is already at '([^']+)'", text):
        return f"{match[1]} exists already: write it without the +"
    if match := re.search(r"Could not find '([^']+)/([^'/]+)'", text):
        group, option = match.groups()
        # Hydra's own list has those of --config-dir, too; of launchers, which are other people's, there may be none.
        there = sorted(getattr(error, "options", None) or options(group))
        known = f"; there are {', '.join(there)}" if there else ""
        return f"no option {group}={option}{suggest(option, there)}{known}"
    if match := re.search(r"Missing mandatory value: (\S+)", text):
        return f"{match[1]}=... is needed"
    if match := re.search(r"You must specify '([^']+)'", text):
        return f"{match[1]}=... is needed; there are {', '.join(options(match[1]))}"
    if match := re.search(r"Ambiguous value for argument '([^']+)'", text):
        return _several(match[1], verb)
    if match := re.search(r"Sweeping over Hydra's configuration is not supported : '(.+)'", text):
        asked = match[1].removeprefix("hydra.sweeper.") if verb == "sweep" else match[1]
        return f"{asked}: a sweep's own keys have one value; varied are those of lmlab train: optimizer.lr=1e-3,1e-2"
    if isinstance(error, OverrideParseException):
        if "=" not in error.override:
            return f"{error.override!r} is no setting: they are written key=value; lmlab {verb} --help shows them"
        key, _, value = error.override.partition("=")
        if verb == "sweep" and key == "hydra.sweeper.points":
            return f"points={value} cannot be read: quote each override, and the whole: points='{_points(value)}'"
        return f"{error.override} cannot be read: close its brackets, or quote special characters: '{key}=\"{value}\"'"
    return re.sub(r"\s*full_key:.*", "", text)


def _several(override: str, verb: str) -> str:
    """Of values between commas: a list, several trainings, or one number as some write it: 0,7 or 1,000."""
    key, _, value = override.partition("=")
    number = None
    # Of a training 1,5 are two values as likely as one.
    if re.fullmatch(r"-?0,\d+" if verb == "train" else r"-?(0|[1-9]\d*),\d{1,2}|-?0,\d+", value):
        number = value.replace(",", ".")
    elif re.fullmatch(r"-?[1-9]\d{0,2}(,\d{3})+", value):
        number = value.replace(",", "")
    ways = ["add -m to train each"] if verb == "train" else []
    ways += [f"write {number}"] if number else []
    # What is known for one number is never a list.
    ways += [] if number and _is_number(key, verb) else [f"write a list: {key}=[{value}]"]
    return f"{override} is several values: {', or '.join(ways)}"


def _is_number(key: str, verb: str) -> bool:
    from lmlab.schema import TYPES

    if key in TYPES:
        return not {Sequence, Mapping} & {TYPES[key], *get_args(TYPES[key])}
    try:
        return isinstance(flatten(plain(compose(config_name=verb))).get(key), int | float)
    except Exception:  # As below: the error at hand is the one to show.
        return False


def _points(value: str) -> str:
    """Points with their overrides quoted, where it is clear what they are; else an example of such."""
    if re.search(r"[\"']|\[.*\[.*\[.*\]\]\]", value) or not re.fullmatch(r"\[\[.+\]\]", value):
        return '[["optimizer.lr=1e-2"],["optimizer.lr=1e-3","model.n_layers=2"]]'
    return re.sub(r"[^\[\],]+", lambda found: f'"{found[0].strip()}"', value)


def _constructor(text: str, inner: BaseException) -> str | None:
    """What a class said of its arguments; None where it broke rather than refused, or said so itself."""
    if match := re.search(r"Error locating target '([^']+)'", text):
        return f"_target_={match[1]} cannot be imported: {str(inner).splitlines()[-1]}"
    if isinstance(inner, TypeError) and re.search(r"argument", str(inner)):
        target = re.search(r"'([\w.]+)'", text)
        return f"{target[1] if target else 'a class'} does not fit its config: {inner}"
    return None


def _unknown(key: str, verb: str) -> str:
    """No such key: the nearest right one, or the option that it belongs to."""
    from omegaconf import OmegaConf

    if verb == "sweep":
        # As it was typed; a mapping's keys are the user's own, and Hydra knows none of them.
        key = key.removeprefix("hydra.sweeper.")
        if key in ("space", "when"):
            return f"{key}={{...}} is of files, conf/sweep/NAME.yaml; here write what is varied: optimizer.lr=1e-3,1e-2"
    group, _, leaf = key.partition(".")
    if leaf and (found := options(as_group := key.replace(".", "/"))):
        return f"{key} is a group, not a key: {as_group}=OPTION, of {', '.join(found)}"
    own = key.removeprefix("sweep.")
    if verb == "train" and own.partition(".")[0] in OmegaConf.load(conf_dir() / "sweep.yaml"):
        return f"no key {key!r}; of sweeps there is: lmlab sweep {own}=..., or with -m hydra.sweeper.{own}=..."
    owners = [o for o in options(group) if leaf and group not in SPREAD and leaf in _keys_of(group, o)]
    if owners:
        # Of `evaluate` and `compare` nothing may be chosen: then the run's own holds.
        have = "has it, which is not" if len(owners) == 1 else "have it, none of which is"
        return f"no key {key!r}: {', '.join(f'{group}={o}' for o in owners)} {have} chosen"
    return f"no key {key!r}{suggest(key, known_keys(verb))}; lmlab {verb} --help shows them"


def known_keys(verb: str) -> list[str]:
    """Every key that the verb takes under some choice of options, and its groups."""
    try:
        composed = plain(compose(config_name=verb))
    except Exception:  # The error at hand may be in the files themselves: it is the one to show.
        return []
    keys = list(flatten(composed))
    folders = [p.name for p in conf_dir().iterdir() if p.is_dir()]
    groups = [
        g for g in folders if g in composed or verb == "train" or (verb == "evaluate" and g in ("corpus", "evaluation"))
    ]
    holding = [g for g in groups if g not in SPREAD]
    if verb in ("bench", "sweep"):
        return [*keys, *known_keys("train")]
    known = keys + groups + [f"{g}.{k}" for g in holding for o in options(g) for k in _keys_of(g, o)]
    return list(dict.fromkeys(known))


def _keys_of(group: str, option: str) -> list[str]:
    import yaml

    from lmlab.run_directory.plain_yaml import Loader

    tree = yaml.load((conf_dir() / group / f"{option}.yaml").read_text(encoding="utf-8"), Loader) or {}
    return [k for k in tree if k != "defaults" and not k.startswith("_")]


def options(group: str) -> list[str]:
    return sorted(p.stem for p in (conf_dir() / group).glob("*.yaml"))
