"""What runs are measured by, which way each is better, and the front of several at once."""

from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

# What a finished run tells, of the best checkpoint on all of val first, and which way is better.
METRICS = dict.fromkeys(("val/bpb", "val/ppl", "val/nll", "parameters", "seconds", "steps", "tokens"), "minimize")
METRICS |= dict.fromkeys(("val/bpb_best", "val/ppl_best", "val/bpb_last", "val/ppl_last", "best_step"), "minimize")
METRICS |= {"tokens_per_s": "maximize"}
# What every run logs as it trains: its last value.
METRICS |= dict.fromkeys(("val/loss", "val/gap", "train/loss", "train/ppl", "train/bpb", "train/eval_loss"), "minimize")
METRICS |= {"perf/tokens_per_s": "maximize", "perf/memory_gb": "minimize"}
# Where the machine tells them.
METRICS |= {"perf/mfu": "maximize", "perf/energy_j": "minimize"}
# Which way is better is for whoever asks to say.
METRICS |= dict.fromkeys(("optim/lr", "optim/grad_norm", "optim/update_ratio", "progress/epoch"))
METRICS |= {f"perf/{phase}_share": None for phase in ("data", "forward", "backward", "optimizer")}

Name = TypeVar("Name", bound=Hashable)


def higher(metric: str, stated: Mapping[str, str]) -> bool:
    """Whether more of it is better. stated: what sweeps say of their own objectives, which counts first."""
    return (stated.get(metric) or METRICS.get(metric)) == "maximize"


def front(values: Mapping[Name, Sequence[float]]) -> list[Name]:
    """Those that none is better than in everything (lower is better in each), equal ones among them."""

    def dominates(a: Sequence[float], b: Sequence[float]) -> bool:
        return a != b and all(x <= y for x, y in zip(a, b, strict=True))

    return [name for name, mine in values.items() if not any(dominates(other, mine) for other in values.values())]
