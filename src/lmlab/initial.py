"""Where the first weights come from when not from chance: another run, or Hugging Face. Both bring their tokenizer."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from lmlab.config import check_targets, literal
from lmlab.run_directory import RunDirectory, check_tokenizer


@dataclass(frozen=True)
class Initial:
    """A model's config node, its weights, and the tokenizer's config node that they were made with.

    vocab_size: rows of its tables: at times more than the tokenizer has tokens, for the speed of round numbers.
    """

    node: dict[str, Any]
    weights: Mapping[str, Tensor]
    tokenizer: dict[str, Any]
    vocab_size: int


def read_initial(source: str, allow_targets: Iterable[str] = ()) -> Initial:
    """source: RUN_DIR, or hf:PATH_OR_NAME. allow_targets: classes of your own that the run may name.

    Raises FileNotFoundError or ValueError where it cannot start a run.
    """
    if source.startswith("hf:"):
        return _from_hugging_face(source.removeprefix("hf:"))
    return _from_run(source, allow_targets)


def _from_run(path: str, allow_targets: Iterable[str]) -> Initial:
    from lmlab.training.checkpoints import read, weights

    directory = RunDirectory(path)
    config = directory.config()
    node = config["model"]
    check_targets(node, allow_targets)
    if directory.tokenizer.is_file():
        check_tokenizer(directory.tokenizer, config["decided"])
    rows = config["decided"]["vocab_size"]
    return Initial(literal(node), weights(read(directory.best)), _pretrained(directory.tokenizer), rows)


def _from_hugging_face(name: str) -> Initial:
    from lmlab.interop.gpt2 import load_gpt2

    loaded = load_gpt2(name)
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
