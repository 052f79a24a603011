"""The composition root: configuration becomes objects here, and only here and in `runs`.

Lightning takes seconds to import, so it waits inside `train`.
"""

import contextlib
import functools
import inspect
import logging
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
import xxhash
from omegaconf import DictConfig, OmegaConf
from torch import nn

from lmlab.config import (
    asked,
    cache_dir,
    check_targets,
    conf_dir,
    literal,
    parse_count,
    plain,
    run_name,
    targets,
    with_budget,
)
from lmlab.data.store import Store, prepare
from lmlab.decisions import (
    check_budget,
    check_interval,
    check_pairing,
    check_precision,
    choose_device,
    total_steps,
    trained_context,
)
from lmlab.errors import TrainingFailed
from lmlab.evaluation import published
from lmlab.evaluation.protocol import unknown
from lmlab.hardware import threads
from lmlab.initial import Initial, read_initial, with_initial
from lmlab.instantiate import find, instantiate
from lmlab.models import kernels
from lmlab.schema import check_keys, check_known, check_node, check_packages
from lmlab.sizes import count_parameters, missed_size, solve_width
from lmlab.speed import choose_speed
from lmlab.tokenizers import content_hash
from lmlab.training import optim
from lmlab.training.continuation import check_continuation, check_read
from lmlab.training.plan import Plan, train_part
from lmlab.training.ranks import count as count_ranks

log = logging.getLogger("lmlab")

# What a config of `train` builds, in the order in which it is checked.
NODES = ("corpus", "tokenizer", "batching", "model", "optimizer", "schedule", "evaluation")
TRAINER_NODES = ("training", "trainer", "callbacks", "logger")
# What everything else asks of a model, beside its `forward`.
CONTRACT = ("vocab_size", "d_model", "recurrent", "max_context", "head")


def build_store(config: Mapping[str, Any], progress: bool = True, whole: bool = False) -> Store:
    """The encoded corpus, made or opened. whole: with every byte of it checked, once a process."""
    corpus, train_tokenizer = build_text(config)
    cache = cache_dir(config.get("cache_dir"))
    return prepare(corpus, train_tokenizer, tokenizer_recipe(config), cache, progress, whole)


def build_text(config: Mapping[str, Any]) -> tuple[Any, Any]:
    """The corpus, and the function that trains the tokenizer on its train split."""
    return instantiate(config["corpus"]), instantiate(config["tokenizer"])


def tokenizer_recipe(config: Mapping[str, Any]) -> dict[str, Any]:
    """What tells this tokenizer from others: how it is trained, or, where somebody else trained it, its content."""
    recipe = plain(config["tokenizer"])
    if "source" not in recipe:
        return recipe
    return {"pretrained": xxhash.xxh3_128_hexdigest(instantiate(config["tokenizer"])(documents=()).to_json().encode())}


def build_schedule(node: Mapping[str, Any], total_steps: int, steps_per_epoch: int) -> Any:
    """The learning-rate schedule of a composed config, over that horizon."""
    return instantiate(node)(total_steps=total_steps, steps_per_epoch=steps_per_epoch)


def build_model(node: Mapping[str, Any], vocab_size: int, token_counts: torch.Tensor | None) -> nn.Module:
    """A model with fresh weights from the global random generator. Raises ValueError where it is no model of ours."""
    build = instantiate(node)
    if not isinstance(build, functools.partial):
        raise ValueError(f"the option of {node['_target_']} needs _partial_: true, for the vocabulary is known later")
    try:
        inspect.signature(build).bind(vocab_size=vocab_size, token_counts=token_counts)
    except TypeError as error:
        raise ValueError(f"{node['_target_']} does not fit its config: {error}") from error
    model = build(vocab_size=vocab_size, token_counts=token_counts)
    if missing := [name for name in CONTRACT if not hasattr(model, name)]:
        raise ValueError(
            f"{node['_target_']} has no {', '.join(missing)}: README.md says what a model needs (Extending)"
        )
    return model


