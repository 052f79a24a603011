"""Where the first weights come from when not from chance: another run, or Hugging Face. Both bring their tokenizer."""

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from lmlab.config import asked, check_targets, flatten, identity, literal, plain, short_name, typed, with_budget
from lmlab.run_directory import RunDirectory, check_tokenizer

log = logging.getLogger("lmlab")


@dataclass(frozen=True)
class Initial:
    """A model's config node, how its weights are read, and the config node that makes their tokenizer again.

    vocab_size: rows of its tables: at times more than the tokenizer has tokens, for the speed of round numbers.
    made_by: the node that the tokenizer was once trained by; None where nobody knows any more.
    """

    node: dict[str, Any]
    load: Callable[[], Mapping[str, Tensor]]
    tokenizer: dict[str, Any]
    vocab_size: int
    made_by: dict[str, Any] | None = None

    @property
    def weights(self) -> Mapping[str, Tensor]:
        return self.load()


def with_initial(config: DictConfig) -> tuple[DictConfig, Initial | None]:
    """The config with init_from's model and tokenizer in place of its own, and what init_from names; as it is without.

    What was typed of the model's rates of dropout holds: no weight depends on it. Raises ValueError where anything else
    that was typed is not the initial's, and what `read_initial` raises.
    """
    if not config.init_from:
        return config, None
    initial = read_initial(str(config.init_from), config.allow_targets, config.run_dir)
    filled = with_budget(config)
    own = None if config.run_dir is None else RunDirectory(config.run_dir)
    if own is not None and own.exists() and own.decided() and identity(own.written()) == identity(asked(filled)):
        # Begun by an older version, which passed over what was typed: the same command goes on with what it did.
        model = literal(own.config()["model"])
        check_targets(model, config.allow_targets)
    else:
        model = _adopted(config, initial)
    # Weights mean something under their own tokenizer only.
    filled.model, filled.tokenizer = OmegaConf.create(model), OmegaConf.create(initial.tokenizer)
    return filled, initial


def _adopted(config: DictConfig, initial: Initial) -> DictConfig:
    """The initial's model node, with the rates of dropout that were typed."""
    node = OmegaConf.create(initial.node)
    theirs = flatten(plain(node))
    for key, value in typed(config.model).items():
        if _is_rate(key) and key in theirs:
            OmegaConf.update(node, key, literal(value))
        elif theirs.get(key, ...) != value:
            raise _other(config, "model", key, value, theirs)
    made_by = flatten(initial.made_by or {})
    again = flatten(plain(OmegaConf.create(initial.tokenizer)))
    for key, value in typed(config.tokenizer).items() if made_by else ():
        if value not in (made_by.get(key, ...), again.get(key, ...)):
            raise _other(config, "tokenizer", key, value, made_by)
    return node


def _is_rate(key: str) -> bool:
    """Of what training drops: masks that no weight's shape depends on."""
    leaf = key.rpartition(".")[2]
    return leaf.startswith("dropout") or leaf in ("weight_drop", "locked")


def _other(config: DictConfig, group: str, key: str, value: Any, theirs: Mapping[str, Any]) -> ValueError:
    """That something was typed which the initial's weights do not have."""
    name, leaf = f"{group}.{key}", key.rpartition(".")[2]
    have = f"have {theirs[key]}" if key in theirs else "have no such key"
    if leaf == "_target_":
        name, value = name.removesuffix("._target_").replace(".", "/"), short_name({leaf: value})
        have = f"are of {short_name({leaf: theirs[key]})}" if key in theirs else "have none"
    return ValueError(
        f"{name}={value} with init_from={config.init_from}, whose weights {have}: leave {name} out (of model and "
        "tokenizer, only dropout may be asked for)"
    )


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
        if own is None or not (own.last.exists() or own.finished()):
            raise
        log.info("%s is gone: model and tokenizer as %s has them", source, own.path)
        return replace(_from_run(own, own.last, allow_targets), made_by=None)
    log.info("model and tokenizer as in %s", source)
    return found


def _read(source: str, allow_targets: Iterable[str]) -> Initial:
    if source.startswith("hf:"):
        return _from_hugging_face(source.removeprefix("hf:"))
    from lmlab.training.checkpoints import require

    directory = RunDirectory(source)
    found = _from_run(directory, directory.best, allow_targets)
    require(directory.best)
    return found


def _from_run(directory: RunDirectory, checkpoint: Path, allow_targets: Iterable[str]) -> Initial:
    from lmlab.training.checkpoints import read, weights

    config = directory.config()
    node = config["model"]
    check_targets(node, allow_targets)
    if directory.tokenizer.is_file():
        check_tokenizer(directory.tokenizer, config["decided"])
    rows = config["decided"]["vocab_size"]
    again = _pretrained(directory.tokenizer)
    return Initial(literal(node), lambda: weights(read(checkpoint)), again, rows, config["tokenizer"])


def _from_hugging_face(name: str) -> Initial:
    from lmlab.interop.pretrained import load_pretrained

    loaded = load_pretrained(name)
    if loaded.tokenizer is None:
        raise ValueError(
            f"hf:{name} has no tokenizer beside its weights; save one there: tokenizer.save_pretrained(...)"
        )
    again, held = _pretrained(loaded.tokenizer), [loaded.weights]

    def load() -> Mapping[str, Tensor]:
        # Given away the first time: held through a training they would be a second model in memory.
        return held.pop() if held else load_pretrained(name).weights

    return Initial(loaded.node, load, again, loaded.vocab_size, plain(OmegaConf.create(again)))


def _pretrained(path: Path | str) -> dict[str, Any]:
    return {
        "_target_": "lmlab.tokenizers.pretrained.train",
        "_partial_": True,
        "source": literal(str(path)),
        "revision": None,
        "eos_token": None,
        "bos_token": None,
    }
