"""One training run: Lightning's Trainer around our module, or a single pass of counting."""

import logging
import os
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from lightning import Trainer
from lightning.pytorch.callbacks import Callback, EarlyStopping, Timer
from omegaconf import DictConfig, OmegaConf

from lmlab.config import plain
from lmlab.data.datamodule import TextDataModule
from lmlab.errors import TrainingFailed
from lmlab.evaluation.protocol import batches
from lmlab.training.callbacks import GracefulStop, Histograms
from lmlab.training.checkpoints import read, write
from lmlab.training.module import LMModule

log = logging.getLogger("lmlab")


def fit(plan: Any, directory: Any) -> dict[str, Any]:
    """Train to the plan's budget, from `last.ckpt` where there is one. Returns results.json's `training`."""
    config, decided = plan.config, plan.decided
    module = build_module(plan)
    data = TextDataModule(lambda: plan.store)
    data.prepare_data()
    data.connect(plan.batching, lambda: module.step, plan.total_steps, evaluation_batches(plan), **limits(config))
    step = restore(module, directory.last) if directory.last.exists() else 0
    if plan.total_steps <= step:
        log.info("all %d steps are done", step)
        return summary(module, None, None)
    stop = GracefulStop()
    quiet_lightning()
    trainer = build_trainer(plan, directory.path, [stop, *build_callbacks(plan, directory)], step)
    where = f"{decided['device']}, precision {decided['precision']}" + (", compiled" if decided["compile"] else "")
    log.info("%s parameters, %s steps on %s", f"{decided['n_params']:,}", f"{plan.total_steps:,}", where)
    try:
        trainer.fit(module, datamodule=data)
    except torch.OutOfMemoryError as error:
        raise TrainingFailed(
            f"out of memory at step {module.step}: halve training.micro_batch_size "
            f"(now {config.training.micro_batch_size or plan.batching.batch_size}); the gradients stay the same"
        ) from error
    except OSError as error:
        if error.errno != 28:
            raise
        raise TrainingFailed(f"the disk is full at step {module.step}; the last checkpoint that was whole is kept") from error
    return summary(module, trainer, stop)


def build_module(plan: Any) -> LMModule:
    config = plan.config
    return instantiate(config.training)(
        model=plan.model,
        make_optimizer=instantiate(config.optimizer),
        schedule=plan.schedule,
        seed=config.seed,
        total_steps=plan.total_steps,
        compiled=plan.decided["compile"],
        monitor=config.callbacks.checkpoints.monitor,
        evaluation_precision=plan.protocol.precision,
    )


def evaluation_batches(plan: Any) -> Any:
    """(split, limit_tokens, rank, world_size) -> the protocol's batches over that split."""

    def make(split: str, **which: Any) -> Any:
        start_id = plan.store.tokenizer.start_id
        return batches(plan.store.split(split), plan.protocol, start_id, plan.config.validation.batch_size, **which)

    return make


def limits(config: DictConfig) -> dict[str, int | None]:
    return {k: config.validation[k] for k in ("limit_tokens", "train_tokens")}


def build_callbacks(plan: Any, directory: Any) -> list[Callback]:
    """Each node with what it needs from the run; early stopping and averaging are Lightning's own."""
    nodes, tokenizer = plan.config.callbacks, plan.store.tokenizer
    facts = {"checkpoints": {"dirpath": directory.checkpoints}, "samples": {"tokenizer": tokenizer}}
    built: list[Callback] = []
    # Checkpoints come last: they save what the others decided.
    for name in sorted((n for n in nodes if nodes[n]), key="checkpoints".__eq__):
        callback = instantiate(nodes[name])
        built.append(callback(**facts.get(name, {})) if nodes[name].get("_partial_") else callback)
    if plan.config.training.histograms:
        built.insert(0, Histograms(tokenizer))
    return built


def build_trainer(plan: Any, path: Path, callbacks: list[Callback], step: int) -> Trainer:
    """Steps, batches, checkpoints and validation are counted by us; Lightning runs the loop, devices and precision."""
    config = plan.config
    options = {k: v for k, v in plain(config.trainer).items() if k not in ("overfit_batches", "max_epochs")}
    node = OmegaConf.create(
        options
        | {
            "max_steps": plan.total_steps,
            "max_epochs": -1,
            "precision": plan.decided["precision"],
            "val_check_interval": plan.decided["val_check_interval"],
            "check_val_every_n_epoch": None,
            "num_sanity_val_steps": 0,
            "enable_progress_bar": False,
            "enable_checkpointing": False,
            "enable_model_summary": False,
            "use_distributed_sampler": False,
            "default_root_dir": str(path),
        }
    )
    return instantiate(node, callbacks=callbacks, logger=build_logger(config, path, step))


def build_logger(config: DictConfig, path: Path, step: int) -> Any:
    if not config.get("logger"):
        return False
    facts: dict[str, Any] = {"save_dir": str(path)}
    if step and "TensorBoard" in config.logger["_target_"]:
        # What was logged past the checkpoint would overlap with what is logged again.
        facts["purge_step"] = step + 1
    return instantiate(config.logger)(**facts)


def restore(module: LMModule, path: Path) -> int:
    """Weights now, the rest when Lightning has its optimizer; returns the step to continue from."""
    checkpoint = read(path)
    module.load_state_dict(checkpoint["state_dict"])
    module.restored, module.step = checkpoint, checkpoint["lmlab"]["step"]
    log.info("continuing from step %d of %s", module.step, path)
    return module.step


def summary(module: LMModule, trainer: Trainer | None, stop: GracefulStop | None) -> dict[str, Any]:
    return {
        "steps": module.step,
        "tokens": module.tokens,
        "seconds": round(module.seconds, 3),
        "tokens_per_s": round(module.tokens / module.seconds, 1) if module.seconds else None,
        "stopped_because": stopped_because(module, trainer, stop),
        "first_loss": module.first_loss,
    }


def stopped_because(module: LMModule, trainer: Trainer | None, stop: GracefulStop | None) -> str:
    if stop is not None and stop.interrupted:
        return "interrupted"
    for callback in trainer.callbacks if trainer else ():
        if isinstance(callback, EarlyStopping) and callback.stopped_epoch:
            return "early stopping"
    if module.step < module.total_steps and any(isinstance(c, Timer) for c in trainer.callbacks):
        return "max_time"
    return "budget"


def fit_counts(plan: Any, directory: Any) -> dict[str, Any]:
    """Fit a model that only counts: one pass over the train split."""
    split = plan.store.split("train")
    began = time.perf_counter()
    plan.model.fit(split.ids, plan.store.tokenizer.start_id)
    seconds = time.perf_counter() - began
    state = {f"model.{k}": v for k, v in plan.model.state_dict().items()}
    checkpoint = {"state_dict": state, "step": 1, "metrics": {}}
    write(checkpoint, directory.best)
    if directory.last.exists():
        directory.last.unlink()
    os.link(directory.best, directory.last)
    return {
        "steps": 1,
        "tokens": len(split),
        "seconds": round(seconds, 3),
        "tokens_per_s": round(len(split) / seconds, 1),
        "stopped_because": "counted",
    }


def quiet_lightning() -> None:
    """Lightning's advice about loaders and its own deprecations say nothing about a run of ours."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        r".*does not have many workers.*",
        r".*LeafSpec.*is deprecated.*",
        r".*isinstance\(treespec, LeafSpec\).*",
        r".*Checkpoint directory .* exists and is not empty.*",
        r".*GPU available but not used.*",
        r".*Starting from v1\.9\.0, `tensorboardX` has been removed.*",
    ):
        warnings.filterwarnings("ignore", message=message)
