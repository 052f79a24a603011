"""Configuration: where it lies, how it is composed, what a run's identity is, and which targets may be built."""

import copy
import difflib
import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

BUDGETS = ("trainer.max_steps", "trainer.max_epochs", "trainer.max_time", "max_tokens")

# Raised when the same config trains something else: when the golden curves of the tests change.
IDENTITY = 2

# What may change without making it another run: places, devices (with them, as with other kernels, dropout's masks and
# the last digits differ), and what is only shown.
_NOT_IDENTITY = [
    "run_dir",
    "runs_root",
    "cache_dir",
    "default_steps",
    "allow_targets",
    "logger",
    "published",
    "dry_run",
    "devices",
    "threads",
    "kernels",
    "text_on_device",
    "profile",
    "floors",
    "test",
    "callbacks.progress",
    "callbacks.samples",
    "trainer.accelerator",
    "trainer.devices",
    "trainer.strategy",
    "trainer.profiler",
    "corpus.path",
    "corpus.train",
    "corpus.val",
    "corpus.test",
    "tokenizer.source",
    "training.micro_batch_size",
    "training.log_every",
    "training.histograms",
]

# Stand beside the keys that were asked, where they tell runs apart: the same paths may hold another text or tokenizer.
TEXT, TOKENIZER = READ = ("corpus.fingerprint", "tokenizer.hash")
# The tokenizer that lies somewhere: others are what was asked, trained on the text.
PRETRAINED = "lmlab.tokenizers.pretrained.train"

# Asked for and kept in asked.yaml, but speed alone: a run may go on with others, as where memory ran out.
# With what options say of them.
_SPEED = {
    "validation.batch_size": None,
    "callbacks.checkpoints.every_minutes": 5.0,
    "callbacks.checkpoints.every_n_steps": None,
}

# The parts of a stored run's config from which objects are built.
BUILT_FROM = ("model", "corpus", "tokenizer", "decided")

# Everything a stored run may name. `allow_targets` extends it; a run cannot.
ALLOWED_TARGETS = frozenset(
    [
        "lmlab.models.lstm.LSTMLM",
        "lmlab.models.transformer.TransformerLM",
        "lmlab.models.ngram.NGramLM",
        "lmlab.models.head.LinearHead",
        "lmlab.models.head.AdaptiveHead",
        "lmlab.models.head.MixtureHead",
        "lmlab.data.corpora.Sotu",
        "lmlab.data.corpora.Files",
        "lmlab.data.corpora.HuggingFace",
        "lmlab.data.corpora.TinyShakespeare",
        "lmlab.data.corpora.WikiText2",
        "lmlab.data.corpora.PennTreebank",
        "lmlab.data.corpora.Enwik8",
        "lmlab.tokenizers.char.train",
        "lmlab.tokenizers.byte.train",
        "lmlab.tokenizers.word.train",
        "lmlab.tokenizers.bpe.train",
        "lmlab.tokenizers.unigram.train",
        "lmlab.tokenizers.pretrained.train",
    ]
)


def conf_dir() -> Path:
    """The directory of option files: inside an installed wheel, else the repository's `conf/`."""
    packaged = Path(str(resources.files("lmlab"))) / "conf"
    if packaged.is_dir():
        return packaged
    repository = Path(__file__).resolve().parents[2] / "conf"
    if repository.is_dir():
        return repository
    raise FileNotFoundError(f"no conf/ beside {packaged} or at {repository}; reinstall with: pip install .")


def cache_dir(asked: str | os.PathLike | None) -> Path:
    """Where token stores live: as asked, else $LMLAB_CACHE, else ~/.cache/lmlab."""
    found = Path(asked or os.environ.get("LMLAB_CACHE") or Path.home() / ".cache" / "lmlab")
    if found.is_file():
        raise NotADirectoryError(f"cache_dir={found} is a file; name a directory")
    return found


