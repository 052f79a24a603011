"""Composing the configs of many trials: the options that they choose are read once, the values are set in each."""

import copy
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from lmlab.config import compose, conf_dir, mark_typed

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override


class Composer:
    """`config.compose` for trials of one sweep, whose option files stay as they are meanwhile.

    Hydra first composes what the chosen options say and then sets values in it. The first takes a quarter of a second,
    and most trials of a sweep choose the same.
    """

    # Choices of options that are remembered; a config takes a quarter of a megabyte.
    REMEMBERED = 64

    def __init__(self, config_dir: str | None):
        self.config_dir = config_dir
        self.folders = [conf_dir(), *([Path(config_dir)] if config_dir else [])]
        self._chosen = functools.lru_cache(self.REMEMBERED)(self._compose)

    def __call__(self, overrides: Sequence[str]) -> DictConfig:
        """As `compose` of the same overrides, and with its errors."""
        from hydra._internal.config_loader_impl import ConfigLoaderImpl

        parsed = [parse(override) for override in overrides]
        if any(one.is_sweep_override() or one.is_hydra_override() for one in parsed):
            return compose(overrides, config_dir=self.config_dir)
        choices = tuple(one.input_line for one in parsed if self.chooses(one))
        config = copy.deepcopy(self._chosen(choices))
        ConfigLoaderImpl._apply_overrides_to_config([one for one in parsed if not self.chooses(one)], config)
        return mark_typed(config, overrides)

    def _compose(self, choices: tuple[str, ...]) -> DictConfig:
        return compose(choices, config_dir=self.config_dir)

    def chooses(self, override: "Override") -> bool:
        """Whether it names an option of a group; Hydra takes a mapping for a group's key as values."""
        group = override.key_or_group
        return not isinstance(override.value(), dict) and any((folder / group).is_dir() for folder in self.folders)


@functools.lru_cache(4096)
def parse(override: str) -> "Override":
    """Raises what Hydra's parser raises."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return OverridesParser.create().parse_overrides([override])[0]
