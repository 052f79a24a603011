"""What a finished run leaves: results.json, HPARAMS, the table at the end."""

import logging
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from lmlab.config import asked, flatten
from lmlab.evaluation.evaluate import evaluate
from lmlab.evaluation.floors import floors
from lmlab.evaluation.protocol import batches
from lmlab.sizes import embedding_share
from lmlab.training.checkpoints import read, weights

log = logging.getLogger("lmlab")


def summarise(plan: Any, directory: Any, training: dict[str, Any]) -> dict[str, Any]:
    """Measure the best checkpoint on the whole of val and, once, on test; write results.json and HPARAMS."""
    checkpoint = read(directory.best)
    plan.model.load_state_dict(weights(checkpoint))
    device = plan.decided["device"]
    plan.model.to(device)
    results: dict[str, Any] = {
        "format": 1,
        "protocol": plan.protocol.as_dict(),
        "model": {"parameters": plan.decided["n_params"], "embedding_share": round(embedding_share(plan.model), 4)},
        "training": training | {"best_step": checkpoint["step"]},
        "splits": {},
    }
    for split in measured_splits(plan):
        rows = batches(
            plan.store.split(split), plan.protocol, plan.store.tokenizer.start_id, plan.config.validation.batch_size
        )
        results["splits"][split] = evaluate(plan.model, rows, plan.protocol.precision, device).as_dict()
    if plan.config.floors:
        results["floors"] = floors(plan.store, list(results["splits"]))
    directory.write_json("results.json", results)
    write_hparams(plan, directory, results)
    return results


def measured_splits(plan: Any) -> list[str]:
    """val, and test when asked: by default not in a multirun, where it would be looked at for choosing."""
    wanted = plan.config.test
    if wanted == "auto":
        wanted = not (HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN)
    return [s for s in ("val", "test") if s in plan.store.splits and (s == "val" or wanted)]


def write_hparams(plan: Any, directory: Any, results: dict[str, Any]) -> None:
    """One row of TensorBoard's HPARAMS page: what was asked, and what came of it. Called once, at the end."""
    if "TensorBoard" not in str((plan.config.get("logger") or {}).get("_target_", "")):
        return
    from lightning.pytorch.loggers import TensorBoardLogger

    shown = {k: v for k, v in flatten(asked(plan.config)).items() if not k.endswith(("_target_", "_partial_"))}
    metrics = {
        f"{split}/{name}": sums[name]
        for split, sums in results["splits"].items()
        for name in ("bpb", "ppl", "nll")
    }
    metrics |= {"parameters": results["model"]["parameters"], "seconds": results["training"]["seconds"]}
    if speed := results["training"]["tokens_per_s"]:
        metrics["tokens_per_s"] = speed
    logger = TensorBoardLogger(str(directory.path), name="", version="", default_hp_metric=False)
    logger.log_hyperparams({k: v if isinstance(v, (int, float, str, bool)) else str(v) for k, v in shown.items()}, metrics)
    logger.finalize("success")