def compose(
    overrides: Sequence[str] = (), config_name: str = "train", config_dir: str | os.PathLike | None = None
) -> DictConfig:
    """The composed config of a verb, as `lmlab VERB overrides...` would see it.

    config_dir: a directory with more options, searched after ours.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    extra = [f"hydra.searchpath=[{json.dumps('file://' + str(Path(config_dir).resolve()))}]"] if config_dir else []
    before = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(conf_dir()), version_base="1.3", job_name="lmlab"):
            return mark_typed(hydra_compose(config_name, overrides=[*extra, *overrides]), overrides)
    finally:
        # A verb may be called from inside a job of Hydra's own.
        if before is not None:
            GlobalHydra.instance().initialize(before)


def mark_typed(config: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """The config, in which `typed` finds what of a model or tokenizer was typed beside init_from.

    A flag of OmegaConf's, which copies keep: the values alone do not tell dropout=0 from the option's own 0.
    """
    if not OmegaConf.select(config, "init_from"):
        return config
    from hydra.core.override_parser.overrides_parser import OverridesParser

    for override in OverridesParser.create().parse_overrides(list(overrides)):
        key, value = override.key_or_group.replace("/", "."), override.value()
        for leaf in flatten({key: value}) if isinstance(value, dict) else [key]:
            owner, _, name = leaf.rpartition(".")
            node = OmegaConf.select(config, owner) if owner else config
            if leaf.partition(".")[0] in ("model", "tokenizer") and isinstance(node, DictConfig) and name in node:
                chosen = node._get_node(name)
                # An option below the model has no size of its own to give way: all that it says was typed.
                whole = isinstance(chosen, DictConfig) and owner
                for one in [chosen._get_node(key) for key in chosen] if whole else [chosen]:
                    one._set_flag("typed", True)
    return config


def typed(node: DictConfig) -> dict[str, Any]:
    """What was typed below a node, by dotted key; of an option its `_target_`. `${.key}` is typed with its key."""
    # Not inherited: what was typed is a leaf, or an option whose leaves were not.
    found = {"_target_": node.get("_target_")} if node._get_node_flag("typed") else {}
    for name in node:
        child = node._get_node(name)
        if isinstance(child, DictConfig) and not child._is_none() and not child._is_interpolation():
            found |= {f"{name}.{key}": value for key, value in typed(child).items()}
            continue
        followed = re.fullmatch(r"\$\{\.(\w+)\}", str(child._value()))
        source = node._get_node(followed[1]) if followed else child
        if child._get_node_flag("typed") or (source is not None and source._get_node_flag("typed")):
            found[str(name)] = node[name]
    return found


def plain(config: DictConfig | Mapping) -> dict[str, Any]:
    """The config with interpolations resolved, as plain dicts and lists."""
    # Not copied first: a node's interpolations may reach outside it. Plain data has none: every string means itself.
    if isinstance(config, DictConfig):
        return OmegaConf.to_container(config, resolve=True)  # type: ignore[return-value]
    return copy.deepcopy(dict(config))


def with_budget(config: DictConfig) -> DictConfig:
    """The config with `default_steps` as its budget where no budget was asked for."""
    filled = copy.deepcopy(config)
    if all(OmegaConf.select(filled, key) in (None, -1) for key in BUDGETS):
        filled.trainer.max_steps = filled.default_steps
    return filled


def asked(config: Mapping) -> dict[str, Any]:
    """What makes a run the run that it is: the config without places, devices and display, and the code's identity."""
    kept = plain(config) | {"code": IDENTITY}
    # What every run had before there were these keys.
    if kept.get("train_share") == 1:
        del kept["train_share"]
    if isinstance(watching := kept.get("callbacks"), dict) and watching.get("spikes", ...) is None:
        del watching["spikes"]
    if isinstance(corpus := kept.get("corpus"), dict) and not corpus.get("meta_fields", ...):
        del corpus["meta_fields"]
    # A data set's name on a hub is no place on a disk: it stays.
    hub = str((kept.get("corpus") or {}).get("_target_")).endswith("HuggingFace")
    for key in _NOT_IDENTITY:
        if hub and key.startswith("corpus."):
            continue
        *parents, leaf = key.split(".")
        node: Any = kept
        for parent in parents:
            node = node.get(parent) if isinstance(node, dict) else None
        if isinstance(node, dict):
            node.pop(leaf, None)
    return kept


def literal(node: Any) -> Any:
    """A stored node that may become part of a composed config: in it, too, every string means itself.

    `${oc.create:...}` would otherwise make a `_target_` that no check has seen.
    """
    if isinstance(node, Mapping):
        return {key: literal(value) for key, value in node.items()}
    if isinstance(node, Sequence) and not isinstance(node, str):
        return [literal(value) for value in node]
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", node) if isinstance(node, str) else node


