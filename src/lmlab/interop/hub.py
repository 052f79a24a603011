"""The files of a pretrained model: in a directory, or on the Hugging Face Hub. Tensors and plain data only."""

import json
import os
import re
from pathlib import Path

import torch
from torch import Tensor

# What the Hub accepts as a name: "gpt2" or "openai-community/gpt2".
_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


def find(path_or_name: str, filename: str) -> Path | None:
    """The file, downloaded where it has to be; None when the model has no such file.

    FileNotFoundError when there is no such model, or the Hub cannot be reached and its cache holds nothing of it.
    """
    folder = Path(os.path.expanduser(path_or_name))
    if folder.is_dir():
        return folder / filename if (folder / filename).is_file() else None
    if not _NAME.fullmatch(str(path_or_name)):
        raise FileNotFoundError(f"{path_or_name} is no directory: give one with config.json and weights")
    return _download(str(path_or_name), filename)


def _download(name: str, filename: str) -> Path | None:
    from huggingface_hub import errors, hf_hub_download, try_to_load_from_cache

    try:
        return Path(hf_hub_download(name, filename))
    except errors.LocalEntryNotFoundError as e:
        # Where the model was fetched before, a file that is not there is one that it has not.
        if isinstance(try_to_load_from_cache(name, "config.json"), str):
            return None
        raise FileNotFoundError(
            f"{name} is no directory here, and the Hugging Face Hub cannot be reached for its {filename}: run "
            f"`hf download {name}` where there is a network, and give the directory that it prints"
        ) from e
    except errors.EntryNotFoundError:
        return None
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as e:
        raise FileNotFoundError(
            f"{name} is neither a directory here nor a model on the Hugging Face Hub that can be read without "
            "logging in: correct the name, or run `hf auth login`"
        ) from e


def load_config(path_or_name: str) -> dict:
    """config.json; ValueError when it is damaged."""
    path = find(path_or_name, "config.json")
    if path is None:
        raise FileNotFoundError(f"{path_or_name} holds no config.json: give a directory written by save_pretrained")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as e:
        raise ValueError(f"{path} is damaged ({e}): fetch it again") from e


def load_weights(path_or_name: str) -> dict[str, Tensor]:
    """All tensors by name, from safetensors (in one file or in parts) or else from a `.bin` file."""
    index = find(path_or_name, "model.safetensors.index.json")
    names = ["model.safetensors"]
    if index is not None:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    files = [find(path_or_name, name) for name in names]
    if None in files and index is None:
        names = ["pytorch_model.bin"]
        files = [find(path_or_name, names[0])]
    if None in files:
        raise FileNotFoundError(
            f"{path_or_name} holds no {names[files.index(None)]}: give a directory written by save_pretrained, or, "
            "of a model on the Hub, fetch it whole with `hf download` where there is a network"
        )
    return {key: tensor for path in files for key, tensor in _load_tensors(path).items()}


def _load_tensors(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except ImportError as e:
        raise ImportError(f"reading {path} takes safetensors: pip install 'lmlab[hf]'") from e
    except Exception as e:  # each reader has errors of its own for a damaged file
        raise ValueError(f"{path} holds no readable tensors ({e}): fetch it again") from e
