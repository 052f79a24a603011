"""What the verbs share: help from a verb's own YAML, its composed config, and a log on the terminal."""

import gc
import json
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmlab.cli import VERBS, quote
from lmlab.config import compose, conf_dir, plain, suggest
from lmlab.terminal import printable, writes_utf8

# Flags that stand by themselves, and flags with a value after them or after `=`.
SWITCHES = ("--help", "-h", "--multirun", "-m", "--resolve")
VALUED = ("--cfg", "-c", "--config-dir", "-cd", "--package", "-p")
# Verbs that train one run, of which a sweep's options say nothing.
TRAINING = ("train", "bench", "reproduce")
# Verbs that measure stored runs, by default as each was; and what may differ from that alone.
MEASURING = ("evaluate", "compare")
OF_OWN = [f"evaluation.{key}" for key in ("lanes", "stride", "max_context", "limit_tokens", "precision", "unknown")]


@dataclass
class CommandLine:
    """What was typed after the verb: flags by name, and the overrides, quoted for Hydra."""

    flags: dict[str, str]
    overrides: list[str]

    @property
    def help(self) -> bool:
        return bool({"--help", "-h"} & self.flags.keys())

    @property
    def shown(self) -> bool:
        return bool({"--cfg", "-c"} & self.flags.keys())

    @property
    def config_dir(self) -> str | None:
        return self.flags.get("--config-dir", self.flags.get("-cd"))


def parse(verb: str, arguments: Sequence[str]) -> CommandLine:
    """Raises ValueError for a flag that is unknown, not this verb's, or lacks its value."""
    flags, overrides, rest = {}, [], iter(arguments)
    for argument in rest:
        name, equals, value = argument.partition("=")
        if not argument.startswith("-"):
            if not equals and Path(argument).is_dir() and "run_dir" in plain(compose((), verb)):
                raise ValueError(f"write run_dir={argument}: settings of lmlab {verb} are written key=value")
            overrides.append(quote(argument))
        elif name in SWITCHES and not equals:
            flags[name] = ""
        elif name in VALUED:
            flags[name] = value if equals else next(rest, "")
            if not flags[name]:
                raise ValueError(f"{name} needs a value, as in: lmlab {verb} {name} {_example(name)}")
        else:
            raise ValueError(f"no flag {name!r}{suggest(name, SWITCHES + VALUED)}; settings are written key=value")
    if {"-m", "--multirun"} & flags.keys() and {"--cfg", "-c", "--info", "-i"} & flags.keys():
        raise ValueError("-m trains and --cfg shows: give one of them")
    if verb == "sweep" and {"-m", "--multirun"} & flags.keys():
        raise ValueError("lmlab sweep is lmlab train -m already: leave the flag out")
    if verb != "train" and {"-m", "--multirun"} & flags.keys():
        raise ValueError(f"-m runs several trainings; lmlab {verb} takes one run at a time")
    line = CommandLine(flags, overrides)
    many = next((o for o in overrides if o.lstrip("+").startswith("sweep=") and not o.endswith("=null")), None)
    if verb in TRAINING and many and not (line.help or line.shown or {"-m", "--multirun"} & flags.keys()):
        raise ValueError(f"{many} is of many runs: lmlab sweep {many}, or lmlab train -m {many}")
    if line.config_dir is not None:
        if not Path(line.config_dir).is_dir():
            raise FileNotFoundError(f"--config-dir {line.config_dir} is no directory")
        find_own_classes()
    return line


def _example(flag: str) -> str:
    return {"--cfg": "job", "-c": "job"}.get(flag, "my_conf")


def find_own_classes() -> None:
    """A person's own classes may lie where the command is called; last in line, so that they replace nothing."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())


def show_help(verb: str) -> None:
    """The verb's keys with their defaults: its YAML, which says what each is for."""
    print(f"lmlab {verb} [key=value ...]: {VERBS[verb]}\n")
    print((conf_dir() / f"{verb}.yaml").read_text(encoding="utf-8").rstrip())
    if shown := groups(verb):
        print("\ngroups and their options (group=option; group.key=value):")
        width = 2 + max(map(len, shown))
        for group, names in shown.items():
            print(f"  {group:{width}}{' '.join(names)}")
    several = "; -m runs every combination of comma-separated values" if verb == "train" else ""
    whole = "what is asked of the sweeper; lmlab train --cfg job what of a trial" if verb == "sweep" else None
    print(f"\n--cfg job prints {whole or 'the whole composed config'}{several}")


def groups(verb: str) -> dict[str, list[str]]:
    """The groups of options that a verb takes, `model/head` within `model`, each with its options."""
    measured = ("corpus", "evaluation")
    top = {"train": None, "evaluate": measured, "compare": measured, "prepare": ("corpus", "tokenizer")}.get(verb, ())
    found = {}
    for folder in sorted(p for p in conf_dir().rglob("*") if p.is_dir()):
        group = folder.relative_to(conf_dir())
        if group.parts[0] != "hydra" and (top is None or group.parts[0] in top):
            found[group.as_posix()] = sorted(p.stem for p in folder.glob("*.yaml"))
    return found


