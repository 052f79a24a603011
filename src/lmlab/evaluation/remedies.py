"""What to try after a diagnosis: overrides of `lmlab train`, each with the gain that the run's own curve tells.

A gain comes from the law that is fitted to the curve, from the gap between train and held-out text, from the distance
to frequencies alone, from runs on parts of the text or from a range test. Where none of them tells, it is not known.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np

from lmlab.config import parse_count
from lmlab.evaluation.curve import Curve, Facts
from lmlab.evaluation.extrapolation import Forecast, more_training

TOO_HIGH = {"diverged", "rate too high"}
BY_HEART = {"over-fitting", "under-regularised", "starved"}
# Nats a token below which a gain would be shown as none.
SHOWN = 0.0005
# A norm at which gradients are usually clipped, and a share of all steps to warm up in.
CLIP, WARMUP = 1.0, 0.05
# By which dropout is raised, up to the most that is usual; from ENOUGH on it is not the remedy.
MORE_DROPOUT, MOST_DROPOUT, ENOUGH = 0.2, 0.5, 0.4
# The window of `callbacks/spikes`: shorter runs are hardly judged.
SPIKES_FROM = 128
UNTOLD = "its curve does not tell"
PLACEHOLDER = "PATH_TO_MORE_TEXT"


@dataclass(frozen=True)
class Remedy:
    """What to try. changes: rate, steadiness, dropout, text, size or steps. overrides: of `lmlab train`.

    low, high: nats a token below the run's best held-out loss. high None: at least low. Both None: not known.
    basis: how it is known.
    """

    changes: str
    overrides: str
    basis: str
    low: float | None = None
    high: float | None = None

    @property
    def gain(self) -> str:
        if self.low is None:
            return "not known"
        if self.high is None:
            return f"at least {self.low:.3f}"
        return f"{self.low:.3f} to {self.high:.3f}" if self.low >= SHOWN else f"up to {self.high:.3f}"

    def expected(self) -> str:
        return f"{'gain not known' if self.low is None else f'{self.gain} nats a token less'} ({self.basis})"


def remedies(kinds: set[str], curve: Curve, facts: Facts, ahead: Forecast | None) -> list[Remedy]:
    """All that could be tried, the best first. kinds: of the findings. ahead: what twice the training would bring."""
    found: list[Remedy | None] = []
    if kinds & {*TOO_HIGH, "rate too low"}:
        found.append(at_rate(0.1 if kinds & TOO_HIGH else 10.0, kinds, curve, facts))
    found += [steadier(facts)] if kinds & {"diverged", "unstable"} else []
    found += against_learning_by_heart(curve, facts) if kinds & BY_HEART else []
    found += [longer(facts, ahead)] if kinds & {"improving", "rate too low"} else []
    if "converged" in kinds and not kinds & {*BY_HEART, "rate too low"}:
        found.append(resized(4.0, facts, None))
    return ranked(remedy for remedy in found if remedy is not None)


def ranked(candidates: Iterable[Remedy]) -> list[Remedy]:
    """By the middle of what each should gain; those of which that is not known last, in the order given."""

    def twice_the_middle(remedy: Remedy) -> float:
        if remedy.low is None:
            return -1.0
        return remedy.low + (remedy.low if remedy.high is None else remedy.high)

    return sorted(candidates, key=twice_the_middle, reverse=True)


def at_rate(
    factor: float, kinds: set[str], curve: Curve, facts: Facts, tested: Mapping[str, Any] | None = None
) -> Remedy | None:
    """All rates of the optimizer times `factor`. tested: a range test's, where the factor comes from one."""
    rates = {key: value for key, value in facts.settings.items() if key.startswith("optimizer.")}
    if "optimizer.lr" not in rates:
        return None
    best = _lowest(curve.val)
    low = 0.0 if best is None or facts.unigram is None else max(0.0, best - facts.unigram)
    high, basis = None, "frequencies alone are that much better"
    # A law in the area under the rate: higher at every step, the rate covers as much in the same steps.
    more = more_training(curve, min(factor, 10.0)) if factor > 1 and "rate too low" in kinds else None
    if more is not None and more.high >= SHOWN:
        low, high = max(low, more.low), max(low, more.high)
        basis = f"a law fitted to its curve, for {min(factor, 10.0):.2g} times the area under the rate"
    # The test's losses are moving averages, which lag behind: held against the lowest of the run it says too little.
    had, reached = _lowest(curve.loss), min(tested["losses"], default=None) if tested else None
    if had is not None and reached is not None and had - reached > low:
        low, high = had - reached, high if high is not None and high > had - reached else None
        basis = f"the range test's training loss reached {reached:.3f} in {len(tested['losses'])} steps"
    overrides = " ".join(f"{key}={value * factor:.2g}" for key, value in rates.items())
    if high is None and low < SHOWN:
        return Remedy("rate", overrides, "a range test's suggestion" if tested else UNTOLD)
    return Remedy("rate", overrides, basis, max(0.0, low), high)


