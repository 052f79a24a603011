"""What the verbs share: help from a verb's own YAML, its composed config, and a log on the terminal."""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lmlab.cli import VERBS, quote
from lmlab.config import compose, conf_dir, plain


def show_help(verb: str) -> None:
    """The verb's keys with their defaults: its YAML, which says what each is for."""
    print(f"lmlab {verb} [key=value ...]: {VERBS[verb]}\n")
    print((conf_dir() / f"{verb}.yaml").read_text(encoding="utf-8").rstrip())
    if verb == "train":
        print("\ngroups and their options (group=option; group.key=value):")
        for group in sorted(p for p in conf_dir().iterdir() if p.is_dir() and p.name != "hydra"):
            print(f"  {group.name:12}{' '.join(sorted(p.stem for p in group.glob('*.yaml')))}")
        print("\n--cfg job prints the whole composed config; -m runs every combination of comma-separated values")


def options(verb: str, arguments: Sequence[str]) -> dict[str, Any] | None:
    """The verb's config as plain values; None when help or the config was asked for and has been shown."""
    arguments = list(arguments)
    if "--help" in arguments or "-h" in arguments:
        show_help(verb)
        return None
    shown = "--cfg" in arguments
    if shown:
        at = arguments.index("--cfg")
        del arguments[at : at + 2]
    config_dir = None
    for flag in ("--config-dir", "-cd"):
        if flag in arguments:
            at = arguments.index(flag)
            config_dir = arguments[at + 1]
            del arguments[at : at + 2]
    config = compose([quote(a) for a in arguments], verb, config_dir)
    if shown:
        from omegaconf import OmegaConf

        print(OmegaConf.to_yaml(config).rstrip())
        return None
    show_log()
    return plain(config)


def show_log() -> None:
    """Our log as plain lines on standard error."""
    log = logging.getLogger("lmlab")
    log.setLevel(logging.DEBUG)
    log.propagate = False
    if not any(getattr(h, "ours", False) for h in log.handlers):
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(message)s"))
        handler.setLevel(logging.INFO)
        handler.ours = True  # type: ignore[attr-defined]
        log.addHandler(handler)


def one_of(name: str, value: Any, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ValueError(f"{name}={value} must be one of {', '.join(allowed)}")


def read_lines(path: Path) -> list[str]:
    """A file's lines, each a text of its own. Raises ValueError where there are none or they are no UTF-8."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 (byte {error.start}); convert it: iconv -t utf-8 {path}") from error
    if not any(lines):
        raise ValueError(f"{path} holds no text")
    return [line for line in lines if line]


def load_run(config: dict[str, Any]) -> Any:
    """The run that a verb's config names."""
    if config["run_dir"] == "???":
        raise ValueError("run_dir=... is needed; lmlab runs lists them")
    from lmlab.experiment import choose_device
    from lmlab.runs import load

    return load(config["run_dir"], checkpoint=config["checkpoint"], device=choose_device(config["device"]))
