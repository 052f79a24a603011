"""A config against what it configures: a node's constructor is its schema, and the verbs' own keys have a table."""

import functools
import inspect
import re
import types
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from lmlab.config import as_yaml, parse_count, suggest
from lmlab.instantiate import WORDS, find

# The verbs' own keys. The same key means the same in every verb.
COUNT = int | float | str | None
TYPES: dict[str, Any] = {
    "run_dir": str | None,
    "runs_root": str,
    "root": str,
    "cache_dir": str | None,
    "seed": int,
    "n_params": COUNT,
    "max_tokens": COUNT,
    "init_from": str | None,
    "precision": str | int,
    "compile": bool | str,
    "text_on_device": bool | str,
    "devices": int | str,
    "threads": int | None,
    "kernels": str,
    "profile": bool,
    "test": bool | str,
    "floors": bool,
    "dry_run": bool,
    "validation.batch_size": int | None,
    "validation.limit_tokens": int | None,
    "validation.train_tokens": int,
    "batch_size": int | None,
    "device": str,
    "text": str | None,
    "file": str | None,
    "prompt": str,
    "prompts_file": str | None,
    "top": int,
    "eos": bool,
    "max_new_tokens": int,
    "temperature": float | str | None,
    "top_k": int | None,
    "top_p": float | None,
    "min_p": float | None,
    "repetition_penalty": float | None,
    "num_beams": int,
    "length_penalty": float,
    "num_samples": int,
    "stop_at_eos": bool | None,
    "ban_unk": bool,
    "unused_days": float,
    "port": int,
    "seconds": float,
    "save_to": str,
    "metric": str | None,
    "out": str | None,
    "beside": str | None,
    "name": str | None,
    "with_batch_size": bool,
    "yes": bool,
    "quick": bool,
    "lr": bool,
    "steps": int,
    "fractions": Sequence | None,
    "train_share": float,
    "passages": int,
    "allow_targets": Sequence,
    "columns": Sequence | None,
    "by": str | Sequence | None,
    "scores": bool,
    "mix": str | None,
    "mix_weight": float | str,
    "cache.size": int | None,
    "cache.theta": float | str,
    "cache.weight": float | str,
    "dynamic.lr": float | None,
    "dynamic.decay": float,
    "dynamic.segment": int,
    "dynamic.epsilon": float,
    "dynamic.train_tokens": int,
    "mc_dropout.samples": int | None,
    "mc_dropout.seed": int,
    "tune_tokens": int,
    "own_protocols": bool,
    "block_bytes": int | None,
    "confidence": float,
    "resamples": int,
    "trainer.max_steps": int | None,
    "trainer.max_epochs": float | None,
    # Lightning's times (00:00:10:00) are none here: validations are due by steps.
    "trainer.val_check_interval": int | float | None,
}
CHOICES: dict[str, tuple] = {
    "precision": ("auto", "32", "32-true", "bf16", "bf16-mixed"),
    "compile": ("auto", "True", "False", "graphs"),
    "text_on_device": ("auto", "True", "False"),
    "kernels": ("auto", "plain"),
    "test": ("auto", "True", "False"),
    "split": ("train", "val", "test"),
    "checkpoint": ("best", "last"),
    "device": ("auto", "cpu", "cuda", "mps"),
    "callbacks.checkpoints.monitor": ("val/bpb", "val/ppl", "val/loss"),
    # Of the training batches the first, or all.
    "trainer.overfit_batches": ("0", "1"),
    "trainer.accelerator": ("auto", "cpu", "gpu", "cuda", "mps"),
    # Others cut the weights themselves into pieces, which optimizers and checkpoints of ours take whole.
    "trainer.strategy": ("auto", "ddp"),
}
LEAST: dict[str, float] = {
    "seed": 0,
    "devices": 1,
    "threads": 1,
    "validation.batch_size": 1,
    "validation.limit_tokens": 1,
    "validation.train_tokens": 0,
    "batch_size": 1,
    "cache.size": 1,
    "cache.theta": 0,
    "cache.weight": 0,
    "dynamic.lr": 0,
    "dynamic.decay": 0,
    "dynamic.segment": 1,
    "dynamic.train_tokens": 1,
    "mc_dropout.samples": 1,
    "mix_weight": 0,
    "tune_tokens": 1_000,
    "block_bytes": 1,
    "resamples": 100,
    "top": 0,
    "passages": 0,
    "steps": 10,
    "unused_days": 0,
    "port": 0,
    "seconds": 1,
    "optimizer.lr": 0,
    "evaluation.lanes": 1,
    "training.log_every": 1,
    "callbacks.progress.every_n_steps": 1,
    "trainer.max_epochs": 0,
}
# Arguments of nodes that count or measure something: none of it is no model, and no batch.
SIZES = (
    *("d_model", "d_embed", "d_hidden", "d_head", "d_ff", "d_latent", "n_layers", "n_heads", "n_kv_heads", "n_experts"),
    *("max_context", "window", "embed_ngram", "order", "batch_size", "seq_len"),
)
# Arguments of Lightning's Trainer that would be overruled here, or mean something else: the module takes its own steps.
INSTEAD = {
    "precision": "precision",
    "accumulate_grad_batches": "training.micro_batch_size, into which the batch of a step is cut",
    "gradient_clip_val": "training.clip_norm",
    "log_every_n_steps": "training.log_every",
    "check_val_every_n_epoch": "trainer.val_check_interval, where 1.0 is an epoch",
    "limit_train_batches": "train_share or trainer.max_steps",
    "limit_val_batches": "validation.limit_tokens",
    "fast_dev_run": "trainer.max_steps=1",
    # A run is one epoch of Lightning's: with either nothing stops it, not Ctrl-C and not trainer.max_time.
    "min_epochs": "callbacks.early_stopping.patience",
    "min_steps": "callbacks.early_stopping.patience",
    "num_nodes": "devices, which are of one machine",
    "default_root_dir": "run_dir",
    "enable_progress_bar": "callbacks.progress=null",
}
# How a type is called when a value is not of it.
NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}