def with_tested_rate(
    candidates: Sequence[Remedy], tested: Mapping[str, Any], kinds: set[str], curve: Curve, facts: Facts
) -> list[Remedy]:
    """With the rate that a range test suggests; first where the rate is what is wrong, by the curve or by the test."""
    used, suggested = tested["used"], tested["suggested"]
    wrong = -1 if kinds & TOO_HIGH else int("rate too low" in kinds)
    # A whole training tells more of its rate than a few steps do.
    if f"{suggested:.2g}" == f"{used:.2g}" or wrong * (suggested - used) < 0:
        return list(candidates)
    found = at_rate(suggested / used, kinds, curve, facts, tested)
    others = [remedy for remedy in candidates if remedy.changes != "rate"]
    if wrong or tested["verdict"].startswith("too "):
        return [found, *others]
    return ranked([*others, found])


def steadier(facts: Facts) -> Remedy | None:
    """Clipped gradients and a warm-up, as far as the run was without; else spikes left out."""
    have, steps = facts.settings, min((n for _, _, n in limits(facts)), default=facts.steps)
    clip, warmup = have.get("training.clip_norm", CLIP), have.get("schedule.warmup", WARMUP)
    told = []
    if clip is None or clip > CLIP:
        told.append(f"training.clip_norm={CLIP}")
    if warmup is not None and (warmup if warmup < 1 else warmup / max(steps, 1)) < WARMUP:
        told.append(f"schedule.warmup={WARMUP}")
    if not told and steps >= SPIKES_FROM and "callbacks.spikes._target_" not in have:
        told.append("callbacks/spikes=skip")
    return Remedy("steadiness", " ".join(told), UNTOLD) if told else None


def against_learning_by_heart(curve: Curve, facts: Facts) -> list[Remedy]:
    """Dropout, more text, a smaller model: each can close the gap to train's loss, and no more than that."""
    gap = curve.excess_gap
    text = bounded("text", more_text(facts), gap)
    if gap is not None and gap < SHOWN:
        return [text]
    dropout = " ".join(
        f"{key}={min(MOST_DROPOUT, rate + MORE_DROPOUT):.2g}" for key, rate in dropouts(facts) if rate < ENOUGH
    )
    found = [bounded("dropout", dropout, gap) if dropout else None, text, resized(0.25, facts, gap)]
    return [remedy for remedy in found if remedy is not None]


def bounded(changes: str, overrides: str, gap: float | None) -> Remedy:
    """Of which a gap of train's and held-out loss is the most that it gains."""
    if gap is None or gap < SHOWN:
        return Remedy(changes, overrides, UNTOLD)
    return Remedy(changes, overrides, "a bound: the gap between train and held-out text", 0.0, gap)


