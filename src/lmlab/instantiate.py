"""A config node becomes an object: `_target_` called with the node's other keys.

Ours rather than Hydra's, which resolves `${...}` in plain data once more: a stored config could then name classes
that no check has seen (`${oc.create:...}`), and a path could not hold `${`.
"""

import functools
import importlib
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import DictConfig

from lmlab.config import plain

# Words of Hydra's nodes that are no arguments.
WORDS = ("_target_", "_partial_", "_convert_", "_recursive_")


def instantiate(node: Mapping[str, Any] | DictConfig, **more: Any) -> Any:
    """The object that a node describes, nodes inside it first; `more` are further arguments.

    `_partial_: true` gives a function that still takes arguments. Interpolations of a composed config are resolved;
    in plain data every string means itself. Raises ValueError where the target is missing or takes other arguments.
    """
    tree = plain(node)
    arguments = {key: _inside(value) for key, value in tree.items() if key not in WORDS} | more
    target = find(str(tree["_target_"]))
    if tree.get("_partial_"):
        return functools.partial(target, **arguments)
    try:
        inspect.signature(target).bind(**arguments)
    except TypeError as error:
        raise ValueError(f"{tree['_target_']} does not fit its config: {error}") from error
    except ValueError:  # some builtins have no signature
        pass
    return target(**arguments)


def _inside(value: Any) -> Any:
    if isinstance(value, Mapping):
        return instantiate(value) if "_target_" in value else {k: _inside(v) for k, v in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_inside(v) for v in value]
    return value


def find(target: str) -> Any:
    """The class or function of a dotted name. Raises ValueError where there is none."""
    module, _, name = target.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"_target_={target} cannot be imported: {error}") from error
