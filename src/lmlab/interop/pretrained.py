"""A language model of Hugging Face, read: its configuration and weights as TransformerLM's, and its tokenizer."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from lmlab.interop import gpt2, llama
from lmlab.interop.hub import find, load_config, load_weights

# model_type of their config.json: who reads it.
FAMILIES = {"gpt2": gpt2, "llama": llama, "qwen3": llama}


@dataclass(frozen=True)
class Pretrained:
    """node: the model's config, as an option of conf/model states it. weights: its state dict, whose vocabulary has
    `vocab_size` ids. tokenizer: tokenizer.json, or the folder of vocab.json and merges.txt where that is all there is;
    None without one."""

    node: dict[str, Any]
    vocab_size: int
    weights: dict[str, Tensor]
    tokenizer: Path | None


def load_pretrained(path_or_name: str) -> Pretrained:
    """path_or_name: a directory written by `save_pretrained`, or a name on the Hugging Face Hub.

    FileNotFoundError when it is not there or cannot be reached; ValueError when it is of another family, or has parts
    that TransformerLM has not.
    """
    theirs = load_config(path_or_name)
    kind = theirs.get("model_type")
    if kind not in FAMILIES:
        raise ValueError(
            f"{path_or_name} has model_type={kind}: of Hugging Face's models only {', '.join(FAMILIES)} can be loaded"
        )
    node = FAMILIES[kind].read_node(path_or_name, theirs)
    weights = FAMILIES[kind].read_weights(path_or_name, load_weights(path_or_name), node)
    return Pretrained(node, len(weights["embed.weight"]), weights, _tokenizer(path_or_name))


def _tokenizer(name: str) -> Path | None:
    path = find(name, "tokenizer.json")
    find(name, "tokenizer_config.json")  # beside it: names <eos>
    if path is None and find(name, "merges.txt") and (vocabulary := find(name, "vocab.json")):
        path = vocabulary.parent
    return path
