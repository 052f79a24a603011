"""lmlab sweep: lmlab train -m with the laboratory's sweeper, whose keys need no prefix; and how a sweep stands."""

from pathlib import Path

from omegaconf import OmegaConf

from lmlab.cli.command import parse, show_help
from lmlab.config import conf_dir
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
        # The sweep's own keys: a trial's are lmlab train's.
        own = [word for word in words if word.startswith(("hydra.", "sweep="))]
        return train(["--cfg", "hydra", "--package", "hydra.sweeper", *own])
    return train(["--multirun", *words])


def translate(word: str) -> str:
    """A key of conf/sweep.yaml as Hydra has it, below hydra.sweeper; any other word as it is."""
    key, equals, value = word.partition("=")
    known = OmegaConf.load(conf_dir() / "sweep.yaml")
    if not equals or key.partition(".")[0] not in known:
        return word
    return f"hydra.sweeper.{key}={value}"
