"""What a run would take, from a few real steps that are thrown away."""

import time
from itertools import islice
from typing import Any

from lmlab.evaluation.evaluate import evaluate
from lmlab.hardware import forget_peak, peak_memory
from lmlab.training.fit import evaluation_batches
from lmlab.training.plan import Plan
from lmlab.training.progress import clock
from lmlab.training.results import measured_splits
from lmlab.training.trial import attempt

# Measured steps, and batches of evaluation, after one that warms up; fewer where so many seconds are over.
STEPS, SECONDS = 20, 3.0


def rehearse(plan: Plan) -> dict[str, Any]:
    """Speed, time in all and peak memory; without batches (a model that counts) there is nothing to measure."""
    if plan.batching is None:
        return {}
    forget_peak(plan.decided["device"])
    # A mean: on a shared machine the best step promises too much.
    seconds = attempt(plan, STEPS, SECONDS, warm_up=1).mean
    training, scoring = seconds * plan.total_steps, scored_tokens(plan) * _token_seconds(plan)
    return {
        "tokens_per_step": plan.batching.tokens_per_step,
        "seconds_per_step": round(seconds, 4),
        "tokens_per_s": round(plan.batching.tokens_per_step / seconds),
        "training_time": clock(training),
        "evaluation_time": clock(scoring),
        "time": clock(training + scoring),
        "peak_memory": f"{peak_memory(plan.decided['device']) / 1e9:.2f} GB",
    }


def scored_tokens(plan: Plan) -> int:
    """Tokens that all validations and the final measurement score."""
    config = plan.config.validation
    val, train = len(plan.store.split("val")), len(plan.store.split("train"))
    each = min(val, config.limit_tokens or val) + min(train, config.train_tokens)
    checks = plan.total_steps // plan.decided["val_check_interval"]
    return checks * each + sum(len(plan.store.split(split)) for split in measured_splits(plan, interrupted=False))


def _token_seconds(plan: Plan) -> float:
    """To score one token of val, from its first batches; the very first warms up."""
    times, scored = [time.perf_counter()], []

    def note(n_targets: int) -> None:
        times.append(time.perf_counter())
        scored.append(n_targets)

    plan.model.to(plan.decided["device"])
    rows = islice(evaluation_batches(plan)("val", limit_tokens=None), 1 + STEPS)
    evaluate(plan.model, rows, plan.protocol.precision, plan.decided["device"], note)
    if len(scored) > 1:
        return (times[-1] - times[1]) / sum(scored[1:])
    return (times[1] - times[0]) / scored[0]
