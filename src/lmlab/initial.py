"""Where the first weights come from when not from chance: another run, or Hugging Face. Both bring their tokenizer."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from lmlab.config import check_targets, literal
from lmlab.run_directory import RunDirectory, check_tokenizer

log = logging.getLogger("lmlab")


@dataclass(frozen=True)
class Initial:
    """A model's config node, its weights, and the tokenizer's config node that they were made with.

    vocab_size: rows of its tables: at times more than the tokenizer has tokens, for the speed of round numbers.
    """

    node: dict[str, Any]
    weights: Mapping[str, Tensor]
    tokenizer: dict[str, Any]
    vocab_size: int


def read_initial(source: str, allow_targets: Iterable[str] = (), begun: str | None = None) -> Initial:
    """source: RUN_DIR, or hf:PATH_OR_NAME. allow_targets: classes of your own that the run may name. begun: directory
    of the run that starts from it; once that has a checkpoint it goes on without its source.

    Raises FileNotFoundError or ValueError where it cannot start a run.
    """
    if begun is not None and not source.startswith("hf:") and Path(source).resolve() == Path(begun).resolve():
        raise ValueError(f"init_from={source} is run_dir itself: a run cannot begin from itself; name another run_dir")
    try:
        found = _read(source, allow_targets)
    except FileNotFoundError:
        own = None if begun is None else RunDirectory(begun)
        if own is None or not own.last.exists():
            raise
        log.info("%s is gone: model and tokenizer as %s has them", source, own.path)
        return _from_run(own, own.last, allow_targets)
    log.info("model and tokenizer as in %s", source)
    return found


def _read(source: str, allow_targets: Iterable[str]) -> Initial:
    if source.startswith("hf:"):
        return _from_hugging_face(source.removeprefix("hf:"))
    directory = RunDirectory(source)
    return _from_run(directory, directory.best, allow_targets)


def _from_run(directory: RunDirectory, checkpoint: Path, allow_targets: Iterable[str]) -> Initial:
    from lmlab.training.checkpoints import read, weights

    config = directory.config()
    node = config["model"]
    check_targets(node, allow_targets)
    if directory.tokenizer.is_file():
        check_tokenizer(directory.tokenizer, config["decided"])
    rows = config["decided"]["vocab_size"]
    return Initial(literal(node), weights(read(checkpoint)), _pretrained(directory.tokenizer), rows)


def _from_hugging_face(name: str) -> Initial:
    from lmlab.interop.pretrained import load_pretrained

    loaded = load_pretrained(name)
    if loaded.tokenizer is None:
        raise ValueError(
            f"hf:{name} has no tokenizer beside its weights; save one there: tokenizer.save_pretrained(...)"
        )
    return Initial(loaded.node, loaded.weights, _pretrained(loaded.tokenizer), loaded.vocab_size)


def _pretrained(path: Path | str) -> dict[str, Any]:
    return {
        "_target_": "lmlab.tokenizers.pretrained.train",
        "_partial_": True,
        "source": literal(str(path)),
        "revision": None,
        "eos_token": None,
        "bos_token": None,
    }