def check_packages(config: Mapping[str, Any]) -> None:
    """Refuse an option whose file leaves its keys where nobody looks for them."""
    for group, package in (("experiment", "_global_"), ("sweep", "hydra.sweeper")):
        if isinstance(config.get(group), Mapping):
            raise ValueError(f"{group}=...: its file must begin with the line: # @package {package}")


def check_known(config: Mapping[str, Any], known: Iterable[str]) -> None:
    """Refuse keys that nobody reads, which +key=value adds."""
    known = list(known)
    for key in config:
        if key not in known:
            raise ValueError(f"no key {key!r}{suggest(key, known)}")


def check_keys(config: Mapping[str, Any]) -> None:
    """The verbs' own keys: type, choices, smallest value. Raises ValueError with key, value and remedy."""
    for key, annotation in TYPES.items():
        found, value = _lookup(config, key)
        if found:
            check_value(key, value, annotation)
    for key, choices in CHOICES.items():
        found, value = _lookup(config, key)
        if key == "precision" and "trainer" not in config:
            # Of a text that is written: generation says what it may be.
            continue
        if found and str(value) not in choices:
            raise ValueError(f"{key}={as_yaml(value)} must be one of {', '.join(choices).lower()}")
    for key, least in LEAST.items():
        found, value = _lookup(config, key)
        if found and isinstance(value, int | float) and value < least:
            raise ValueError(f"{key}={value} must be at least {least}")
    norm = _lookup(config, "training.clip_norm")[1]
    if isinstance(norm, int | float) and norm <= 0:
        raise ValueError(f"training.clip_norm={norm} must be above 0, or null for no clipping")
    if config.get("seed") is not None and config["seed"] >= 2**64:
        raise ValueError(f"seed={config['seed']} must be below 2**64, as torch's generators take it")
    for key in ("n_params", "max_tokens"):
        count = parse_count(config.get(key), key)
        if count is not None and count < 1:
            raise ValueError(f"{key}={config[key]} must be at least 1, or null")
    time = _lookup(config, "trainer.max_time")[1]
    if time is not None and not re.fullmatch(r"\d+:\d\d:\d\d:\d\d", str(time)):
        raise ValueError(f"trainer.max_time={time} must be DD:HH:MM:SS, as in 00:02:30:00 for two and a half hours")
    for name, node in (config.get("callbacks") or {}).items():
        if node is not None and not isinstance(node, Mapping):
            raise ValueError(f"callbacks.{name}={node} must be null, or a node with a _target_")
    if _lookup(config, "callbacks.checkpoints") == (True, None):
        raise ValueError(
            "callbacks.checkpoints=null: a run is resumed from its checkpoints, and its best one is measured"
        )
    # lmlab evaluate's; prepare has a cache of another kind.
    examples = {"cache": "cache.size=500", "dynamic": "dynamic.lr=1e-4", "mc_dropout": "mc_dropout.samples=10"}
    for name, example in examples.items() if "mc_dropout" in config else ():
        if not isinstance(config[name], Mapping):
            raise ValueError(f"{name}={as_yaml(config[name])} must be a mapping: write {example}")
    for key, instead in INSTEAD.items():
        found, value = _lookup(config, f"trainer.{key}")
        if found:
            raise ValueError(f"trainer.{key}={as_yaml(value)} is not for Lightning to decide here; use {instead}")
    steps = _lookup(config, "trainer.max_steps")[1]
    if isinstance(steps, int) and steps < 1 and steps != -1:
        raise ValueError(f"trainer.max_steps={steps} must be at least 1, or null for no such budget")


