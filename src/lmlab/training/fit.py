"""One training run: Lightning's Trainer around our module, or a single pass of counting."""

import logging
import os
import signal
import time
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.callbacks import Callback, EarlyStopping, Timer, WeightAveraging
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy
from omegaconf import DictConfig

from lmlab.config import plain
from lmlab.data.datamodule import TextDataModule
from lmlab.errors import NotFinite, TrainingFailed, full_disk, ran_out_of_memory
from lmlab.evaluation.protocol import at_once, batches
from lmlab.instantiate import instantiate
from lmlab.models import kernels, workspace
from lmlab.models.lstm import leave_recurrence_whole
from lmlab.run_directory import RunDirectory
from lmlab.training import performance
from lmlab.training.averaging import UntilAveraged
from lmlab.training.callbacks import GracefulStop, Histograms, StartLoss
from lmlab.training.checkpoints import Resume, stopped_early, write
from lmlab.training.curves import Curves
from lmlab.training.loop import StepLoop
from lmlab.training.module import LMModule
from lmlab.training.plan import Plan, train_part
from lmlab.training.profile import Profile
from lmlab.training.ranks import launched

log = logging.getLogger("lmlab")

# What the log says of decided.compile.
COMPILED = {False: "", True: ", compiled", "graphs": ", compiled to CUDA graphs"}


def fit(plan: Plan, directory: RunDirectory, checkpoint: dict[str, Any] | None) -> dict[str, Any]:
    """Train to the plan's budget, on from a checkpoint where there is one. Returns results.json's `training`."""
    with launched(plan, directory.path):
        return run(plan, directory, checkpoint)


def run(plan: Plan, directory: RunDirectory, checkpoint: dict[str, Any] | None) -> dict[str, Any]:
    """What every rank does."""
    module = build_module(plan)
    data = TextDataModule(lambda: plan.store)
    data.prepare_data()
    data.connect(plan.batching, lambda: module.step, plan.total_steps, evaluation_batches(plan), **connection(plan))
    announce(plan)
    if checkpoint is not None:
        restore(module, checkpoint, directory.last)
        note_horizon(plan, module, checkpoint["lmlab"]["total_steps"])
        if plan.total_steps <= module.step:
            log.info("all %d steps are done", module.step)
            return summary(module, None, None, None)
    stop, meter = GracefulStop(), performance.build(plan)
    quiet_lightning()
    first: list[Callback] = [Resume(checkpoint)] if checkpoint is not None else []
    # The meter comes last: what others do before a step is no part of it.
    callbacks = [*first, stop, *build_callbacks(plan, directory), meter]
    trainer = build_trainer(plan, directory.path, callbacks, module.step)
    if trainer.is_global_zero:
        passing = checkpoint is not None and checkpoint["lmlab"]["in_passing"]
        module.curves = Curves(directory, module.step or None, passing)
    try:
        with workspace.kept() if plan.decided["device"] == "cpu" else nullcontext():
            trainer.fit(module, datamodule=data)
    except SystemExit as error:
        # Lightning's answer to the second Ctrl-C; it also leaves the signal ignored.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        raise KeyboardInterrupt from error
    except NotFinite as error:
        # Of its own kind, by which train.log tells it from a full disk.
        raise NotFinite(f"{error}; {kept(directory)} (other settings are another run: name another run_dir)") from error
    except (OSError, RuntimeError, MemoryError) as error:
        if ran_out_of_memory(error):
            raise TrainingFailed(out_of_memory(plan, module.step, meter.validating.running)) from error
        if (full := full_disk(error)) is None:
            raise
        raise TrainingFailed(
            f"the disk is full ({getattr(full, 'filename', None) or full}) after step {module.step}; "
            f"{kept(directory)}: free some space, and the same command goes on"
        ) from error
    finally:
        if module.curves is not None:
            module.curves.close()
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            # What follows is rank 0's alone.
            torch.distributed.destroy_process_group()
    return summary(module, trainer, stop, meter)


def out_of_memory(plan: Plan, step: int, validating: bool) -> str:
    """What to do about it: of what is held at once training and validation each decide their own."""
    if validating:
        return (
            f"out of memory while validating after step {step}: ask for a smaller validation.batch_size "
            f"(now {plan.config.validation.batch_size or 'as many rows as suit the device'}); its numbers stay the "
            "same, and the same run goes on"
        )
    return (
        f"out of memory at step {step}: halve training.micro_batch_size "
        f"(now {plan.config.training.micro_batch_size or plan.batching.batch_size}); the gradients stay the same"
    )


def kept(directory: RunDirectory) -> str:
    """What a failure leaves to go on from."""
    return f"{directory.last} is kept" if directory.last.exists() else "no checkpoint had been saved by then"