def identity(asked_config: Mapping) -> str:
    """Twelve hex digits that name what was asked, budgets apart: a larger budget continues the same run."""
    without = {k: v for k, v in numbering(asked_config).items() if k not in BUDGETS}
    return hashlib.sha256(json.dumps(without, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:12]


def treatment(asked_config: Mapping, decided: Mapping | None = None) -> str:
    """Eight hex digits that name what was asked, the seed apart, and what was read: replicates share them.

    asked_config: as `asked` gives it, or that flattened; with `lengthened` where there are results. decided: as of
    `with_read`; None where nothing was read yet.
    """
    without = {k: v for k, v in numbering(with_read(asked_config, decided or {})).items() if k != "seed"}
    return hashlib.sha256(json.dumps(without, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:8]


def with_read(asked_config: Mapping, decided: Mapping) -> dict[str, Any]:
    """What was asked, flat, and digits of what it names by a place alone, which may hold something else another time.

    decided: `fingerprint` of the corpus and `tokenizer`'s hash, as far as they are known.
    """
    flat = flatten(asked_config)
    read = {TEXT: decided.get("fingerprint")}
    if flat.get("tokenizer._target_") == PRETRAINED:
        read[TOKENIZER] = decided.get("tokenizer")
    return flat | {key: str(value)[:8] for key, value in read.items() if value is not None}


def lengthened(results: Mapping | None) -> dict[str, str]:
    """What tells a run that was trained longer than first asked from one asked for as long at once: nothing of others.

    results: of its results.json. 400/400: after 400 steps a horizon of 400 became the one that was asked for last.
    """
    horizons = (results or {}).get("training", {}).get("horizons")
    return {"lengthened": " ".join(f"{step}/{horizon}" for step, horizon in horizons)} if horizons else {}


def flatten(tree: Mapping, prefix: str = "") -> dict[str, Any]:
    """Dotted keys to leaves; an empty mapping is a leaf."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, name + ".")
        else:
            flat[name] = value
    return flat


def numbering(asked_config: Mapping) -> dict[str, Any]:
    """What was asked and decides a number, by dotted key."""
    return {k: v for k, v in flatten(asked_config).items() if k not in _SPEED}


def as_fast(asked_config: Mapping) -> dict[str, Any]:
    """What was asked, with the options' own values of what is speed alone, for names by hash that stay with them."""
    kept = copy.deepcopy(dict(asked_config))
    for key, value in _SPEED.items():
        *groups, leaf = key.split(".")
        node: Any = kept
        for group in groups:
            node = node.get(group) if isinstance(node, dict) else None
        if isinstance(node, dict) and leaf in node:
            node[leaf] = value
    return kept


def differences(ours: Mapping, theirs: Mapping) -> dict[str, tuple[Any, Any]]:
    """Dotted keys that decide a number and whose values differ, each with both; an absent key reads as None."""
    a, b = numbering(ours), numbering(theirs)
    return {k: (a.get(k), b.get(k)) for k in sorted(a.keys() | b.keys()) if a.get(k) != b.get(k)}


def targets(node: Any) -> Iterable[str]:
    """Every `_target_` below a node."""
    if isinstance(node, (Mapping, DictConfig)):
        for key, value in node.items():
            if key == "_target_" and value is not None:
                yield str(value)
            else:
                yield from targets(value)
    elif isinstance(node, Sequence) and not isinstance(node, str):
        for value in node:
            yield from targets(value)


def short_name(node: Mapping) -> str:
    """What a node builds, in a word: lstm, sotu, bpe, adamw."""
    module, _, name = str(node["_target_"]).rpartition(".")
    # A tokenizer's target is its module's function.
    word = module.rpartition(".")[2] if name == "train" else name
    return word.lower().removesuffix("lm").removesuffix("head")


def short_setting(key: str, value: Any) -> str:
    """A setting in a word, for names: lr=0.01 of optimizer.lr=0.01."""
    return f"{key.lstrip('+~').rpartition('.')[2]}={value}"


def directory_name(words: Iterable[str]) -> str:
    """Words as the name of a directory; what a shell or a file system takes for something else is a dash."""
    return re.sub(r"[^\w.,=+-]+", "-", "_".join(words))


def run_name(config: Any, swept: Mapping[str, str]) -> str:
    """corpus_tokenizer_model_seed, from the options' class names; then what else tells it from a sweep's other runs."""
    names = [short_name(config[group]) for group in ("corpus", "tokenizer", "model")]
    more = [short_setting(key, value) for key, value in swept.items() if key != "seed" and value not in names]
    return directory_name([*names, f"seed{config.seed}", *more])


def unlisted(node: Any, allow_targets: Iterable[str] = ()) -> list[str]:
    """The targets that a node names beside those on the allow-list."""
    return sorted(set(targets(node)) - ALLOWED_TARGETS - set(allow_targets))


def check_targets(node: Any, allow_targets: Iterable[str] = ()) -> None:
    """Refuse a stored node that names anything but the exact targets on the allow-list.

    Raises PermissionError: building a config that somebody else sent runs whatever it names.
    """
    if refused := unlisted(node, allow_targets):
        every = ",".join(dict.fromkeys([*allow_targets, *refused]))
        raise PermissionError(
            f"the run's config names {', '.join(map(repr, refused))}, which is not on the allow-list; "
            f"if you trust it, pass allow_targets=[{every}]"
        )


def suggest(key: str, known: Iterable[str]) -> str:
    """' (did you mean ...?)' with the nearest known key, or nothing."""
    known = list(known)
    leaf = key.rpartition(".")[2]
    # The leaf may be right and its place wrong: max_steps for trainer.max_steps.
    near = [k for k in known if k.rpartition(".")[2] == leaf][:1]
    near = near or difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    near = near or [k for k in known if difflib.get_close_matches(leaf, [k.rpartition(".")[2]], cutoff=0.8)][:1]
    return f" (did you mean {near[0]}?)" if near else ""


def as_yaml(value: Any) -> str:
    """A number, a word, a truth value or nothing, as it is written in YAML and on the command line."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def parse_count(value: int | str | None, name: str) -> int | None:
    """5_000_000 from 5M, 650k or 1.5e6."""
    if value is None or isinstance(value, int):
        return value
    match = re.fullmatch(r"\s*([0-9][0-9_.]*(?:e[0-9]+)?)\s*([kKmMbB]?)\s*", str(value))
    if not match:
        raise ValueError(f"{name}={value} is not a number; write for example {name}=5M")
    scale = {"": 1, "k": 1e3, "m": 1e6, "b": 1e9}[match[2].lower()]
    return round(float(match[1].replace("_", "")) * scale)
