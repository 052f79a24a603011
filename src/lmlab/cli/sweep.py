"""lmlab sweep: lmlab train -m, whose sweeper's keys need no prefix here; and how a sweep stands."""

import logging
import os
import sys
import warnings
from collections.abc import Sequence
from contextlib import redirect_stderr
from pathlib import Path

from omegaconf import OmegaConf

from lmlab.cli import quote
from lmlab.cli.command import CommandLine, parse, show_help
from lmlab.config import compose, conf_dir
from lmlab.errors import DONE


def main(arguments: list[str]) -> int:
    line = parse("sweep", arguments)
    if line.help:
        show_help("sweep")
        return DONE
    asked = [word.partition("=")[2] for word in arguments if word.startswith("status=")]
    if asked:
        if len(arguments) > 1:
            raise ValueError("status=DIR stands alone: it shows a sweep and changes nothing")
        from lmlab.sweeps.live import status

        status(Path(asked[0]))
        return DONE
    from lmlab.cli.train import main as train

    words = [translate(word) for word in arguments]
    if line.shown:
        return show(line, [word for word in arguments if quote(word) in line.overrides])
    return train(["--multirun", *words])


def show(line: CommandLine, words: Sequence[str]) -> int:
    """The sweep's own keys. A trial's are lmlab train's, and are looked at for mistakes alone."""
    from lmlab.cli.train import main as train
    from lmlab.sweeps.composer import parse as parsed

    own = [word for word in words if word.startswith(("hydra.", "hydra/", "sweep=")) or translate(word) != word]
    fixed = [quote(word) for word in words if word not in own]
    compose([word for word in fixed if not parsed(word).is_sweep_override()], config_dir=line.config_dir)
    options = ["--config-dir", line.config_dir] if line.config_dir else []
    return train(["--cfg", "hydra", "--package", "hydra.sweeper", *options, *map(translate, own)])


def translate(word: str) -> str:
    """A key of conf/sweep.yaml as Hydra has it, below hydra.sweeper; any other word as it is."""
    key, equals, value = word.partition("=")
    known = OmegaConf.load(conf_dir() / "sweep.yaml")
    if not equals or key.partition(".")[0] not in known:
        return word
    return f"hydra.sweeper.{key}={value}"


def sweep(overrides: Sequence[str]) -> None:
    """What `lmlab sweep` does with the same words, from Python; its progress goes to standard output.

    Raises the error that the command would show in one line, and RuntimeError where it ends with another status than 0.
    """
    before = os.environ.get("HYDRA_FULL_ERROR")
    log = logging.getLogger("lmlab")
    kept = log.level, log.propagate, list(log.handlers)
    # Hydra's and the trials' errors reach the caller instead of Hydra's own report and exit.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        with redirect_stderr(sys.stdout), warnings.catch_warnings():
            # tqdm's, which Optuna imports and nobody here uses: it misses a widget in every notebook.
            warnings.filterwarnings("ignore", message="IProgress not found")
            status = main(list(overrides))
    finally:
        log.level, log.propagate, log.handlers[:] = kept
        if before is None:
            del os.environ["HYDRA_FULL_ERROR"]
    if status != DONE:
        raise RuntimeError(f"the sweep ended with status {status}; what is written above it says why")
