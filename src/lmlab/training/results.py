"""What a finished run leaves: results.json with samples, and its row of the HPARAMS page."""

import logging
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from lmlab.config import asked, flatten, lengthened, plain, short_name, treatment
from lmlab.evaluation import audit, published
from lmlab.evaluation.curve import Facts
from lmlab.evaluation.diagnosis import Diagnosis, diagnose
from lmlab.evaluation.evaluate import evaluate
from lmlab.evaluation.floors import floors, floors_protocol
from lmlab.evaluation.protocol import at_once, batches, mean_charge, unknown
from lmlab.instantiate import instantiate
from lmlab.run_directory import RunDirectory
from lmlab.sizes import embedding_share
from lmlab.training.checkpoints import read, weights
from lmlab.training.plan import Plan, train_part

log = logging.getLogger("lmlab")

# Texts in results.json, and at the end of the command.
N_SAMPLES = 3


def summarise(plan: Plan, directory: RunDirectory, training: dict[str, Any]) -> dict[str, Any]:
    """Measure the best checkpoint on the whole of val and, once, on test; write HPARAMS and results.json."""
    checkpoint = read(directory.best)
    plan.model.load_state_dict(weights(checkpoint))
    plan.model.to(plan.decided["device"])
    results: dict[str, Any] = {
        "format": 1,
        "protocol": plan.protocol.as_dict(),
        "model": {"parameters": plan.decided["n_params"], "embedding_share": round(embedding_share(plan.model), 4)},
        "training": training | {"best_step": checkpoint["step"]},
        "splits": {},
    }
    if training["stopped_because"] == "pruned":
        # What a sweep stops early costs no more than its curve.
        results |= {"evaluation_seconds": 0.0, "samples": []}
    else:
        _measure(plan, directory, results)
    if plan.config.get("logger") and short_name(plan.config.logger) == "tensorboard":
        from lmlab.training.loggers import write_hparams

        shown, step = hyper_parameters(plan) | lengthened(results), training["steps"]
        group = group_name(directory.asked() | lengthened(results), plan.decided)
        write_hparams(directory.path, shown, final_metrics(results), step, group)
    # Last: a run that has it counts as finished, and the same command writes nothing more.
    directory.write_json("results.json", results)
    return results


def _measure(plan: Plan, directory: RunDirectory, results: dict[str, Any]) -> None:
    """Add to the results what the model does on each split, whether that can be trusted, what follows, and samples."""
    device, training, began = plan.decided["device"], results["training"], time.perf_counter()
    for split in measured_splits(plan, training["stopped_because"] == "interrupted"):
        part = plan.part(split)
        size, fastest = plan.config.validation.batch_size, at_once(plan.model, device)
        rows = batches(part, plan.protocol, plan.store.tokenizer.start_id, size, at_once=fastest)
        results["splits"][split] = evaluate(plan.model, rows, plan.protocol.precision, device).as_dict()
        results["splits"][split]["unknown"] = unknown(part, plan.store.tokenizer.unk_id, plan.protocol)
    results["evaluation_seconds"] = round(time.perf_counter() - began, 3)
    began = time.perf_counter()
    trained_here = "source" not in plan.config.tokenizer
    checks = audit.quick(plan.model, plan.store, plan.protocol, device, results["splits"], trained_here)
    results["audit"] = audit.record(checks, began)
    log.log(logging.INFO if results["audit"]["passed"] else logging.WARNING, "%s", audit.verdict(checks))
    if plan.config.floors:
        parts = {split: plan.part(split) for split in results["splits"]}
        trained_on = train_part(plan.store, plan.config.train_share)
        results["floors"] = floors(plan.store, parts, plan.protocol, trained_on)
        results["floors_protocol"] = floors_protocol(plan.protocol).as_dict()
    target = published.read(plain(plan.config).get("published"))
    told = target.distances(results["splits"], plan.protocol, training) if target else []
    if plan.batching is not None:
        found = replace(diagnosed(plan, directory, results), distances=told)
        results["diagnosis"] = found.as_dict()
        told = found.card()
    for line in told:
        log.info("%s", line)
    results["samples"] = samples(plan)