def dropouts(facts: Facts) -> list[tuple[str, float]]:
    """The model's keys and rates that act on what it computes: `model.dropout` where the others follow it.

    None with init_from, which brings the model's node. dropout_words takes whole words and is no stronger form of it.
    """
    have = facts.settings
    rates = {key: rate for key, rate in have.items() if key.startswith("model.dropout")}
    if have.get("init_from"):
        return []
    if "model.dropout" in rates:
        return [("model.dropout", rates["model.dropout"])]
    idle = {"model.dropout_words", *(["model.dropout_between"] if have.get("model.n_layers") == 1 else [])}
    return [(key, rate) for key, rate in rates.items() if key not in idle]


def more_text(facts: Facts) -> str:
    """The rest of the run's own text, or a place for the path of more."""
    have = facts.settings
    if have.get("train_share", 1.0) < 1:
        return "train_share=1.0"
    if not have.get("corpus._target_", "").endswith(".Files"):
        return f"corpus=files corpus.train={PLACEHOLDER}"
    return f"corpus.{'path' if have.get('corpus.path') else 'train'}={PLACEHOLDER}"


def with_measured_text(candidates: Sequence[Remedy], low: float, high: float, parts: int, facts: Facts) -> list[Remedy]:
    """With what twice the text would gain, as runs on parts of it say; without more text where that is nothing."""
    others = [remedy for remedy in candidates if remedy.changes != "text"]
    if high < SHOWN:
        return others
    return ranked(
        [*others, Remedy("text", more_text(facts), f"measured on {parts} parts, for twice the text", low, high)]
    )


def resized(times: float, facts: Facts, gap: float | None) -> Remedy | None:
    """A model of so many times the parameters, where a width can be found for them: not with weights from elsewhere."""
    width, unit = facts.settings.get("model.d_model"), 2 * (facts.settings.get("model.n_heads") or 0.5)
    if width is None or facts.settings.get("init_from") or width * times < 2 * unit:
        return None
    return bounded("size", f"n_params={round(facts.parameters * times)}", gap)


def longer(facts: Facts, ahead: Forecast | None) -> Remedy | None:
    """Twice the training, by every budget that would end it sooner."""
    told = [f"{key}={_number(2 * value)}" for key, value, steps in limits(facts) if steps < 2 * facts.steps]
    if time := facts.settings.get("trainer.max_time"):
        told.append(f"trainer.max_time={_twice(str(time))}")
    if not told or (ahead is not None and ahead.high < SHOWN):
        return None
    if ahead is None:
        return Remedy("steps", " ".join(told), UNTOLD)
    return Remedy("steps", " ".join(told), "a law fitted to its curve", max(0.0, ahead.low), ahead.high)


def limits(facts: Facts) -> list[tuple[str, float, float]]:
    """The budgets that the run has: key, value, and the step at which it ends training."""
    per_epoch = facts.steps / facts.epochs if facts.epochs else np.inf
    tokens = parse_count(facts.settings.get("max_tokens"), "max_tokens")
    have = {key: facts.settings.get(key) for key in ("trainer.max_steps", "trainer.max_epochs")}
    have["max_tokens"] = tokens
    scale = {"trainer.max_epochs": per_epoch, "max_tokens": per_epoch / max(facts.train_tokens, 1)}
    return [(key, value, value * scale.get(key, 1.0)) for key, value in have.items() if value not in (None, -1)]


def _lowest(losses: np.ndarray) -> float | None:
    """Of those that are numbers; None where there are none."""
    known = losses[np.isfinite(losses)]
    return float(known.min()) if len(known) else None


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else f"{value:g}"


def _twice(time: str) -> str:
    """Of DD:HH:MM:SS."""
    days, hours, minutes, seconds = map(int, time.split(":"))
    total = 2 * timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)
    minutes, seconds = divmod(total.seconds, 60)
    return f"{total.days:02}:{minutes // 60:02}:{minutes % 60:02}:{seconds:02}"
