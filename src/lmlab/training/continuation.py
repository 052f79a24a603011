"""Whether a run may go on as it is asked to, and what holds to its end."""

from collections.abc import Mapping
from typing import Any

from lmlab.decisions import check_precision, find_compiler
from lmlab.run_directory import RunDirectory
from lmlab.training.plan import Plan


def check_continuation(planned: Plan, directory: RunDirectory, verdict: str) -> None:
    """Refuse to continue a run on other text, to fewer steps than it was to have, or, where it has finished, without
    its last checkpoint; keep the precision it has."""
    # From step 0 it would replace results and a best checkpoint that are whole.
    if verdict == "extend" and planned.batching is not None and not directory.last.exists():
        raise ValueError(f"{directory.last} was removed; training longer needs it: name another run_dir")
    # Killed before config.yaml was written, it has decided nothing yet.
    if not (directory.path / "config.yaml").exists():
        return
    before = directory.config()["decided"]
    if before["store"] != planned.decided["store"]:
        raise ValueError(
            f"{directory.path} was trained on other text (store {before['store']}, now {planned.decided['store']})"
        )
    if planned.total_steps < before.get("total_steps", 0):
        raise ValueError(
            f"the budget of {planned.total_steps} steps is below the {before['total_steps']} of {directory.path}; "
            "a budget can only grow"
        )
    keep_decisions(planned, before)


def check_read(directory: RunDirectory, found: Mapping[str, str]) -> None:
    """Refuse to take a finished run for one on what now lies at the place of its text or its tokenizer.

    found: `fingerprint` and `tokenizer` of what lies there. What lies there no more tells nothing: a run may be looked
    at without its text.
    """
    before = directory.config()["decided"]
    for key, what in (("fingerprint", "on another text"), ("tokenizer", "with another tokenizer")):
        if key in found and found[key] != before.get(key, found[key]):
            raise ValueError(
                f"{directory.path} was trained {what} than is read from there now: it was changed, or this version "
                "reads or divides it in another way; name another run_dir"
            )


def keep_decisions(planned: Plan, before: Mapping[str, Any]) -> None:
    """What `auto` became when the run began holds to its end, on another machine too: else it were another run.

    Raises ValueError where it began with what several processes cannot do.
    """
    for key in ("precision", "compile"):
        was, now = before.get(key), planned.decided.get(key)
        if planned.config[key] != "auto" or was in (None, now):
            continue
        if key == "compile" and was and not find_compiler(planned.decided["device"]):
            continue
        planned.decided[key] = was
        planned.reasons[key] = f"{key} {was}, as this run began (here it would be {now})"
    if planned.batching is not None:
        devices = planned.decided["devices"]
        try:
            check_precision(planned.decided["precision"], devices)
        except ValueError as error:
            raise ValueError(
                f"this run began with precision={planned.decided['precision']}, which holds to its end, and trains "
                f"in one process: continue it with devices=1 (now {devices})"
            ) from error