def protocol_without_text(config: DictConfig) -> Any:
    """How a composed config's model is measured, before there is a vocabulary: it has no say in that."""
    counts = torch.ones(4096, dtype=torch.int64)
    with torch.device("meta"):
        model = build_model(config.model, len(counts), counts)
    return instantiate(config.evaluation)(model=model)


def plan(config: DictConfig, whole: bool = False, initial: Initial | None = None) -> Plan:
    """Text, model, batches and schedule for a training config; no trainer yet. whole: as in `build_store`.

    initial: what init_from names, where it was read before. The config's model is its, as `with_initial` makes it.
    """
    config = with_budget(config)
    check_budget(config)
    if config.init_from:
        initial = initial or read_initial(str(config.init_from), config.allow_targets, config.run_dir)
        # Where it was may be gone by now.
        config.tokenizer = OmegaConf.create(initial.tokenizer)
    store = build_store(config, whole=whole)
    rows = _rows(config, store, initial)
    model, missed = _sized_model(config, store, initial, rows)
    decided: dict[str, Any] = {
        "vocab_size": rows,
        "start_id": store.tokenizer.start_id,
        "store": store.path.name,
        "tokenizer": content_hash(store.tokenizer),
        "fingerprint": store.fingerprint,
        "texts": store.texts,
        "n_params": count_parameters(model),
        "device": choose_device(config.trainer.accelerator),
    }
    if hasattr(model, "fit"):
        if initial is not None:
            raise ValueError(f"init_from={config.init_from} is a model that counts: there is nothing to begin from")
        # Only to be refused before there is a directory.
        train_part(store, config.train_share)
        protocol = instantiate(config.evaluation)(model=model)
        decided["protocol"] = protocol.as_dict()
        return Plan(config, store, model, None, protocol, 0, None, decided)
    return _trained_plan(config, store, model, decided, {"n_params": missed})


def _rows(config: DictConfig, store: Store, initial: Initial | None) -> int:
    """Ids that the model knows: the tokenizer's, or as many as the weights have that it starts from."""
    tokens = store.tokenizer.vocab_size
    if initial is None:
        return tokens
    if initial.vocab_size < tokens:
        raise ValueError(
            f"init_from={config.init_from}: its tokenizer has {tokens:,} tokens and its weights rows for "
            f"{initial.vocab_size:,}: they are not of one model"
        )
    return initial.vocab_size


def _sized_model(
    config: DictConfig, store: Store, initial: Initial | None, vocab_size: int
) -> tuple[nn.Module, str | None]:
    """The model, and what is said where it misses the `n_params` asked for; a solved width enters the config."""
    counts = torch.from_numpy(store.token_counts())
    if vocab_size > len(counts):
        # Rows that no token has.
        counts = torch.cat([counts, counts.new_zeros(vocab_size - len(counts))])
    wanted = parse_count(config.get("n_params"), "n_params")
    if wanted is not None and initial is not None:
        raise ValueError(f"n_params={config.n_params} with init_from={config.init_from}: the weights fix the size")
    if wanted is not None:
        known = (*store.made, vocab_size)
        config.model = solve_width(plain(config.model), wanted, lambda n: build_model(n, vocab_size, counts), known)
    torch.manual_seed(config.seed)
    model = build_model(config.model, vocab_size, counts)
    if initial is not None:
        model.load_state_dict(initial.weights)
    return model, None if wanted is None else missed_size(wanted, count_parameters(model), config.model.d_model)


