"""A model and its tokenizer as a folder that `transformers` loads: AutoModelForCausalLM, AutoTokenizer."""

import json
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor

from lmlab import __version__
from lmlab.interop.gpt2 import to_gpt2
from lmlab.interop.layout import MODEL
from lmlab.interop.llama import to_llama
from lmlab.tokenizers import Tokenizer

log = logging.getLogger("lmlab")

FILES = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
# Tells an export, which the next one may replace, by its weights' metadata: what transformers saves does not have it,
# where of config.json it keeps every key.
MADE_BY = "lmlab_version"
# Bytes that a header of safetensors may have.
MOST_HEADER = 100_000_000


def export(
    out: str | os.PathLike, node: Mapping[str, Any], state: Mapping[str, Tensor], tokenizer: Tokenizer
) -> list[Path]:
    """Write all of it or nothing, in fp32, and return the files. An export of before is replaced.

    node: the model's config. ValueError names what of the model no family of Hugging Face has, or says that `out`
    holds something else.
    """
    folder = Path(out).resolve()
    _check_free(folder)
    config, weights = _theirs(node, state)
    ids = {"bos_token_id": tokenizer.start_id, "eos_token_id": tokenizer.eos_id}
    config |= {"dtype": "float32", **ids}
    if config["tie_word_embeddings"]:
        # Held once: safetensors refuses two names of one memory.
        del weights["lm_head.weight"]
    if not tokenizer.needs_eos("\n"):
        log.info(
            "%s is its %s tokenizer's newline: transformers writes it as such, and no text ends there",
            tokenizer.token(tokenizer.eos_id),
            tokenizer.kind,
        )
        del ids["eos_token_id"]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as beside:
        new = Path(beside) / "new"
        new.mkdir()
        _write_json(new / "config.json", config)
        _write_json(new / "generation_config.json", ids)
        _write_json(new / "tokenizer_config.json", _tokenizer_config(tokenizer, config))
        tokenizer.save(new / "tokenizer.json")
        _write_weights(new / "model.safetensors", weights)
        _publish(new, folder, Path(beside) / "old")
    return [Path(out) / name for name in FILES]


def _theirs(node: Mapping[str, Any], state: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if node["_target_"] != MODEL:
        raise ValueError(
            f"a {node['_target_'].rpartition('.')[2]} has no counterpart in transformers: of our models a "
            "TransformerLM has, laid out as Qwen3, Llama or GPT-2"
        )
    convert = to_gpt2 if node["positions"] == "learned" else to_llama
    return convert({**node, "vocab_size": len(state["embed.weight"])}, dict(state))


def _tokenizer_config(tokenizer: Tokenizer, config: Mapping[str, Any]) -> dict[str, Any]:
    """How tokenizer.json is to be used, so that their ids are ours.

    Of a class by name (Qwen2Tokenizer) transformers would take the vocabulary alone, and split text by its own rules.
    """
    ids = {"bos_token": tokenizer.start_id, "eos_token": tokenizer.eos_id, "unk_token": tokenizer.unk_id}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{name: tokenizer.token(i) for name, i in ids.items() if i is not None},
        "model_max_length": config.get("max_position_embeddings", config.get("n_positions")),
        "clean_up_tokenization_spaces": False,
        # "<eos>" in a text is five characters.
        "split_special_tokens": True,
    }


def _write_json(path: Path, tree: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(tree, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_weights(path: Path, weights: Mapping[str, Tensor]) -> None:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import save_file
    except ImportError as error:
        raise ImportError(f"writing {path.name} takes safetensors: pip install 'lmlab[hf]'") from error
    weights = {name: tensor.float().cpu().contiguous() for name, tensor in weights.items()}
    path.touch()
    mode = path.stat().st_mode
    try:
        save_file(weights, path, {"format": "pt", MADE_BY: __version__})
    except SafetensorError as error:
        # What the system said is in the words alone: "... (os error 28)".
        if (number := re.search(r"os error (\d+)", str(error))) is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
    # It makes files that only their owner can read.
    path.chmod(mode)


def _check_free(folder: Path) -> None:
    """Raises ValueError where something lies there that is no export of ours."""
    if folder == Path.cwd() or folder.is_mount():
        raise ValueError(f"out={folder} cannot be replaced as a whole; name a directory in it")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"out={folder} is a file; name a directory")
    found = {path.name for path in folder.iterdir()} if folder.exists() else set()
    if found and (not found <= set(FILES) or not _is_export(folder / "model.safetensors")):
        raise ValueError(f"out={folder} is not empty and is no export of lmlab's; name another directory")


def _is_export(weights: Path) -> bool:
    """By the header of the file: its length in eight bytes, then as much JSON."""
    try:
        with weights.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            return length < MOST_HEADER and MADE_BY in json.loads(file.read(length))["__metadata__"]
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _publish(new: Path, folder: Path, old: Path) -> None:
    """`new` takes the place of `folder`, which is moved to `old` where there is one."""
    if folder.exists():
        os.replace(folder, old)
    try:
        os.replace(new, folder)
    except BaseException:
        if old.exists():
            os.replace(old, folder)
        raise