def check_node(node: Any, where: str) -> None:
    """A node's keys and plain values against the signature of its `_target_`, and so for nodes inside it.

    where: the node's place, as it is written on the command line. Raises ValueError with key, value and remedy.
    """
    if not isinstance(node, Mapping):
        return
    for key, value in node.items():
        if key.startswith("dropout") and isinstance(value, int | float) and not 0 <= value < 1:
            raise ValueError(f"{where}.{key}={value} must be from 0 on and below 1")
        if key in SIZES and isinstance(value, int | float) and value < 1:
            raise ValueError(f"{where}.{key}={value} must be at least 1")
        # A mandatory value is missing.
        if value == "???":
            raise ValueError(f"{where}.{key}=... is needed")
        check_node(value, f"{where}.{key}")
    if node.get("_target_") is None:
        return
    target = find(str(node["_target_"]))
    if (told := _signature(target)) is None:
        return
    parameters, hints = told
    # Somebody else's annotations often leave out None, which our YAML uses for "the default".
    ours = str(node["_target_"]).startswith("lmlab.")
    for key, value in node.items():
        if key in WORDS:
            continue
        if key not in parameters:
            if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
                continue
            near = suggest(key, [p for p in parameters if p != "self"])
            raise ValueError(f"{where}.{key} is no argument of {node['_target_']}{near}")
        # What is ours to read may be more than Lightning takes, as half an epoch.
        if key in hints and f"{where}.{key}" not in TYPES and (ours or value is not None):
            check_value(f"{where}.{key}", value, hints[key])


@functools.lru_cache(256)
def _signature(target: Any) -> tuple[Mapping[str, inspect.Parameter], dict[str, Any]] | None:
    """(parameters, annotations) of a class or function, None where it does not tell."""
    try:
        parameters = inspect.signature(target).parameters
        return parameters, get_type_hints(target.__init__ if inspect.isclass(target) else target)
    except (TypeError, ValueError, NameError, AttributeError):
        return None


def check_value(key: str, value: Any, annotation: Any) -> None:
    """A plain value against an annotation of plain types; other annotations are their constructor's business."""
    kinds = set(_kinds(annotation))
    if isinstance(value, Mapping) or not kinds or Any in kinds:
        return
    if isinstance(value, Sequence) and not isinstance(value, str):
        fits = Sequence in kinds
    elif isinstance(value, bool) or value is None:
        fits = type(value) in kinds
    elif isinstance(value, int):
        fits = int in kinds or float in kinds
    else:
        fits = type(value) in kinds or (isinstance(value, str) and Path in kinds)
    if not fits:
        names = [
            NAMES[k] for k in (int, float, bool, str, type(None)) if k in kinds and not (k is int and float in kinds)
        ]
        names += ["a list, key=[a,b]"] if Sequence in kinds else []
        raise ValueError(f"{key}={as_yaml(value)} must be {' or '.join(names)}")


def _kinds(annotation: Any) -> Iterable[Any]:
    """The plain types in an annotation; Sequence for any list; Any where a plain value might be right for it."""
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        for part in get_args(annotation):
            yield from _kinds(part)
    elif annotation in NAMES:
        yield annotation
    elif inspect.isclass(origin or annotation) and issubclass(origin or annotation, Sequence):
        yield Sequence
    elif getattr(annotation, "__name__", "") != "Tensor":
        yield Any


def _lookup(config: Mapping[str, Any], key: str) -> tuple[bool, Any]:
    node: Any = config
    for part in key.split("."):
        if not isinstance(node, Mapping) or part not in node:
            return False, None
        node = node[part]
    return True, node