def _trained_plan(
    config: DictConfig, store: Store, model: nn.Module, decided: dict[str, Any], reasons: dict[str, str | None]
) -> Plan:
    """The plan of a model that takes steps. decided, reasons: of what is known by now."""
    batching = instantiate(config.batching)(
        split=train_part(store, config.train_share), start_id=decided["start_id"], seed=config.seed
    )
    check_pairing(model, batching)
    if "val" not in store.splits or not len(store.split("val")):
        raise ValueError(
            "the corpus has no text for val, by which training chooses its best checkpoint: name some with "
            "corpus.val=..., or, of files and sotu, give it a share with corpus.val_share=0.05"
        )
    # Built only to be refused before there is a directory: training builds its own.
    optim.build(instantiate(config.optimizer), config.training.decay, model)
    protocol = instantiate(config.evaluation)(model=model, **trained_context(config, model, batching))
    devices = count_ranks(config.trainer.devices, decided["device"])
    if batching.batch_size % devices:
        raise ValueError(
            f"batching.batch_size={batching.batch_size} must be a multiple of devices={devices}: it is global, and "
            "each process takes an equal share of its rows"
        )
    if config.trainer.get("overfit_batches"):
        from lmlab.data.datamodule import RepeatedBatch

        batching = RepeatedBatch(batching)
    steps = total_steps(config, batching)
    schedule = build_schedule(config.schedule, steps, batching.steps_per_epoch)
    chosen, why = choose_speed(config, model, batching, steps, decided["device"], devices)
    check_precision(chosen["precision"], devices)
    decided |= {
        "protocol": protocol.as_dict(),
        "val_unknown": unknown(store.split("val"), store.tokenizer.unk_id, protocol),
        "devices": devices,
        **chosen,
        "total_steps": steps,
        "steps_per_epoch": batching.steps_per_epoch,
        "val_check_interval": check_interval(config.trainer.val_check_interval, steps, batching.steps_per_epoch),
    }
    return Plan(config, store, model, batching, protocol, steps, schedule, decided, reasons | why)


def recorded(plan: Plan, format_number: int) -> dict[str, Any]:
    """config.yaml: what was asked, with everything decided written in its place."""
    return {"format": format_number, **plain(plan.config), "decided": plan.decided}


def train(
    config: DictConfig, swept: Mapping[str, str] | None = None, watchers: Sequence[Callable[[], Any]] = ()
) -> dict[str, Any]:
    """Train as configured and return results.json's content. What `lmlab train` does, and what notebooks call.

    A finished run is reported and left alone; an unfinished one continues. swept: the keys that a sweep varies, with
    this run's values; they become part of its directory's name. watchers: functions that build the caller's callbacks.
    """
    from lmlab.run_directory import RunDirectory

    check_config(config)
    config, initial = with_initial(config)
    what = asked(with_budget(config))
    directory = RunDirectory(config.run_dir) if config.run_dir else None
    verdict = directory.check(what) if directory else "new"
    if verdict == "finished":
        check_read(directory, _lies_there(config))
        log.info("%s is finished; nothing to do (a larger budget continues it)", directory.path)
        return directory.results() | {"run_dir": str(directory.path)}
    with threads(config.threads), kernels.using(config.kernels):
        return _planned(config, initial, what, directory, verdict, swept or {}, watchers)


def _lies_there(config: DictConfig) -> dict[str, str]:
    """Which text is at its place now, and which tokenizer of somebody else's, as far as they are still there."""
    reads, found = {"fingerprint": lambda: build_text(config)[0].fingerprint()}, {}
    if "source" in config.tokenizer and not config.init_from:
        reads["tokenizer"] = lambda: content_hash(instantiate(config.tokenizer)(documents=()))
    for key, read in reads.items():
        try:
            found[key] = read()
        except (OSError, ImportError, ValueError) as error:
            log.debug("the finished run's %s is not held against what lies there: %s", key, error)
    return found


def _planned(
    config: DictConfig,
    initial: Initial | None,
    what: dict[str, Any],
    directory: Any,
    verdict: str,
    swept: Mapping[str, str],
    watchers: Sequence[Callable[[], Any]],
) -> dict[str, Any]:
    from lmlab.run_directory import RunDirectory, fresh

    # Other processes of the run, if any, read what this one has checked.
    planned = plan(config, not config.dry_run, initial)
    planned.watchers = watchers
    if config.dry_run:
        return dry_run(planned)
    if directory is None:
        directory = RunDirectory(fresh(config.runs_root, run_name(config, swept)))
    check_continuation(planned, directory, verdict)
    directory.claim()
    try:
        return _train(planned, directory, what, verdict)
    except TrainingFailed:
        raise
    except Exception:
        # Refused by the trainer alone: nothing was trained, so nothing is left behind.
        if verdict == "new" and not directory.last.exists():
            shutil.rmtree(directory.path, ignore_errors=True)
        raise
    finally:
        directory.release()