def announce(plan: Plan) -> None:
    decided = plan.decided
    where = f"{decided['device']}, precision {decided['precision']}" + COMPILED[decided["compile"]]
    where += f", {decided['devices']} processes" if decided["devices"] > 1 else ""
    where += ", plain kernels" if kernels.are_plain() else ""
    log.info("%s parameters, %s steps on %s", f"{decided['n_params']:,}", f"{plan.total_steps:,}", where)
    for reason in filter(None, plan.reasons.values()):
        log.info("%s", reason)
    log.info("%s", plan.batching.describe())
    log.info("schedule: %s", plan.schedule.describe())


def build_module(plan: Plan) -> LMModule:
    config = plan.config
    if plan.decided["compile"] and plan.decided["device"] == "cuda":
        leave_recurrence_whole()
    return instantiate(config.training)(
        model=plan.model,
        make_optimizer=instantiate(config.optimizer),
        schedule=plan.schedule,
        seed=config.seed,
        total_steps=plan.total_steps,
        compiled=plan.decided["compile"],
        halved=plan.decided["precision"] == "bf16",
        monitor=config.callbacks.checkpoints.monitor,
        evaluation_precision=plan.protocol.precision,
    )


def evaluation_batches(plan: Plan) -> Any:
    """(split, limit_tokens, rank, world_size) -> the protocol's batches over that split."""

    def make(split: str, **which: Any) -> Any:
        start_id, part = plan.store.tokenizer.start_id, plan.part(split)
        if split == "train" and which["limit_tokens"] is not None:
            # Its end: val comes next in the text, or is newer, so that the gap between them is mostly over-fitting.
            part = part.tail(which["limit_tokens"])
        which["at_once"] = at_once(plan.model, plan.decided["device"])
        return batches(part, plan.protocol, start_id, plan.config.validation.batch_size, **which)

    return make


def connection(plan: Plan) -> dict[str, int | bool | None]:
    """What else the data module is told: how much is validated, and where training batches are cut."""
    limits = {k: plan.config.validation[k] for k in ("limit_tokens", "train_tokens")}
    return limits | {"on_device": plan.decided["text_on_device"]}


def build_callbacks(plan: Plan, directory: RunDirectory) -> list[Callback]:
    """Each node with what it needs from the run; early stopping and averaging are Lightning's own."""
    nodes, tokenizer = plan.config.callbacks, plan.store.tokenizer
    facts = {"checkpoints": {"dirpath": directory.checkpoints}, "samples": {"tokenizer": tokenizer}}
    built: list[Callback] = []
    # Checkpoints come last: they save what the others decided. Before them spikes, which keep what the others saved.
    last = {"spikes": 1, "checkpoints": 2}
    for name in sorted((n for n in nodes if nodes[n]), key=lambda n: last.get(n, 0)):
        callback = instantiate(nodes[name])
        if isinstance(callback, WeightAveraging):
            # Lightning looks where the weights are before it has moved them to the GPU.
            callback._device = callback._device or torch.device(plan.decided["device"])
            built.append(UntilAveraged(callback))
        built.append(callback(**facts.get(name, {})) if nodes[name].get("_partial_") else callback)
    built = [*(build() for build in plan.watchers), *built]
    if plan.config.profile:
        built.insert(0, Profile(directory.path / "profile"))
    if plan.config.training.histograms:
        built.insert(0, Histograms(tokenizer))
    if plan.config.trainer.get("overfit_batches"):
        built.insert(0, StartLoss(plan.decided["vocab_size"], trained=bool(plan.config.init_from)))
    return built


class Launched(DDPStrategy):
    """Data parallelism over the processes that `training.ranks` has started; in a notebook, too.

    Lightning would refuse to start any from there, or fork this one.
    """

    def _configure_launcher(self) -> None:
        self._launcher = None


def build_trainer(plan: Plan, path: Path, callbacks: list[Callback], step: int) -> Trainer:
    """Steps, batches, checkpoints and validation are counted by us; Lightning runs the loop, devices and precision."""
    config = plan.config
    options = {k: v for k, v in plain(config.trainer).items() if k not in ("overfit_batches", "max_epochs")}
    node = options | {
        "max_steps": plan.total_steps,
        "max_epochs": -1,
        # With weights held twice all that Lightning sees is fp32.
        "precision": "32-true" if plan.decided["precision"] == "bf16" else plan.decided["precision"],
        "val_check_interval": plan.decided["val_check_interval"],
        "check_val_every_n_epoch": None,
        "num_sanity_val_steps": 0,
        "enable_progress_bar": False,
        "enable_checkpointing": False,
        "enable_model_summary": False,
        "use_distributed_sampler": False,
        "default_root_dir": str(path),
    }
    processes: dict[str, Any] = {"strategy": "auto"}
    if plan.decided["devices"] > 1:
        # Our own processes, whatever scheduler or launcher this shell runs under.
        processes = {"strategy": Launched(), "devices": plan.decided["devices"], "plugins": [LightningEnvironment()]}
    trainer = instantiate(node, callbacks=callbacks, logger=build_logger(config, path, step), **processes)
    trainer.fit_loop.epoch_loop = StepLoop(trainer, trainer.min_steps, trainer.max_steps)
    return trainer


