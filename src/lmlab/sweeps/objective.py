"""What a sweep chooses by: a number that runs log, and which way it is better; several make a Pareto front."""

from collections.abc import Mapping, Sequence
from typing import Any

from lmlab.config import suggest, targets
from lmlab.runs.measures import METRICS

DIRECTIONS = ("minimize", "maximize")
# Measured at each validation too, under this name, so that pruning can compare.
REPORTED = {"val/bpb": "val/bpb", "val/ppl": "val/ppl", "val/nll": "val/loss"}


def read(asked: Any) -> list[dict[str, str]]:
    """As sweep.yaml has them, from a metric's name, or a list of names and of {metric, direction}.

    Raises ValueError where one is not written so, and where a direction is needed.
    """
    listed = asked if isinstance(asked, list | tuple) else [asked]
    if not listed:
        raise ValueError("objective=[] leaves nothing to choose by; write objective=val/bpb")
    found = []
    for one in listed:
        told = dict(one) if isinstance(one, Mapping) else {"metric": one}
        metric = told.get("metric")
        if not isinstance(metric, str) or not set(told) <= {"metric", "direction"}:
            raise ValueError(f"objective: {one} must be written val/bpb, or {{metric: val/bpb, direction: minimize}}")
        if metric.startswith("test/"):
            raise ValueError(f"objective: metric={metric}: test is scored for the winner alone")
        direction = told.get("direction") or METRICS.get(metric)
        if direction is None and metric in METRICS:
            raise ValueError(
                f"objective: which way {metric} is better has to be said: {{metric: {metric}, direction: minimize}}"
            )
        if metric in (other["metric"] for other in found):
            raise ValueError(f"objective: {metric} is named twice")
        found.append({"metric": metric, "direction": direction})
    return found


def check_logged(objective: Sequence[Mapping[str, str]], config: Mapping[str, Any]) -> None:
    """Raises ValueError for a metric that no run of this config logs.

    Callbacks of the user's own may log anything that tables can tell from a key.
    """
    logging = {group: config.get(group) for group in ("callbacks", "training")}
    own = [t for t in targets(logging) if t.partition(".")[0] not in ("lmlab", "lightning")]
    for one in objective:
        metric = one["metric"]
        if metric in METRICS:
            continue
        if not own:
            raise ValueError(
                f"objective: metric={metric}: no run logs it{suggest(metric, METRICS)}; there are {', '.join(METRICS)}"
            )
        if "/" not in metric:
            raise ValueError(
                f"objective: metric={metric}: log it as own/{metric}: a name without a group is a config's key"
            )
        if one["direction"] is None:
            raise ValueError(
                f"objective: metric={metric} is none of ours{suggest(metric, METRICS)}; of your own, say which way is "
                f"better: {{metric: {metric}, direction: minimize}}"
            )


def check(objective: Sequence[Mapping[str, str]], rule: str, strategy: str) -> None:
    """Whether pruning and the strategy can work with it. Raises ValueError."""
    for one in objective:
        if one["direction"] not in (None, *DIRECTIONS):
            raise ValueError(f"objective: direction={one['direction']} must be one of {', '.join(DIRECTIONS)}")
    if rule != "none" and (len(objective) > 1 or objective[0]["metric"] not in REPORTED):
        raise ValueError(
            f"pruning.rule={rule} compares at validations: it needs one objective, {' or '.join(REPORTED)}"
        )
    if strategy == "cmaes" and len(objective) > 1:
        raise ValueError("strategy=cmaes has one objective; take tpe, gp or random for several")