def diagnosed(plan: Plan, directory: RunDirectory, results: dict[str, Any]) -> Diagnosis:
    """Whether the run was trained well enough, by its own curve."""
    points, totals = directory.points(), plan.store.split("train").totals
    train = {key: round(plan.config.train_share * totals[key]) for key in ("tokens", "bytes")}
    known = (plain(plan.config), plan.decided, train, results.get("floors", {}))
    facts = Facts.of(*known, points, None, mean_charge(plan.part("val"), plan.protocol))
    return diagnose(points, replace(facts, best_step=results["training"].get("best_step")))


def measured_splits(plan: Plan, interrupted: bool) -> list[str]:
    """val, and test when asked: by default not in a multirun, where it would be looked at for choosing.

    Never of an interrupted run: it is scored once, when the run is done.
    """
    wanted = plan.config.test
    if wanted == "auto":
        wanted = not (HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN)
    wanted = wanted and not interrupted
    return [s for s in ("val", "test") if s in plan.store.splits and (s == "val" or wanted)]


def samples(plan: Plan) -> list[str]:
    """What the best checkpoint writes, as `callbacks.samples` says; nothing where that is switched off."""
    node = plan.config.callbacks.samples
    if not node:
        return []
    writer = instantiate(node)(tokenizer=plan.store.tokenizer)
    # At temperature 0 a second text would be the first one again.
    return writer.write(plan.model, n=-(-N_SAMPLES // len(writer.prompts)) if writer.temperature else 1)


def hyper_parameters(plan: Plan) -> dict[str, Any]:
    """What people compare runs by: the name of each option, and the sizes and rates below it that are not null."""
    config, decided = asked(plan.config), plan.decided
    # Without the seed: replicates are one trial of the page, of which it would show the first one's.
    shown: dict[str, Any] = {"corpus": short_name(config["corpus"])}
    shown |= {"tokenizer": short_name(config["tokenizer"]), "vocab_size": decided["vocab_size"]}
    # A model that counts has no batches and takes no steps.
    trained = ("batching", "optimizer", "schedule", "training") if plan.batching is not None else ()
    for group in ("model", *trained):
        for key, value in flatten({group: config[group]}).items():
            owner, _, leaf = key.rpartition(".")
            if leaf == "_target_" and owner != "training":
                shown[owner] = short_name({leaf: value})
            elif leaf not in ("_target_", "_partial_") and value is not None:
                shown[key] = value
    shown["parameters"] = decided["n_params"]
    if trained:
        shown |= {"steps": plan.total_steps, "precision": decided["precision"]}
    return shown | ({"init_from": config["init_from"]} if config["init_from"] else {})


def final_metrics(results: dict[str, Any]) -> dict[str, float]:
    """The page's first metrics, by name. Under val/bpb they would be one more point of that curve.

    best: the lowest of the validations in training; final: of the best checkpoint, on all of the split.
    """
    history, training = results["training"].get("history") or [], results["training"]
    told = {f"best/val_{name}": min(p[f"val/{name}"] for p in history) for name in ("bpb", "ppl") if history}
    told |= {f"final/{split}_{n}": sums[n] for split, sums in results["splits"].items() for n in ("bpb", "ppl")}
    costs = {"parameters": results["model"]["parameters"]} | {k: training[k] for k in ("seconds", "tokens_per_s")}
    return told | {f"cost/{name}": value for name, value in costs.items() if value is not None}


def group_name(asked: dict[str, Any], decided: Mapping[str, Any]) -> str:
    """The same for runs that differ in nothing but the seed."""
    return "_".join([*(short_name(asked[g]) for g in ("corpus", "tokenizer", "model")), treatment(asked, decided)])
