"""Hydra's and OmegaConf's complaints about a command line, in one line that names the nearest right key."""

import re

from lmlab.config import conf_dir, flatten, plain, suggest


def explain(error: BaseException) -> str | None:
    """The line to show, or None where the error is not about the command line."""
    import yaml
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    if isinstance(error, yaml.YAMLError):
        return f"a config file is no valid YAML: {' '.join(str(error).split())}"
    if not isinstance(error, HydraException | OmegaConfBaseException):
        return None
    if "Error in call to target" in str(error) or "Error instantiating" in str(error):
        return _constructor(error)
    text = " ".join(str(error).split())
    if match := re.search(r"Could not override '([^']+)'", text):
        return f"no key {match[1]!r}{suggest(match[1], known_keys())}; a new key is added with +{match[1]}=..."
    if match := re.search(r"Could not find '([^'/]+)/([^']+)'", text):
        group, option = match.groups()
        return f"no option {group}={option}{suggest(option, options(group))}; there are {', '.join(options(group))}"
    if match := re.search(r"Missing mandatory value: (\S+)", text):
        return f"{match[1]}=... is needed"
    if match := re.search(r"You must specify '([^']+)'", text):
        return f"{match[1]}=... is needed; there are {', '.join(options(match[1]))}"
    if "In '" in text and "Could not find" in text or "LexerNoViableAltException" in text or "mismatched input" in text:
        return f"{text} (quote values with special characters: 'key=\"value\"')"
    return re.sub(r"\s*full_key:.*", "", text)


def _constructor(error: BaseException) -> str | None:
    """What a class said of its arguments; None where it broke rather than refused."""
    cause = error.__cause__
    if isinstance(cause, TypeError):
        target = re.search(r"'([\w.]+)'", str(error))
        return f"{target[1] if target else 'a class'} does not fit its config: {cause}"
    return None


def known_keys() -> list[str]:
    from lmlab.config import compose

    try:
        keys = list(flatten(plain(compose())))
    except Exception:  # The error at hand may be in our own files: it is the one to show.
        keys = []
    return keys + [p.name for p in conf_dir().iterdir() if p.is_dir()]


def options(group: str) -> list[str]:
    return sorted(p.stem for p in (conf_dir() / group).glob("*.yaml"))