def options(verb: str, arguments: Sequence[str]) -> dict[str, Any] | None:
    """The verb's config as plain values, checked; None when help or the config was asked for and has been shown."""
    line = parse(verb, arguments)
    if line.help:
        show_help(verb)
        return None
    overrides = own_protocol(line.overrides) if verb in MEASURING else line.overrides
    config = compose(overrides, verb, line.config_dir)
    if line.shown:
        from omegaconf import OmegaConf

        print(OmegaConf.to_yaml(config).rstrip())
        return None
    look_for_garbage()
    show_log()
    values = plain(config)
    from lmlab.schema import check_keys, check_known, check_node

    check_known(values, [*plain(compose((), verb)), "corpus", "evaluation"])
    if values.get("allow_targets"):
        find_own_classes()
    check_keys(values)
    for group in ("corpus", "tokenizer", "evaluation"):
        check_node(values.get(group), group)
    if isinstance(changed := values.get("evaluation"), dict) and "_target_" not in changed:
        check_node({"_target_": "lmlab.evaluation.protocol.resolve"} | changed, "evaluation")
    return values


def own_protocol(overrides: Sequence[str]) -> list[str]:
    """With what Hydra does not take: GROUP=null, which chooses what no option does, and a key of no chosen evaluation.

    Such a key changes the runs' own protocol.
    """
    kept = [o for o in overrides if o not in ("corpus=null", "evaluation=null")]
    if any(o.startswith("evaluation=") for o in kept):
        return kept
    return ["+" + o if o.partition("=")[0] in OF_OWN else o for o in kept]


def look_for_garbage() -> None:
    """Where the console script has put it off: what was imported by now stays, and need not be looked at again."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()


class StandardError(logging.StreamHandler):
    """Writes to what stands in `sys.stderr` by then: while a bar is shown, or in a notebook, that is another stream."""

    def __init__(self):
        logging.Handler.__init__(self)

    @property
    def stream(self) -> Any:
        return sys.stderr

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def show_log() -> None:
    """Our log as plain lines on standard error."""
    log = logging.getLogger("lmlab")
    log.setLevel(logging.DEBUG)
    log.propagate = False
    if any(isinstance(handler, StandardError) for handler in log.handlers):
        return
    handler = StandardError()
    handler.setFormatter(logging.Formatter("%(message)s"))
    handler.setLevel(logging.INFO)
    log.addHandler(handler)


def one_of(name: str, value: Any, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ValueError(f"{name}={value} must be one of {', '.join(allowed)}")


def read_lines(path: str | Path, key: str = "file") -> list[str]:
    """A file's lines, each a text of its own, without a byte-order mark before the first.

    key: which named it. Raises ValueError where there are none or they are no UTF-8.
    """
    if path == "":
        raise ValueError(f"{key}= is empty: name a file with a text on each line, or leave it out")
    path = Path(path)
    # What is piped in (/dev/stdin, <(...)) is read as well.
    if not path.exists() or path.is_dir():
        raise FileNotFoundError(f"{path} is no file; give one with a text on each line")
    try:
        # Not splitlines(): it also cuts at form feeds and Unicode's line separators, which are text here.
        # The mark is taken off here, as utf-8-sig would tell the place of a fault without it.
        lines = path.read_text(encoding="utf-8").removeprefix("\ufeff").split("\n")
    except UnicodeDecodeError as error:
        from lmlab.data.corpora.text import remedy

        raise ValueError(f"{path} is not UTF-8 (byte {error.start}); {remedy(path, error)}") from error
    if "\0" in "".join(lines):
        raise ValueError(f"{path} is a binary file; give one with a text on each line")
    if not any(lines):
        raise ValueError(f"{path} holds no text")
    return [line for line in lines if line]


def show_json(tree: Any) -> None:
    """JSON for programs: NaN and infinity, which JSON lacks, are null."""
    from lmlab.run_directory.plain_json import finite

    print(json.dumps(finite(tree), indent=2, ensure_ascii=not writes_utf8(sys.stdout)))


def load_run(config: dict[str, Any]) -> Any:
    """The run that a verb's config names."""
    if config["run_dir"] in (None, "", "???"):
        raise ValueError("run_dir=... is needed; lmlab runs lists them")
    from lmlab.decisions import choose_device
    from lmlab.runs import load

    device = choose_device(config["device"], "device")
    return load(
        config["run_dir"], checkpoint=config["checkpoint"], device=device, allow_targets=config["allow_targets"],
        kernels=config.get("kernels", "auto"), cache_dir=config["cache_dir"],
    )  # fmt: skip