def build_logger(config: DictConfig, path: Path, step: int) -> Any:
    if not config.get("logger"):
        return False
    if not config.logger.get("_partial_"):
        # Somebody else's, who says where it writes.
        return instantiate(config.logger)
    return instantiate(config.logger)(save_dir=str(path), resume_from=step or None)


def restore(module: LMModule, checkpoint: dict[str, Any], path: Path) -> None:
    """Weights and progress now, the rest when Lightning has its optimizer."""
    try:
        module.load_state_dict(checkpoint["state_dict"])
        module.load_progress(checkpoint)
    except (RuntimeError, KeyError) as error:
        raise ValueError(f"{path} does not fit this run's model; is it another run's?") from error
    log.info("continuing after step %d of %s", module.step, path)


def note_horizon(plan: Plan, module: LMModule, before: int) -> None:
    """Record that the steps so far were of a shorter horizon, where one of another rate was among them.

    before: that horizon. Steps that the longer one would have begun with, too (a constant rate, wsd until its decay),
    make it no other run.
    """
    if before == plan.total_steps:
        return
    was = instantiate(plan.config.schedule)(total_steps=before, steps_per_epoch=plan.batching.steps_per_epoch)
    observed = plan.schedule.state_dict()
    was.load_state_dict(observed)
    # What observes saw validations at other steps, where these are a tenth of the run apart.
    apart = bool(observed) and plan.config.trainer.val_check_interval is None
    if not apart and all(was.factor(step) == plan.schedule.factor(step) for step in range(module.step)):
        return
    module.horizons.append([module.step, before])
    log.info(
        "the schedule's horizon moves from %s steps to %s: the learning rate's factor, %.4g at step %s, is %.4g at the "
        "next; no replicate of a run of as many steps at once",
        *(f"{before:,}", f"{plan.total_steps:,}"),
        *(was.factor(module.step - 1), f"{module.step:,}", plan.schedule.factor(module.step)),
    )


def summary(
    module: LMModule, trainer: Trainer | None, stop: GracefulStop | None, meter: performance.Performance | None
) -> dict[str, Any]:
    seconds = module.watch.seconds
    return {
        "steps": module.step,
        "tokens": module.tokens,
        "seconds": round(seconds, 3),
        "tokens_per_s": round(module.tokens / seconds, 1) if seconds else None,
        "stopped_because": stopped_because(module, trainer, stop),
        "first_loss": module.first_loss,
        "performance": None if meter is None else meter.summary(),
        "history": module.history,
        **({"spikes": module.spikes_met} if module.spikes_met else {}),
        **({"horizons": module.horizons} if module.horizons else {}),
    }


def stopped_because(module: LMModule, trainer: Trainer | None, stop: GracefulStop | None) -> str:
    if module.step >= module.total_steps or trainer is None:
        return "budget"
    if stop is not None and stop.interrupted:
        return "interrupted"
    if any(getattr(c, "stopping", False) for c in trainer.callbacks):
        return "pruned"
    if any(isinstance(c, EarlyStopping) and stopped_early(c) for c in trainer.callbacks):
        return "early stopping"
    if any(isinstance(c, Timer) and ran_out(c) for c in trainer.callbacks):
        return "max_time"
    return "callback"


def ran_out(timer: Timer) -> bool:
    """Whether training has used up its time; a limit may be asked for and never be reached."""
    left = timer.time_remaining()
    return left is not None and left <= 0


def fit_counts(plan: Plan, directory: RunDirectory) -> dict[str, Any]:
    """Fit a model that only counts: one pass over its part of the train split."""
    split = train_part(plan.store, plan.config.train_share)
    began = time.perf_counter()
    plan.model.fit(split.ids, plan.store.tokenizer.start_id)
    seconds = time.perf_counter() - began
    state = {f"model.{k}": v for k, v in plan.model.state_dict().items()}
    checkpoint = {"state_dict": state, "step": 1, "metrics": {}}
    write(checkpoint, directory.best)
    if directory.last.exists():
        directory.last.unlink()
    try:
        os.link(directory.best, directory.last)
    except OSError:
        # Some file systems have no links.
        write(checkpoint, directory.last)
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
