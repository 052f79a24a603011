"""YAML of plain data, as a run writes it and as it is safe to read from a stranger's run."""

import json
from typing import Any, ClassVar

import yaml

# Nodes within one another, some ten times what a config has.
DEEPEST = 100


# The one in C: a table of a thousand runs is read in a second.
class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """Safe, and looks up a value's type once: a thousand runs say mostly the same."""

    _resolved: ClassVar[dict[tuple, str]] = {}

    def resolve(self, kind: type, value: Any, implicit: Any) -> str:
        if kind is not yaml.ScalarNode or len(value) > 40:
            return super().resolve(kind, value, implicit)
        key = (value, implicit)
        if (tag := self._resolved.get(key)) is None:
            tag = self._resolved[key] = super().resolve(kind, value, implicit)
        return tag


class Dumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):
    """Writes the same list twice rather than an alias of it."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def write_yaml(tree: dict[str, Any]) -> str:
    try:
        return yaml.dump(tree, Dumper=Dumper, sort_keys=False, allow_unicode=True)
    except UnicodeEncodeError:
        # A path of bytes that are no UTF-8 has no text: there are question marks in it then.
        return write_yaml(json.loads(json.dumps(tree, ensure_ascii=False).encode("utf-8", "replace")))


def read_yaml(text: str) -> Any:
    """Raises yaml.YAMLError, also for aliases, for values that their tag does not fit, and for endless nesting."""
    try:
        check_events(text)
        return yaml.load(text, Loader)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        # What PyYAML's constructors let through: `!!bool x`, a number of 5,000 digits.
        raise yaml.YAMLError(f"{type(error).__name__}: {error}") from error


def check_events(text: str) -> None:
    """Raise YAMLError for aliases, a few lines of which unfold to gigabytes, and for nesting that ends the process.

    While parsing, an event at a time: the loader in C calls itself for each level, until the stack ends.
    """
    depth = 0
    for event in yaml.parse(text, Loader):
        if isinstance(event, yaml.AliasEvent):
            raise yaml.YAMLError("it has aliases, which no run writes")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise yaml.YAMLError(f"it is nested more than {DEEPEST} deep")