def check_config(config: DictConfig) -> None:
    """Every key's type, and every node against its constructor, before anything is read or written."""
    tree = plain(config)
    check_packages(tree)
    check_known(tree, (*NODES, *TRAINER_NODES, *_own_keys()))
    check_keys(tree)
    published.read(tree.get("published"))
    # A model that counts needs no trainer, and Lightning costs seconds.
    counts = hasattr(find(str(tree["model"]["_target_"])), "fit")
    for group in NODES if counts else (*NODES, *TRAINER_NODES):
        check_node(tree.get(group), group)


# Once a process: a worker of a sweep checks hundreds.
@functools.cache
def _own_keys() -> tuple[str, ...]:
    return tuple(map(str, OmegaConf.load(conf_dir() / "train.yaml")))


def _keep_environment(directory: Any, device: str) -> None:
    """That of the run's beginning; told where it goes on by another arithmetic."""
    from lmlab.run_directory.environment import environment

    now = kernels.described(device)
    if not (directory.path / "environment.json").exists():
        directory.write_json("environment.json", environment(device, now))
        return
    began = now
    # Damaged, it says nothing, and no number follows from it.
    with contextlib.suppress(ValueError):
        began = directory.read_json("environment.json").get("kernels", now)
    if began != now:
        log.warning("it began with kernels %s and goes on with %s: other rounding and dropout masks", began, now)


def _train(planned: Plan, directory: Any, what: dict[str, Any], verdict: str) -> dict[str, Any]:
    from lmlab.run_directory import FORMAT
    from lmlab.run_directory.train_log import log_to
    from lmlab.training.checkpoints import read
    from lmlab.training.fit import fit, fit_counts

    counts = planned.batching is None
    # Read before anything is written: it may be damaged.
    checkpoint = read(directory.last) if directory.last.exists() and not counts else None
    if verdict == "new" or not directory.last.exists():
        directory.write_yaml("asked.yaml", what)
    directory.write_yaml("config.yaml", recorded(planned, FORMAT))
    planned.store.tokenizer.save(directory.tokenizer)
    _keep_environment(directory, planned.decided["device"])
    with log_to(directory.path / "train.log"):
        training = fit_counts(planned, directory) if counts else fit(planned, directory, checkpoint)
        # Only now: a larger budget that failed to start must not have replaced the record. Results go first: beside the
        # larger budget, those of the smaller one would be a finished run's.
        (directory.path / "results.json").unlink(missing_ok=True)
        directory.write_yaml("asked.yaml", what)
        from lmlab.training.results import summarise

        results = summarise(planned, directory, training)
    return results | {"run_dir": str(directory.path)}


def range_test(stored: Mapping[str, Any], steps: int, allow_targets: Iterable[str]) -> dict[str, Any]:
    """A learning-rate range test of a stored run's recipe: see `lmlab.training.range_test`. Nothing is written.

    stored: the content of its config.yaml, which may name what our own options name, and what allow_targets adds.
    """
    from lmlab.training.range_test import range_test as test

    tree = {key: value for key, value in stored.items() if key not in ("format", "decided")}
    options = (OmegaConf.to_container(OmegaConf.load(path)) for path in conf_dir().rglob("*.yaml"))
    check_targets(tree, {*(name for option in options for name in targets(option)), *allow_targets})
    config = OmegaConf.create(literal(tree))
    if (config.optimizer or {}).get("lr") is None:
        raise ValueError("lr=true needs a recipe with optimizer.lr")
    # A run of an older version has no such key.
    with threads(config.threads), kernels.using(config.get("kernels", "auto")):
        return test(plan(config), steps)


def dry_run(planned: Plan) -> dict[str, Any]:
    """Parameters, steps, memory and time, from a few measured steps that change nothing on disk."""
    from lmlab.training.rehearsal import rehearse

    return planned.decided | rehearse(planned)
